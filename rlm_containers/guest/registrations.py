"""What cells have registered with the interpreter and with libraries, and cannot be set again.

Each is named, like a variable that cannot be saved.
"""

from __future__ import annotations

import copyreg
import functools
import gc
import importlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from . import library_settings
from .process_settings import library

#: Functions that register something, of which nobody can ask what it was; what takes it back.
_WATCHED = (
    ("atexit", "register", "unregister"),
    ("codecs", "register", "unregister"),
    ("codecs", "register_error", ""),
    ("sys", "addaudithook", ""),
    ("faulthandler", "register", "unregister"),
    ("faulthandler", "enable", "disable"),  # to standard error it is set again
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
        found = [*_hooks(), *self._tracers(), *_of_python(), *_of_libraries()]
        found += library_settings.unsaved()
        found += (name for name, _ in self._called)
        limits = dict(_resource_limits())
        found += (name for name, limit in limits.items() if limit != self._limits.get(name))
        found += self._unnamed_modules(is_saved)
        return list(dict.fromkeys(found))

    def _watch(self, module_name: str, name: str, undo: str) -> None:
        """Note each call of a function that a cell makes."""
        module = importlib.import_module(module_name)
        original = getattr(module, name)
        called = "{}.{}".format(module_name, name)

        @functools.wraps(original)
        def register(*arguments: Any, **keywords: Any) -> Any:
            result = original(*arguments, **keywords)
            if sys._getframe(1).f_globals.get("__name__") == "__main__":
                self._forget(called, arguments[:1])
                if arguments or keywords:
                    self._called.append((called, arguments[:1]))
            return result

        setattr(module, name, register)
        if not hasattr(module, undo):
            return
        original_undo = getattr(module, undo)

        @functools.wraps(original_undo)
        def unregister(*arguments: Any) -> Any:
            self._forget(called, arguments)
            return original_undo(*arguments)

        setattr(module, undo, unregister)

    def _forget(self, called: str, arguments: tuple[Any, ...]) -> None:
        """Forget the calls of a function with these arguments, or all if there are none."""
        self._called = [
            entry
            for entry in self._called
            if entry[0] != called or (arguments and entry[1] != arguments)
        ]

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


def _of_python() -> Iterator[str]:
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

    shutil = library("shutil")
    for action in ("archive", "unpack") if shutil is not None else ():
        for form in getattr(shutil, "_{}_FORMATS".format(action.upper())).keys() - _FORMATS:
            yield "shutil.register_{}_format({!r})".format(action, form)
    sqlite3 = library("sqlite3")
    for what in ("adapter", "converter") if sqlite3 is not None else ():
        for key, function in list(getattr(sqlite3, what + "s", {}).items()):
            known = key[0] if type(key) is tuple else key
            # Functions of libraries are theirs to register, but for those that Python has.
            if _is_of_cells(known) or getattr(function, "__module__", "") in _NO_LIBRARY:
                name = getattr(known, "__name__", known)
                yield "sqlite3.register_{}({})".format(what, name)
    if _has_opener():
        yield "urllib.request.install_opener()"
    if any(map(_is_of_cells, gc.callbacks)):
        yield "gc.callbacks"
    if any(map(_is_of_cells, sys.get_asyncgen_hooks())):
        yield "sys.set_asyncgen_hooks()"
    monitoring: Any = getattr(sys, "monitoring", None)
    for number in range(6) if monitoring is not None else ():
        tool = monitoring.get_tool(number)
        if tool is not None:
            yield "sys.monitoring.use_tool_id({}, {!r})".format(number, tool)


#: What ``shutil`` knows by itself.
_FORMATS = {"tar", "zip", "gztar", "bztar", "xztar", "zstdtar"}

_NO_LIBRARY = ("__main__", "builtins")


def _has_opener() -> bool:
    """Return whether there is another opener than ``urlopen()`` makes when it is first called."""
    request = library("urllib.request")
    opener = getattr(request, "_opener", None)
    if opener is None:
        return False
    kinds = {type(handler).__name__ for handler in opener.handlers} - {"ProxyHandler"}
    agent = "Python-urllib/" + request.__version__
    if kinds != _HANDLERS or opener.addheaders != [("User-agent", agent)]:
        return True
    return not all(_is_usual(request, handler) for handler in opener.handlers)


_HANDLERS = {
    "UnknownHandler",
    "HTTPHandler",
    "HTTPDefaultErrorHandler",
    "HTTPRedirectHandler",
    "FTPHandler",
    "FileHandler",
    "DataHandler",
    "HTTPSHandler",
    "HTTPErrorProcessor",
}


def _is_usual(request: Any, handler: Any) -> bool:
    context = getattr(handler, "_context", None)
    return (
        type(handler).__module__ == "urllib.request"
        and not getattr(handler, "_debuglevel", None)
        and (context is None or context.verify_mode == context.verify_mode.CERT_REQUIRED)
        and getattr(handler, "proxies", None) in (None, request.getproxies())
    )


def _of_libraries() -> Iterator[str]:
    for module_name, class_names, attribute in _NAMESPACES:
        module = sys.modules.get(module_name)
        for class_name in class_names if module is not None else ():
            cls = getattr(module, class_name, None)
            for name in list(getattr(cls, "_accessors", ())):
                accessor = cls.__dict__.get(name)
                if _is_of_cells(getattr(accessor, attribute, None)):
                    word = "accessor" if module_name == "pandas" else "namespace"
                    yield "{} {} {!r}".format(module_name, word, name)
    pandas = sys.modules.get("pandas")
    if pandas is not None:
        progress = getattr(getattr(pandas, "DataFrame", None), "progress_apply", None)
        if getattr(progress, "__module__", "") == "tqdm.std":
            yield "tqdm.pandas()"
        types_of_cells = sys.modules.get("pandas.core.dtypes.base")
        for cls in getattr(getattr(types_of_cells, "_registry", None), "dtypes", ()):
            if _is_of_cells(cls):
                yield "pandas extension type {}".format(cls.__name__)
    for module_name, attribute, what in _MAPPINGS:
        found: Any = sys.modules.get(module_name)
        for part in attribute.split("."):
            found = getattr(found, part, None)
        for name, value in list(found.items()) if type(found) is dict else ():
            if _is_of_cells(value):
                yield "matplotlib {} {!r}".format(what, name)
    core = getattr(getattr(sys.modules.get("loguru"), "logger", None), "_core", None)
    # The first handler, of number 0, is loguru's own.
    if core is not None and core.handlers_count and [*core.handlers] != [0]:
        yield "handlers of loguru"
    structlog = sys.modules.get("structlog._config")
    if structlog is not None and structlog._CONFIG.is_configured:
        yield "structlog.configure()"


#: The classes that take names of cells, and where what they make of these has the cell's class.
_NAMESPACES = (
    ("pandas", ("DataFrame", "Series", "Index"), "_accessor"),
    ("polars", ("DataFrame", "LazyFrame", "Series", "Expr"), "_ns"),
)

#: Where matplotlib keeps classes of cells by name.
_MAPPINGS = (
    ("matplotlib.scale", "_scale_mapping", "scale"),
    ("matplotlib.projections", "projection_registry._all_projection_types", "projection"),
)


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
