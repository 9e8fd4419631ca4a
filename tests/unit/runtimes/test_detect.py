"""Choosing an engine: the named one, or else the first that answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtimes import get_runtime
from runtimes.command import EngineCommand
from runtimes.errors import (
    ContainersError,
    EngineNotFoundError,
    EngineTimeoutError,
    EngineUnavailableError,
    UnsupportedByEngineError,
)
from tests.unit.engines import FakeCli, docker_info, fake_docker, fake_podman, podman_info

NO_ENGINE = "Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?"


def stopped_docker(directory: Path) -> FakeCli:
    """A docker client of version 28 without an engine."""
    cli = FakeCli(directory, "docker")
    cli.answer("info", docker_info(ServerVersion=""), stderr=NO_ENGINE, exit_code=1)
    return cli


def test_docker_is_first(bin_: Path) -> None:
    fake_docker(bin_)
    fake_podman(bin_)
    assert get_runtime().name == get_runtime(None).name == "docker"


def test_podman_where_there_is_no_docker(bin_: Path) -> None:
    fake_podman(bin_)
    runtime = get_runtime()
    assert runtime.name == "podman"
    assert runtime.info().version == (4, 3, 1)


@pytest.mark.parametrize("named", ["docker", None])
def test_podman_behind_a_program_called_docker(bin_: Path, named: str | None) -> None:
    cli = FakeCli(bin_, "docker")
    cli.answer("info", podman_info(), stderr="Emulate Docker CLI using podman.")
    runtime = get_runtime(named)
    assert (runtime.name, runtime.info().version) == ("podman", (4, 3, 1))
    assert get_runtime(named) is runtime
    assert runtime.remove_command("x")[0] == "docker"


def test_podman_where_docker_has_no_engine(bin_: Path) -> None:
    stopped_docker(bin_)
    fake_podman(bin_)
    assert get_runtime().name == "podman"


def test_podman_where_docker_is_a_wrapper_of_podman(bin_: Path) -> None:
    # The package podman-docker: `docker` is a script that runs podman.
    FakeCli(bin_, "docker").answer("info", podman_info())
    fake_podman(bin_)
    assert get_runtime().name == "podman"


def test_docker_where_podman_is_too_old(bin_: Path) -> None:
    fake_docker(bin_)
    fake_podman(bin_, podman_info("3.4.4"))
    assert get_runtime().name == "docker"


def test_nothing_is_installed(bin_: Path) -> None:
    with pytest.raises(EngineNotFoundError, match="Neither docker nor podman") as caught:
        get_runtime()
    assert "https://" in caught.value.remedy


def test_a_client_without_an_engine(bin_: Path) -> None:
    stopped_docker(bin_)
    with pytest.raises(EngineUnavailableError, match="Is the docker daemon running") as caught:
        get_runtime()
    assert "systemctl start docker" in caught.value.remedy
    with pytest.raises(EngineUnavailableError, match="no Docker engine answers"):
        get_runtime("docker")


def test_an_old_client_without_an_engine_ends_with_status_0(bin_: Path) -> None:
    # docker 20.10 ends with status 0 and has the error in its JSON.
    info = {"ServerErrors": [NO_ENGINE], "ClientInfo": {"Context": "default"}}
    FakeCli(bin_, "docker").answer("info", info)
    with pytest.raises(EngineUnavailableError, match="Is the docker daemon running"):
        get_runtime("docker")
    with pytest.raises(EngineUnavailableError, match="Is the docker daemon running"):
        get_runtime()


def test_the_error_names_every_refusal(bin_: Path) -> None:
    stopped_docker(bin_)
    fake_podman(bin_, podman_info("3.4.4"))
    with pytest.raises(EngineUnavailableError) as caught:
        get_runtime()
    assert "Is the docker daemon running" in str(caught.value)
    assert "Podman is version 3.4.4" in str(caught.value)


@pytest.mark.parametrize("name", ["docker", "podman"])
def test_a_named_engine_that_is_missing(bin_: Path, name: str) -> None:
    (fake_podman if name == "docker" else fake_docker)(bin_)  # does not take its place
    with pytest.raises(EngineNotFoundError, match=f"no program '{name}'"):
        get_runtime(name)


@pytest.mark.parametrize(
    ("name", "version", "good"),
    [
        ("docker", "19.03.15", False),
        ("docker", "20.10.0", True),
        ("docker", "28.2.2", True),
        ("docker", "27.0.0-rc.1", True),
        ("podman", "3.4.4", False),
        ("podman", "4.0.0", True),
        ("podman", "4.3.1", True),
        ("podman", "5.4.0-dev", True),
        ("podman", "", False),
    ],
)
def test_versions(bin_: Path, name: str, version: str, good: bool) -> None:
    if name == "docker":
        fake_docker(bin_, docker_info(ServerVersion=version))
    else:
        fake_podman(bin_, podman_info(version))
    if good:
        assert get_runtime(name).info().version_text == version.partition("-")[0]
    else:
        with pytest.raises(UnsupportedByEngineError, match=version or "unknown") as caught:
            get_runtime(name)
        assert "Upgrade" in caught.value.remedy


def test_podman_that_does_not_work(bin_: Path) -> None:
    stderr = "Error: cannot set up namespace using newuidmap: exit status 1"
    FakeCli(bin_, "podman").answer("info", stderr=stderr, exit_code=125)
    with pytest.raises(EngineUnavailableError, match="newuidmap"):
        get_runtime("podman")
    with pytest.raises(EngineUnavailableError, match="newuidmap"):
        get_runtime()


@pytest.mark.parametrize("name", ["docker", "podman"])
@pytest.mark.parametrize("said", ["", "hello", "[1, 2]", "null", '"x"', "{", "\xff\xfe"])
def test_info_that_makes_no_sense(bin_: Path, name: str, said: str) -> None:
    FakeCli(bin_, name).answer("info", said)
    with pytest.raises(ContainersError) as caught:
        get_runtime(name)
    assert len(str(caught.value)) < 500
    with pytest.raises(ContainersError):
        get_runtime()


def test_a_client_that_hangs(bin_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert EngineCommand.run.__kwdefaults__ is not None
    monkeypatch.setitem(EngineCommand.run.__kwdefaults__, "timeout", 0.3)
    FakeCli(bin_, "docker").script("info", "exec sleep 1000")
    with pytest.raises(EngineUnavailableError, match=r"did not end within 0\.3 s"):
        get_runtime()
    with pytest.raises(EngineTimeoutError, match="`docker info"):
        get_runtime("docker")


def test_podman_where_docker_hangs(bin_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert EngineCommand.run.__kwdefaults__ is not None
    monkeypatch.setitem(EngineCommand.run.__kwdefaults__, "timeout", 1.5)
    FakeCli(bin_, "docker").script("info", "exec sleep 1000")
    fake_podman(bin_)
    assert get_runtime().name == "podman"


def test_info_is_asked_for_once(bin_: Path) -> None:
    cli = fake_docker(bin_)
    assert get_runtime("docker") is get_runtime("docker") is get_runtime()
    assert len(cli.called("info")) == 1


def test_an_engine_that_is_started_later(bin_: Path) -> None:
    cli = stopped_docker(bin_)
    with pytest.raises(EngineUnavailableError):
        get_runtime("docker")
    cli.answer("info", docker_info())
    assert get_runtime("docker").name == "docker"
