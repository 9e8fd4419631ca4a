"""A sandbox: one container and one live interpreter in it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NoReturn, Self, Unpack, overload

from rlm_containers.container import ContainerPool
from rlm_containers.errors import (
    OptionError,
    SandboxClosedError,
    SandboxError,
    SandboxStartError,
    SetupCodeError,
    host_errors,
)
from rlm_containers.interpreter import (
    CellResult,
    Command,
    CommandCallback,
    CommandRequest,
    CommandResult,
    OutputCallback,
    UnsavedVariable,
    WorkspaceFile,
    start_thread,
)
from rlm_containers.lm import AsyncFunctions, CallableBackend, LMBroker, LMCallable
from rlm_containers.options import (
    DEFAULT_IMAGE,
    OptionArguments,
    SandboxOptions,
    configured_options,
)
from rlm_containers.sandbox.awaiting import AwaitedCall, AwaitedCell, call_in_thread, in_thread
from rlm_containers.sandbox.branches import Branches, checked_count
from rlm_containers.sandbox.cells import cell_content, run_cell
from rlm_containers.sandbox.files import MAX_SIZE, Files
from rlm_containers.sandbox.forgotten import note_closed, note_open
from rlm_containers.sandbox.lifecycle import Lifecycle
from rlm_containers.sandbox.snapshots import Snapshots
from rlm_containers.sandbox.tools import HostTools, ToolFunction
from rlm_containers.sandbox.transfers import copy_file, put_file
from rlm_containers.sandbox.turn import Turn
from rlm_containers.sandbox.values import Context
from rlm_containers.sandbox.variables import Variables
from rlm_containers.state import Snapshot, Workspace


class Sandbox:
    """Runs Python in a container, cell after cell, with variables that live on.

    Use it as a context manager, or call :meth:`start` and :meth:`close`. In a program with an event
    loop use ``async with``, and the methods whose names begin with ``a``: each has the parameters
    of the blocking method, and raises the same errors. One cell runs at a time; calls from several
    threads take turns.

    >>> with Sandbox() as box:  # doctest: +SKIP
    ...     box.execute("x = 6 * 7")
    ...     print(box.execute("print(x)").stdout)
    42

    Args:
        image: the image; any with Python 3.9 or later.
        lm: answers ``llm_query()`` in the cells: a callable that takes a prompt (and, if it
            has such a parameter, a ``model``) and returns a string; or a broker.
        setup_code: a cell to run first. If it fails, so does :meth:`start`. It is not run again
            when a session is continued.
        tools: functions of this process that cells may call, by their names; see
            :meth:`set_tools`.
        scaffold: whether cells find the names that an RLM promises them (``llm_query``,
            ``answer``, ``SHOW_VARS`` and so on), or a plain interpreter.
        options: see :class:`~rlm_containers.SandboxOptions`.

    Attributes:
        options: the options, those from the configuration included.
        scaffold: as it was given.
        broker: answers the cells' calls of language models.
        files: reads and writes the files in its workspace, see :class:`Files`.
        python_version: the version of the container's Python; ``None`` before the start.

    Raises:
        OptionError: an argument is unknown or wrong.
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
        configured = configured_options(
            {"image": image, "setup_code": setup_code, **options}, also=("lm", "tools", "scaffold")
        )
        self._compose(configured, lm, tools or {}, scaffold, configured.setup_code)

    @classmethod
    def _with(
        cls,
        options: SandboxOptions,
        *,
        lm: LMCallable | LMBroker | None,
        tools: Mapping[str, ToolFunction],
        scaffold: bool = True,
        setup_code: str | None = None,
        pool: ContainerPool | None = None,
    ) -> Self:
        """Make a sandbox without reading the configuration again.

        Args:
            options: as :func:`configured_options` returns them. Their setup code is not run.
            lm, tools, scaffold, setup_code: as for the class.
            pool: has the containers that it may take.
        """
        box = cls.__new__(cls)
        box._compose(options, lm, tools, scaffold, setup_code, pool)
        return box

    def _compose(
        self,
        options: SandboxOptions,
        lm: LMCallable | LMBroker | None,
        tools: Mapping[str, ToolFunction],
        scaffold: bool,
        setup_code: str | None = None,
        pool: ContainerPool | None = None,
    ) -> None:
        if lm is not None and not callable(lm) and not isinstance(lm, LMBroker):
            raise OptionError(f"lm must be callable, not {type(lm).__name__}.")
        self.options = options
        self.scaffold = scaffold
        self.setup_code = setup_code
        self.python_version: str | None = None
        self._lm = lm
        self._async_functions = AsyncFunctions()
        self.broker = lm if isinstance(lm, LMBroker) else self._new_broker(lm)
        life = self._life = Lifecycle(options, pool)
        self._turn = Turn(lambda: life.name, life.check_process, life.hang_up, life.close)
        self._variables = Variables(
            life, options, tools, scaffold=scaffold, async_functions=self._async_functions
        )
        self.files = Files(self._life)
        self._snapshots = Snapshots(self._life, self._variables)
        #: Fills the workspace of a fork.
        self._fill: Callable[[Workspace], None] | None = None

    @property
    def name(self) -> str:
        """The container's name. In a pool it is known once the sandbox runs."""
        return self._life.name

    def _new_broker(self, lm: LMCallable | None) -> LMBroker:
        if lm is None:
            return LMBroker(None)
        return LMBroker(CallableBackend(lm, self.options.lm_timeout, self._async_functions))

    def __repr__(self) -> str:
        life = self._life
        state = (
            "of another process"
            if life.is_of_parent
            else "closed"
            if life.closed
            else "running"
            if life.is_running
            else "not started"
        )
        return f"<Sandbox {self.name} from {self.options.image}, {state}>"

    def __reduce__(self) -> NoReturn:
        raise SandboxError(
            "A sandbox cannot be pickled, copied or sent to another process.",
            remedy="Start one in each process. Sandbox.fork() makes a copy.",
            container=self.name,
        )

    # Start and end

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return await self.astart()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def start(self) -> Self:
        """Start the container and its interpreter. Do nothing if they run.

        Returns:
            This sandbox.

        Raises:
            ContainersError: one of its subclasses, see :mod:`rlm_containers.errors`; nothing is
                left running.
        """
        with self._turn.calls():
            if self._life.closed:
                raise self._life.not_running()
            if self._life.is_running:
                return self
            note_open(self, self._turn, self._life)
            try:
                with host_errors(
                    SandboxStartError, "The sandbox could not be started", container=self.name
                ):
                    self._start()
            except BaseException as error:
                if isinstance(error, SandboxError):
                    error.name_container(self.name)
                self.close()
                raise
        return self

    def _start(self) -> None:
        with self._turn.call():
            running = self._life.start(
                self.broker,
                self._variables.setup,
                self._variables.tools.call,
                self._fill,
                self._turn.serving,
            )
            self.python_version = running.python_version
            self._snapshots.resume(running, self.options.session)
        if self.setup_code and running.home.state == "made":
            self.run_setup(self.setup_code)
        self._life.begin()

    async def astart(self) -> Self:
        """As :meth:`start`. If it is cancelled, nothing is left running."""
        return await call_in_thread(self.start, self.close)

    def close(self) -> None:
        """End the container and remove what it used. May be called at any time, and again.

        A cell that runs in another thread ends with :class:`SandboxLostError`. So does one that
        runs in this thread, where a signal handler or ``on_output`` calls this: then this returns
        at once, and :meth:`execute` closes the sandbox before it raises that error.

        Raises:
            WorkspaceError: the workspace could not be removed.
        """
        if self._life.is_of_parent:
            return  # it stays its parent's
        note_closed(self._turn)
        self._life.refuse()
        if self._life.is_served_here():
            # A __del__ or a logging handler, in a thread that closing waits for.
            start_thread(self._turn.close, "rlm-close")
        else:
            self._turn.close()

    aclose = in_thread(close)

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
            on_output: called in this thread with ``"stdout"`` or ``"stderr"`` and each piece of
                text, as it is printed.
            name: names the cell in tracebacks; without one it has a number.
            display: also print the value of an expression at the cell's end, as an interactive
                prompt does.

        Returns:
            What the cell printed and left. An exception in the cell raises nothing here: its
            traceback is in ``stderr``. When ``cell_timeout`` ends the cell, ``status`` is
            ``"timeout"``; when its files make the workspace larger than ``workspace_size``,
            ``"full"``. When the interpreter dies, ``status`` is ``"died"``, or ``"killed"`` if
            the cell would not end; ``stderr`` says how, and the session goes on from its
            checkpoint.

        Raises:
            OptionError: ``code`` is not a string, or longer than 64 MiB.
            SandboxBusyError: another call of the sandbox waits for this one, which was made by its
                ``on_output``, tool or ``lm``, or by a signal handler meanwhile; or the sandbox has
                open branches.
            SandboxClosedError: the sandbox is not running.
            SandboxLostError: the container is gone.
            KeyboardInterrupt: Ctrl-C in this process; it has ended the cell as :meth:`interrupt`
                does. A second Ctrl-C kills the cell at once.
        """
        content = cell_content(code, name, display=display)
        with self._turn.call():
            running = self._life.running
            saves = self.options.durability == "sync"
            return run_cell(
                running, running.interpreter, self.broker, content, on_output, saves=saves
            )

    async def aexecute(
        self,
        code: str,
        *,
        on_output: OutputCallback | None = None,
        name: str | None = None,
        display: bool = False,
    ) -> CellResult:
        """As :meth:`execute`. If it is cancelled, the cell is interrupted.

        ``on_output`` is called in the loop's thread. An async ``lm`` and async tools run on the
        loop.
        """
        cell = self._awaited_cell()
        output = cell.in_loop(on_output)
        return await cell.run(
            lambda: self.execute(code, on_output=output, name=name, display=display)
        )

    def _awaited_cell(self) -> AwaitedCell:
        return AwaitedCell(self._turn, self._async_functions, self.interrupt)

    def interrupt(self) -> None:
        """Interrupt the cell that another thread runs, if any, as Ctrl-C would.

        Returns at once. A cell that goes on is killed five seconds later, and the session goes on
        from its checkpoint. A checkpoint that the cell waits for is interrupted, too.
        """
        with contextlib.suppress(SandboxClosedError):
            self._life.running.interpreter.interrupt()

    def run_setup(self, code: str, what: str = "setup code") -> None:
        """Run a cell that must succeed.

        Args:
            code: Python source.
            what: names the cell, in errors and in tracebacks.

        Raises:
            SetupCodeError: the cell failed; the error has its traceback.
        """
        result = self.execute(code, name=what)
        if result.status not in ("ok", "exit"):
            raise SetupCodeError(f"The {what} failed.", stderr=result.stderr, container=self.name)

    async def arun_setup(self, code: str, what: str = "setup code") -> None:
        """As :meth:`run_setup`. If it is cancelled, the cell is interrupted."""
        await self._awaited_cell().run(lambda: self.run_setup(code, what))

    def reset_answer(self) -> None:
        """Forget the final answer, since a new question begins."""
        with self._turn.call():
            self._life.running.interpreter.request("reset_answer", None)

    areset_answer = in_thread(reset_answer)

    @property
    def lm_route(self) -> str | None:
        """How ``llm_query()`` travels: ``"http"``, ``"pipe"``, or ``"none"`` without a model.

        ``None`` while the sandbox is not running.
        """
        with contextlib.suppress(SandboxClosedError):
            return self._life.running.interpreter.reports.route
        return None

    # Branches

    def branch(self, n: int) -> Branches:
        """Make live copies of the interpreter in the same container, each with cells of its own.

        They are forked from it, so that takes milliseconds, whatever it holds, and what no file can
        have is there as well: generators, connections to databases in memory. Use the result in a
        ``with`` block, and run cells in several of them at once. :meth:`Branch.keep` lets the
        sandbox go on from one; at the end of the block the others end. Until then the sandbox
        itself runs no cells, and its other methods raise SandboxBusyError, but for those for files,
        :meth:`command`, :meth:`interrupt` and :meth:`close`.

        >>> with box.branch(4) as branches:  # doctest: +SKIP
        ...     results = [branch.execute(code) for branch, code in zip(branches, codes)]
        ...     branches[best(results)].keep()

        The branches share the workspace, and the container's limits.

        Args:
            n: how many, up to 64.

        Raises:
            OptionError: n is no such number.
            BranchError: the interpreter cannot be copied now. A copy would lack its other threads,
                or child processes, or would share what cells have open; or there is no room for
                another process.
            SandboxBusyError, SandboxClosedError, SandboxLostError: as for :meth:`execute`.
        """
        count = checked_count(n)
        with self._turn.call():
            return Branches(
                count, self._life, self._turn, self.broker, self._async_functions, self.options
            )

    async def abranch(self, n: int) -> Branches:
        """As :meth:`branch`. If it is cancelled, no branch is left."""
        return await call_in_thread(
            lambda: self.branch(n), discard=lambda branches: branches.close()
        )

    # Commands

    def command(
        self,
        command: str | Sequence[str | os.PathLike[str]],
        *,
        cwd: str | PurePosixPath | None = None,
        env: Mapping[str, str] | None = None,
        input: bytes | str | None = None,  # noqa: A002 - as subprocess.run() has it
        timeout: float | None = None,
        on_output: CommandCallback | None = None,
    ) -> CommandResult:
        """Run a command in the container and wait for it to end.

        It has the user, the working directory and the environment of the cells, without what they
        have changed in ``os.environ``, and a session of its own. It runs beside a cell and beside
        other commands; at most 64 run at once, and more wait. What it has started and left runs on
        when it ends, until the sandbox is closed.

        Args:
            command: a program and its arguments, or a string for the image's ``sh -c``.
            cwd: the directory to start in, relative to ``/workspace``.
            env: environment variables, besides the sandbox's own.
            input: its standard input; a string is encoded as UTF-8. ``None`` for none.
            timeout: seconds until it is killed with all that it has started, daemons too;
                ``None`` for no limit.
            on_output: called in this thread with ``"stdout"`` or ``"stderr"`` and each piece of
                bytes, as it is written.

        Returns:
            How it ended, and what it wrote: at most ``max_output`` bytes of each stream. A program
            that is missing or fails raises nothing here, see :class:`CommandResult`.

        Raises:
            OptionError: an argument is wrong, or the command is longer than 64 MiB.
            SandboxBusyError: this thread is in the middle of another call of the sandbox: this one
                was made by its ``on_output`` or by a signal handler. A tool or ``lm`` may make it.
            SandboxClosedError: the sandbox is not running.
            SandboxLostError: the container is gone.
            KeyboardInterrupt: Ctrl-C in this process; it has killed the command.
        """
        request = CommandRequest.checked(command, cwd=cwd, env=env, input=input, timeout=timeout)
        return self._run_command(Command(), request, on_output)

    async def acommand(
        self,
        command: str | Sequence[str | os.PathLike[str]],
        *,
        cwd: str | PurePosixPath | None = None,
        env: Mapping[str, str] | None = None,
        input: bytes | str | None = None,  # noqa: A002 - as subprocess.run() has it
        timeout: float | None = None,
        on_output: CommandCallback | None = None,
    ) -> CommandResult:
        """As :meth:`command`. If it is cancelled, the command is killed.

        ``on_output`` is called in the loop's thread.
        """
        request = CommandRequest.checked(command, cwd=cwd, env=env, input=input, timeout=timeout)
        handle = Command()
        call = AwaitedCall(handle.kill)
        output = call.in_loop(on_output)
        return await call.run(lambda: self._run_command(handle, request, output))

    def _run_command(
        self, command: Command, request: CommandRequest, on_output: CommandCallback | None
    ) -> CommandResult:
        with self._turn.beside():
            running = self._life.running
            try:
                return running.commands.run(command, request, on_output)
            finally:
                running.note_changes()

    # Variables and tools

    def load(self, name: str, value: Context, *, keep: bool = False) -> None:
        """Bind a variable in the container to a value of this process.

        Args:
            name: the variable's name.
            value: a string of any length; or a dict or a list that JSON can express.
            keep: whether the name belongs to the host: it comes back after a cell has bound it
                to something else. For ``history`` only.

        Raises:
            ContextError: the value cannot be encoded.
            OptionError: the name is no identifier.
            WorkspaceError: there is no room for the value.
            SandboxBusyError, SandboxClosedError, SandboxLostError: as for :meth:`execute`.
        """
        with self._turn.call():
            self._variables.load(name, value, keep=keep)
            if self.options.durability == "sync":
                self._life.running.save()

    aload = in_thread(load)

    def keep(self, *names: str) -> None:
        """Make variables come back after a cell has bound their names to something else.

        From here on they are tools with their present values, and not shown among the variables.

        Raises:
            SandboxBusyError, SandboxClosedError, SandboxLostError: as for :meth:`execute`.
        """
        with self._turn.call():
            self._variables.keep(names)

    akeep = in_thread(keep)

    @property
    def tools(self) -> HostTools:
        """The functions of this process that cells may call."""
        return self._variables.tools

    def set_tools(self, tools: Mapping[str, ToolFunction]) -> None:
        """Let cells call functions of this process, in place of those before.

        A cell says ``fetch(x, y=2)``, and ``fetch`` runs here, in a thread of its own, while the
        cell waits. Arguments and result travel as JSON; a value that is not JSON is a
        ``TypeError`` in the cell. An exception of the function is raised in the cell, with the same
        type if that is built in, else as a ``RuntimeError``. The names come back after a cell has
        bound them to something else.

        Args:
            tools: functions, which may be async, by their names.

        Raises:
            OptionError: a name cannot be used, or what it names cannot be called.
            SandboxClosedError: the sandbox was closed.
            SandboxLostError: the container is gone.
        """
        with self._turn.call():
            self._variables.set_tools(tools)

    aset_tools = in_thread(set_tools)

    @property
    def lost(self) -> tuple[UnsavedVariable, ...]:
        """The variables that the last start or :meth:`restore` has not brought back."""
        return self._snapshots.lost

    @property
    def unsaved(self) -> Sequence[UnsavedVariable]:
        """The variables that the last checkpoint could not save.

        They live on in the interpreter, and would be lost with it. Waits for the checkpoint.
        """
        with self._turn.call():
            return self._life.running.interpreter.unsaved()

    async def aunsaved(self) -> Sequence[UnsavedVariable]:
        """As :attr:`unsaved`."""
        return await call_in_thread(lambda: self.unsaved)

    # Files

    def put_file(
        self, source: bytes | str | os.PathLike[str], name: str | PurePosixPath | None = None
    ) -> str:
        """Put a file into the workspace, where cells find it under its name.

        Does not wait for a cell that runs; nor do :meth:`get_file` and :meth:`list_files`.

        Args:
            source: the path of a file of this host, or the contents.
            name: its path in the workspace, such as ``"data/table.csv"``; directories are made.
                ``None`` for the last part of ``source``. A file of that name is replaced.

        Returns:
            The path, relative to the workspace.

        Raises:
            OptionError: there is no such file here, or no name for it.
            WorkspaceError: the name cannot be used, or there is no room.
            SandboxClosedError: the sandbox is not running.
        """
        return put_file(self._life, source, name)

    aput_file = in_thread(put_file)

    @overload
    def get_file(self, name: str | PurePosixPath, *, max_size: int = MAX_SIZE) -> bytes: ...

    @overload
    def get_file(self, name: str | PurePosixPath, to: str | os.PathLike[str]) -> Path: ...

    def get_file(
        self,
        name: str | PurePosixPath,
        to: str | os.PathLike[str] | None = None,
        *,
        max_size: int = MAX_SIZE,
    ) -> bytes | Path:
        """Fetch a file from the workspace.

        Args:
            name: its path in the workspace, relative or below ``/workspace``.
            to: a path of this host to copy it to, or a directory. A file there is replaced.
            max_size: the most bytes to return. A copy is limited by the disk alone.

        Returns:
            The contents, or the path of the copy. If the file grows meanwhile, what it held at
            first.

        Raises:
            WorkspaceError: there is no such file, it is a link, a FIFO or the like, or it is too
                large.
            SandboxClosedError: the sandbox is not running.
        """
        if to is not None:
            return copy_file(self._life, name, Path(to))
        return self.files.read(name, max_size=max_size)

    aget_file = in_thread(get_file)

    def list_files(self) -> tuple[WorkspaceFile, ...]:
        """List the regular files in the workspace, in all its directories, sorted by name.

        Contexts are among them; the saved state is not.

        Raises:
            WorkspaceError: a directory cannot be read, or there are more than 200,000 files, or
                directories more than 100 deep.
            SandboxClosedError: the sandbox is not running.
        """
        found = self.files.list(recursive=True)
        return tuple(file for file in found if file.kind == "file")

    alist_files = in_thread(list_files)

    # Snapshots

    def snapshot(self, note: str = "") -> str:
        """Keep the variables and files as they are now, to come back to with :meth:`restore`.

        Variables that cannot be saved are no part of it. The snapshots of a named session are kept
        with it; those of another sandbox end with it. Contents that an earlier snapshot has are
        not stored again.

        Args:
            note: text to remember it by, of which the first 200 characters are kept.

        Returns:
            The snapshot's id, 64 characters. Equal states have equal ids.

        Raises:
            SessionStateError: the state could not be saved, or a later version has its record.
            SessionError: there is no room for it.
            WorkspaceError: a file in the workspace cannot be read.
            SandboxBusyError, SandboxClosedError, SandboxLostError: as for :meth:`execute`.
        """
        with self._turn.call():
            return self._snapshots.create(note)

    asnapshot = in_thread(snapshot)

    def snapshots(self) -> list[Snapshot]:
        """List the snapshots, the oldest first. A warning names those that cannot be read."""
        with self._turn.call():
            return self._snapshots.all()

    asnapshots = in_thread(snapshots)

    def restore(self, snapshot: str) -> tuple[UnsavedVariable, ...]:
        """Go back to a snapshot: its variables and files replace the present ones.

        A new interpreter takes the place of the present one, which takes some hundredths of a
        second and the time to load the variables. What only the present one holds is gone:
        connections, generators. If the restore fails, the sandbox goes on from its state before it.

        Args:
            snapshot: the id, or an unambiguous beginning of at least 4 characters.

        Returns:
            The variables that the snapshot does not bring back.

        Raises:
            SnapshotNotFoundError: there is no snapshot with that id.
            SessionStateError: the snapshot is damaged, or its variables cannot be read.
            SessionError: there is no room for it.
            SandboxBusyError, SandboxClosedError, SandboxLostError: as for :meth:`execute`.
        """
        with self._turn.call():
            return self._snapshots.restore(snapshot)

    arestore = in_thread(restore)

    def remove_snapshot(self, snapshot: str) -> None:
        """Remove a snapshot, and those of its contents that no other snapshot needs.

        Args:
            snapshot: the id, or the beginning of it.

        Raises:
            SnapshotNotFoundError: there is no snapshot with that id.
        """
        with self._turn.call():
            self._snapshots.remove(snapshot)

    aremove_snapshot = in_thread(remove_snapshot)

    def fork(self, session: str | None = None) -> Self:
        """Start a second sandbox that goes on from the same variables and files, by itself.

        It has the options, tools and language model of this one, and counts its calls from zero.
        The setup code is not run again: what it made is there.

        Args:
            session: the name of a new session for the fork; ``None`` for one that ends with it.

        Returns:
            The fork, started. The caller closes it, for instance by ``with``.

        Raises:
            SessionError: a session of that name exists already, or there is no room.
            ContainersError: as for :meth:`start`.
        """
        with self._turn.call():
            workspace = self._snapshots.settled().workspace

            def fill(target: Workspace) -> None:
                with workspace.held():
                    workspace.pull().copy_to(target)

            lm = self._lm
            if isinstance(lm, LMBroker):  # a broker records the calls of one sandbox
                lm = LMBroker(lm.backend, lm.subcall, lm.max_concurrent_subcalls)
            other = type(self).__new__(type(self))
            other.__dict__.update(self.__dict__)  # with what a subclass has added
            other._compose(
                dataclasses.replace(
                    self.options,
                    session=session,
                    pool=self.options.pool if session is None else None,
                ),
                lm,
                self.tools.functions,
                self.scaffold,
            )
            other._variables.copy_from(self._variables)
            other._fill = fill
            return other.start()

    async def afork(self, session: str | None = None) -> Self:
        """As :meth:`fork`. If it is cancelled, the fork is closed."""
        return await call_in_thread(lambda: self.fork(session), discard=lambda box: box.close())
