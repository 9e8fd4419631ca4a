"""Runtimes: what an engine says of itself, and how it is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rlm_containers import Sandbox
from runtimes import Runtime, get_runtime
from runtimes.errors import UnknownRuntimeError
from tests.support import Engine, printed


def test_info_says_what_the_engine_says(engine: Engine) -> None:
    runtime = get_runtime(engine.runtime)
    info = runtime.info()
    assert info.engine == engine.runtime
    if engine.runtime == "docker":
        raw = json.loads(engine.run("info", "--format={{json .}}").stdout)
        version, cgroups = raw["ServerVersion"], raw["CgroupVersion"]
        rootless = any("rootless" in option for option in raw["SecurityOptions"])
    else:
        raw = json.loads(engine.run("info", "--format=json").stdout)
        version, cgroups = raw["version"]["Version"], raw["host"]["cgroupVersion"]
        rootless = raw["host"]["security"]["rootless"]
    assert version.startswith(info.version_text)
    assert info.version >= (4,)
    assert str(info.cgroup_version) in cgroups
    assert info.rootless == rootless == (engine.name == "podman-rootless")
    assert not info.remote
    assert runtime.info() is info


# Finding it


@pytest.mark.parametrize("form", ["name", "path", "with arguments", "object", "environment"])
def test_how_to_name_it(engine: Engine, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shutil.which(engine.runtime)
    assert path
    forms: dict[str, str | Runtime | None] = {
        "name": engine.runtime,
        "path": path,
        "with arguments": f"{engine.runtime} --log-level=error",
        "object": get_runtime(engine.runtime),
        "environment": None,
    }
    found = forms[form]
    monkeypatch.setenv("RLM_CONTAINERS_RUNTIME", engine.runtime)
    assert get_runtime(found).name == engine.runtime
    with Sandbox(engine.image(), runtime=found) as box:
        assert printed(box, "print('on')") == "on\n"


def test_a_path_with_a_space(engine: Engine, tmp_path: Path) -> None:
    path = shutil.which(engine.runtime)
    assert path
    (tmp_path / "my engines").mkdir()
    link = tmp_path / "my engines" / engine.runtime
    link.symlink_to(path)
    assert get_runtime(f"'{link}'").info().engine == engine.runtime


def test_without_a_name_the_first_that_answers_is_found(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # A client without an engine behind it comes first, and is passed over.
    monkeypatch.delenv("RLM_CONTAINERS_RUNTIME", raising=False)
    real = shutil.which(engine.runtime)
    assert real
    other = "podman" if engine.runtime == "docker" else "docker"
    (tmp_path / other).write_text("#!/bin/sh\necho 'no engine' >&2\nexit 1\n")
    (tmp_path / other).chmod(0o755)
    (tmp_path / engine.runtime).symlink_to(real)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin")
    assert get_runtime().name == engine.runtime


def test_an_empty_environment_variable_is_none(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLM_CONTAINERS_RUNTIME", "")
    assert get_runtime().name in ("docker", "podman")


def test_runtimes_of_third_parties(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "third_party_engine-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: third-party-engine\nVersion: 1.0"
    )
    (package / "entry_points.txt").write_text(
        "[rlm_containers.runtimes]\n"
        "third = third_party_engine:make\n"
        "broken = third_party_engine:missing\n"
        "wrong = third_party_engine:number\n"
    )
    (tmp_path / "third_party_engine.py").write_text(
        "from runtimes.docker import DockerRuntime\n"
        "from runtimes.podman import PodmanRuntime\n"
        "from runtimes.command import EngineCommand\n"
        f"base = {engine.runtime.capitalize()}Runtime\n"
        "class Third(base):\n"
        "    name = 'third'\n"
        f"def make(): return Third(EngineCommand(['{engine.runtime}']))\n"
        "def number(): return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = get_runtime("third")
    assert found.name == "third"
    with Sandbox(engine.image(), runtime="third") as box:
        assert printed(box, "print('on')") == "on\n"
    for name in ("broken", "wrong"):
        with pytest.raises(UnknownRuntimeError, match=name):
            get_runtime(name)


@pytest.mark.parametrize("name", ["kubectl", "/usr/bin/env", "dockerd", 3, b"docker"])
def test_names_that_are_no_runtimes(name: object) -> None:
    with pytest.raises(UnknownRuntimeError):
        get_runtime(name)  # type: ignore[arg-type]
