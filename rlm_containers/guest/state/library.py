"""Saves objects of the standard library that pickle alone cannot, or would make another of.

A library goes on using some objects that variables may hold too, such as ``os.environ``. These are
saved by their names.
"""

from __future__ import annotations

import functools
import io
import pickle
import re
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

from . import constructors


def find_handler(module: Any, name: str) -> Callable[[Any], Any] | None:
    """Return what reduces the objects of a type, by its module and name, or ``None``."""
    if module == "weakref" or (module, name) == ("builtins", "weakref"):  # the latter in 3.9
        from . import weak  # late: it needs weakref

        return weak.HANDLERS.get(name)
    if module == "dataclasses" and name.startswith("_"):
        return _reduce_sentinel
    if (module, name) in _SINGLE:
        return functools.partial(_reduce_single, _SINGLE[module, name])
    return _BY_NAME.get((module, name))


def _reduce_proxy(proxy: types.MappingProxyType[Any, Any]) -> Any:
    return constructors.make_proxy, (dict(proxy),)


def _reduce_lock(lock: Any) -> Any:
    return constructors.make_lock, (lock.locked(),)


def _reduce_reentrant_lock(lock: Any) -> Any:
    # The threads that may hold it are gone when it is loaded, all but this one.
    found = _RLOCK_STATE.search(repr(lock))
    owner, count = map(int, found.groups()) if found else (0, 0)
    return constructors.make_reentrant_lock, (count if owner == threading.get_ident() else 0,)


_RLOCK_STATE = re.compile(r"owner=(\d+) count=(\d+)")


def _reduce_sentinel(value: Any) -> Any:
    """Save a private object of ``dataclasses``, such as ``MISSING``, by its name."""
    module = sys.modules["dataclasses"]
    for name, found in vars(module).items():
        if found is value:
            return constructors.named, ("dataclasses", name)
    return NotImplemented


#: By module and name of a type: where a library has an object of it that it goes on using.
_SINGLE = {
    ("os", "_Environ"): ("os", "environ"),
    ("random", "Random"): ("random", "_inst"),  # what `from random import choice` is bound to
    ("numpy.random.mtrand", "RandomState"): ("numpy.random.mtrand", "_rand"),
}


def _reduce_single(place: tuple[str, str], obj: Any) -> Any:
    module, name = place
    is_it = getattr(sys.modules.get(module), name, None) is obj
    return (constructors.named, place) if is_it else NotImplemented


def _reduce_decimal_context(context: Any) -> Any:
    get = sys.modules["decimal"].getcontext
    return (get, ()) if get() is context else NotImplemented


def _reduce_file(file: Any) -> Any:
    """Save a closed file. dill would open an open one when it loads it, and so empty it."""
    try:
        arguments = (file.name, file.mode, getattr(file, "encoding", None))
        is_closed = file.closed and type(file.name) is type(file.mode) is str
    except (AttributeError, ValueError):  # it is detached, or not a file at all
        is_closed = False
    if not is_closed:
        raise pickle.PicklingError("an open file cannot be saved")
    return constructors.make_closed_file, (*arguments, type(file) is io.FileIO)


def _reduce_process(process: Any) -> Any:
    if process.returncode is None:
        raise pickle.PicklingError("a process that may run cannot be saved")
    return NotImplemented


#: By module and name of a type: not all of these modules are loaded.
_BY_NAME: dict[tuple[Any, str], Callable[[Any], Any]] = {
    ("decimal", "Context"): _reduce_decimal_context,
    ("subprocess", "Popen"): _reduce_process,
}

HANDLERS: dict[type, Callable[[Any], Any] | None] = {
    types.MappingProxyType: _reduce_proxy,
    type(threading.Lock()): _reduce_lock,
    type(threading.RLock()): _reduce_reentrant_lock,
    **dict.fromkeys(
        (
            io.TextIOWrapper,
            io.BufferedReader,
            io.BufferedWriter,
            io.BufferedRandom,
            io.FileIO,
        ),
        _reduce_file,
    ),
}
