"""Saves exceptions and tracebacks.

pickle makes an exception by a call of its class with ``args``, which fails where ``__init__`` takes
other arguments than it passes on. It leaves out what led to it. Here the built-in base of the class
makes it, and it is given its attributes afterwards.

A traceback has frames, which nobody can make again. It comes back with frames of the same places
in the source, without their variables.

State files name the functions below "What state files call", so they keep their names.
"""

from __future__ import annotations

import contextlib
import copyreg
import sys
import types
from collections.abc import Iterator
from typing import Any

#: Attributes that say how an exception came about.
_HISTORY = ("__cause__", "__context__", "__suppress_context__", "__traceback__")


def reduce_exception(error: BaseException) -> Any:
    """Return how to save an exception."""
    cls = type(error)
    history = {name: getattr(error, name) for name in _HISTORY}
    history = {name: value for name, value in history.items() if value}
    if _has_own_reduction(cls):
        reduction = error.__reduce_ex__(4)
        if not isinstance(reduction, tuple) or len(reduction) > 3:
            return reduction
        state = reduction[2] if len(reduction) > 2 else None
        state = (state, history, {})
        return reduction[0], reduction[1], state, None, None, fill_exception
    base: Any = next(base for base in cls.__mro__ if base.__module__ == "builtins")
    arguments = base.__reduce__(error)[1]
    if hasattr(base, "exceptions"):  # a group, whose args are those of its class
        arguments = (error.message, error.exceptions)  # type: ignore[attr-defined]
    attributes = {}
    for klass in base.__mro__:
        for name, value in vars(klass).items():
            if isinstance(value, types.MemberDescriptorType) and name not in _LEFT_OUT:
                attributes[name] = getattr(error, name, None)
    for name in copyreg._slotnames(cls):  # type: ignore[attr-defined]
        with contextlib.suppress(AttributeError):
            attributes[name] = getattr(error, name)
    attributes = {name: value for name, value in attributes.items() if value is not None}
    attributes["args"] = error.args
    state = (None, {**attributes, **history}, vars(error))
    return make_exception, (base, cls, arguments), state, None, None, fill_exception


#: The object that has no such attribute: only for a better message, and often not to be saved.
_LEFT_OUT = frozenset(("obj", "__suppress_context__"))


def _has_own_reduction(cls: type) -> bool:
    """Return whether a class says by itself how its objects are saved."""
    return any(
        not vars(cls).keys().isdisjoint(("__reduce__", "__reduce_ex__", "__getstate__"))
        for cls in cls.__mro__
        if cls.__module__ != "builtins"
    )


def reduce_traceback(trace: types.TracebackType) -> Any:
    """Return how to save a traceback."""
    return make_traceback, (tuple(map(_place, _steps(trace))),)


def filenames(trace: types.TracebackType) -> set[str]:
    """Return the names of the files in a traceback."""
    return {step.tb_frame.f_code.co_filename for step in _steps(trace)}


def _steps(trace: types.TracebackType | None) -> Iterator[types.TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _place(step: types.TracebackType) -> tuple[Any, ...]:
    code = step.tb_frame.f_code
    name = getattr(code, "co_qualname", code.co_name)
    module = step.tb_frame.f_globals.get("__name__")
    place = (code.co_filename, code.co_name, name, code.co_firstlineno, step.tb_lineno)
    return (*place, module if type(module) is str else None)


# What state files call


def make_exception(base: Any, cls: type, arguments: tuple[Any, ...]) -> Any:
    """Make an exception whose first built-in base is ``base``."""
    error = base.__new__(cls, *arguments)
    base.__init__(error, *arguments)
    return error


def fill_exception(error: Any, state: tuple[Any, dict[str, Any], dict[str, Any]]) -> None:
    """Give an exception its attributes: by itself, by their names, in its dict."""
    own, named, attributes = state
    if own is not None:
        if hasattr(error, "__setstate__"):
            error.__setstate__(own)
        else:
            error.__dict__.update(own)
    for name, value in named.items():
        with contextlib.suppress(AttributeError, TypeError):  # its constructor has set it for ever
            BaseException.__setattr__(error, name, value)
    error.__dict__.update(attributes)


def make_traceback(places: tuple[tuple[Any, ...], ...]) -> types.TracebackType | None:
    """Make a traceback with frames of these places."""
    trace: types.TracebackType | None = None
    for filename, name, qualified_name, first_line, line, module in reversed(places):
        changes = {"co_filename": filename, "co_name": name, "co_firstlineno": first_line}
        if sys.version_info >= (3, 11):
            changes["co_qualname"] = qualified_name
        code = _give_frame.__code__.replace(**changes)
        namespace = {"__name__": module, "get_frame": sys._getframe}
        frame = types.FunctionType(code, namespace)()
        trace = types.TracebackType(trace, frame, -1, line)
    return trace


def _give_frame() -> types.FrameType:
    return get_frame()  # type: ignore[name-defined, no-any-return]  # noqa: F821
