"""Text that somebody else wrote, made fit for an error, a log or a terminal.

Containers, engines and callers of the proxy write what they like. In a terminal, control characters
act: they set the clipboard, hide what was printed, or turn the order of letters round. In a log, a
line break makes a second entry. So each error and each log record of this project passes through
:func:`clean`, by way of ``ContainersError`` and :func:`get_logger`.
"""

from __future__ import annotations

import logging
import re
import reprlib
import unicodedata
from collections.abc import Iterable

#: Characters of a log record, and of a value that an error shows.
_LOG_LIMIT = 4000
_VALUE_LIMIT = 200

#: Characters beyond the limit that are looked at, so that no password is cut before its end.
_MARGIN = 1000

# What stands before the @ of a URL, as pip's indexes and git's remotes have it.
_CREDENTIALS = re.compile(r"(?<=//)[^/@\s]+@")

#: What stands before the second and later lines.
_QUOTE = "  | "

# Arguments of engines that give a value to a variable.
_ENV_FLAGS = ("--env", "--build-arg", "-e")
_SETTING = re.compile(r"\A([^=]*=).*\Z", re.DOTALL)
_FLAG_AND_SETTING = re.compile(r"\A((?:--env=|--build-arg=|-e)[^=]*=).*\Z", re.DOTALL)

_LINE_BREAK = re.compile(r"\r\n?")


def clean(text: object, limit: int = _LOG_LIMIT, *, lines: bool = False) -> str:
    """Return text that acts on nothing, is not long, and has no password in a URL.

    What cannot be printed is escaped as ``repr()`` does it: control characters, and those that are
    invisible, change the direction or break the line. Doing it twice changes nothing.

    Args:
        text: anything; its ``str()`` is used.
        limit: the most characters to return. Longer text loses its middle, as messages of
            programs often say at their end what went wrong.
        lines: whether the text may have several lines. All but the first get a bar in front, so
            that none can be taken for one that the host wrote.
    """
    text = str(text)
    left_out = max(0, len(text) - 2 * (limit + _MARGIN))
    if left_out:
        half = limit + _MARGIN
        return _shorten(
            _escape(without_credentials(text[:half]), lines=lines),
            _escape(without_credentials(text[-half:]), lines=lines),
            limit,
        )
    escaped = _escape(without_credentials(text), lines=lines)
    return escaped if len(escaped) <= limit else _shorten(escaped, escaped, limit)


def _shorten(head: str, tail: str, limit: int) -> str:
    mark = " […] "
    room = max(0, limit - len(mark))
    return head[: room - room // 3] + mark + tail[len(tail) - room // 3 :]


def _escape(text: str, *, lines: bool) -> str:
    if text.isprintable():
        return text
    if lines:
        parts = _LINE_BREAK.sub("\n", text).rstrip("\n").expandtabs(8).split("\n")
        first, *others = (_escape(part, lines=False) for part in parts)
        return "\n".join([first, *(o if o.startswith(_QUOTE) else _QUOTE + o for o in others)])
    return "".join(char if char.isprintable() else _escape_one(char) for char in text)


def _escape_one(char: str) -> str:
    if unicodedata.category(char) == "Zs" or char == "\t":
        return " "
    return char.encode("unicode_escape").decode("ascii")


def without_credentials(text: str) -> str:
    """Hide the names and passwords in the URLs of a text."""
    return _CREDENTIALS.sub("****@", text)


def without_env(arguments: Iterable[str]) -> list[str]:
    """Hide the values of variables, and credentials in URLs, in the arguments of an engine."""
    shown = []
    before = ""
    for argument in arguments:
        pattern = _SETTING if before in _ENV_FLAGS else _FLAG_AND_SETTING
        shown.append(pattern.sub(r"\1…", without_credentials(argument)))
        before = argument
    return shown


class _Shortened(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = _VALUE_LIMIT


def brief(value: object) -> str:
    """Return the beginning of a value's ``repr()``, for a message: at most 200 characters.

    Args:
        value: anything, of any size. One whose ``repr()`` fails is described by its type.
    """
    try:
        text = repr(value) if isinstance(value, str) and len(value) <= _VALUE_LIMIT else ""
        text = text or _Shortened().repr(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    return clean(text, _VALUE_LIMIT)


class _CleanRecords(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = clean(record.getMessage()), ()
        return True


_clean_records = _CleanRecords()


def get_logger(name: str) -> logging.Logger:
    """Return a logger whose records are clean: one line each, whatever their arguments say."""
    logger = logging.getLogger(name)
    logger.addFilter(_clean_records)  # adds it once only
    return logger
