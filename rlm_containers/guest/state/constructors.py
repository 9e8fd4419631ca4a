"""What state files call to make objects that pickle alone cannot.

State files name these functions, so the module and they keep their names and parameters.
"""

from __future__ import annotations

import functools
import importlib
import marshal
import os
import threading
import types
from typing import Any


def make_code(raw: bytes) -> types.CodeType:
    """Make a code object."""
    code: types.CodeType = marshal.loads(raw)
    return code


def make_function(
    code: types.CodeType,
    namespace: dict[str, Any] | types.ModuleType | str,
    name: str,
    closure: tuple[types.CellType, ...] | None,
) -> types.FunctionType:
    """Make a function; ``namespace`` is that of its globals, or its module, or the name of that."""
    if isinstance(namespace, str):
        namespace = importlib.import_module(namespace)
    if isinstance(namespace, types.ModuleType):
        namespace = namespace.__dict__
    return types.FunctionType(code, namespace, name, None, closure)


def fill_function(function: types.FunctionType, state: dict[str, Any]) -> None:
    """Give a function the rest of its attributes."""
    for name, value in state.items():
        if name == "__dict__":
            function.__dict__.update(value)
        else:
            setattr(function, name, value)


def make_cell() -> types.CellType:
    """Make an empty closure cell."""
    return types.CellType()


def fill_cell(cell: types.CellType, contents: tuple[Any]) -> None:
    """Fill a closure cell."""
    (cell.cell_contents,) = contents


def make_proxy(mapping: dict[Any, Any]) -> types.MappingProxyType[Any, Any]:
    """Make a read-only view of a dict."""
    return types.MappingProxyType(mapping)


def make_cache(function: Any, maxsize: int | None, typed: bool) -> Any:
    """Make an empty ``functools.lru_cache`` of a function."""
    return functools.lru_cache(maxsize, typed)(function)


def make_lock(locked: bool) -> Any:
    """Make a ``threading.Lock``."""
    lock = threading.Lock()
    if locked:
        lock.acquire()
    return lock


def make_reentrant_lock(count: int) -> Any:
    """Make a ``threading.RLock`` that this thread has acquired so many times."""
    lock = threading.RLock()
    for _ in range(count):
        lock.acquire()
    return lock


def make_closed_file(name: str, mode: str, encoding: str | None, raw: bool) -> Any:
    """Make a file that is closed. Nothing is opened by its name."""
    opened = mode.replace("x", "w")
    file: Any = open(os.devnull, opened, 0 if raw else -1, encoding)  # noqa: SIM115
    buffer = getattr(file, "buffer", file)
    getattr(buffer, "raw", buffer).name = name
    if buffer is not file:
        file.mode = mode
    file.close()
    return file


def named(module: str, name: str) -> Any:
    """Return an attribute of a module."""
    return getattr(importlib.import_module(module), name)
