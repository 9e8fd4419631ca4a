"""Settings of the process and of libraries that are plain values: how to read and to set them.

A reader returns ``None`` for a setting that is as Python, or the library, has it.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def library(name: str) -> Any:
    """Return a module of the standard library if it is loaded, and not another of its name."""
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None) or ""
    return module if file.startswith(LIBRARY) else None


def load(name: str) -> Any:
    """Import a module of the standard library, also where another one comes before it."""
    if name not in sys.modules:
        sys.path.insert(0, LIBRARY)
        try:
            __import__(name)
        finally:
            sys.path.remove(LIBRARY)
    return sys.modules[name]


LIBRARY = os.path.dirname(os.__file__)


def _read_umask() -> int:
    mask = os.umask(0o077)  # there is no other way
    os.umask(mask)
    return mask


def _read_tracemalloc() -> Any:
    tracemalloc = library("tracemalloc")
    tracing = tracemalloc is not None and tracemalloc.is_tracing()
    return tracemalloc.get_traceback_limit() if tracing else None


def _read_socket() -> Any:
    socket = library("socket")
    return socket and socket.getdefaulttimeout()


def _read_csv() -> Any:
    csv = library("csv")
    limit = csv and csv.field_size_limit()
    return None if limit == 131072 else limit


def _read_mimetypes() -> Any:
    """Return the types that were added to those of the system."""
    mimetypes = library("mimetypes")
    if mimetypes is None or not mimetypes.inited:
        return None
    if _SYSTEM.get("module") is not mimetypes:
        files = [file for file in mimetypes.knownfiles if os.path.isfile(file)]
        _SYSTEM.update(module=mimetypes, types=mimetypes.MimeTypes(files).types_map)
    found = [
        (kind, suffix, strict)
        for strict in (True, False)
        for suffix, kind in mimetypes._db.types_map[strict].items()
        if _SYSTEM["types"][strict].get(suffix) != kind
    ]
    return found or None


_SYSTEM: dict[str, Any] = {}


def _restore_mimetypes(found: list[tuple[str, str, bool]]) -> None:
    for kind, suffix, strict in found:
        load("mimetypes").add_type(kind, suffix, strict)


def _read_multiprocessing() -> Any:
    context = library("multiprocessing.context")
    chosen = context and context._default_context._actual_context
    return chosen and chosen._name


def _read_logging_names() -> Any:
    logging = library("logging")
    if logging is None:
        return None
    names = {level: name for level, name in logging._levelToName.items() if level % 10}
    captures = logging._warnings_showwarning is not None
    changed = names or captures or not logging.raiseExceptions
    return (names, captures, bool(logging.raiseExceptions)) if changed else None


def _restore_logging_names(state: tuple[dict[int, str], bool, bool]) -> None:
    logging = load("logging")
    names, captures, raises = state
    for level, name in names.items():
        logging.addLevelName(level, name)
    logging.captureWarnings(captures)
    logging.raiseExceptions = raises


def _read_numpy_forms() -> Any:
    """Return how numpy prints, and what it does about errors, where that was changed."""
    numpy: Any = sys.modules.get("numpy")
    if not hasattr(numpy, "get_printoptions") or not hasattr(numpy, "geterr"):
        return None
    errors = {name: value for name, value in numpy.geterr().items() if value != _ERRORS.get(name)}
    options = {
        name: value
        for name, value in numpy.get_printoptions().items()
        if value != _FORMS.get(name) and type(value) in (bool, int, float, str)
    }
    return (options, errors) if options or errors else None


_ERRORS = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}
_FORMS = {
    "edgeitems": 3,
    "threshold": 1000,
    "floatmode": "maxprec",
    "precision": 8,
    "suppress": False,
    "linewidth": 75,
    "nanstr": "nan",
    "infstr": "inf",
    "sign": "-",
    "legacy": False,
}


def _restore_numpy_forms(state: tuple[dict[str, Any], dict[str, Any]]) -> None:
    numpy = import_module("numpy")
    options, errors = state
    numpy.set_printoptions(**options)
    numpy.seterr(**errors)


def _read_traceback_limit() -> Any:
    limit = getattr(sys, "tracebacklimit", None)
    return limit if type(limit) is int else None


def _read_argv() -> Any:
    argv = sys.argv
    return argv[:] if type(argv) is list and all(type(part) is str for part in argv) else None


def _restore_argv(value: list[str]) -> None:
    sys.argv[:] = value


READERS: dict[str, Callable[[], Any]] = {
    "argv": _read_argv,
    "gc threshold": gc.get_threshold,
    "umask": _read_umask,
    "switch interval": sys.getswitchinterval,
    "traceback limit": _read_traceback_limit,
    "tracemalloc": _read_tracemalloc,
    "socket timeout": _read_socket,
    "csv limit": _read_csv,
    "mimetypes": _read_mimetypes,
    "multiprocessing": _read_multiprocessing,
    "logging names": _read_logging_names,
    "numpy forms": _read_numpy_forms,
}

RESTORERS: dict[str, Callable[[Any], object]] = {
    "argv": _restore_argv,
    "gc threshold": lambda value: gc.set_threshold(*value),
    "umask": os.umask,
    "switch interval": sys.setswitchinterval,
    "traceback limit": lambda value: setattr(sys, "tracebacklimit", value),
    "tracemalloc": lambda value: load("tracemalloc").start(value),
    "socket timeout": lambda value: load("socket").setdefaulttimeout(value),
    "csv limit": lambda value: load("csv").field_size_limit(value),
    "mimetypes": _restore_mimetypes,
    "multiprocessing": lambda value: load("multiprocessing").set_start_method(value, force=True),
    "logging names": _restore_logging_names,
    "numpy forms": _restore_numpy_forms,
}
if hasattr(sys, "set_int_max_str_digits"):
    READERS["int digits"] = sys.get_int_max_str_digits
    RESTORERS["int digits"] = sys.set_int_max_str_digits

#: What a setting is called if it cannot be set again.
NAMES = {
    "argv": "sys.argv",
    "gc threshold": "gc.get_threshold()",
    "umask": "os.umask()",
    "switch interval": "sys.getswitchinterval()",
    "traceback limit": "sys.tracebacklimit",
    "socket timeout": "socket.getdefaulttimeout()",
    "csv limit": "csv.field_size_limit()",
    "multiprocessing": "multiprocessing.get_start_method()",
    "logging names": "logging.addLevelName()",
    "numpy forms": "numpy.get_printoptions()",
    "int digits": "sys.get_int_max_str_digits()",
}
