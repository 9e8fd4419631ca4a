"""Which engines to test on, and sandboxes on them.

``pytest --engine docker --engine podman-rootless`` names engines, and so does the environment:
``RLM_CONTAINERS_TEST_ENGINES=docker,podman-rootless``. The default is every engine that this process
can use. ``local`` is no engine: it runs ``tests/behaviour`` without containers. ``tests/behaviour``
runs locally and on the first engine only, ``tests/engine`` on all, and ``tests/cluster`` on
``kubernetes``, the cluster that kubectl is at. That is never tested on unless it is named.

An engine that was named but does not answer fails the tests if ``CI=true``, and skips them otherwise.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from rlm_containers import Sandbox, SandboxOptions
from rlm_containers.state import workspaces_directory

_BEHAVIOUR = Path(__file__).parent / "behaviour"
_CLUSTER = Path(__file__).parent / "cluster"

pytest.register_assert_rewrite("tests.support")  # for what its assertions say when they fail

from tests import support  # noqa: E402
from tests.support import (  # noqa: E402
    ENGINES,
    KUBERNETES,
    LOCAL,
    Engine,
    KubernetesEngine,
    LocalEngine,
    assert_gone,
)

# A shell starts background jobs with SIGINT ignored, which their children inherit. Tests need it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--engine",
        action="append",
        choices=(LOCAL, *ENGINES, KUBERNETES),
        help="test on this engine; repeatable (default: all that this process can use)",
    )


def pytest_collection_finish(session: pytest.Session) -> None:
    """Spare forked children the pages that a garbage collection would make them copy."""
    gc.collect()
    gc.freeze()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" not in metafunc.fixturenames:
        return
    names = _named(metafunc.config)
    if _BEHAVIOUR in metafunc.definition.path.parents:
        engines = [name for name in names or support.usable() if name != LOCAL][:1]
        local = (not names or LOCAL in names) and not metafunc.definition.get_closest_marker(
            "container"
        )
        names = [LOCAL] * local + engines
    elif _CLUSTER in metafunc.definition.path.parents:
        names = [KUBERNETES]
    else:
        names = [name for name in names if name != KUBERNETES]
        # Without any engine the tests must still show, as skipped or failed.
        names = [name for name in names or support.usable() or ["docker"] if name != LOCAL]
    metafunc.parametrize("engine", names, indirect=True, scope="session")


def _named(config: pytest.Config) -> list[str]:
    """The engines named on the command line or in the environment."""
    named = config.getoption("--engine") or []
    if not named:
        named = [n for n in os.environ.get("RLM_CONTAINERS_TEST_ENGINES", "").split(",") if n]
    for name in named:
        if name not in (LOCAL, *ENGINES, KUBERNETES):
            raise pytest.UsageError(
                f"RLM_CONTAINERS_TEST_ENGINES: there is no {name!r}, only "
                f"{', '.join((LOCAL, *ENGINES, KUBERNETES))}"
            )
    return list(dict.fromkeys(named))


@pytest.fixture(scope="session", autouse=True)
def no_configuration() -> Iterator[None]:
    """Ignore this user's configuration of the project.

    XDG_CONFIG_HOME stays, since podman and pip need the settings there.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLM_CONTAINERS_CONFIG", os.devnull)
        for field in dataclasses.fields(SandboxOptions):
            patch.delenv(f"RLM_CONTAINERS_{field.name.upper()}", raising=False)
        yield


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache directory that only the sandboxes of this test session write to."""
    directory = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        # Podman's own files are elsewhere: in XDG_DATA_HOME and XDG_RUNTIME_DIR.
        patch.setenv("XDG_CACHE_HOME", str(directory))
        patch.setenv("XDG_STATE_HOME", str(directory / "state"))
        yield directory
    # A failed test may leave directories too deep for shutil.rmtree, which pytest uses.
    subprocess.run(("rm", "-rf", "--", directory), check=False)


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest, cache: Path) -> Iterator[Engine]:
    """The engine to test on. It fails if the last test leaves anything of this session on it."""
    if request.param == LOCAL:
        with pytest.MonkeyPatch.context() as patch:
            # Local guests do not know the alias by which containers reach this host.
            patch.setattr("rlm_containers.sandbox.lifecycle.HOST_ALIAS", "127.0.0.1")
            yield LocalEngine()
            return
    engine = KubernetesEngine() if request.param == KUBERNETES else Engine(request.param)
    if request.param == KUBERNETES and KUBERNETES not in _named(request.config):
        pytest.skip("NOT TESTED: Kubernetes. Name it: --engine kubernetes")
    if reason := support.missing(engine.name):
        if support.on_ci():
            pytest.fail(f"the engine {engine.name} is missing: {reason}", pytrace=False)
        pytest.skip(f"the engine {engine.name} is missing: {reason}")
    yield engine
    try:
        assert_gone(engine, str(cache))
    finally:
        for container in engine.containers(str(cache)):
            remove = ("delete", "job") if engine.name == KUBERNETES else ("rm", "--force")
            engine.run(*remove, container["Id"], check=False)


class MakeBox(Protocol):
    """Starts a sandbox on the engine; the arguments are those of :class:`Sandbox`."""

    def __call__(self, image: str | None = None, **options: Any) -> Sandbox: ...


@pytest.fixture
def make_box(engine: Engine) -> Iterator[MakeBox]:
    """Make sandboxes that a test may break. Afterwards close them and check that nothing is left."""
    boxes: list[Sandbox] = []

    def make(image: str | None = None, **options: Any) -> Sandbox:
        box = Sandbox(image or engine.image(), runtime=engine.runtime, **options)
        boxes.append(box)
        return box.start()

    yield make
    for box in boxes:
        box.close()
    assert_gone(engine, *(box.name for box in boxes))


@pytest.fixture(scope="module")
def box(request: pytest.FixtureRequest, engine: Engine) -> Iterator[Sandbox]:
    """A sandbox that the tests of a module share. Their cells must not break it.

    The module may have ``OPTIONS`` for it.
    """
    options: dict[str, Any] = {"memory": engine.memory, **getattr(request.module, "OPTIONS", {})}
    with Sandbox(engine.image(), runtime=engine.runtime, **options) as box:
        yield box


@contextlib.contextmanager
def workspaces_on_disk_of(size: str) -> Iterator[Path]:
    """Meanwhile keep workspaces on a file system of this size, such as ``"8m"``."""
    if os.getuid() != 0:
        pytest.skip("needs root, to mount a small file system; tested on the rootful engines")
    place = workspaces_directory()
    place.mkdir(parents=True, exist_ok=True)
    options = f"size={size},mode=700"
    subprocess.run(("mount", "-t", "tmpfs", "-o", options, "none", place), check=True)
    try:
        yield place
    finally:
        subprocess.run(("umount", "-l", place), check=True)
