"""The tutorial's Python runs as it is printed, and prints what stands below it."""

from __future__ import annotations

from typing import Any

import pytest

from rlm_containers.state import SessionStore
from tests.documents import DOCS, blocks, run_page
from tests.support import Engine

TUTORIAL = DOCS / "tutorial.md"


def test_most_blocks_are_run() -> None:
    assert sum(block.why_not is None for block in blocks(TUTORIAL)) > 10


def test_the_tutorial(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLM_CONTAINERS_RUNTIME", engine.runtime)
    monkeypatch.setenv("RLM_CONTAINERS_IMAGE", engine.image())
    names: dict[str, Any] = {}
    try:
        run_page(TUTORIAL, names)
        assert "tutorial" in SessionStore().names()
    finally:
        if "box" in names:
            names["box"].close()
            SessionStore().remove("tutorial")
