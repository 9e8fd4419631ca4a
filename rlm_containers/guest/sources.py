"""The source code of cells, for tracebacks, warnings and ``inspect``.

Tracebacks find it in :mod:`linecache`, under the file names that the cells were compiled with. An
entry without a modification time is never checked against a file.
"""

from __future__ import annotations

import functools
import io
import linecache
import re
import sys
import types
from collections.abc import Iterable, Mapping
from typing import Any

from .imports import change_once_imported

# File names of cells that were run by an earlier interpreter. Their functions may still be there.
_restored: set[str] = set()


def add(name: str, code: str) -> str:
    """Keep the source of a cell. Return the file name to compile it with.

    Another worker that goes on with the variables numbers its cells from 1 again. What is left of
    the earlier cells keeps its source.
    """
    filename = "<{}>".format(name)
    lines = _lines(code)
    count = 1
    while filename in _restored and _known(filename) != lines:
        count += 1
        filename = "<{} ({})>".format(name, count)
    _put(filename, lines)
    return filename


def texts(filenames: Iterable[str]) -> dict[str, str]:
    """Return the sources of cells among some files."""
    found = {name: _known(name) for name in sorted(filenames)}
    return {name: "".join(lines) for name, lines in found.items() if lines is not None}


def restore(sources: Mapping[str, str]) -> None:
    """Take over sources from an earlier interpreter."""
    for name, code in sources.items():
        _restored.add(name)
        _put(name, _lines(code))


def _lines(code: str) -> list[str]:
    # Not splitlines(), which splits at more characters than Python does.
    return io.StringIO(code, newline=None).readlines()


def _put(filename: str, lines: list[str]) -> None:
    if type(linecache.cache) is not dict:  # a cell has replaced it
        linecache.cache = {}
    linecache.cache[filename] = (sum(map(len, lines)), None, lines, filename)


def _known(filename: str) -> list[str] | None:
    """Return the lines of a cell, or ``None`` for another file."""
    entry: Any = linecache.cache.get(filename) if type(linecache.cache) is dict else None
    if type(entry) is tuple and len(entry) == 4 and entry[1] is None:
        lines: list[str] = entry[2]
        return lines
    return None


def watch() -> None:
    """Let ``inspect`` find the sources of classes too."""
    change_once_imported({"inspect": _change})
    if "inspect" in sys.modules:
        _change(sys.modules["inspect"])


def _change(inspect: Any) -> None:
    original = inspect.getfile

    @functools.wraps(original)
    def getfile(object: Any) -> Any:  # noqa: A002 - its name in inspect
        if isinstance(object, type) and object.__module__ == "__main__":
            filename = _file_of(object)
            if filename is not None:
                return filename
        return original(object)

    inspect.getfile = getfile


def _file_of(cls: type) -> str | None:
    """Return the file name of the cell that has defined a class, if it can be found."""
    for member in vars(cls).values():
        function = getattr(member, "fget", None) or getattr(member, "__func__", member)
        if isinstance(function, types.FunctionType) and function.__module__ == cls.__module__:
            filename = function.__code__.co_filename
            if function.__qualname__.startswith(cls.__qualname__ + ".") and _known(filename):
                return filename
    statement = re.compile(r"^\s*class\s+{}\b".format(re.escape(cls.__name__)), re.MULTILINE)
    for filename in reversed(list(linecache.cache)):
        lines = _known(filename)
        if lines and statement.search("".join(lines)):
            return filename
    return None
