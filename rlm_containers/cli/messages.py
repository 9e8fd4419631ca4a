"""What the program itself says, all of it on standard error: errors, its log, what it waits for."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rlm_containers.cli.terminal import console, harmless
from rlm_containers.errors import ContainersError

if TYPE_CHECKING:
    from rich.status import Status

_LOGGERS = ("rlm_containers", "runtimes")


def say(text: str, style: str | None = None) -> None:
    """Print something. The text may have come from a container or an engine."""
    text = _lines(text)
    if style is None and not sys.stderr.isatty():
        sys.stderr.write(f"{text}\n")
    else:
        console(stderr=True).print(text, style=style)


def show_error(error: ContainersError) -> None:
    """Print what happened, where, and what to do about it."""
    where = f" [container {error.container}]" if error.container else ""
    _labelled("error", "bold red", _lines(error.what) + where)
    show_remedy(error.remedy)


def show_remedy(remedy: str) -> None:
    """Print what to do, if there is something."""
    if remedy:
        _labelled("try", "bold green", _lines(remedy))


def _labelled(label: str, style: str, text: str) -> None:
    from rich.text import Text

    console(stderr=True).print(Text.assemble((f"{label}: ", style), text))


def _lines(text: str) -> str:
    """Several lines without what acts on a terminal."""
    return "\n".join(harmless(line, 4000) for line in text.split("\n"))


class _Printed(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        label = record.levelname.lower()
        style = "bold yellow" if record.levelno >= logging.WARNING else "dim"
        _labelled(label, style, _lines(record.getMessage()))


class _AsStatus(logging.Handler):
    """Shows what the library does, such as pulling an image, behind the spinner."""

    def __init__(self, status: Status) -> None:
        super().__init__(logging.INFO)
        self._status = status

    def emit(self, record: logging.LogRecord) -> None:
        from rich.text import Text

        self._status.update(Text(f"{harmless(record.getMessage(), 200)} …"))


def show_log(verbosity: int) -> Callable[[], None]:
    """Print this project's log.

    Args:
        verbosity: 0 for warnings only, 1 for what is done, 2 for everything.

    Returns:
        A function that leaves the log as it was before.
    """
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
    handler = _Printed(level)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger.level, logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.setLevel(min(level, logging.INFO))  # INFO for activity()
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
    """Show on a terminal that something goes on, until it is over.

    Args:
        text: what goes on. The library's log takes its place as it comes.

    Yields:
        A function that shows another text.
    """
    if not console(stderr=True).is_terminal:
        yield lambda text: None
        return
    from rich.text import Text

    with console(stderr=True).status(Text(f"{text} …")) as status:
        handler = _AsStatus(status)
        for name in _LOGGERS:
            logging.getLogger(name).addHandler(handler)
        try:
            yield lambda text: status.update(Text(f"{harmless(text, 200)} …"))
        finally:
            for name in _LOGGERS:
                logging.getLogger(name).removeHandler(handler)
