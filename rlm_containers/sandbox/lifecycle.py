"""How a sandbox starts and ends: what is made in which order, and undone in reverse."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

from rlm_containers.container import (
    HOST_ALIAS,
    Launch,
    Limits,
    NetworkLease,
    Reaper,
    SandboxImage,
    prune_once,
)
from rlm_containers.errors import SandboxClosedError
from rlm_containers.interpreter import (
    CellClock,
    Deadlines,
    Interpreter,
    Pipe,
    WorkerSetup,
)
from rlm_containers.lm import CallBudget, Gateway, LMBroker
from rlm_containers.options import SandboxOptions
from rlm_containers.state import Home, KeptHome, Owner, Workspace
from runtimes import HostRoute, InternalNetwork, Runtime, get_runtime

logger = logging.getLogger("rlm_containers")

_Network = Literal["bridge", "none"] | InternalNetwork

#: Seconds for a container to end by itself once its pipe is closed.
_CLOSE_TIMEOUT = 10.0

#: Seconds for a checkpoint to be written before its workspace is copied or closed.
SETTLE_TIMEOUT = 120.0


@dataclass(frozen=True, kw_only=True)
class Running:
    """What exists only while a sandbox runs.

    Attributes:
        runtime: the engine.
        home: keeps the workspace, the snapshots and the manifest.
        workspace: the directory behind the container's ``/workspace``.
        reaper: cleans up if this process dies.
        gateway: answers the cells' calls of models and tools.
        interpreter: the conversation with the container's interpreter.
        python_version: the version of its Python, such as ``"3.11.4"``.
    """

    runtime: Runtime
    home: Home
    workspace: Workspace
    reaper: Reaper
    gateway: Gateway
    interpreter: Interpreter
    python_version: str

    def settle(self) -> bool:
        """Wait until the last checkpoint is on disk, see :meth:`Interpreter.settle`."""
        return self.interpreter.settle(SETTLE_TIMEOUT)


class Lifecycle:
    """Starts one sandbox's container, and removes everything that was made for it.

    Args:
        name: the sandbox's name, which is the container's.
        options: the sandbox's options.

    Attributes:
        closed: whether :meth:`close` was called.

    Raises:
        OptionError: an option that says what to add to the image is wrong.
    """

    def __init__(self, name: str, options: SandboxOptions) -> None:
        self.name = name
        self.closed = False
        self._options = options
        self._image = SandboxImage(options)
        self._running: Running | None = None
        self._pipe: Pipe | None = None
        self._home: Home | None = None
        self._reaper: Reaper | None = None
        self._undo = ExitStack()
        self._closing = False

    @property
    def is_running(self) -> bool:
        """Whether the sandbox was started and not closed."""
        return self._running is not None

    @property
    def running(self) -> Running:
        """What exists while the sandbox runs.

        Raises:
            SandboxClosedError: it does not run.
        """
        running = self._running
        if running is None:
            raise self.not_running()
        return running

    def not_running(self) -> SandboxClosedError:
        """Return the error for a sandbox that does not run."""
        how = "was closed" if self.closed else "has not been started"
        return SandboxClosedError(
            f"The sandbox {how}.",
            remedy="Use it inside of `with Sandbox(…) as box:`, or call start() first.",
            container=self.name,
        )

    def start(
        self,
        broker: LMBroker,
        setup: WorkerSetup,
        call_tool: Callable[[object], dict[str, Any]],
        fill: Callable[[Workspace], None] | None,
    ) -> Running:
        """Start the container and its interpreter.

        If it fails, :meth:`close` undoes what was made.

        Args:
            broker: answers the cells' calls of language models.
            setup: what each worker is given. What depends on the engine is filled in here.
            call_tool: answers the cells' calls of host functions.
            fill: fills the workspace of a fork; ``None`` for any other sandbox.

        Raises:
            ContainersError: one of its subclasses.
        """
        options, undo = self._options, self._undo
        runtime = get_runtime(options.runtime)
        limits = Limits.on(runtime.info(), options, self.name)
        owner = Owner.current(options.session or "")
        remove = runtime.remove_command(self.name)
        lease = NetworkLease(runtime) if options.effective_network == "internal" else None
        if lease is not None:
            remove = lease.remove_command(remove)
        home, reaper = self._open_home(remove, new=fill is not None)
        workspace = home.open_workspace(
            runtime.workspace_user(_ids(options.user)), owner.json(runtime=repr(runtime))
        )
        if fill is not None:
            fill(workspace)
        network: _Network = options.plain_network
        if lease is not None:
            undo.callback(lease.release)
            network = lease.acquire(owner.labels())

        clock = CellClock(options.lm_timeout)
        broker.join(CallBudget(options.max_lm_calls, options.max_session_lm_calls), clock.waiting)
        gateway = Gateway(broker, clock, self.name)
        gateway.call_tool = call_tool
        undo.callback(gateway.close)
        launch = Launch(
            runtime=runtime,
            image=self._image,
            options=options,
            limits=limits,
            network=network,
            workspace=workspace,
            name=self.name,
            labels=owner.labels(),
            on_call=gateway.on_call,
            watch=reaper.watch,
        )
        # Register this before the launch: a Ctrl-C right after it must not leave the container.
        undo.callback(self._end_container, runtime)
        self._pipe, python_version = launch.run()
        pipe = self._pipe
        gateway.attach(pipe.send)
        setup.has_model = broker.connected
        setup.file_limit = limits.file
        if setup.has_model and (route := _host_route(runtime, network)) is not None:
            setup.proxy = gateway.open_proxy(route, HOST_ALIAS)
        interpreter = Interpreter(
            pipe,
            setup,
            options.max_output,
            deadlines=Deadlines(clock, options.cell_timeout, options.start_timeout),
            abandon=functools.partial(self._remove_container, runtime),
            memory_loss=launch.memory_loss,
        )
        interpreter.start()
        # Not before: what a session goes on from is judged by its manifest as it was.
        interpreter.reports.on_saved = home.note
        prune_once(runtime)
        self._running = Running(
            runtime=runtime,
            home=home,
            workspace=workspace,
            reaper=reaper,
            gateway=gateway,
            interpreter=interpreter,
            python_version=python_version,
        )
        return self._running

    def begin(self) -> None:
        """Record that the sandbox is ready. From here on closing keeps its session."""
        running = self.running
        running.home.begin(running.python_version, self._options.image, running.runtime.name)
        if self._options.session:
            self._undo.callback(self._settle, running)

    def hang_up(self) -> None:
        """Make whoever waits for the container return at once, with an error."""
        if self._pipe is not None:
            self._pipe.hang_up()

    def close(self) -> None:
        """Undo what :meth:`start` has made, in reverse order. May be called again.

        Goes on past an error in one step.

        Raises:
            WorkspaceError: the workspace could not be removed.
        """
        self.closed = True
        self._running = None
        if self._closing:
            return  # a signal handler calls this in the middle of it: keep the order
        self._closing = True
        try:
            self._undo.close()
        finally:
            self._closing = False

    def _open_home(self, remove: Sequence[str], *, new: bool) -> tuple[Home, Reaper]:
        """Open the home, and start the reaper before there is anything that a crash could leave.

        Args:
            remove: the command line that removes the container and its network.
            new: whether the session must not exist yet.
        """
        session = self._options.session
        # Register this first: a Ctrl-C between two statements must leave neither of them.
        self._undo.callback(self._close_home)
        home = self._home = KeptHome(self.name, session, new=new) if session else Home(self.name)
        reaper = self._reaper = Reaper(
            self.name, home.passing_workspace, remove, also=home.passing_snapshots, lock=home.lock
        )
        return home, reaper

    def _close_home(self) -> None:
        if self._home is None:
            return
        try:
            self._home.close()
        finally:
            if self._reaper is not None:
                self._reaper.dismiss()
            self._home.release()

    def _settle(self, running: Running) -> None:
        """Wait for the last checkpoint of a session, before its container ends."""
        try:
            saved = running.settle()
        except Exception as error:
            logger.info("%s: %s", self.name, error)  # the container was lost before
        else:
            if not saved:
                logger.warning("%s: what the last cell changed may not be saved", self.name)

    def _end_container(self, runtime: Runtime) -> None:
        pipe = self._pipe
        if pipe is None:
            return  # the launch has failed, and has removed its container itself
        try:
            pipe.close(_CLOSE_TIMEOUT)
        finally:
            ended = pipe.closed
            if ended is None or ended.exit_code != 0:
                # It did not end by itself, so --rm may not have removed it.
                self._remove_container(runtime)

    def _remove_container(self, runtime: Runtime) -> None:
        try:
            runtime.remove(self.name)
        except Exception as error:
            # An engine that is gone has nothing to remove; closing must go on in any case.
            logger.warning("%s: %s", self.name, error)


def _ids(user: str | None) -> tuple[int, int] | None:
    """Return the UID and GID of ``"UID:GID"``."""
    if user is None:
        return None
    uid, _, gid = user.partition(":")
    return int(uid), int(gid)


def _host_route(runtime: Runtime, network: _Network) -> HostRoute | None:
    """Return how a container on that network reaches this host, if it can."""
    if isinstance(network, InternalNetwork):
        return network.route
    return None if network == "none" else runtime.host_route()
