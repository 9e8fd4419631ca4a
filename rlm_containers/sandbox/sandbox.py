"""A sandbox: one container and one live interpreter in it."""

from __future__ import annotations

import dataclasses
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

from rlm_containers.container import NetworkLease, Reaper, SandboxImage
from rlm_containers.errors import (
    OptionError,
    SandboxClosedError,
    SandboxError,
    SetupCodeError,
)
from rlm_containers.interpreter import (
    CellClock,
    CellResult,
    Interpreter,
    OutputCallback,
    Pipe,
    UnsavedVariable,
    WorkerSetup,
)
from rlm_containers.lm import (
    AsyncFunctions,
    CallableBackend,
    CallBudget,
    Gateway,
    LMBroker,
    LMCallable,
)
from rlm_containers.options import DEFAULT_IMAGE, OptionArguments, configured_options
from rlm_containers.sandbox.artifacts import found_artifacts
from rlm_containers.sandbox.awaiting import AsyncMethods
from rlm_containers.sandbox.files import FileMethods
from rlm_containers.sandbox.lifecycle import LifeMethods
from rlm_containers.sandbox.snapshots import SnapshotMethods
from rlm_containers.sandbox.tool_methods import ToolMethods
from rlm_containers.sandbox.tools import ToolFunction
from rlm_containers.sandbox.variables import ContextMethods
from rlm_containers.state import Home, Workspace
from runtimes import Runtime


class Sandbox(AsyncMethods, ContextMethods, FileMethods, LifeMethods, SnapshotMethods, ToolMethods):
    """Runs Python in a container, cell after cell, with variables that live on.

    Args:
        image: the image; any with Python 3.9 or later.
        lm: answers ``llm_query()`` in the cells: a callable that takes a prompt (and, if it
            has such a parameter, a ``model``) and returns a string; or a broker.
        setup_code: a cell to run first. If it fails, so does :meth:`start`. A session that is
            gone on with has had its own already, so that it is not run again.
        tools: functions of this process that cells may call, by the names that cells call them by;
            see :meth:`set_tools`.
        scaffold: whether cells find what an RLM's are promised (``llm_query``, ``answer``,
            ``SHOW_VARS`` and so on), or a plain interpreter.
        options: see :class:`~rlm_containers.SandboxOptions`.

    Raises:
        OptionError: an argument is unknown or wrong.

    Use it as a context manager, or call :meth:`start` and :meth:`close`; with ``async with`` and
    ``await`` :meth:`aexecute` where there is an event loop. One cell runs at a time; calls from
    several threads take turns.

    >>> with Sandbox() as box:  # doctest: +SKIP
    ...     box.execute("x = 6 * 7")
    ...     print(box.execute("print(x)").stdout)
    42
    """

    def __init__(
        self,
        image: str = DEFAULT_IMAGE,
        *,
        lm: LMCallable | LMBroker | None = None,
        setup_code: str | None = None,
        tools: Mapping[str, ToolFunction] | None = None,
        scaffold: bool = True,
        **options: Unpack[OptionArguments],
    ) -> None:
        if setup_code is not None and not isinstance(setup_code, str):
            raise OptionError(f"setup_code must be a string, not {type(setup_code).__name__}.")
        self.options = configured_options(
            {"image": image, "setup_code": setup_code, **options}, also=("lm", "tools", "scaffold")
        )
        self._image = SandboxImage(self.options)
        if lm is not None and not callable(lm) and not isinstance(lm, LMBroker):
            raise OptionError(f"lm must be callable, not {type(lm).__name__}.")
        self.name = f"rlm-{secrets.token_hex(6)}"
        self.setup_code = self.options.setup_code
        self.scaffold = scaffold
        self.lost: tuple[UnsavedVariable, ...] = ()
        self._lm = lm
        self._async_functions = AsyncFunctions()
        self._tools = tools or {}
        self.tools = self._host_tools(self._tools)
        self.broker = lm if isinstance(lm, LMBroker) else self._new_broker(lm)
        self._clock = CellClock(self.options.lm_timeout)
        self.broker.join(
            CallBudget(self.options.max_lm_calls, self.options.max_session_lm_calls),
            self._clock.waiting,
        )
        self.python_version: str | None = None
        self._runtime: Runtime | None = None
        self._home: Home | None = None
        # Fills the workspace before the start: that of a fork.
        self._seed: Callable[[Workspace], None] | None = None
        self._workspace: Workspace | None = None
        self._reaper: Reaper | None = None
        self._lease: NetworkLease | None = None
        self._pipe: Pipe | None = None
        self._interpreter: Interpreter | None = None
        self._gateway = Gateway(self.broker, self._clock, self.name)
        self._gateway.call_tool = self.tools.call
        self._setup = WorkerSetup(
            env=self.options.env,
            scaffold=bool(scaffold),
            tools=self.tools.describe(),
            outlives=self.options.session is not None,
        )
        # Of each variable that was loaded: its file, if that may go, and how often it was.
        self._files: dict[str, tuple[str | None, int]] = {}
        self._closed = False
        self._lock = threading.RLock()

    def _new_broker(self, lm: LMCallable | None) -> LMBroker:
        if lm is None:
            return LMBroker(None)
        return LMBroker(CallableBackend(lm, self.options.lm_timeout, self._async_functions))

    def __repr__(self) -> str:
        state = "closed" if self._closed else "running" if self._interpreter else "not started"
        return f"<Sandbox {self.name} from {self.options.image}, {state}>"

    # Cells

    def execute(
        self,
        code: str,
        *,
        on_output: OutputCallback | None = None,
        name: str | None = None,
        display: bool = False,
    ) -> CellResult:
        """Run a cell and wait for it to end.

        Args:
            code: Python source.
            on_output: called with ``"stdout"`` or ``"stderr"`` and a piece of text, as it is
                printed, in this thread.
            name: names the cell in tracebacks; without one it has a number.
            display: also print the value of an expression at the cell's end, as an interactive
                prompt does.

        Returns:
            What it printed and left. An exception in the cell is no exception here, its
            traceback is in ``stderr``. Nor is the end of ``cell_timeout``: ``status`` is
            ``"timeout"`` then. Nor is the death of the interpreter: ``status`` is ``"died"`` then,
            or ``"killed"`` if the cell would not end, ``stderr`` says how, and the session goes on
            from its checkpoint.

        Raises:
            OptionError: ``code`` is not a string, or longer than 64 MiB.
            SandboxClosedError: the sandbox is not running.
            SandboxLostError: the container is gone.
            KeyboardInterrupt: Ctrl-C, here, has ended the cell as :meth:`interrupt` does. A second
                one has it killed without a grace time.
        """
        if not isinstance(code, str):
            raise OptionError(f"code must be a string, not {type(code).__name__}.")
        more: dict[str, Any] = {} if name is None else {"name": name}
        return self._execute(code, on_output, **more, **({"display": True} if display else {}))

    def _execute(
        self, code: str, on_output: OutputCallback | None = None, **more: Any
    ) -> CellResult:
        with self._lock:
            session = self._open_interpreter()
            self.broker.begin_cell()
            start = time.perf_counter()
            outcome = session.request("cell", on_output, code=code, **more)
            elapsed = time.perf_counter() - start
            result = outcome.result(elapsed, self.broker.take_calls())
            if not outcome.artifacts:
                return result
            assert self._workspace is not None
            artifacts = found_artifacts(outcome.artifacts, self._workspace)
            return dataclasses.replace(result, artifacts=artifacts)

    def interrupt(self) -> None:
        """Interrupt the running cell, from another thread, as Ctrl-C would. Else do nothing.

        Returns at once. A cell that goes on is killed five seconds later, and the session goes on
        from its checkpoint. A checkpoint that the cell waits for is interrupted, too.
        """
        if self._interpreter is not None and not self._closed:
            self._interpreter.interrupt()

    def run_setup(self, code: str, what: str = "setup code") -> None:
        """Run a cell that must succeed.

        Args:
            code: Python source.
            what: names it, in tracebacks too.

        Raises:
            SetupCodeError: it did not; the error has its traceback.
        """
        result = self._execute(code, name=what)
        if result.status not in ("ok", "exit"):
            raise SetupCodeError(f"The {what} failed.", stderr=result.stderr, container=self.name)

    def reset_answer(self) -> None:
        """Forget a final answer: a new question begins."""
        with self._lock:
            self._open_interpreter().request("reset_answer", None)

    @property
    def unsaved(self) -> Sequence[UnsavedVariable]:
        """The variables that the last checkpoint could not save.

        They live on in the interpreter, and would be lost with it. Waits for the checkpoint.
        """
        with self._lock:
            return self._open_interpreter().unsaved()

    @property
    def lm_route(self) -> str | None:
        """How ``llm_query()`` travels: ``"http"``, ``"pipe"``, or ``"none"`` without a model."""
        return self._interpreter.reports.route if self._interpreter else None

    def _open_interpreter(self) -> Interpreter:
        if self._closed:
            raise self._not_open("was closed")
        if self._interpreter is None:
            raise self._not_open("has not been started")
        return self._interpreter

    def _not_open(self, how: str) -> SandboxError:
        return SandboxClosedError(
            f"The sandbox {how}.",
            remedy="Use it inside of `with Sandbox(…) as box:`, or call start() first.",
            container=self.name,
        )
