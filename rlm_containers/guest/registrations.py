"""What cells have registered with the interpreter and with libraries, and cannot be set again.

Each is named, like a variable that cannot be saved.
"""

from __future__ import annotations

import copyreg
import functools
import importlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from .process_settings import library

#: Functions that register something, of which nobody can ask what it was; what takes it back.
_WATCHED = (
    ("atexit", "register", "unregister"),
    ("codecs", "register", "unregister"),
    ("codecs", "register_error", ""),
    ("sys", "addaudithook", ""),
)

#: Hooks that are called for all code, and their usual values.
_HOOKS = (
    ("sys", "excepthook", "__excepthook__"),
    ("sys", "displayhook", "__displayhook__"),
    ("sys", "unraisablehook", "__unraisablehook__"),
    ("sys", "breakpointhook", "__breakpointhook__"),
    ("threading", "excepthook", "__excepthook__"),
)


class Registrations:
    """What cells have registered.

    What was there when this object was made is none of theirs.

    Args:
        tracers: returns the names of the tracers of the cells.
    """

    def __init__(self, tracers: Callable[[], list[str]]) -> None:
        self._tracers = tracers
        self._called: list[tuple[str, Any]] = []
        self._modules = set(sys.modules)
        self._limits = dict(_resource_limits())
        for module, name, undo in _WATCHED:
            self._watch(module, name, undo)

    def names(self, is_saved: Callable[[types.ModuleType], bool]) -> list[str]:
        """Return what cells have registered, in words.

        Args:
            is_saved: whether a module is saved with a variable.
        """
        found = [*_hooks(), *self._tracers(), *_of_libraries()]
        found += (name for name, _ in self._called)
        limits = dict(_resource_limits())
        found += (name for name, limit in limits.items() if limit != self._limits.get(name))
        found += self._unnamed_modules(is_saved)
        return list(dict.fromkeys(found))

    def _watch(self, module_name: str, name: str, undo: str) -> None:
        """Note each call of a function that a cell makes."""
        module = importlib.import_module(module_name)
        original = getattr(module, name)

        @functools.wraps(original)
        def register(*arguments: Any, **keywords: Any) -> Any:
            result = original(*arguments, **keywords)
            if sys._getframe(1).f_globals.get("__name__") == "__main__":
                self._called.append(("{}.{}".format(module_name, name), arguments[:1]))
            return result

        setattr(module, name, register)
        if not hasattr(module, undo):
            return
        original_undo = getattr(module, undo)

        @functools.wraps(original_undo)
        def unregister(function: Any) -> Any:
            self._called = [entry for entry in self._called if entry[1] != (function,)]
            return original_undo(function)

        setattr(module, undo, unregister)

    def _unnamed_modules(self, is_saved: Callable[[types.ModuleType], bool]) -> Iterator[str]:
        """Yield the modules that only ``sys.modules`` has, and no import finds again."""
        for name in sys.modules.keys() - self._modules:
            module = sys.modules.get(name)
            made = type(module) is types.ModuleType and getattr(module, "__spec__", None) is None
            # Libraries make such modules too: Cython, multiprocessing.
            is_other = type(name) is not str or "." in name or "cython" in name or name[:2] == "__"
            if not made or is_other:
                self._modules.add(name)
            elif not is_saved(module):  # type: ignore[arg-type]
                yield "sys.modules[{!r}]".format(name)


def _hooks() -> Iterator[str]:
    for module_name, name, usual in _HOOKS:
        module = sys.modules.get(module_name)
        if getattr(module, name, None) is not getattr(module, usual, getattr(module, name, None)):
            yield "{}.{}".format(module_name, name)
    for name in ("_trace_hook", "_profile_hook"):
        if getattr(library("threading"), name, None) is not None:
            yield "threading.set{}()".format(name.split("_")[1])
    if any(_is_of_cells(finder) for finder in [*sys.meta_path, *sys.path_hooks]):
        yield "sys.meta_path"


def _of_libraries() -> Iterator[str]:
    for cls, function in list(copyreg.dispatch_table.items()):
        if _is_of_cells(cls) or _is_of_cells(function):
            yield "copyreg.pickle({})".format(cls.__name__)
    csv = library("csv")
    for dialect in csv.list_dialects() if csv is not None else ():
        if dialect not in ("excel", "excel-tab", "unix"):
            yield "csv.register_dialect({!r})".format(dialect)
    policy = getattr(library("asyncio.events"), "_event_loop_policy", None)
    if policy is not None and not type(policy).__module__.startswith("asyncio."):
        yield "asyncio.set_event_loop_policy()"
    logging = library("logging")
    if logging is not None:
        if _is_of_cells(logging._loggerClass):
            yield "logging.setLoggerClass()"
        if _is_of_cells(logging._logRecordFactory):
            yield "logging.setLogRecordFactory()"
        for logger in [logging.root, *logging.root.manager.loggerDict.values()]:
            if getattr(logger, "filters", None):
                yield "filters of the logger {}".format(logger.name)
    weakref = library("weakref")
    registry = weakref.finalize._registry if weakref is not None else {}
    for finalizer in list(registry):
        info = registry.get(finalizer)
        # It is held by its registry, its weak reference, the list, this variable and the call. What
        # else holds it has it saved.
        if info is not None and sys.getrefcount(finalizer) <= 5:
            kind = type(info.weakref())
            if _is_of_cells(info.func) or _is_of_cells(kind):
                yield "weakref.finalize({})".format(kind.__name__)


def _is_of_cells(obj: Any) -> bool:
    kind = obj if issubclass(type(obj), (type, types.FunctionType)) else type(obj)
    return getattr(kind, "__module__", None) == "__main__"


def _resource_limits() -> Iterator[tuple[str, tuple[int, int]]]:
    import resource

    if not _LIMITS:
        names = sorted(name for name in dir(resource) if name.startswith("RLIMIT_"))
        # By number, since one has two names.
        _LIMITS.update((getattr(resource, name), "resource." + name) for name in reversed(names))
    for number, name in _LIMITS.items():
        try:
            yield name, resource.getrlimit(number)
        except (ValueError, OSError):
            pass  # this kernel does not know it


_LIMITS: dict[int, str] = {}
