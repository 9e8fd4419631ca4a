"""A sandbox: one container and one live interpreter in it."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

from rlm_containers.artifacts import found_artifacts
from rlm_containers.async_sandbox import AsyncMethods
from rlm_containers.awaitables import AsyncFunctions
from rlm_containers.cell import CellResult, OutputCallback
from rlm_containers.channel import Channel
from rlm_containers.clock import CellClock
from rlm_containers.config import configured_options
from rlm_containers.errors import (
    OptionError,
    SandboxClosedError,
    SandboxError,
    SetupCodeError,
)
from rlm_containers.images.index import note_use
from rlm_containers.launch import HOST_ALIAS, Launch
from rlm_containers.limits import Limits
from rlm_containers.lm.broker import LMBroker
from rlm_containers.lm.budget import CallBudget
from rlm_containers.lm.handler import CallableBackend, LMCallable
from rlm_containers.lm.pipe import PipeCalls
from rlm_containers.lm.proxy import LMProxy
from rlm_containers.networks import NetworkLease
from rlm_containers.options import DEFAULT_IMAGE, OptionArguments
from rlm_containers.outcome import UnsavedVariable
from rlm_containers.owner import LABEL, Owner
from rlm_containers.patience import Patience
from rlm_containers.prune import prune_once
from rlm_containers.reaper import Reaper
from rlm_containers.sandbox_contexts import ContextMethods
from rlm_containers.sandbox_files import FileMethods
from rlm_containers.sandbox_image import SandboxImage
from rlm_containers.sandbox_snapshots import SnapshotMethods
from rlm_containers.sandbox_tools import ToolMethods
from rlm_containers.session import Session
from rlm_containers.sessions.home import Home, KeptHome
from rlm_containers.tools import ToolFunction
from rlm_containers.workspace import Workspace
from runtimes import HostRoute, InternalNetwork, Runtime, get_runtime

__all__ = ["LABEL", "Sandbox"]

logger = logging.getLogger("rlm_containers")

#: Seconds for a container to end by itself once its pipe is closed.
_CLOSE_TIMEOUT = 10.0


class Sandbox(AsyncMethods, ContextMethods, FileMethods, SnapshotMethods, ToolMethods):
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
        options: see :class:`~rlm_containers.options.SandboxOptions`.

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
        self._channel: Channel | None = None
        self._proxy: LMProxy | None = None
        self._session: Session | None = None
        self._calls = PipeCalls(self._answer, self._send, self._clock.waiting)
        # What every worker is told at its start, see Session.
        self._told: dict[str, Any] = {
            "lm": False,
            "proxy": None,
            "env": dict(self.options.env),
            "scaffold": bool(scaffold),
            "tools": self.tools.describe(),
            "kept": [],
            "kept_names": [],
            "kept_session": self.options.session is not None,
        }
        # Of each variable that was loaded: its file, if that may go, and how often it was.
        self._files: dict[str, tuple[str | None, int]] = {}
        self._closed = False
        self._lock = threading.RLock()

    def _new_broker(self, lm: LMCallable | None) -> LMBroker:
        if lm is None:
            return LMBroker(None)
        return LMBroker(CallableBackend(lm, self.options.lm_timeout, self._async_functions))

    def __repr__(self) -> str:
        state = "closed" if self._closed else "running" if self._session else "not started"
        return f"<Sandbox {self.name} from {self.options.image}, {state}>"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # Life

    def start(self) -> Self:
        """Start the container and its interpreter. Does nothing if it is running.

        Returns:
            This sandbox.

        Raises:
            ContainersError: one of its subclasses, see :mod:`rlm_containers.errors`; nothing is
                left running.
        """
        with self._lock:
            if self._closed:
                raise self._not_open("was closed")
            if self._session is not None:
                return self
            atexit.register(self.close)
            try:
                self._start()
            except BaseException:
                self.close()
                raise
        return self

    def _start(self) -> None:
        self._runtime = runtime = get_runtime(self.options.runtime)
        image = self._image.ready(runtime)
        limits = Limits.on(runtime.info(), self.options, self.name)
        owner = Owner.current(self.options.session or "")
        labels = owner.labels()
        remove = runtime.remove_command(self.name)
        if self.options.effective_network == "internal":
            self._lease = NetworkLease(runtime)
            remove = self._lease.remove_command(remove)
        session = self.options.session
        new = self._seed is not None
        self._home = home = KeptHome(self.name, session, new=new) if session else Home(self.name)
        # In this order, so that nothing exists at any time that nobody would remove.
        self._reaper = home.reaper(remove)
        self._workspace = home.open_workspace(
            runtime.workspace_user(self._user()), owner.json(runtime=repr(runtime))
        )
        if self._seed is not None:
            self._seed(self._workspace)
        launch = Launch(
            runtime=runtime,
            options=dataclasses.replace(self.options, image=image),
            fetch=functools.partial(self._image.fetch, runtime),
            limits=limits,
            network=self._lease.take(labels) if self._lease else self.options.plain_network,
            workspace=self._workspace,
            name=self.name,
            labels=labels,
            on_call=self._calls.take,
            watch=self._reaper.watch,
        )
        self._channel, self.python_version = launch.run()
        self._connect_lm(runtime, launch.network)
        self._told["file_limit"] = limits.file
        self._session = Session(
            self._channel,
            self._told,
            self.options.max_output,
            patience=Patience(self._clock, self.options.cell_timeout, self.options.start_timeout),
            abandon=self._remove_container,
            memory_loss=launch.memory_loss,
        )
        self._session.reports.on_saved = home.note
        self._session.start()
        prune_once(runtime)
        note_use(runtime, image)
        self._go_on(self.python_version)
        if self.setup_code and home.is_new and self._seed is None:
            self.run_setup(self.setup_code)
        home.begin(self.python_version, self.options.image, runtime.name)

    def _user(self) -> tuple[int, int] | None:
        if self.options.user is None:
            return None
        uid, _, gid = self.options.user.partition(":")
        return int(uid), int(gid)

    def _connect_lm(self, runtime: Runtime, network: str | InternalNetwork) -> None:
        """Open the proxy, where a container can reach it."""
        self._told["lm"] = self.broker.connected
        if not self.broker.connected or network == "none":
            return
        route: HostRoute | None
        route = network.route if isinstance(network, InternalNetwork) else runtime.host_route()
        if route is None:
            return
        try:
            self._proxy = LMProxy(route.bind, self.broker.handle, self._clock.waiting)
        except OSError as error:
            logger.warning(
                "%s: the proxy cannot listen on %s (%s)", self.name, route.bind, error.strerror
            )
            return
        self._told["proxy"] = {
            "host": HOST_ALIAS,
            "port": self._proxy.port,
            "token": self._proxy.token,
        }

    def close(self) -> None:
        """End the container and remove what it used. May be called at any time, and again.

        A cell that runs in another thread ends with :class:`SandboxLostError`.

        Raises:
            WorkspaceError: the workspace could not be removed.
        """
        if not self._lock.acquire(blocking=False):
            if self._channel is not None:
                self._channel.hang_up()
            self._lock.acquire()
        try:
            self._close()
        finally:
            self._lock.release()

    def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        try:
            if self.options.session:
                self._settle_for_good()
        finally:
            self._end()

    def _end(self) -> None:
        if self._channel is not None:
            self._channel.close(_CLOSE_TIMEOUT)
            ended = self._channel.closed
            if (ended is None or ended.exit_code != 0) and self._runtime is not None:
                # Not by itself, so --rm may not have had its chance.
                self._remove_container()
        if self._proxy is not None:
            self._proxy.close()
        self._calls.close()
        if self._lease is not None:
            self._lease.give_back()
        try:
            if self._home is not None:
                self._home.close()
        finally:
            if self._reaper is not None:
                self._reaper.dismiss()
            if self._home is not None:
                self._home.release()

    def _remove_container(self) -> None:
        assert self._runtime is not None
        try:
            self._runtime.remove(self.name)
        except Exception as error:
            # An engine that is gone has nothing to remove; closing must go on in any case.
            logger.warning("%s: %s", self.name, error)

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
            session = self._open_session()
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
        if self._session is not None and not self._closed:
            self._session.interrupt()

    def _send(self, kind: int, payload: bytes) -> None:
        if self._channel is not None:
            self._channel.send(kind, payload)

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
            self._open_session().request("reset_answer", None)

    @property
    def unsaved(self) -> Sequence[UnsavedVariable]:
        """The variables that the last checkpoint could not save.

        They live on in the interpreter, and would be lost with it. Waits for the checkpoint.
        """
        with self._lock:
            return self._open_session().unsaved()

    @property
    def lm_route(self) -> str | None:
        """How ``llm_query()`` travels: ``"http"``, ``"pipe"``, or ``"none"`` without a model."""
        return self._session.reports.route if self._session else None

    def _open_session(self) -> Session:
        if self._closed:
            raise self._not_open("was closed")
        if self._session is None:
            raise self._not_open("has not been started")
        return self._session

    def _not_open(self, how: str) -> SandboxError:
        return SandboxClosedError(
            f"The sandbox {how}.",
            remedy="Use it inside of `with Sandbox(…) as box:`, or call start() first.",
            container=self.name,
        )
