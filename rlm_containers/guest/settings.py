"""What cells set beside their variables: search path, working directory, environment, and such.

It is saved with the variables and set again before they are restored. What cannot be set again is
named like a variable that cannot be saved.
"""

from __future__ import annotations

import os
import pickle
import sys
import types
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import library_settings, process_settings
from .process_settings import library, load
from .registrations import Registrations
from .shortforms import error_text

if TYPE_CHECKING:
    from .cells import OwnCode
    from .hooks import CellHooks

#: What a name of a setting has in place of a type.
KIND = "setting"

_UNSAVED = "it cannot be set again after a death of the interpreter"


class Settings:
    """The settings of this process.

    Args:
        path: returns the search path of the cells.
        own_code: has the recursion limit of the cells.
        hooks: has their signal handlers.

    What was set when this object was made is none of the cells' settings.
    """

    def __init__(self, path: Callable[[], list[str]], own_code: OwnCode, hooks: CellHooks) -> None:
        self._path = path
        self._own_code = own_code
        self._hooks = hooks
        self._registrations = Registrations(own_code.tracers)
        self._first, _ = self._read()

    def save(
        self, is_saved: Callable[[types.ModuleType], bool] = lambda module: False
    ) -> tuple[bytes, list[list[str]]]:
        """Return the settings that cells have changed, and ``unsaved`` for those left out.

        Args:
            is_saved: whether a module is saved with a variable.
        """
        found, failed = self._read()
        names = [*(_NAMES.get(name, name) for name in failed)]
        names += ["signal handler {}".format(number) for number in self._hooks.handlers()]
        names += self._registrations.names(is_saved)
        filters = found.get("warnings", [])
        saved = [entry for entry in filters if entry[2].__module__ != "__main__"]
        if len(saved) < len(filters):
            found["warnings"] = saved
            names.append("warnings filter for a class of a cell")
        if "logging" in found:
            names += map("logging handler {}".format, found["logging"].pop("others", ()))
        unsaved = [[name, KIND, _UNSAVED] for name in names]
        first = self._first
        changed = {name: value for name, value in found.items() if value != first.get(name)}
        if "path" in changed:
            changed["path"] = (changed["path"], first["path"])
        if "environ" in changed:
            # Only what differs: what the host has given may be secret.
            now, before = changed["environ"], first["environ"]
            names = [name for name in {**before, **now} if now.get(name) != before.get(name)]
            changed["environ"] = {name: now.get(name) for name in names}
        return pickle.dumps(changed, 4), unsaved

    def restore(self, raw: bytes, *, early: bool) -> list[list[str]]:
        """Set what an earlier interpreter has saved. Return ``lost`` for what fails.

        Args:
            raw: the settings.
            early: whether to set what variables may need to be restored, or the rest, which the
                import of a module may set otherwise.
        """
        lost = []
        for name, value in pickle.loads(raw).items():
            if (name in _EARLY) != early:
                continue
            try:
                if name == "recursion limit":
                    self._own_code.set_recursion_limit(value)
                elif name == "gc":
                    self._hooks.stop_collecting()
                elif name == "signals":
                    self._hooks.set_dispositions(value)
                else:
                    _RESTORERS[name](value)
            except Exception as error:
                lost.append([_NAMES.get(name, name), KIND, error_text(error)])
        return lost

    def _read(self) -> tuple[dict[str, Any], list[str]]:
        """Return the settings, and the names of those that cannot be read."""
        found: dict[str, Any] = {
            "path": self._path(),
            "recursion limit": self._own_code.recursion_limit(),
            "gc": self._hooks.collects,
            "signals": self._hooks.dispositions(),
        }
        failed = []
        for name, read in _READERS.items():
            try:
                value = read()
            except FileNotFoundError:
                continue  # the directory is gone
            except Exception:  # a cell may have replaced anything
                failed.append(name)
                continue
            if value is not None:
                found[name] = value
        return found, failed


def _read_random() -> Any:
    random = library("random")
    return random and random.getstate()


def _read_numpy() -> Any:
    if "numpy.random" not in sys.modules:
        return None
    name, key, *rest = sys.modules["numpy.random"].get_state()
    return (name, key.tobytes(), *rest)


def _read_decimal() -> Any:
    decimal = library("decimal")
    if decimal is None or repr(decimal.getcontext()) == repr(decimal.DefaultContext):
        return None
    return decimal.getcontext()


def _read_locale() -> Any:
    from _locale import LC_ALL, setlocale

    return setlocale(LC_ALL)


def _read_environment() -> Any:
    # In bytes, as it is: to decode all of it would take as long as the rest of the settings.
    return dict(os.environ._data)  # type: ignore[attr-defined]


def _read_warnings() -> Any:
    import warnings

    return list(warnings.filters)


_EARLY = (
    "path",
    "directory",
    "environ",
    "codec aliases",
    "tzpath",
    "extension codes",
    "module aliases",
)

#: What a setting is called if it cannot be set again.
_NAMES = {
    "directory": "os.getcwd()",
    "path": "sys.path",
    "environ": "os.environ",
    "warnings": "warnings.filters",
    "random": "random.getstate()",
    "numpy": "numpy.random.get_state()",
    "decimal": "decimal.getcontext()",
    **process_settings.NAMES,
    **library_settings.NAMES,
}


def _restore_path(value: tuple[list[str], list[str]]) -> None:
    changed, first = value
    # In another image the rest of the path is another.
    added = [entry for entry in changed if entry not in first]
    known = [entry in first for entry in changed]
    front = known.index(True) if True in known else len(changed)
    before = [entry for entry in changed[:front] if entry in added]
    after = [entry for entry in added if entry not in before]
    removed = [entry for entry in first if entry not in changed]
    rest = [entry for entry in sys.path if entry not in removed and entry not in added]
    sys.path[:] = [*before, *rest, *after]


def _restore_environ(changed: dict[bytes, bytes | None]) -> None:
    for name, value in changed.items():
        if value is None:
            os.environb.pop(name, None)
        else:
            os.environb[name] = value
    if b"TZ" in changed:
        import time

        time.tzset()


def _restore_warnings(filters: list[Any]) -> None:
    import warnings

    warnings.filters[:] = filters  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _restore_random(state: Any) -> None:
    load("random").setstate(state)


def _restore_numpy(state: Any) -> None:
    name, key, *rest = state
    array = import_module("numpy").frombuffer(key, "uint32")
    import_module("numpy.random").set_state((name, array, *rest))


def _restore_decimal(context: Any) -> None:
    current = load("decimal").getcontext()  # which variables may hold
    for name in ("prec", "rounding", "Emin", "Emax", "capitals", "clamp", "flags", "traps"):
        setattr(current, name, getattr(context, name))


def _restore_locale(value: str) -> None:
    from _locale import LC_ALL, setlocale

    setlocale(LC_ALL, value)


def _read_logging() -> dict[str, Any]:
    """Return the loggers that differ from what ``logging`` makes, by name; "" is the root."""
    logging = library("logging")
    if logging is None:
        return {}
    found: dict[str, Any] = {}
    others = []
    loggers = {"": logging.root, **logging.root.manager.loggerDict}
    for name, logger in loggers.items():
        if not isinstance(logger, logging.Logger):
            continue
        handlers = []
        for handler in logger.handlers:
            saved = _reduce_handler(logging, handler)
            if saved is not None:
                handlers.append(saved)
            elif type(handler) not in (logging.NullHandler, logging._StderrHandler):
                # Those two are libraries' own, which set them when they are imported. So is one
                # with a formatter of the logger's package.
                package = type(handler.formatter).__module__.partition(".")[0]
                if package != name.partition(".")[0]:
                    others.append(type(handler).__name__)
        level = logging.WARNING if name == "" else logging.NOTSET
        if handlers or (logger.level, logger.propagate, logger.disabled) != (level, True, False):
            found[name] = (logger.level, logger.propagate, logger.disabled, handlers)
    if others:
        found["others"] = others
    if logging.root.manager.disable:
        found["disable"] = logging.root.manager.disable
    return found


def _reduce_handler(logging: Any, handler: Any) -> Any:
    if handler.filters or (handler.formatter and type(handler.formatter) is not logging.Formatter):
        return None
    form = None
    if handler.formatter is not None:
        style = type(handler.formatter._style)
        key = next(key for key, (known, _) in logging._STYLES.items() if known is style)
        form = (handler.formatter._fmt, handler.formatter.datefmt, key)
    if type(handler) is logging.FileHandler:
        return ("file", handler.baseFilename, handler.encoding, handler.level, form)
    if type(handler) is logging.StreamHandler:
        stream = _STREAMS.get(getattr(handler.stream, "name", ""))
        if stream is not None:
            return (stream, None, None, handler.level, form)
    return None


#: By the name of the stream, which is its descriptor.
_STREAMS: dict[Any, str] = {1: "stdout", 2: "stderr"}


def _restore_logging(state: dict[str, Any]) -> None:
    logging = load("logging")
    logging.disable(state.pop("disable", 0))
    for name, (level, propagate, disabled, handlers) in state.items():
        logger = logging.getLogger(name or None)
        logger.setLevel(level)
        logger.propagate, logger.disabled = propagate, disabled
        if logger.handlers:
            continue  # a module that variables needed has set them
        for kind, filename, encoding, handler_level, form in handlers:
            if kind == "file":
                handler = logging.FileHandler(filename, "a", encoding)
            else:
                handler = logging.StreamHandler(getattr(sys, kind))
            handler.setLevel(handler_level)
            if form is not None:
                handler.setFormatter(logging.Formatter(*form))
            logger.addHandler(handler)


_READERS: dict[str, Callable[[], Any]] = {
    "warnings": _read_warnings,
    "logging": _read_logging,
    "environ": _read_environment,
    "directory": os.getcwd,
    "random": _read_random,
    "numpy": _read_numpy,
    "decimal": _read_decimal,
    "locale": _read_locale,
    **process_settings.READERS,
    **library_settings.READERS,
}

_RESTORERS: dict[str, Callable[[Any], object]] = {
    "path": _restore_path,
    "directory": os.chdir,
    "environ": _restore_environ,
    "warnings": _restore_warnings,
    "random": _restore_random,
    "numpy": _restore_numpy,
    "decimal": _restore_decimal,
    "locale": _restore_locale,
    "logging": _restore_logging,
    **process_settings.RESTORERS,
    **library_settings.RESTORERS,
}
