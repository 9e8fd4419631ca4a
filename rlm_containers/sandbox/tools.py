"""Functions of this process that cells may call: a cell says ``fetch(x, y=2)``, and it runs here.

Arguments and results travel as JSON over the container's pipe. Each call runs in a thread of its
own. Requests from the container are untrusted: they reach the functions that were given and
nothing else.
"""

from __future__ import annotations

import inspect
import json
import keyword
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rlm_containers.errors import OptionError, message_of
from rlm_containers.lm import AsyncFunctions
from runtimes.text import brief

#: A function of the host. It may be async.
ToolFunction = Callable[..., Any]

#: The names that an RLM promises its cells. No tool may have one of them.
SCAFFOLD = frozenset(
    (
        "SHOW_VARS",
        "answer",
        "context",
        "history",
        "llm_query",
        "llm_query_batched",
        "rlm_query",
        "rlm_query_batched",
    )
)

#: The names that every module has.
_MODULE_NAMES = frozenset(
    ("__builtins__", "__doc__", "__loader__", "__name__", "__package__", "__spec__")
)

#: The most characters of a function's signature or documentation that the guest is given.
_DOC_LENGTH = 4000


def check_names(names: Iterable[object], reserved: frozenset[str] = SCAFFOLD) -> None:
    """Check that tools can have these names.

    Args:
        names: the names, which may be anything.
        reserved: names that no tool may have.

    Raises:
        OptionError: a name is no identifier, a keyword, or reserved.
    """
    for name in names:
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
            raise OptionError(f"{brief(name)} cannot be the name of a tool: it is no identifier.")
        if name in reserved | _MODULE_NAMES:
            raise OptionError(
                f"A tool cannot be named {brief(name)}: that name is reserved.",
                remedy=f"Reserved are: {', '.join(sorted(reserved | _MODULE_NAMES))}.",
            )


class HostTools:
    """The functions that the cells of one sandbox may call.

    Args:
        functions: the functions by their names. They may be async.
        reserved: names that no function may have.
        async_functions: waits for the results of async functions.

    Attributes:
        functions: a copy of the functions.

    Raises:
        OptionError: a name cannot be used, or what it names cannot be called.
    """

    def __init__(
        self,
        functions: Mapping[str, ToolFunction],
        reserved: frozenset[str] = SCAFFOLD,
        async_functions: AsyncFunctions | None = None,
    ) -> None:
        if not isinstance(functions, Mapping):
            raise OptionError(
                f"tools must be a mapping of names to functions, not {type(functions).__name__}."
            )
        check_names(functions, reserved)
        for name, function in functions.items():
            if not callable(function):
                raise OptionError(
                    f"The tool {brief(name)} must be callable, not {type(function).__name__}.",
                    remedy="Data is given to cells with Sandbox.load().",
                )
        self.functions = dict(functions)
        self._async_functions = async_functions or AsyncFunctions()

    def describe(self) -> list[dict[str, str]]:
        """Describe each function to the guest by its ``name``, ``signature`` and ``doc``."""
        return [
            {"name": name, "signature": _signature(function), "doc": _doc(function)}
            for name, function in self.functions.items()
        ]

    def call(self, request: object) -> dict[str, Any]:
        """Answer one request of the guest. Never raises.

        Args:
            request: ``{"name": str, "args": list, "kwargs": dict}``, unchecked.

        Returns:
            ``{"result": …}`` or ``{"error": {"type": str, "args": list | None, "text": str}}``.
        """
        if not isinstance(request, dict):
            return _error(TypeError("bad request: not an object"))
        name, args, kwargs = (request.get(key) for key in ("name", "args", "kwargs"))
        if not (isinstance(name, str) and isinstance(args, list) and isinstance(kwargs, dict)):
            return _error(TypeError("bad request: not the call of a tool"))
        function = self.functions.get(name)
        if function is None:
            return _error(NameError(f"there is no tool {name!r}"))
        try:
            result = self._async_functions.result(function(*args, **kwargs))
        except BaseException as error:
            # Also SystemExit, which would end this thread and leave the cell without an answer.
            return _error(error)
        try:
            # Loaded again, for the methods of subclasses may not answer the same a second time.
            return {"result": json.loads(json.dumps(result))}
        except BaseException as error:  # a subclass may raise anything
            kind, why = type(result).__name__, message_of(error)
            return _error(
                TypeError(f"the result of {name}() ({kind}) cannot be sent as JSON: {why}")
            )


def _error(error: BaseException) -> dict[str, Any]:
    args: list[Any] | None
    try:
        args = json.loads(json.dumps(list(error.args)))
    except BaseException:  # args and what is in it may be the user's own
        args = None
    return {"error": {"type": type(error).__name__, "args": args, "text": message_of(error)}}


def _signature(function: ToolFunction) -> str:
    try:
        return _short(inspect.signature(function))
    except Exception:  # some built-in callables have none, and one may be computed
        return "(...)"


def _short(signature: inspect.Signature) -> str:
    plain = [
        parameter.replace(
            # Show only defaults that are short and cannot hold a secret.
            default=parameter.default if isinstance(parameter.default, _SHOWN) else _ELIDED,
            annotation=parameter.empty,
        )
        if parameter.default is not parameter.empty
        else parameter.replace(annotation=parameter.empty)
        for parameter in signature.parameters.values()
    ]
    return str(inspect.Signature(plain))[:_DOC_LENGTH]


class _Elided:
    def __repr__(self) -> str:
        return "..."


_ELIDED = _Elided()
_SHOWN = (bool, int, float, type(None))


def _doc(function: ToolFunction) -> str:
    try:
        return (inspect.getdoc(function) or "")[:_DOC_LENGTH]
    except Exception:  # a __doc__ that is a property of its own
        return ""
