"""Guests, sandboxes and fake engines for tests without a container."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rlm_containers import Sandbox
from rlm_containers.container.bundle import Bundle, guest_bundle
from runtimes import HostRoute
from runtimes.engine import ContainerEngine
from tests.unit.engines import FakeCli, docker, fake_docker, fake_podman, podman
from tests.unit.guests import Guest, LocalRuntime, unpack
from tests.unit.sessions import Boxes
from tests.unit.terminal import Program


@pytest.fixture(scope="session", autouse=True)
def private_cache(cache: Path) -> Path:
    """Keep workspaces, sessions and bundles out of the user's own cache."""
    return cache


@pytest.fixture(scope="session")
def made_bundle(private_cache: Path) -> Bundle:
    """The bundle, made once."""
    return guest_bundle()


@pytest.fixture(scope="session")
def guest_path(made_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The directories in which any Python finds the guest's modules and dill."""
    return unpack(made_bundle, tmp_path_factory.mktemp("guest"))


@pytest.fixture
def guest(made_bundle: Bundle, tmp_path: Path) -> Iterator[Guest]:
    """A guest that was just started."""
    with Guest(made_bundle, tmp_path) as guest:
        yield guest


@pytest.fixture
def local() -> LocalRuntime:
    """A runtime without containers."""
    return LocalRuntime()


@pytest.fixture
def box(local: LocalRuntime, made_bundle: Bundle) -> Iterator[Sandbox]:
    """A sandbox without a container."""
    with Sandbox(runtime=local) as box:
        yield box


@pytest.fixture
def boxes(
    request: pytest.FixtureRequest, local: LocalRuntime, made_bundle: Bundle
) -> Iterator[Boxes]:
    """Makes sandboxes without a container, and closes them at the end.

    The test's module may have ``OPTIONS`` for all of them.
    """
    boxes = Boxes(local, getattr(request.module, "OPTIONS", {}))
    yield boxes
    for box in boxes.made:
        box.close()


@pytest.fixture
def own_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No sessions but those of this test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture(params=["pipe", "http"])
def route(
    request: pytest.FixtureRequest, local: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> str:
    """How the guest reaches the host: over the pipe, or by HTTP."""
    if request.param == "http":
        local.route = HostRoute(bind="127.0.0.1", address=None)
        monkeypatch.setattr("rlm_containers.sandbox.lifecycle.HOST_ALIAS", "127.0.0.1")
    return str(request.param)


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of this machine's own engines."""
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "CONTAINER_HOST"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def ready(guest: Guest) -> Guest:
    """A guest whose worker is ready."""
    guest.event("hello")
    guest.start()
    return guest


@pytest.fixture(params=["docker", "podman"])
def fake(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ContainerEngine, FakeCli]:
    """An engine of each kind, and the fake program behind it."""
    if request.param == "docker":
        cli = fake_docker(tmp_path)
        return docker(cli), cli
    cli = fake_podman(tmp_path)
    return podman(cli), cli


@pytest.fixture
def bin_(tmp_path: Path, no_settings: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is the whole PATH. No setting names an engine."""
    directory = tmp_path / "bin"
    directory.mkdir()
    sleep = shutil.which("sleep")
    assert sleep is not None
    (directory / "sleep").symlink_to(sleep)
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.delenv("RLM_CONTAINERS_RUNTIME", raising=False)
    return directory


@pytest.fixture(scope="module")
def shared(made_bundle: Bundle) -> Iterator[Sandbox]:
    """A sandbox shared by the tests of a module, which must not spoil it."""
    with Sandbox(runtime=LocalRuntime()) as box:
        yield box


@pytest.fixture
def program(made_bundle: Bundle, tmp_path: Path) -> Program:
    """The command line, with guests instead of containers."""
    return Program(tmp_path / "home", RLM_CONTAINERS_RUNTIME="local")


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Returns a function after whose call none of this project's threads can be started."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("rlm-"):
            raise RuntimeError("can't start new thread")
        start(thread)

    return lambda: monkeypatch.setattr(threading.Thread, "start", refuse)
