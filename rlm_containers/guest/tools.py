"""Functions of the host, as cells call them.

A call goes over the container's pipe, even if there is a network. The path is ``/tool``, the
request ``{"name": str, "args": list, "kwargs": object}``, and the answer ``{"result": any}`` or
``{"error": {"type": str, "args": list, "text": str}}`` for an exception.
``rlm_containers.sandbox`` has the other end.
"""

from __future__ import annotations

import builtins
import json
import socket
from typing import Any

from . import lm, wire


class HostTool:
    """A function that runs on the host.

    Args:
        name: its name.
        signature: its parameters, as text.
        doc: its documentation.
    """

    def __init__(self, name: str, signature: str = "(...)", doc: str = "") -> None:
        self.__name__ = self.__qualname__ = name
        self.__module__ = "__main__"
        self.__doc__ = name + signature + ("\n\n" + doc if doc else "")
        self.signature = signature

    def __repr__(self) -> str:
        return "<host tool {}{}>".format(self.__name__, self.signature)

    def __reduce__(self) -> Any:
        return _tool_named, (self.__name__,)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        name = self.__name__
        if _known.get(name) is not self:
            raise NameError("there is no host tool {!r} any more".format(name))
        answer = json.loads(_route.send(wire.TOOL_PATH, _encode(name, args, kwargs)))
        if "result" in answer:
            return answer["result"]
        raise _exception(answer.get("error"))


def _encode(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    try:
        return json.dumps({"name": name, "args": args, "kwargs": kwargs}).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        # Name the argument, so that a model that reads this can correct its call.
        for label, value in (*enumerate(args, 1), *kwargs.items()):
            try:
                json.dumps(value)
            except (TypeError, ValueError, RecursionError) as reason:
                raise TypeError(
                    "{}(): argument {} ({}) cannot be sent to the host as JSON: {}".format(
                        name, label, type(value).__name__, reason
                    )
                ) from None
        raise TypeError("{}(): {}".format(name, error)) from None


def _exception(error: Any) -> Exception:
    """Return what a function raised on the host, of the same type if that is a built-in."""
    if isinstance(error, str):  # the host could not call it
        return RuntimeError(error)
    error = error if isinstance(error, dict) else {}
    kind, args = str(error.get("type")), error.get("args")
    text = str(error.get("text"))
    found = getattr(builtins, kind, None)
    if isinstance(found, type) and issubclass(found, Exception):
        try:
            made = found(*args) if isinstance(args, list) else found(text)
            if str(made) == text:
                return made
            return found(text)
        except Exception:
            pass  # this type takes other arguments
    return RuntimeError("{}: {}".format(kind, text))


_known: dict[str, HostTool] = {}
_route: Any = None


def bind_tools(tools: list[dict[str, str]], calls: socket.socket) -> dict[str, HostTool]:
    """Replace the functions of the host.

    Args:
        tools: ``name``, ``signature`` and ``doc`` of each.
        calls: the socket to the supervisor, see :mod:`rlm_guest.lm`.

    Returns:
        The functions by name. One that has not changed is the same object as before.
    """
    global _route
    _route = lm.PipeRoute(calls)
    bound = {}
    for tool in tools:
        old = _known.get(tool["name"])
        new = HostTool(tool["name"], tool["signature"], tool["doc"])
        bound[tool["name"]] = old if old is not None and old.__doc__ == new.__doc__ else new
    _known.clear()
    _known.update(bound)
    return bound


def _tool_named(name: str) -> HostTool:
    """Return a tool; pickles call this."""
    return _known.get(name) or HostTool(name)
