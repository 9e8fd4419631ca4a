"""Everything that the program writes to a terminal, made safe to show.

Text of a container's may act on a terminal. What passes through here cannot, and where there is no
terminal it is plain text.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, TextIO

from rlm_containers.errors import ContainersError
from runtimes.text import clean

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

# A cell's escape sequences could change the title, write to the clipboard, or hide what was printed
# before. Allowed are those that set colours, and clear the rest of a line for progress bars. A cell
# may go back to the start of a line, but not by single characters. Characters that nobody sees, or
# that change the direction of text, are removed, except for the joiners of scripts and emoji.
_CONTROL = re.compile(
    r"(\x1b\[[0-9;:]{0,64}m)|(\x1b\[[012]?K)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u061c\u180e"
    r"\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_UNFINISHED = re.compile(r"\x1b(\[[0-9;:]{0,64})?\Z")
_RESET = "\x1b[0m"

# How many numbers follow the kind of a colour: an index, or red, green and blue.
_COLOUR_NUMBERS = {"5": 1, "2": 3}
_CONCEAL = "8"

#: Characters of a cell of a table.
_CELL_LIMIT = 1000

_LOGGERS = ("rlm_containers", "runtimes")


class OutputWriter:
    """Writes a cell's output as it comes, and removes what would act on a terminal.

    Args:
        stream: where to write. If it is no terminal, it gets the output unchanged.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._filters = stream.isatty()
        self._held = ""
        self._coloured = False
        #: Whether the last line has no end yet.
        self.in_line = False

    def write(self, text: str) -> None:
        """Write a piece, which may end in the middle of an escape sequence."""
        if self._filters:
            text = self._held + text
            unfinished = _UNFINISHED.search(text)
            self._held = unfinished.group() if unfinished else ""
            text = _CONTROL.sub(self._allowed, text[: len(text) - len(self._held)])
        if text:
            self.in_line = not text.endswith("\n")
            self._put(text)

    def reset(self) -> None:
        """Forget an unfinished escape sequence, and end the colours that are still set."""
        self._held = ""
        if self._coloured:
            self._coloured = False
            self._put(_RESET)

    def _put(self, text: str) -> None:
        try:
            self._stream.write(text)
        except UnicodeEncodeError:  # the terminal's or locale's encoding lacks a character
            encoding = self._stream.encoding
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        self._stream.flush()

    def _allowed(self, found: re.Match[str]) -> str:
        if found[1] is None:
            return found[2] or ""
        shown = _without_conceal(found[1][2:-1].split(";"))
        if shown:
            self._coloured = shown[-1].strip("0") != ""
        return f"\x1b[{';'.join(shown)}m" if shown else ""


def _without_conceal(codes: list[str]) -> list[str]:
    """Return the numbers of a sequence that sets colours, without that for invisible text."""
    shown = []
    while codes:
        code = codes.pop(0)
        number = code.partition(":")[0].lstrip("0")
        if number in ("38", "48", "58") and ":" not in code:
            count = _COLOUR_NUMBERS.get(codes[0].lstrip("0"), 0) if codes else 0
            if count:  # else terminals differ in what they make of it
                shown += [code, *codes[: count + 1]]
                del codes[: count + 1]
        elif number != _CONCEAL:
            shown.append(code)
    return shown


@cache
def console(*, stderr: bool = False) -> Console:
    """Return rich's view of the terminal, which heeds ``NO_COLOR`` and detects pipes."""
    from rich.console import Console

    # All that is printed is plain text: no markup, and no numbers to highlight.
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table: fitted to a terminal, or else in full, with columns of spaces."""
    cells = [[clean(cell, _CELL_LIMIT) for cell in row] for row in rows]
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


# Messages, on standard error


def say(text: str, style: str | None = None) -> None:
    """Print a message to standard error. The text may have come from a container or an engine."""
    text = _lines(text)
    if style is None and not sys.stderr.isatty():
        sys.stderr.write(f"{text}\n")
    else:
        console(stderr=True).print(text, style=style)


def show_error(error: ContainersError) -> None:
    """Print what happened, in which container, and what to do about it."""
    where = f" [container {error.container}]" if error.container else ""
    _labelled("error", "bold red", _lines(error.what) + where)
    if error.remedy:
        _labelled("try", "bold green", _lines(error.remedy))


def _labelled(label: str, style: str, text: str) -> None:
    from rich.text import Text

    console(stderr=True).print(Text.assemble((f"{label}: ", style), text))


def _lines(text: str) -> str:
    """Return text of several lines, each of which is printable."""
    return "\n".join(map(clean, text.split("\n")))


class _PrintingHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        label = record.levelname.lower()
        style = "bold yellow" if record.levelno >= logging.WARNING else "dim"
        _labelled(label, style, _lines(record.getMessage()))


class _StatusHandler(logging.Handler):
    """Shows what the library is doing, such as pulling an image, next to the spinner."""

    def __init__(self, status: Status) -> None:
        super().__init__(logging.INFO)
        self._status = status

    def emit(self, record: logging.LogRecord) -> None:
        from rich.text import Text

        self._status.update(Text(f"{clean(record.getMessage(), 200)} …"))


def show_log(verbosity: int) -> Callable[[], None]:
    """Print this project's log to standard error.

    Args:
        verbosity: 0 for warnings only, 1 for steps, 2 or more for everything.

    Returns:
        A function that restores the loggers.
    """
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
    handler = _PrintingHandler(level)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger.level, logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.setLevel(min(level, logging.INFO))  # activity() shows INFO
        logger.handlers = [handler]
        logger.propagate = False

    def restore() -> None:
        for logger, (old_level, handlers, propagate) in zip(loggers, before, strict=True):
            logger.setLevel(old_level)
            logger.handlers = handlers
            logger.propagate = propagate

    return restore


@contextlib.contextmanager
def activity(text: str) -> Iterator[Callable[[str], None]]:
    """Show a spinner on a terminal for as long as the context lasts.

    Args:
        text: what is being done. Each message of the library's log replaces it.

    Yields:
        A function that shows another text.
    """
    if not console(stderr=True).is_terminal:
        yield lambda text: None
        return
    from rich.text import Text

    with console(stderr=True).status(Text(f"{text} …")) as status:
        handler = _StatusHandler(status)
        for name in _LOGGERS:
            logging.getLogger(name).addHandler(handler)
        try:
            yield lambda text: status.update(Text(f"{clean(text, 200)} …"))
        finally:
            for name in _LOGGERS:
                logging.getLogger(name).removeHandler(handler)


# Progress bars

# `Step 2/5 : RUN …` of docker's older builder, `STEP 2/5: RUN …` of podman, `#7 [2/5] RUN …` and
# `#7 [stage 2/5] …` of BuildKit.
_STEP = re.compile(r"(?:step |#\d+ \[(?:[\w.-]+ )?)\s*(\d{1,4})/(\d{1,4})\b", re.IGNORECASE)

# What docker prints for each layer of a pull.
_BEGUN = re.compile(r"\b([0-9a-f]{12}): (?:pulling fs layer|already exists)", re.IGNORECASE)
_ENDED = re.compile(r"\b([0-9a-f]{12}): (?:pull complete|already exists)", re.IGNORECASE)


class Steps:
    """Counts the steps of a pull or a build by the lines of its log.

    Attributes:
        done: the number of steps that have ended.
        total: the number of all steps known so far.
    """

    def __init__(self) -> None:
        self.done = 0
        self.total = 0
        self._begun: set[str] = set()
        self._ended: set[str] = set()

    def read(self, line: str) -> None:
        """Read one line of the log."""
        if step := _STEP.search(line):
            number, total = int(step[1]), int(step[2])
            # A named step is running, not done. BuildKit runs several at once.
            self.done, self.total = max(self.done, min(number, total) - 1), max(self.total, total)
            return
        if begun := _BEGUN.search(line):
            self._begun.add(begun[1])
        if ended := _ENDED.search(line):
            self._ended.add(ended[1])
        if self._begun:
            self.done, self.total = len(self._ended & self._begun), len(self._begun)


@contextlib.contextmanager
def engine_progress(what: str) -> Iterator[Callable[[str], None]]:
    """Show on a terminal a progress bar for a pull or a build, and the last line of its log.

    Args:
        what: what is being done.

    Yields:
        A function to call with each line of the log.
    """
    screen = console(stderr=True)
    if not screen.is_terminal:
        with activity(what) as show:
            yield show
        return
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[line]}"),
    )
    with Progress(*columns, console=screen, transient=True) as progress:
        task = progress.add_task(escape(what), total=None, line="")
        steps = Steps()
        width = max(10, screen.width - 45)

        def show(line: str) -> None:
            steps.read(line)
            text = escape(clean(line.strip(), width))
            progress.update(task, completed=steps.done, total=steps.total or None, line=text)

        yield show
