"""Variables, arguments and results as they travel between dspy and its cells: as JSON."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dspy.primitives.code_interpreter import CodeInterpreterError
from pydantic_core import to_jsonable_python

from rlm_containers.sandbox import Sandbox

#: A variable of at least this many characters is loaded once, and not sent with every cell.
_LARGE = 4096


def as_json(what: str, value: Any) -> Any:
    """Convert a value to what JSON can express.

    Args:
        what: names the value in the error.
        value: anything that JSON can express or that pydantic can convert.

    Raises:
        CodeInterpreterError: it cannot be converted.
    """
    try:
        return to_jsonable_python(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise CodeInterpreterError(f"{what} cannot be expressed as JSON: {error}") from error


class LargeVariables:
    """The large variables that cells are given. Each is sent only when it has changed.

    Args:
        sandbox: where the cells run.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._loaded: dict[str, tuple[type, int]] = {}  # type and hash

    @property
    def names(self) -> list[str]:
        """The names of those that are loaded."""
        return list(self._loaded)

    def load(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Load the large values that are not loaded yet, and return the small ones."""
        small = {}
        for name, value in values.items():
            text = value if isinstance(value, str) else json.dumps(value)
            if len(text) < _LARGE or not isinstance(value, str | dict | list):
                small[name] = value
                self._loaded.pop(name, None)
            elif self._loaded.get(name) != (mark := (type(value), hash(text))):
                self._sandbox.load(name, value)
                self._loaded[name] = mark
        return small

    def forget(self, names: Iterable[object]) -> None:
        """Send these variables anew next time, because cells have changed them."""
        changed = list(names)  # anything, hashable or not
        self._loaded = {name: mark for name, mark in self._loaded.items() if name not in changed}


def call_tool(tool: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function of the host with a cell's arguments, and wait if it is async.

    Raises:
        TypeError: the arguments do not fit.
    """
    if args:
        args, kwargs = _by_name(tool, args, kwargs)
    result = tool(*args, **kwargs)
    if inspect.isawaitable(result):
        return asyncio.run(_wait_for(result))
    return result


async def _wait_for(result: Any) -> Any:
    return await result


def _by_name(
    tool: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Name the positional arguments of a call: dspy's wrappers of tools take keywords only."""
    try:
        signature = inspect.signature(getattr(tool, "func", tool))  # a dspy.Tool wraps a function
    except ValueError:  # some functions in C have no signature
        return args, kwargs
    bound = signature.bind(*args, **kwargs)
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    if kinds <= {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}:
        return (), dict(bound.arguments)
    return args, kwargs
