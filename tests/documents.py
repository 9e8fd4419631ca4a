"""Runs the Python of a page of the documentation, and compares what it prints."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"

#: A block of Python, what marks it as one that needs more than there is here, and what it prints.
_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>[^>]*) -->\n\n)?^```python\n(?P<code>.*?)^```\n"
    r"(?:\n^```text\n(?P<printed>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A block of a page."""

    code: str
    printed: str
    why_not: str | None
    line: int


def blocks(page: Path) -> list[Block]:
    """Return the blocks of Python of a page."""
    text = page.read_text()
    found = [
        Block(
            code=found["code"],
            printed=found["printed"] or "",
            why_not=found["why"],
            line=text.count("\n", 0, found.start("code")) + 1,
        )
        for found in _BLOCK.finditer(text)
    ]
    assert len(found) == text.count("```python\n")
    return found


def run_page(page: Path, names: dict[str, Any]) -> None:
    """Run the blocks of a page one after the other.

    Args:
        page: the page.
        names: the variables of its program.
    """
    names.setdefault("__name__", f"page_{page.stem}")
    for block in blocks(page):
        # Line numbers as in the page, for what a traceback says.
        code = compile("\n" * (block.line - 1) + block.code, page, "exec")
        if block.why_not is not None:
            continue
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(code, names)
        assert output.getvalue() == block.printed, f"{page.name}:{block.line}"
