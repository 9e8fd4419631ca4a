"""Containers for DSPy: ``dspy.configure(interpreter_factory=ContainerInterpreter)``.

``dspy.RLM``, ``CodeAct``, ``ProgramOfThought`` and ``Flex`` then run the code of their models in
this project's containers. Written against dspy 3.4. Nothing outside this package imports dspy.
"""

from __future__ import annotations

import contextvars
import functools
import json
import keyword
import threading
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar, Unpack

from dspy.primitives.code_interpreter import CodeExecutionError, CodeInterpreterError, FinalOutput
from dspy.utils.callback import BaseCallback, with_callbacks

from rlm_containers.errors import ContainersError, OptionError
from rlm_containers.integrations.dspy.cell import REPORT, cell_source
from rlm_containers.integrations.dspy.values import LargeVariables, as_json, call_tool
from rlm_containers.interpreter import CellResult
from rlm_containers.options import DEFAULT_IMAGE, OptionArguments
from rlm_containers.sandbox import Sandbox

_RESERVED = frozenset({"SUBMIT", "__builtins__", REPORT})

_F = TypeVar("_F", bound=Callable[..., Any])
_traced: Callable[[_F], _F] = with_callbacks  # dspy has no types


class ContainerInterpreter:
    """dspy's ``CodeInterpreter`` in a container. The class itself can be dspy's factory.

    Args:
        tools: functions of this process that cells may call, by their names in cells. They may be
            async. Arguments and results travel as JSON: pydantic models, dataclasses, dates and
            the like are converted. The attribute ``tools`` may be changed at any time.
        output_fields: the parameters of ``SUBMIT``, each a dict with a ``"name"``; ``None`` for a
            single parameter, ``output``.
        image: the image; any with Python 3.9 or later.
        setup_code: a cell to run first. If it fails, so does :meth:`start`.
        callbacks: dspy's callbacks for this interpreter.
        options: see :class:`~rlm_containers.SandboxOptions`.

    Raises:
        OptionError: an argument is unknown or wrong.

    A variable that is passed again gets its value back, whatever a cell has done to it. A large one
    is sent only if it has changed, here or there.
    """

    #: What dspy tells the model about the place where its code runs.
    execution_instructions = (
        "Code runs in CPython, in a Linux container of its own. State persists between executions: "
        "variables, imports, functions, open files, and files in the working directory. "
        "Subprocesses and threads are available. Tools and SUBMIT are global functions; their "
        "arguments must be expressible as JSON. If nothing is printed, the value of the last "
        "expression is the output."
    )

    def __init__(
        self,
        tools: Mapping[str, Callable[..., Any]] | None = None,
        output_fields: Iterable[Mapping[str, Any]] | None = None,
        *,
        image: str = DEFAULT_IMAGE,
        setup_code: str | None = None,
        callbacks: Iterable[BaseCallback] | None = None,
        **options: Unpack[OptionArguments],
    ) -> None:
        self.tools = dict(tools or {})
        self.output_fields = None if output_fields is None else [dict(f) for f in output_fields]
        self.callbacks = list(callbacks or ())
        self._sandbox = Sandbox(image, setup_code=setup_code, scaffold=False, **options)
        self._busy = threading.Lock()
        self._ended = False
        self._bound: frozenset[str] | None = None  # names of the tools that the guest knows
        self._large = LargeVariables(self._sandbox)
        # Of the running cell: the dspy.settings that tools see, its report, and an exception of a
        # tool that is not for the cell.
        self._context = contextvars.copy_context()
        self._reported: object = None
        self._escaped: BaseException | None = None
        try:
            self._check_names()
        except CodeInterpreterError as error:
            raise OptionError(str(error)) from None

    @classmethod
    def factory(cls, **arguments: Any) -> Callable[[], Self]:
        """Return a factory with these arguments, for ``dspy.configure(interpreter_factory=…)``.

        Args:
            arguments: those of :class:`ContainerInterpreter`.

        Raises:
            OptionError: an argument is unknown or wrong. It is found now, not by the first cell.
        """
        cls(**arguments)
        make = functools.partial(cls, **arguments)
        # dspy reads them from the factory.
        setattr(make, "execution_instructions", cls.execution_instructions)  # noqa: B010
        return make

    # Start and end

    @_traced
    def start(self) -> None:
        """Start the container, unless it is running. :meth:`execute` does so by itself.

        Raises:
            CodeInterpreterError: it does not start, or was shut down.
        """
        if self._ended:
            raise CodeInterpreterError("This interpreter was shut down. Make a new one.")
        try:
            self._sandbox.start()
        except ContainersError as error:
            self._fail(error)

    @_traced
    def shutdown(self) -> None:
        """End the container and all that runs in it. May be called at any time, and repeatedly.

        Raises:
            CodeInterpreterError: its files could not be removed.
        """
        self._ended = True
        if self._busy.locked():
            self._sandbox.interrupt()  # close() waits for the cell of another thread
        try:
            self._sandbox.close()
        except ContainersError as error:
            raise CodeInterpreterError(str(error)) from error

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.shutdown()

    def _fail(self, error: ContainersError) -> NoReturn:
        self._ended = True
        try:
            self._sandbox.close()
        except ContainersError:
            pass  # the first error matters
        raise CodeInterpreterError(str(error)) from error

    # Cells

    @_traced
    def execute(self, code: str, variables: Mapping[str, Any] | None = None) -> Any:
        """Run a cell.

        Args:
            code: Python source.
            variables: bound before the cell runs. Anything that JSON can express or that pydantic
                can convert. As in JSON, tuples and sets become lists, and keys become strings.

        Returns:
            ``FinalOutput`` if the cell called ``SUBMIT``. Otherwise the value of its last
            expression: as JSON has it, or its ``repr()``. If that is ``None``, what was printed,
            or ``None``.

        Raises:
            SyntaxError: the code is not valid Python.
            CodeExecutionError: it raised an exception, or killed the interpreter. The next cell
                goes on from the last checkpoint.
            CodeInterpreterError: a name or a value of ``variables`` cannot be used, another cell is
                running, or the container is gone. The last ends this interpreter.
        """
        if not isinstance(code, str):
            raise CodeInterpreterError(f"code must be a string, not {type(code).__name__}.")
        if not self._busy.acquire(blocking=False):
            # Not waited for: a tool would wait for the cell that called it.
            raise CodeInterpreterError("This interpreter is executing another cell.")
        try:
            self._check_names(variables or {})
            values = {name: as_json(name, value) for name, value in (variables or {}).items()}
            self.start()
            self._context = contextvars.copy_context()
            self._reported = self._escaped = None
            try:
                self._bind_tools()
                request = {
                    "code": code,
                    "small": self._large.load(values),
                    "large": self._large.names,
                    "fields": [field["name"] for field in self.output_fields or ()],
                }
                result = self._sandbox.execute(cell_source(request))
            except ContainersError as error:
                self._fail(error)
            if self._escaped is not None:
                raise self._escaped
            return self._result(result)
        finally:
            self._busy.release()

    __call__ = execute

    def _result(self, result: CellResult) -> Any:
        """Turn a cell's report, which may be anything, into what dspy expects."""
        report = self._reported if isinstance(self._reported, dict) else {}
        changed = report.get("changed")
        if result.status != "ok" or not isinstance(changed, list):
            changed = self._large.names
        self._large.forget(changed)
        printed = result.stdout + result.stderr
        if result.status != "ok" or not report:
            raise CodeExecutionError(printed or f"The cell ended without a result: {result.status}")
        if "final" in report:
            return FinalOutput(report["final"])
        if "syntax" in report:
            raise SyntaxError(str(report["syntax"]))
        if "error" in report:
            said = f"\nPrinted before that:\n{printed}" if printed else ""
            raise CodeExecutionError(str(report["error"]) + said)
        value = report.get("value")
        return value if value is not None else printed or None

    # Tools

    def _bind_tools(self) -> None:
        """Tell the guest the names of the tools. Each call looks up its function here."""
        names = frozenset(self.tools)
        if names != self._bound:
            stubs: dict[str, Any] = {name: functools.partial(self._call, name) for name in names}
            self._sandbox.set_tools({**stubs, REPORT: self._receive_report})
            self._bound = names

    def _receive_report(self, text: str) -> None:
        self._reported = json.loads(text)

    def _call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Answer a cell's call in a thread of the sandbox, with the dspy.settings of the caller."""
        try:
            return self._context.copy().run(self.invoke_tool, name, args, kwargs)
        except Exception:
            raise
        except BaseException as error:
            # As in dspy's own interpreter, cancellation and the like reach the caller of execute().
            self._escaped = error
            raise RuntimeError(f"{type(error).__name__}: {error}") from None

    @_traced
    def invoke_tool(self, tool_name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a tool of the host, as a cell does. dspy's callbacks see each call.

        Raises:
            CodeInterpreterError: there is no such tool, or its result cannot be sent.
        """
        tool = self.tools.get(tool_name)
        if tool is None:
            raise CodeInterpreterError(f"There is no tool {tool_name!r}.")
        return as_json(f"The result of {tool_name}", call_tool(tool, args, kwargs))

    def _check_names(self, variables: Mapping[str, Any] | None = None) -> None:
        for kind, names, taken in (
            ("tool", self.tools, _RESERVED),
            ("variable", variables or {}, _RESERVED | self.tools.keys()),
            ("output field", [f.get("name") for f in self.output_fields or ()], frozenset()),
        ):
            for name in names:
                good = isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name)
                if not good or name in taken:
                    raise CodeInterpreterError(f"{name!r} cannot be the name of a {kind}.")
