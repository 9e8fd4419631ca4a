"""An executor for smolagents: ``CodeAgent(…, executor=ContainerExecutor(box))``.

The agent's code runs as cells of the sandbox, and its tools in this process. Written against
smolagents 1.26, ``smolagents.local_python_executor.PythonExecutor``. Nothing else imports
smolagents.
"""

from __future__ import annotations

import contextvars
import inspect
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from smolagents import serialization
from smolagents.local_python_executor import CodeOutput, InterpreterError, PythonExecutor
from smolagents.serialization import SafeSerializer, SerializationError
from smolagents.utils import truncate_content

from rlm_containers.errors import OptionError
from rlm_containers.sandbox import Sandbox, check_names

#: The tool that ends a run.
_FINAL = "final_answer"

#: The host's function that the tools in the container call.
_CALL = "_smolagents_call"

#: Sets variables in the container.
_SET = "_smolagents_set"

#: How PNG begins in base64: what smolagents makes of an image.
_PNG = "iVBORw0KGgo"

#: The types of arrays that the host accepts, as numpy names them.
_NUMBERS = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)|complex(64|128)")


class ContainerExecutor(PythonExecutor):
    """Runs the code of a CodeAgent in a sandbox.

    Variables, imports and files live on from one step to the next. Whoever made the sandbox starts
    and closes it. Imports are not restricted: the container is the limit.

    What travels between agent and container may be of the types that smolagents sends to its own
    remote executors: those of JSON, tuples, sets, bytes, dates, images, numpy's arrays of numbers
    and so on.

    Args:
        box: the sandbox, started.
        max_print_outputs_length: the most characters of a step's output that the model is shown.

    Attributes:
        state: what smolagents reads after a step that failed: the output before the error.
    """

    def __init__(self, box: Sandbox, *, max_print_outputs_length: int = 50_000) -> None:
        self.box = box
        self.state: dict[str, str] = {}
        self._longest = max_print_outputs_length
        self._tools: Mapping[str, Callable[..., Any]] = {}
        self._bound: set[str] = set()  # names of tools that the container knows
        # Of the running cell: its final answer, if any, and what its caller has in its context.
        self._answers: list[Any] = []
        self._context = contextvars.copy_context()

    def send_tools(self, tools: Mapping[str, Callable[..., Any]]) -> None:
        """Let the code call these tools and agents, which run in this process.

        Raises:
            OptionError: a name cannot be used.
            SandboxClosedError, SandboxLostError: as for :meth:`Sandbox.execute`.
        """
        if self.box.scaffold:
            check_names(tools)
        else:
            check_names(tools, frozenset())
        self._tools = dict(tools)
        self._bind({name: _description(tool) for name, tool in tools.items()})

    def send_variables(self, variables: Mapping[str, Any]) -> None:
        """Bind variables in the container.

        Raises:
            OptionError: a name or a value cannot be used.
            SandboxClosedError, SandboxLostError: as for :meth:`Sandbox.execute`.
        """
        others = {}
        for name, value in variables.items():
            try:
                encoded = SafeSerializer.to_json_safe(value)
            except SerializationError as error:
                raise OptionError(
                    f"The variable {name!r} cannot be sent to the container: {error}.",
                    remedy="Put it into a file by Sandbox.put_file(), and let the agent load it.",
                ) from None
            if isinstance(value, str | dict | list) and encoded == value:
                self.box.load(name, value)
            else:
                others[name] = encoded
        if others:
            self._bind({})
            self.box.run_setup(f"{_SET}({json.dumps(others)!r})")

    def __call__(self, code_action: str) -> CodeOutput:
        """Run the code of a step.

        Returns:
            What it printed, the value of an expression at its end included, and the final answer
            if it gave one.

        Raises:
            InterpreterError: the code failed, or reached a limit. The error has its traceback.
            SandboxClosedError, SandboxLostError: as for :meth:`Sandbox.execute`.
        """
        self._answers = []
        self._context = contextvars.copy_context()
        result = self.box.execute(code_action, display=True)
        failed = not self._answers and result.status not in ("ok", "exit")
        logs = result.stdout if failed else result.stdout + result.stderr
        logs = truncate_content(logs, max_length=self._longest)
        self.state["_print_outputs"] = logs
        if failed:
            raise InterpreterError(truncate_content(result.stderr, max_length=self._longest))
        if self._answers:
            return CodeOutput(output=self._answers[0], logs=logs, is_final_answer=True)
        return CodeOutput(output="", logs=logs, is_final_answer=False)

    def _bind(self, descriptions: Mapping[str, str]) -> None:
        """Define the tools in the container that it does not know yet."""
        new = {name: text for name, text in descriptions.items() if name not in self._bound}
        if _SET not in self._bound:
            self.box.set_tools({**self.box.tools.functions, _CALL: self._call})
        elif not new:
            return
        namespace = f"{{'__name__': '_smolagents', 'scope': globals(), 'tools': {new!r}}}"
        self.box.run_setup(f"exec({_SOURCE!r}, {namespace})")
        self.box.keep(*new, *({_SET} - self._bound))
        self._bound |= {*new, _SET}

    def _call(self, name: str, args: Any, kwargs: Any) -> Any:
        """Answer a cell's call of a tool, in a thread of the sandbox."""
        return self._context.copy().run(self._call_tool, name, args, kwargs)

    def _call_tool(self, name: str, args: Any, kwargs: Any) -> Any:
        if name not in self._tools:
            raise NameError(f"There is no tool {name!r}.")
        result = self._tools[name](*_decoded(args), **_decoded(kwargs))
        if name == _FINAL:
            self._answers.append(result)
            return None
        return SafeSerializer.to_json_safe(result)


def _decoded(value: Any) -> Any:
    """Return what a value from the container stands for.

    Raises:
        SerializationError: it is an array of anything but numbers. Such a type says how large each
            element is, and the container could fill this process's memory with a few of them. Or it
            is an image that is no PNG: Pillow runs another program for some formats.
    """
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            if part.get("__type__") == "ndarray" and not _NUMBERS.fullmatch(str(part.get("dtype"))):
                raise SerializationError("Only arrays of numbers can be sent to the host")
            if part.get("__type__") == "PIL.Image" and not str(part.get("data")).startswith(_PNG):
                raise SerializationError("Only images as PNG can be sent to the host")
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
    return SafeSerializer.from_json_safe(value)


def _description(tool: Callable[..., Any]) -> str:
    return str(getattr(tool, "description", None) or "")


def _bind_tools(scope: dict[str, Any], tools: dict[str, str]) -> None:
    """Define functions that call tools of the host. This runs in the container.

    Args:
        scope: the variables of the cells.
        tools: the descriptions of the tools by their names.
    """
    call = scope["_smolagents_call"]
    encode, decode = SafeSerializer.to_json_safe, SafeSerializer.from_json_safe

    def bind(name: str, description: str) -> None:
        def tool(*args: Any, **kwargs: Any) -> Any:
            result = call(name, encode(list(args)), encode(kwargs))
            if name == "final_answer":
                raise SystemExit  # the cell ends here, also in an `except Exception`
            return decode(result)

        tool.__name__ = tool.__qualname__ = name
        tool.__doc__ = description
        scope[name] = tool

    def set_variables(text: str) -> None:
        scope.update(decode(json.loads(text)))

    for name, description in tools.items():
        bind(name, description)
    scope["_smolagents_set"] = set_variables


#: What runs in the container: smolagents' own serializer, and the function above.
_SOURCE = "\n".join(
    (
        "from __future__ import annotations",
        inspect.getsource(serialization),
        inspect.getsource(_bind_tools),
        "_bind_tools(scope, tools)",
    )
)
