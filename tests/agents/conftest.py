"""What the tests of all agent frameworks need."""

from __future__ import annotations

from typing import Any, Protocol

import pytest

from tests.documents import DOCS, run_page
from tests.support import Engine


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Run async tests with asyncio."""
    return "asyncio"


class RunPage(Protocol):
    """Runs the how-to of that name with these variables, on the engine."""

    def __call__(self, name: str, **names: Any) -> None: ...


@pytest.fixture
def run_how_to(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> RunPage:
    monkeypatch.setenv("RLM_CONTAINERS_RUNTIME", engine.runtime)
    monkeypatch.setenv("RLM_CONTAINERS_IMAGE", engine.image())

    def run(name: str, **names: Any) -> None:
        run_page(DOCS / "howto" / f"{name}.md", names)

    return run
