"""The live interpreter in a container: what it can be asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from rlm_containers.errors import SandboxLostError
from rlm_containers.guest import wire
from rlm_containers.interpreter.channel import Channel
from rlm_containers.interpreter.conversation import Conversation
from rlm_containers.interpreter.items import Closed
from rlm_containers.interpreter.output import Reply
from rlm_containers.interpreter.results import OutputCallback, UnsavedVariable


class Interpreter:
    """The live interpreter in a container, through all deaths of its worker.

    Args:
        conversation: carries its requests.

    Attributes:
        deadlines: the time limits.
        reports: what the guest has reported of its worker.
    """

    def __init__(self, conversation: Conversation) -> None:
        self.deadlines = conversation.deadlines
        self.reports = conversation.reports
        self._conversation = conversation
        self._cells = 0

    @property
    def pipe(self) -> Channel:
        """The pipe to the process that runs the cells now."""
        return self._conversation.pipe

    def start(self, left: float | None = None) -> None:
        """Start the first worker and wait until it is ready.

        Args:
            left: seconds that it has left of its time; ``None`` for all of them.

        Raises:
            SandboxStartError: it was not ready in time.
            SandboxLostError: the container is gone, or one worker after the other dies.
        """
        self._conversation.start_worker(left)

    def request(self, op: str, on_output: OutputCallback | None, **content: Any) -> Reply:
        """Send one request and wait for its answer.

        Args:
            op: the operation, see :mod:`rlm_containers.guest.wire`.
            on_output: see :meth:`Sandbox.execute`.
            content: the rest of the request.

        Raises:
            OptionError: the request is too large. Nothing was sent.
            SandboxLostError: the container is gone.
        """
        if op == "cell" and "name" not in content:
            self._cells += 1
            content["name"] = f"cell {self._cells}"  # in tracebacks
        limit = self.deadlines.limit(op)
        return self._conversation.run(op, limit, on_output, **content).reply

    def unsaved(self) -> Sequence[UnsavedVariable]:
        """Return the variables that are not in the checkpoint, see :attr:`Sandbox.unsaved`."""
        self.request("sync", None)
        return self.reports.unsaved

    def settle(self, timeout: float, reply: Reply | None = None) -> bool:
        """Wait for the checkpoint of the last request.

        Args:
            timeout: seconds until the variable that is being saved is given up, and the one after
                it, and so on. With ``cell_timeout`` that is the limit instead.
            reply: that of the last request, to be told of a death; without one, the log is.

        Returns:
            Whether there is a checkpoint. If not, the worker was killed, and the changes of the
            last request are lost.

        Raises:
            SandboxLostError: the container is gone.
        """
        request = self._conversation.run("sync", timeout)
        if reply is None:
            self._conversation.log_notices(request)
        if request.deaths:
            if reply is not None:
                reply.note_death_after(request.reply)
            return False
        self.reports.note_settled(request.number)
        return True

    def restart(self, between: Callable[[], None], *, restores: bool) -> Sequence[UnsavedVariable]:
        """Kill the worker and start another one.

        Args:
            between: called when no worker uses any file. If it fails, a worker is started anyway.
            restores: whether there is a checkpoint to go on from.

        Returns:
            The variables that were not restored.

        Raises:
            SandboxStartError: the new worker was not ready in time.
            SandboxLostError: the container is gone.
        """
        conversation = self._conversation
        number = conversation.number if restores else 0
        kill = conversation.replace_worker("kill", wire.RESTART, b"file")
        # Changes that the checkpoint does not have are not lost by this death.
        if isinstance(kill.saved, int):
            number = min(number, kill.saved)
        try:
            between()
        finally:
            self.reports.changes.restart(number)
            conversation.start_worker()
        return self.reports.unsaved

    def branch(self, first: int, count: int) -> object:
        """Have the worker fork branches, see :class:`BranchTable`.

        Args:
            first: the number of the first.
            count: how many.

        Returns:
            What is in the way, as the guest says it, which may be anything; ``None`` if they are
            there.

        Raises:
            SandboxLostError: the container is gone.
        """
        limit = self.deadlines.limit("branch")
        request = self._conversation.run("branch", limit, first=first, count=count)
        self._conversation.log_notices(request)
        if request.deaths:
            return ["ended", " ".join(request.reply.notices)]
        return request.said

    def keep(self, number: int, branch: Interpreter) -> Literal["kept", "gone", "failed"]:
        """Let a branch be the worker from now on, and save its variables.

        Args:
            number: the branch's number.
            branch: its interpreter.

        Returns:
            ``"gone"`` if it has ended before, and nothing has changed; ``"failed"`` if it has ended
            meanwhile, and all other branches too.

        Raises:
            SandboxStartError, SandboxLostError: as for :meth:`restart`.
        """
        conversation = self._conversation
        take = conversation.replace_worker("take", wire.KEEP, number.to_bytes(4, "big"))
        if take.said != number:
            if take.deaths:  # of the present worker
                conversation.start_worker()
            else:
                self.deadlines.worker_is_ready()
            return "gone"
        self._cells = max(self._cells, branch._cells)
        if conversation.start_worker().deaths:
            return "failed"
        reply = self.request("save", None)
        if reply.status != "ok":
            return "failed"
        self.reports.changes.add(branch.reports.changes, conversation.number)
        return "kept"

    # From any thread

    @property
    def is_busy(self) -> bool:
        """Whether a request is under way."""
        return self._conversation.request is not None

    def interrupt(self) -> None:
        """Interrupt the request under way. A signal handler may do that, too."""
        self._conversation.interrupt()

    def stop_growth(self, fact: str, remedy: str, *, far: bool, since: float) -> bool:
        """See :meth:`Conversation.stop_growth`."""
        return self._conversation.stop_growth(fact, remedy, far=far, since=since)

    def give_up(self) -> None:
        """Remove a container whose guest does not answer any more."""
        self._conversation.give_up()

    def gone(self, closed: Closed) -> SandboxLostError:
        """Return the error that says how the container ended."""
        return self._conversation.gone(closed)

    def on_loss(self, revive: Callable[[SandboxLostError], tuple[Channel, int]]) -> None:
        """Have another container take the place of one that is lost.

        Args:
            revive: see :attr:`Conversation.revive`.
        """
        self._conversation.revive = revive
