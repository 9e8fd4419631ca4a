"""Functions of the host, as the code in a cell calls them.

A call goes over the container's pipe, whatever the network is: arguments and result as JSON, an
exception as its type's name and its arguments. ``rlm_containers.sandbox.tools`` has the other end.
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
        name: its name, here and there.
        signature: its parameters, as text; empty where they are not known.
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
        assert _route is not None  # it was known, so tools were bound
        answer = json.loads(_route.send(wire.TOOL_PATH, _encode(name, args, kwargs)))
        if "result" in answer:
            return answer["result"]
        # Without the frame above, which shows the reader nothing but this line.
        raise _exception(answer.get("error"))


def _encode(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    try:
        return json.dumps({"name": name, "args": args, "kwargs": kwargs}).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        # Which of them is it? A model that reads this should be able to correct its call.
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
    """What a function raised on the host: of the same type if every interpreter has it."""
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
            pass  # it takes other arguments
    return RuntimeError("{}: {}".format(kind, text))


_known: dict[str, HostTool] = {}
_route: Any = None


def bind_tools(tools: list[dict[str, str]], calls: socket.socket) -> dict[str, HostTool]:
    """Make the functions of the host known, in place of those before.

    Args:
        tools: of each its ``name``, ``signature`` and ``doc``.
        calls: the socket to the supervisor, see :mod:`rlm_guest.lm`.

    Returns:
        The functions by their names. One that has not changed is the object that it was.
    """
    global _route
    _route = lm.PipeRoute(calls)
    bound = {}
    for told in tools:
        old = _known.get(told["name"])
        made = HostTool(told["name"], told["signature"], told["doc"])
        bound[told["name"]] = old if old is not None and old.__doc__ == made.__doc__ else made
    _known.clear()
    _known.update(bound)
    return bound


def _tool_named(name: str) -> HostTool:
    """What a pickle calls."""
    return _known.get(name) or HostTool(name)
