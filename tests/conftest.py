"""Which engines to test on, and sandboxes on them.

``pytest --engine docker --engine podman-rootless`` names engines, and so does the environment:
``RLM_CONTAINERS_TEST_ENGINES=docker,podman-rootless``. The default is every engine that this process
can use. ``local`` is no engine: it runs ``tests/behaviour`` without containers. ``tests/behaviour``
runs locally and on the first engine only.

An engine that was named but does not answer fails the tests if ``CI=true``, and skips them otherwise.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from rlm_containers import Sandbox, SandboxOptions

_BEHAVIOUR = Path(__file__).parent / "behaviour"

pytest.register_assert_rewrite("tests.support")  # for what its assertions say when they fail

from tests import support  # noqa: E402
from tests.support import ENGINES, LOCAL, Engine, LocalEngine, assert_gone  # noqa: E402

# A shell starts background jobs with SIGINT ignored, which their children inherit. Tests need it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--engine",
        action="append",
        choices=(LOCAL, *ENGINES),
        help="test on this engine; repeatable (default: all that this process can use)",
    )


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
    else:
        # Without any engine the tests must still show, as skipped or failed.
        names = [name for name in names or support.usable() or ["docker"] if name != LOCAL]
    metafunc.parametrize("engine", names, indirect=True, scope="session")


def _named(config: pytest.Config) -> list[str]:
    """The engines named on the command line or in the environment."""
    named = config.getoption("--engine") or []
    if not named:
        named = [n for n in os.environ.get("RLM_CONTAINERS_TEST_ENGINES", "").split(",") if n]
    for name in named:
        if name not in (LOCAL, *ENGINES):
            raise pytest.UsageError(
                f"RLM_CONTAINERS_TEST_ENGINES: there is no {name!r}, only {', '.join(ENGINES)}"
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
    engine = Engine(request.param)
    if reason := support.missing(engine.name):
        if support.on_ci():
            pytest.fail(f"the engine {engine.name} is missing: {reason}", pytrace=False)
        pytest.skip(f"the engine {engine.name} is missing: {reason}")
    yield engine
    try:
        assert_gone(engine, str(cache))
    finally:
        for container in engine.containers(str(cache)):
            engine.run("rm", "--force", container["Id"], check=False)


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
def box(engine: Engine) -> Iterator[Sandbox]:
    """A sandbox that the tests of a module share. Their cells must not break it."""
    with Sandbox(engine.image(), runtime=engine.runtime) as box:
        yield box
