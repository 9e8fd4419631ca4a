"""What goes to the terminal: plain where there is none, and nothing of a container's that acts."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

# Escape sequences of a cell could change the title, write to the clipboard, or hide what was said
# before. What is let through sets colours and clears the rest of a line, which progress bars need.
_ALLOWED = r"\x1b\[[0-9;:]*[mK]"
_CONTROL = re.compile(rf"({_ALLOWED})|[\x00-\x07\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_UNFINISHED = re.compile(r"\x1b(\[[0-9;:]{0,32})?\Z")


class OutputWriter:
    """Writes a cell's output as it comes: to a terminal without what acts on it, else as it is.

    Args:
        stream: where to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._filters = stream.isatty()
        self._held = ""
        #: Whether the last line is not finished.
        self.in_line = False

    def write(self, text: str) -> None:
        """Write a piece, which may end in the middle of an escape sequence."""
        if self._filters:
            text = self._held + text
            unfinished = _UNFINISHED.search(text)
            self._held = unfinished.group() if unfinished else ""
            text = _CONTROL.sub(r"\1", text[: len(text) - len(self._held)])
        if text:
            self.in_line = not text.endswith("\n")
            try:
                self._stream.write(text)
            except UnicodeEncodeError:  # a terminal, or a locale, that has not all characters
                encoding = self._stream.encoding
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self._stream.flush()


def harmless(text: object, limit: int = 1000) -> str:
    """One line of text from a container, for messages and tables."""
    return "".join(
        char if char.isprintable() else " " if char in "\t\n\r" else "\N{REPLACEMENT CHARACTER}"
        for char in str(text)[:limit]
    )


@cache
def console(*, stderr: bool = False) -> Console:
    """The terminal as rich has it, which knows ``NO_COLOR`` and what is no terminal."""
    from rich.console import Console

    # What is said here is text, not markup, and numbers in it are nothing special.
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table: on a terminal as wide as that, else in full and in columns of spaces."""
    cells = [[harmless(cell) for cell in row] for row in rows]
    if console().is_terminal:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(*columns, box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for row in cells:
            table.add_row(*map(Text, row))
        console().print(table, soft_wrap=False)
        return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for row in ([column.upper() for column in columns], *cells):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(line.rstrip() + "\n")
