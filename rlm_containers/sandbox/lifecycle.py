"""How a sandbox starts and ends: what is made in which order, and undone in reverse."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

from rlm_containers.container import (
    HOST_ALIAS,
    Container,
    ContainerPool,
    SandboxImage,
    new_name,
    prune_once,
    shared_pool,
)
from rlm_containers.errors import (
    ContainersError,
    SandboxClosedError,
    SandboxForkedError,
    SandboxLostError,
)
from rlm_containers.interpreter import (
    BranchTable,
    CellClock,
    Commands,
    Conversation,
    Deadlines,
    FileCalls,
    Interpreter,
    Pipe,
    WorkerSetup,
)
from rlm_containers.lm import CallBudget, Gateway, LMBroker
from rlm_containers.options import SandboxOptions, sets_core_limit
from rlm_containers.sandbox.replication import Replication
from rlm_containers.sandbox.running import Running
from rlm_containers.sandbox.watch import SpaceWatch
from rlm_containers.state import (
    DirectoryMeter,
    Meter,
    PipedMeter,
    PipedWorkspace,
    Space,
    Workspace,
    WorkspaceFiles,
)
from runtimes.text import get_logger
from runtimes.timelimit import TimeLimit

logger = get_logger("rlm_containers")

#: How often the saved variables may be on the disk: two checkpoints, and one that is being written.
_CHECKPOINTS = 3


class Lifecycle:
    """Starts one sandbox's container, and removes everything that was made for it.

    Args:
        options: the sandbox's options.
        pool: has the containers that it may take. Without one, ``pool`` in the options says whether
            it takes one of those that its process shares.

    Attributes:
        name: the sandbox's name, which is the container's. One that waited has its name already.
        closed: whether :meth:`close` was called.

    Raises:
        OptionError: an option that says what to add to the image is wrong.
    """

    def __init__(self, options: SandboxOptions, pool: ContainerPool | None = None) -> None:
        self.name = self._own_name = new_name()
        self.closed = False
        self._options = options
        self._pool = pool
        self._image = SandboxImage(options)
        self._running: Running | None = None
        self._container: Container | None = None
        self._gateway: Gateway | None = None
        self._watch: SpaceWatch | None = None
        self._replication: Replication | None = None
        self._file_calls: FileCalls | None = None
        self._restarts = 0  # how often another container was started
        self._undo = ExitStack()
        self._process: int | None = None  # the one that has started it
        self._closing = False
        self._has_entered = False

    @property
    def is_running(self) -> bool:
        """Whether this process has started the sandbox and not closed it."""
        return self._running is not None and not self.is_of_parent

    @property
    def running(self) -> Running:
        """What exists while the sandbox runs.

        Raises:
            SandboxClosedError: it does not run, or is of the process that this one was forked from.
        """
        running = self._running
        self.check_process()
        if running is None or self.closed:
            raise self.not_running()
        return running

    @property
    def is_of_parent(self) -> bool:
        """Whether the sandbox was started by the process that this one was forked from."""
        return self._process not in (None, os.getpid())

    def check_process(self) -> None:
        """Check that no other process has started the sandbox.

        Raises:
            SandboxForkedError: the one that this was forked from has.
        """
        if self.is_of_parent:
            raise SandboxForkedError(
                f"The sandbox belongs to the process {self._process}, and this one, {os.getpid()}, "
                "was forked from it.",
                remedy="Start a sandbox of its own in each process. A named session can go on in "
                "another process once its sandbox is closed.",
                container=self.name,
            )

    def not_running(self) -> SandboxClosedError:
        """Return the error for a sandbox that does not run."""
        how = "was closed" if self.closed else "has not been started"
        return SandboxClosedError(
            f"The sandbox {how}.",
            remedy="Use it inside of `with Sandbox(…) as box:`, or call start() first.",
            container=self.name,
        )

    def enter(
        self, timeout: float | None = None, cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        """Wait until the pool, if there is one, has room for this. :meth:`close` leaves it.

        Args:
            timeout, cancelled: as for :meth:`ContainerPool.enter`.

        Raises:
            As :meth:`ContainerPool.enter`.
        """
        self._has_entered = True
        self._undo.callback(self._remove)  # first, as below
        if self._pool is not None:
            self._pool.enter(self, timeout, cancelled)

    def start(
        self,
        broker: LMBroker,
        setup: WorkerSetup,
        call_tool: Callable[[object], dict[str, Any]],
        fill: Callable[[Workspace], None] | None,
        serving: Callable[[], AbstractContextManager[None]],
    ) -> Running:
        """Start the container and its interpreter.

        If it fails, :meth:`close` undoes what was made.

        Args:
            broker: answers the cells' calls of language models.
            setup: what each worker is given. What depends on the engine is filled in here.
            call_tool: answers the cells' calls of host functions.
            fill: fills the workspace of a fork; ``None`` for any other sandbox.
            serving: entered while a function of the host is called for a cell.

        Raises:
            ContainersError: one of its subclasses.
        """
        options, undo = self._options, self._undo
        limit = TimeLimit(
            options.start_timeout, "the start", option="start_timeout", container=self.name
        )
        with limit.applied():
            self._process = os.getpid()
            if self._pool is None and options.pool:
                self._pool = shared_pool(options)
            pool = self._pool
            if not self._has_entered:
                self.enter()
            # Register these before the start: a Ctrl-C right after it must not leave the container.
            # The exit functions of a session may ask a model, so the container ends first.
            undo.callback(self._close_gateway)
            undo.callback(self._end)
            container = self._take(pool, limit, new=fill is not None)
            self._check_wanted()
            if fill is not None:
                with limit.paused():  # there may be many files
                    fill(container.workspace)
            clock = CellClock(options.lm_timeout)
            gateway = self._gateway = Gateway(broker, clock, self.name, serving)
            interpreter = self._connect(container, broker, clock, gateway, setup, call_tool)
            assert container.pipe is not None
            commands = Commands(
                container.pipe,
                setup,
                options.max_output,
                gone=interpreter.gone,
                give_up=interpreter.give_up,
            )
            branches = BranchTable(container.pipe)
            workspace = self._open_workspace(container, commands, limit, filled=fill is not None)
            if (space := workspace.space) is not None:
                self._watch = SpaceWatch(self.name, space, interpreter, commands, branches)
                undo.callback(self._watch.close)
            interpreter.start(limit.left())
            # Not before: what a session goes on from is judged by its manifest as it was.
            interpreter.reports.on_saved = container.home.note
            prune_once(container.runtime)
            self._running = Running(
                runtime=container.runtime,
                home=container.home,
                workspace=workspace,
                reaper=container.reaper,
                gateway=gateway,
                interpreter=interpreter,
                watch=self._watch,
                commands=commands,
                branches=branches,
                replication=self._replicate(workspace, interpreter, container.pipe),
                python_version=container.python_version,
            )
            interpreter.on_loss(self._revive)
            self._check_wanted()
            if pool is not None:
                pool.refill()
            return self._running

    def _take(self, pool: ContainerPool | None, limit: TimeLimit, *, new: bool) -> Container:
        """Take a container that waits, or start one."""
        if pool is not None and pool.take(self, self._adopt) and self._container is not None:
            limit.container = self.name
            return self._container
        container = self._container = Container(self.name, self._options, self._image)
        with nullcontext() if pool is None else pool.starting():
            container.start(limit, new=new, check=self._check_wanted)
        return container

    def _adopt(self, container: Container | None) -> None:
        self._container = container
        self.name = self._own_name if container is None else container.name

    def _connect(
        self,
        container: Container,
        broker: LMBroker,
        clock: CellClock,
        gateway: Gateway,
        setup: WorkerSetup,
        call_tool: Callable[[object], dict[str, Any]],
    ) -> Interpreter:
        """Let the container ask the broker and call tools, and return its interpreter."""
        options, pipe = self._options, container.pipe
        assert pipe is not None
        budget = CallBudget(
            options.max_lm_calls, options.max_session_lm_calls, parent=CallBudget.of_caller()
        )
        broker.join(budget, clock.waiting)
        gateway.call_tool = call_tool
        gateway.attach(pipe.send)
        pipe.on_call = gateway.on_call
        setup.has_model = broker.connected
        setup.file_limit = container.limits.file
        setup.core_files = sets_core_limit(options.run_args)
        if setup.has_model and (route := container.host_route) is not None:
            setup.proxy = gateway.open_proxy(route, HOST_ALIAS)
        conversation = Conversation(
            pipe,
            setup,
            options.max_output,
            deadlines=Deadlines(clock, options.cell_timeout, options.start_timeout),
            abandon=container.abandon,
            memory_loss=container.launch.memory_loss,
        )
        return Interpreter(conversation)

    def _open_workspace(
        self, container: Container, commands: Commands, limit: TimeLimit, *, filled: bool
    ) -> WorkspaceFiles:
        """Return the files of a container, which has what is in the directory of this host.

        Args:
            container: the container.
            commands: its commands.
            limit: how long the start may take.
            filled: whether the directory was filled for it.
        """
        workspace = container.workspace
        if container.is_shared:
            workspace.space = self._space(DirectoryMeter(workspace.directory), container.memory)
            return workspace
        calls = self._file_calls = FileCalls(commands)
        files = PipedWorkspace(workspace, calls, container.limits.replica)
        if filled or container.home.state == "ready":
            with limit.paused():
                files.push()
        if self._options.workspace == "volume":
            # No engine limits a volume.
            files.space = self._space(PipedMeter(calls), container.memory)
        return files

    def _replicate(
        self, workspace: WorkspaceFiles, interpreter: Interpreter, pipe: Pipe
    ) -> Replication | None:
        """Bring the files here whenever they may have changed, if anybody may need them later."""
        options = self._options
        if not isinstance(workspace, PipedWorkspace) or not (options.session or options.restarts):
            return None
        reports = interpreter.reports
        replication = Replication(self.name, workspace, lambda: reports.saved)
        self._replication = replication
        self._undo.callback(replication.close)
        pipe.on_saved = replication.wake
        reports.files_lag = True
        reports.kept = lambda saved: min(saved, replication.pulled)
        return replication

    def _revive(self, error: SandboxLostError) -> tuple[Pipe, int]:
        """Start another container in the place of one that is lost.

        Returns:
            The pipe to it, and the last request whose changes its files have for sure.

        Raises:
            SandboxLostError: ``error``, if there is to be none, or it cannot be started.
        """
        running, container, gateway = self._running, self._container, self._gateway
        most = self._options.restarts
        if running is None or container is None or gateway is None or self.closed:
            raise error
        if self._restarts >= most:
            raise error
        self._restarts += 1
        logger.warning(
            "%s: %s It is started again (%d of %d).", self.name, error.what, self._restarts, most
        )
        limit = TimeLimit(
            self._options.start_timeout, "the restart", option="start_timeout", container=self.name
        )
        reports, workspace = running.interpreter.reports, running.workspace
        try:
            with limit.applied(), workspace.held():  # or an empty workspace would be pulled
                pipe = container.restart(limit)
                gateway.attach(pipe.send)
                pipe.on_call = gateway.on_call
                running.commands.attach(pipe)
                running.branches.attach(pipe)
                workspace.push()
                if running.replication is not None:
                    pipe.on_saved = running.replication.wake
        except ContainersError as failure:
            raise error from failure
        return pipe, reports.kept(reports.saved)

    def begin(self) -> None:
        """Record that the sandbox is ready. From here on closing keeps its session."""
        running = self.running
        running.home.begin(running.python_version, self._options.image, running.runtime.name)
        if self._file_calls is not None:
            self._undo.callback(self._file_calls.close)
        if self._options.session:
            self._undo.callback(self._settle, running)

    def hang_up(self) -> None:
        """Make whoever waits for the container return at once, with an error."""
        if self._container is not None and not self.is_of_parent:
            self._container.hang_up()

    def refuse(self) -> None:
        """Let nobody begin to use the sandbox any more: it is about to be closed."""
        self.closed = True

    def is_served_here(self) -> bool:
        """Whether this thread is one that :meth:`close` waits for."""
        if self._container is not None and self._container.is_reading_here():
            return True
        if self._watch is not None and self._watch.is_watching_here():
            return True
        if self._replication is not None and self._replication.is_pulling_here():
            return True
        return self._gateway is not None and self._gateway.is_accepting_here()

    def _check_wanted(self) -> None:
        """Give a start up once the sandbox was closed meanwhile."""
        if self.closed:
            raise self.not_running()

    def close(self) -> None:
        """Undo what :meth:`start` has made, in reverse order. May be called again.

        Goes on past an error in one step.

        Raises:
            WorkspaceError: the workspace could not be removed.
        """
        if self.is_of_parent:
            return
        self.closed = True
        self._running = None
        if self._closing:
            return  # a signal handler calls this in the middle of it: keep the order
        self._closing = True
        try:
            self._undo.close()
        finally:
            self._closing = False

    def _space(self, meter: Meter, memory: int | None) -> Space | None:
        """Return how much the files of the workspace may take; ``None`` if they are not limited."""
        size = self._options.workspace_size
        if size is None:
            return None
        state_size = memory and _CHECKPOINTS * memory
        return Space(meter, None if isinstance(size, str) else size, state_size)

    def _settle(self, running: Running) -> None:
        """Wait for the last checkpoint of a session, before its container ends."""
        try:
            saved = running.save()
        except SandboxLostError as error:
            logger.info("%s: %s", self.name, error)
        except Exception as error:
            logger.warning("%s: the session may lack what has changed: %s", self.name, error)
        else:
            if not saved:
                logger.warning("%s: what the last cell changed may not be saved", self.name)

    def _end(self) -> None:
        if self._container is None:
            return
        if self._pool is None:
            self._container.end()
        else:
            self._container.end_guest()

    def _close_gateway(self) -> None:
        if self._gateway is not None:
            self._gateway.close()

    def _remove(self) -> None:
        if self._pool is not None:
            self._pool.leave(self, self._container)
        elif self._container is not None:
            self._container.remove()
