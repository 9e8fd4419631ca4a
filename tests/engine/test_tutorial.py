"""The tutorial's Python runs as it is printed, and prints what stands below it."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rlm_containers.state import SessionStore
from tests.support import Engine

TUTORIAL = Path(__file__).parent.parent.parent / "docs" / "tutorial.md"

#: A block of Python, what marks it as one that needs more than there is here, and what it prints.
_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>[^>]*) -->\n\n)?^```python\n(?P<code>.*?)^```\n"
    r"(?:\n^```text\n(?P<printed>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A block of the tutorial."""

    code: str
    printed: str
    why_not: str | None
    line: int


def _blocks() -> list[Block]:
    text = TUTORIAL.read_text()
    return [
        Block(
            code=found["code"],
            printed=found["printed"] or "",
            why_not=found["why"],
            line=text.count("\n", 0, found.start("code")) + 1,
        )
        for found in _BLOCK.finditer(text)
    ]


def test_every_block_is_found() -> None:
    blocks = _blocks()
    assert len(blocks) == TUTORIAL.read_text().count("```python\n")
    assert sum(block.why_not is None for block in blocks) > 10


def test_the_tutorial(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLM_CONTAINERS_RUNTIME", engine.runtime)
    monkeypatch.setenv("RLM_CONTAINERS_IMAGE", engine.image())
    names: dict[str, Any] = {"__name__": "tutorial"}
    try:
        for block in _blocks():
            # Line numbers as in the page, for what a traceback says.
            code = compile("\n" * (block.line - 1) + block.code, TUTORIAL, "exec")
            if block.why_not is not None:
                continue
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(code, names)
            assert output.getvalue() == block.printed, f"{TUTORIAL.name}:{block.line}"
        assert "tutorial" in SessionStore().names()
    finally:
        if "box" in names:
            names["box"].close()
            SessionStore().remove("tutorial")
