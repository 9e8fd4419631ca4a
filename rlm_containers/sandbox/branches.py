"""Branches of a sandbox: live copies of its interpreter in the same container."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn, Self, overload

from rlm_containers.errors import BranchError, OptionError, SandboxError
from rlm_containers.guest import wire
from rlm_containers.interpreter import (
    BranchInterpreter,
    BranchPipe,
    CellClock,
    CellResult,
    OutputCallback,
    printable,
)
from rlm_containers.lm import AsyncFunctions, LMBroker
from rlm_containers.options import SandboxOptions
from rlm_containers.sandbox.awaiting import AwaitedCell, in_thread
from rlm_containers.sandbox.cells import cell_content, run_cell
from rlm_containers.sandbox.lifecycle import Lifecycle
from rlm_containers.sandbox.running import Running
from rlm_containers.sandbox.turn import Turn

#: What is in the way of branches, by the guest's words, and what to do about it. ``{}`` stands for
#: what the guest says besides.
_OBSTACLES = {
    "hooks": (
        "A cell has set functions that are called around a fork, or audit hooks.",
        "Make the branches before, or a new sandbox.",
    ),
    "threads": (
        "The interpreter has other threads ({}), which a copy would not have.",
        "Let a cell end and join them. Libraries whose threads outlive a fork, as those of torch "
        "or polars may, can be used in the branches only.",
    ),
    "open": (
        "Cells have something open ({}), which the copies would share.",
        "Close it in a cell, and open it in each branch.",
    ),
    "children": (
        "A cell has started a process that nobody has waited for, and that would be no child of "
        "the copies.",
        "Let a cell end it and wait for it.",
    ),
    "room": (
        "The container has no room for more processes: {}.",
        "Make fewer branches, or raise pids or memory.",
    ),
    "interrupted": ("It was interrupted before it began.", ""),
    "ended": ("The interpreter died meanwhile. {}", "The sandbox goes on: try again."),
}

#: Why a branch could not be kept.
_DIED = "its process died meanwhile"

#: The most characters of what a guest says.
_TEXT = 1000


class Branch:
    """One live copy of a sandbox's interpreter, which runs cells by itself.

    It has the variables of the sandbox as they were when it was made, and shares its files, its
    limits, its tools and its language model. Its calls and those of other branches may run at the
    same time, each in a thread of its own. It saves nothing until it is kept: what a branch has is
    gone when it ends.

    In an event loop use the methods whose names begin with ``a``.
    """

    def __init__(self, group: Branches, pipe: BranchPipe, running: Running) -> None:
        self._group = group
        self._pipe = pipe
        clock = CellClock(group._options.lm_timeout)
        self._broker = group._broker.branch(clock.waiting)
        self._interpreter = BranchInterpreter(pipe, running.interpreter, clock)
        life = group._life
        self._turn = Turn(lambda: life.name, self._check, pipe.wake, lambda: None)
        pipe.on_call = running.gateway.calls_of(self._broker, clock, self._turn.serving, pipe.send)

    def __repr__(self) -> str:
        return f"<Branch {self._pipe.number} of {self._group._life.name}, {self.state}>"

    def __reduce__(self) -> NoReturn:
        raise SandboxError(
            "A branch cannot be pickled, copied or sent to another process.",
            container=self._group._life.name,
        )

    @property
    def state(self) -> str:
        """``"running"``, or how it has ended."""
        ended = self._pipe.reason or self._interpreter.end
        return ended or ("its process has ended" if self._pipe.gone.is_set() else "running")

    def execute(
        self,
        code: str,
        *,
        on_output: OutputCallback | None = None,
        name: str | None = None,
        display: bool = False,
    ) -> CellResult:
        """Run a cell, as :meth:`Sandbox.execute`.

        Returns:
            As there. When its process dies, ``status`` is ``"died"`` or ``"killed"``, ``stderr``
            says how, and the branch has ended.

        Raises:
            BranchError: the branch has ended: it died before, was discarded, or another was kept.
            OptionError, SandboxBusyError, SandboxClosedError, SandboxLostError, KeyboardInterrupt:
                as there.
        """
        content = cell_content(code, name, display=display)
        with self._turn.call():
            running = self._group._life.running
            return run_cell(running, self._interpreter, self._broker, content, on_output)

    async def aexecute(
        self,
        code: str,
        *,
        on_output: OutputCallback | None = None,
        name: str | None = None,
        display: bool = False,
    ) -> CellResult:
        """As :meth:`execute`. If it is cancelled, the cell is interrupted."""
        cell = AwaitedCell(self._turn, self._group._async_functions, self.interrupt)
        output = cell.in_loop(on_output)
        return await cell.run(
            lambda: self.execute(code, on_output=output, name=name, display=display)
        )

    def interrupt(self) -> None:
        """Interrupt the cell that another thread runs in it, see :meth:`Sandbox.interrupt`.

        A cell that goes on is killed, which ends the branch.
        """
        self._interpreter.interrupt()

    def keep(self) -> None:
        """Let the sandbox go on from this branch, and end all others.

        Its process becomes the sandbox's interpreter, with everything as it is, and its variables
        are saved as after a cell. What the sandbox's cells, and those of other branches, have left
        running ends. Waits for a cell of this branch that runs.

        Raises:
            BranchError: the branch has ended. If it did so meanwhile, the sandbox goes on as before
                the branches.
            SandboxBusyError, SandboxClosedError, SandboxLostError: as for :meth:`Sandbox.execute`.
        """
        with self._turn.call():
            self._interpreter.request("save", None)  # if it has died, the others go on
            self._interpreter.check()
            self._group._keep(self)

    akeep = in_thread(keep)

    def discard(self) -> None:
        """End this branch, with all that its cells have started, also in the middle of a cell."""
        self._group._end([self], "it was discarded")

    adiscard = in_thread(discard)

    def _check(self) -> None:
        life = self._group._life
        life.check_process()
        if life.closed:
            raise life.not_running()
        self._interpreter.check()


class Branches(Sequence[Branch]):
    """The branches that one call of :meth:`Sandbox.branch` has made.

    At the end of a ``with`` block those that were not kept end. While they are open, the sandbox
    itself runs no cells.

    Attributes:
        kept: the branch that the sandbox goes on from; ``None`` if there is none.
    """

    def __init__(
        self,
        count: int,
        life: Lifecycle,
        turn: Turn,
        broker: LMBroker,
        async_functions: AsyncFunctions,
        options: SandboxOptions,
    ) -> None:
        self.kept: Branch | None = None
        self._life = life
        self._turn = turn
        self._broker = broker
        self._async_functions = async_functions
        self._options = options
        running = self._running = life.running
        pipes = running.branches.expect(count)
        self._branches = tuple(Branch(self, pipe, running) for pipe in pipes)
        obstacle: object = ["interrupted", ""]
        try:
            obstacle = running.interpreter.branch(pipes[0].number, count)
        finally:
            if obstacle is not None:
                running.branches.end(pipes, running.interpreter.give_up)
        if obstacle is not None:
            raise _refusal(obstacle, life.name)
        running.branches.interpreters = [branch._interpreter for branch in self._branches]
        turn.lent = True

    def __len__(self) -> int:
        return len(self._branches)

    @overload
    def __getitem__(self, place: int) -> Branch: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Branch]: ...

    def __getitem__(self, place: int | slice) -> Branch | Sequence[Branch]:
        return self._branches[place]

    def __repr__(self) -> str:
        return f"<{len(self)} branches of {self._life.name}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def close(self) -> None:
        """End the branches that were not kept. If none was, the sandbox goes on as before.

        May be called again, and while cells of them run.
        """
        self._end(self._branches, "it was closed")

    aclose = in_thread(close)

    def _end(self, branches: Sequence[Branch], reason: str) -> None:
        if self._life.is_of_parent:
            return
        with self._turn.calls():
            ended = [branch._pipe for branch in branches if not branch._pipe.gone.is_set()]
            for pipe in ended:
                pipe.reason = pipe.reason or reason
            running = self._running
            running.branches.end(ended, running.interpreter.give_up)
            if all(branch._pipe.gone.is_set() or branch._pipe.is_lost() for branch in self):
                self._give_back()

    def _keep(self, kept: Branch) -> None:
        with self._turn.call(of_branch=True):
            kept._interpreter.check()
            running = self._life.running
            others = [branch._pipe for branch in self if not branch._pipe.reason]
            others.remove(kept._pipe)
            # That is what the sandbox goes on from if the branch dies meanwhile.
            running.settle()
            for pipe in others:
                pipe.reason = "another one was kept"
            end = "failed"
            try:
                end = running.interpreter.keep(kept._pipe.number, kept._interpreter)
            finally:
                kept._pipe.reason = "it was kept, and is the sandbox's" if end == "kept" else _DIED
                kept._pipe.gone.set()
                if end == "gone":
                    for pipe in others:
                        pipe.reason = ""
                else:
                    running.branches.end(others, running.interpreter.give_up)
                    self._give_back()
            if end == "gone":
                kept._interpreter.check()
            if end != "kept":
                raise BranchError(
                    f"The branch cannot be kept: {_DIED}.",
                    remedy="The sandbox goes on as it was before the branches.",
                    container=self._life.name,
                )
            self.kept = kept
            running.note_changes()
            if self._options.durability == "sync":
                running.save()

    def _give_back(self) -> None:
        """Let the sandbox run cells again."""
        if self._turn.lent:
            self._running.branches.interpreters = []
            self._turn.lent = False


def checked_count(count: object) -> int:
    """Return a number of branches.

    Raises:
        OptionError: it is none, or too large.
    """
    if isinstance(count, bool) or not isinstance(count, int) or not 0 < count <= wire.MAX_BRANCHES:
        raise OptionError(
            f"n must be a number of branches from 1 to {wire.MAX_BRANCHES}, not {count!r:.40}."
        )
    return count


def _refusal(obstacle: object, container: str) -> BranchError:
    """Return the error for what the guest says, which may be anything."""
    word, text = "room", ""
    if isinstance(obstacle, list) and len(obstacle) == 2:
        word, text = str(obstacle[0]), printable(obstacle[1], _TEXT)
    what, remedy = _OBSTACLES.get(word, _OBSTACLES["room"])
    return BranchError(what.format(text).strip(), remedy=remedy, container=container)
