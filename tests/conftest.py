"""Which engines to test on, and sandboxes on them.

``pytest --engine docker --engine podman-rootless``, or the same in the environment:
``RLM_CONTAINERS_TEST_ENGINES=docker,podman-rootless``. Without either, every engine that this
process can use. One that was asked for and does not answer is a failure with ``CI=true``, and else
a skip that the summary shows.
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

pytest.register_assert_rewrite("tests.support")  # for what its assertions say when they fail

from tests import support  # noqa: E402
from tests.support import ENGINES, Engine, assert_gone  # noqa: E402

# A shell's background jobs begin with Ctrl-C ignored, and so would every program they start. Tests
# press it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--engine",
        action="append",
        choices=ENGINES,
        help="test on this engine; repeatable (default: all that this process can use)",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "engine" in metafunc.fixturenames:
        metafunc.parametrize("engine", _chosen(metafunc.config), indirect=True, scope="session")


def _chosen(config: pytest.Config) -> list[str]:
    named = config.getoption("--engine") or []
    if not named:
        named = [n for n in os.environ.get("RLM_CONTAINERS_TEST_ENGINES", "").split(",") if n]
    for name in named:
        if name not in ENGINES:
            raise pytest.UsageError(
                f"RLM_CONTAINERS_TEST_ENGINES: there is no {name!r}, only {', '.join(ENGINES)}"
            )
    # None at all must show as well.
    return list(dict.fromkeys(named)) or support.usable() or ["docker"]


@pytest.fixture(scope="session", autouse=True)
def no_configuration() -> Iterator[None]:
    """Sandboxes as they are by default, whatever this user has configured.

    Not by another XDG_CONFIG_HOME: podman and pip have settings there that they need.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLM_CONTAINERS_CONFIG", os.devnull)
        for field in dataclasses.fields(SandboxOptions):
            patch.delenv(f"RLM_CONTAINERS_{field.name.upper()}", raising=False)
        yield


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache directory of this session's own, below which nothing but its sandboxes writes."""
    directory = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        # Podman keeps what it stores elsewhere: XDG_DATA_HOME, XDG_RUNTIME_DIR.
        patch.setenv("XDG_CACHE_HOME", str(directory))
        patch.setenv("XDG_STATE_HOME", str(directory / "state"))
        yield directory
    # Not pytest, later: what a failed test left may be too deep for shutil.rmtree.
    subprocess.run(("rm", "-rf", "--", directory), check=False)


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest, cache: Path) -> Iterator[Engine]:
    """The engine to test on. After the last test nothing of ours may be left on it."""
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
    """Sandboxes for a test that may break them. Closed at its end; nothing may be left of them."""
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
    """A sandbox that the tests of a module share, for cells that do not break it."""
    with Sandbox(engine.image(), runtime=engine.runtime) as box:
        yield box
