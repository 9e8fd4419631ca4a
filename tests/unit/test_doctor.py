"""``rlm_containers.doctor`` and ``rlm-containers doctor``, with fake and missing engines."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rlm_containers.container.bundle import Bundle
from rlm_containers.doctor import Check, diagnose
from tests.unit.engines import docker_info, fake_docker, fake_podman
from tests.unit.terminal import Program


@pytest.fixture
def doctor(bin_: Path) -> Program:
    """The command line on a machine without engines, unless a test makes one."""
    return Program(bin_.parent / "home")


def checks_of(found: dict[str, Any], runtime: str) -> dict[str, dict[str, str]]:
    (engine,) = (engine for engine in found["engines"] if engine["runtime"] == runtime)
    return {check["name"]: check for check in engine["checks"]}


def test_an_engine_that_works(program: Program) -> None:
    done = program("doctor", "--json", "--runtime", "local")
    found = json.loads(done.stdout)
    assert (done.returncode, done.stderr, found["ok"]) == (0, "", True)
    assert {check["name"] for check in found["host"]} == {"python", "config", "workspaces", "rlms"}
    checks = checks_of(found, "local")
    assert list(checks) == [
        "found", "answers", "version", "root", "SELinux", "image", "start", "cell", "workspace",
        "files", "limits", "llm_query", "clean-up",
    ]  # fmt: skip
    assert not [name for name, check in checks.items() if check["status"] == "failed"]
    assert checks["version"]["detail"] == "local 1.0"
    assert checks["root"]["detail"] == "rootless, cgroups v2"
    assert "ms for `x = 1`" in checks["cell"]["detail"]
    assert "over the container's pipe" in checks["llm_query"]["detail"]


def test_the_same_as_a_person_reads_it(program: Program) -> None:
    done = program("doctor", "--runtime", "local")
    lines = done.stdout.splitlines()
    assert lines[0] == "host"
    assert "local" in lines
    assert lines[-1] == "Sandboxes work on: local."
    assert "\x1b" not in done.stdout


def test_in_a_terminal(program: Program) -> None:
    with program.terminal("doctor", "--runtime", "local") as terminal:
        assert terminal.end() == 0
        assert "  ✓ version    local 1.0" in terminal.lines
        assert "\x1b[32m✓" in terminal.raw
    with program.terminal("doctor", "--runtime", "local", NO_COLOR="1") as terminal:
        assert terminal.end() == 0
        assert "  ✓ version    local 1.0" in terminal.lines
        assert "\x1b[32m" not in terminal.raw


def test_no_engine_at_all(doctor: Program) -> None:
    done = doctor("doctor", "--runtime", "docker", "--runtime", "podman", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"]) == (1, False)
    for name in ("docker", "podman"):
        check = checks_of(found, name)["found"]
        assert check["status"] == "failed"
        assert "Install Docker or Podman" in check["remedy"]


def test_an_engine_that_nobody_named_need_not_be_there(doctor: Program) -> None:
    found = json.loads(doctor("doctor", "--json").stdout)
    assert checks_of(found, "podman")["found"]["status"] == "skipped"
    assert found["ok"]  # by the tests' own runtime


def test_a_client_without_an_engine(doctor: Program, bin_: Path) -> None:
    refusal = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock."
    fake_docker(bin_).answer("info", {"ServerErrors": [refusal]}, exit_code=1)
    done = doctor("doctor", "--runtime", "docker")
    assert done.returncode == 1
    assert "FAILED   answers" in done.stdout
    assert refusal in done.stdout
    assert "Start the engine (`systemctl start docker`" in done.stdout
    assert done.stdout.endswith("They do not work on: docker.\n")


def test_an_engine_that_is_too_old(doctor: Program, bin_: Path) -> None:
    fake_docker(bin_, docker_info(ServerVersion="19.3.1"))
    found = json.loads(doctor("doctor", "--runtime", "docker", "--json").stdout)
    check = checks_of(found, "docker")["version"]
    assert (check["status"], check["remedy"]) == ("failed", "Upgrade it, or use Podman.")


def test_an_image_that_is_not_there_is_not_pulled_unasked(doctor: Program, bin_: Path) -> None:
    podman = fake_podman(bin_)
    podman.answer("image inspect", exit_code=125, stderr="Error: x: image not known")
    podman.answer("pull", exit_code=125, stderr="Error: no such registry")
    found = json.loads(doctor("doctor", "--runtime", "podman", "--json").stdout)
    checks = checks_of(found, "podman")
    assert checks["image"]["status"] == "warning"
    assert "doctor --pull" in checks["image"]["remedy"]
    assert checks["cell"]["status"] == "skipped"
    assert podman.called("pull") == []
    done = doctor("doctor", "--runtime", "podman", "--json", "--pull")
    assert done.returncode == 1
    assert "no such registry" in checks_of(json.loads(done.stdout), "podman")["image"]["detail"]


def test_a_container_that_does_not_start(doctor: Program, bin_: Path) -> None:
    docker = fake_docker(bin_)
    docker.answer("image inspect", {"Id": "1", "Size": 1})
    docker.answer("run", exit_code=125, stderr="docker: Error response from daemon: no space left")
    found = json.loads(doctor("doctor", "--runtime", "docker", "--json").stdout)
    check = checks_of(found, "docker")["start"]
    assert check["status"] == "failed"
    assert "no space left" in check["detail"]
    # First with limits, then without: perhaps only the limits do not work.
    limited = [any("--memory" in word for word in call) for call in docker.called("run")]
    assert set(limited) == {True, False}


def test_limits_that_nobody_enforces(made_bundle: Bundle, bin_: Path) -> None:
    info = docker_info(SecurityOptions=["name=rootless"], CgroupVersion="1")
    docker = fake_docker(bin_, info)
    docker.answer("image inspect", {"Id": "1", "Size": 1})
    # Do what the engine does, but without a container.
    docker.script(
        "run",
        "for word; do case $word in *,target=/workspace) place=${word#*source=}; place=${place%%,*};; "
        'esac; last=$word; done; cd "$place"\n'
        f'exec {sys.executable} -c "$(printf %s "$last" | /bin/sed -e '
        '"s#from rlm_guest.boot import#import rlm_guest.worker; '
        "rlm_guest.worker.WORKSPACE = '$place'; from rlm_guest.boot import#\")\"",
    )
    docker.answer("ps", "")
    (report,) = diagnose(["docker"]).engines
    checks = {check.name: check for check in report.checks}
    assert checks["start"].status == "ok", checks["start"]
    assert checks["limits"].status == "warning"
    assert "cgroups v2" in checks["limits"].remedy
    assert not any("--memory" in word for call in docker.called("run") for word in call)
    assert report.ok


def test_as_a_function(made_bundle: Bundle, bin_: Path) -> None:
    told: list[tuple[str, Check]] = []
    found = diagnose(["docker"], on_check=lambda where, check: told.append((where, check)))
    assert not found.ok
    assert [check for where, check in told if where == "docker"] == list(found.engines[0].checks)
    assert [check for where, check in told if where == "host"] == list(found.host)


def test_workspaces_that_cannot_be_made(doctor: Program, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = doctor("doctor", "--json", "--runtime", "docker", XDG_CACHE_HOME=str(tmp_path / "file"))
    found = json.loads(done.stdout)
    (check,) = (check for check in found["host"] if check["name"] == "workspaces")
    assert (done.returncode, check["status"]) == (1, "failed")
    assert "XDG_CACHE_HOME" in check["remedy"]
