"""How long the host waits for the guest, and what it does after that."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from rlm_containers.errors import SandboxLostError
from rlm_containers.interpreter.clock import CellClock
from rlm_containers.interpreter.output import Reply
from rlm_containers.interpreter.writer import Frame

#: Why something is stopped: a cell reached its limit, its files have grown too much, the user
#: interrupted it, the checkpoint before the request does not end, or a worker does not become
#: ready.
Cause = Literal["limit", "growth", "interrupt", "checkpoint", "restore"]

Action = Literal["interrupt", "kill", "give up"]

#: Seconds that what writes too much has for its interrupt before it may be killed, and that its
#: death may take. Each may cost some gigabytes of disk.
GROWTH_GRACE = 0.25
GROWTH_KILL_TIMEOUT = 3.0


class Escalation:
    """The actions against something that should have ended, each harsher than the one before.

    First comes an interrupt, and another one after half of the grace time, because an interrupt
    can get lost in a ``__del__`` or in a bare ``except:``. Then the worker is killed. If the
    supervisor does not even report that death, the guest is given up.

    Args:
        cause: why it is stopped.
        step: the step to interrupt, see :mod:`rlm_containers.guest.wire`.
        grace: seconds between the first interrupt and the kill.
        kill_timeout: seconds between the kill and giving up.
        in_time: the number of items from the guest that came in time and were not received yet.

    Attributes:
        in_time: how many of these are still to be received; less than 0 once one came too late.
        killed: whether the worker was killed.
    """

    def __init__(
        self, cause: Cause, step: int, grace: float, kill_timeout: float, in_time: int = 0
    ) -> None:
        self.cause: Cause = cause
        self.step = step
        self.in_time = in_time
        self.killed = False
        self._kill_timeout = kill_timeout
        now = time.monotonic()
        self._plan: list[tuple[float, Action]] = [
            (now, "interrupt"),
            (now + grace / 2, "interrupt"),
            (now + grace, "kill"),
            (now + grace + kill_timeout, "give up"),
        ]

    def left(self) -> float:
        """Return the seconds until the next action is due."""
        return self._plan[0][0] - time.monotonic()

    @property
    def is_final(self) -> bool:
        """Whether the next action cannot be undone by an answer."""
        return self._plan[0][1] != "interrupt"

    def next_action(self) -> Action:
        """Return the next action and move on to the one after it. The last one stays."""
        _, action = self._plan.pop(0) if len(self._plan) > 1 else self._plan[0]
        self.killed = self.killed or action == "kill"
        return action

    def skip_grace(self) -> None:
        """Make the kill due now, unless it has been done."""
        now = time.monotonic()
        if not self.killed:
            self._plan = [(now, "kill"), (now + self._kill_timeout, "give up")]


@dataclass(frozen=True)
class SendFailure:
    """A frame that could not be sent.

    Attributes:
        error: what the pipe raised.
        give_up_by: until when the news of the container's end is awaited, in seconds of
            ``time.monotonic()``. It says more than the error does.
    """

    error: SandboxLostError
    give_up_by: float


@dataclass
class Growth:
    """Files that have grown too much while a request was under way.

    Attributes:
        fact: a sentence that says how large they are, for the user.
        remedy: one that says what to do.
        since: when that was noticed, in seconds of ``time.monotonic()``.
        goes_on: whether they have grown much further since.
    """

    fact: str
    remedy: str
    since: float
    goes_on: bool = False

    def notice(self, consequence: str = "") -> str:
        """Return what the user is told, with a sentence in the middle that says what was done."""
        return " ".join(filter(None, (self.fact, consequence, self.remedy)))


@dataclass
class Request:
    """A request under way.

    Attributes:
        number: its number.
        message: all of its content.
        reply: what the guest has replied so far.
        limit: seconds it may take, without the time it waits for the host; ``None`` for no limit.
        made_at: when it was made, in seconds of ``time.monotonic()``.
        begin_by: when the checkpoint before it must be written, in seconds of ``time.monotonic()``.
        begun: whether the guest has said that it has begun. Asked for only if there is a limit.
        interrupted: whether the user wants it to end.
        interrupt_sent: whether the guest was told so.
        interrupted_at: when the last interrupt was sent, in seconds of ``time.monotonic()``.
        growth: set once its files have grown too much.
        killed: whether its worker was killed because it would not end.
        died: whether its worker died of it.
        done: whether it has ended: its answer came, or its worker died of it.
        stop: what is being done to end it; ``None`` while it may go on.
        unread: how many more items to receive before the next action against it; ``None`` while
            no action is due.
        deaths: how many workers have died during it.
        failure: the frame for it that could not be sent; ``None`` if all were.
        frame: the last frame that was made for it, which may not have been written.
        saved: after a kill, the last request whose checkpoint is written, as the guest reports it.
        said: what the guest has said of branches, which may be anything.
    """

    number: int
    message: dict[str, Any]
    reply: Reply
    limit: float | None
    made_at: float = field(default_factory=time.monotonic)
    begin_by: float = 0.0
    begun: bool = False
    interrupted: bool = False
    interrupt_sent: bool = False
    interrupted_at: float = -math.inf
    growth: Growth | None = None
    killed: bool = False
    died: bool = False
    done: bool = False
    stop: Escalation | None = None
    unread: int | None = None
    deaths: int = 0
    failure: SendFailure | None = None
    frame: Frame | None = None
    saved: object = None
    said: object = None

    @property
    def op(self) -> str:
        """The operation: of ``guest/wire.py``, or to kill, take or start a worker."""
        return str(self.message["op"])

    @property
    def is_cell(self) -> bool:
        """Whether it runs code of a cell."""
        return self.op == "cell"

    @property
    def is_startup(self) -> bool:
        """Whether it replaces a worker, and is not sent to one."""
        return self.op in ("kill", "take", "start")

    @property
    def next_is_final(self) -> bool:
        """Whether an answer that comes after the next action comes too late."""
        if self.is_startup or self.failure is not None:
            return True
        return self.stop is not None and self.stop.is_final

    @property
    def code(self) -> object:
        """The code of a cell; of another request the names that it binds."""
        if self.is_cell:
            return self.message.get("code")
        name = str(self.message.get("name", ""))
        return f"{name} {name.rpartition('_')[0]}"  # context_0 is bound to context as well

    @property
    def step(self) -> int:
        """The number of its step, see :mod:`rlm_containers.guest.wire`."""
        return 2 * self.number


class Deadlines:
    """The time limits of one interpreter, and which of them applies now.

    A request waits for three things, each with its own limit: for a worker that is ready, for the
    checkpoint before it, and for its own end.

    Args:
        clock: counts the time of cells.
        cell_timeout: seconds that a cell may use, and that the checkpoint before it may take;
            ``None`` for no limit.
        start_timeout: seconds for a worker to become ready.
        grace: seconds for what was interrupted to end before its worker is killed.
        kill_timeout: seconds for the supervisor to report a death, and for the news of the
            container's end to arrive. Killing many processes takes a while.

    Attributes:
        ready_by: when the starting worker must be ready, in seconds of ``time.monotonic()``;
            ``None`` while no worker is starting.
        is_fresh: whether the worker has not begun with any request yet.
    """

    def __init__(
        self,
        clock: CellClock,
        cell_timeout: float | None,
        start_timeout: float,
        *,
        grace: float = 5.0,
        kill_timeout: float = 20.0,
    ) -> None:
        self.clock = clock
        self.cell_timeout = cell_timeout
        self.start_timeout = start_timeout
        self.grace = grace
        self.kill_timeout = kill_timeout
        self.ready_by: float | None = None
        self.is_fresh = True

    def limit(self, op: str) -> float | None:
        """Return the seconds that a request of this kind may take once it has begun."""
        if op == "cell" or self.cell_timeout is None:
            return self.cell_timeout
        return max(self.cell_timeout, self.start_timeout)  # no code of the cell's own

    def worker_starts(self, left: float | None = None) -> None:
        """Note that a worker starts.

        Args:
            left: seconds that it has left; ``None`` for all of its time.
        """
        self.ready_by = time.monotonic() + (self.start_timeout if left is None else left)

    def worker_is_ready(self) -> None:
        """Note that the worker is ready."""
        self.ready_by = None
        self.is_fresh = True

    def send(self, request: Request) -> None:
        """Note that a request is about to be sent."""
        request.begun = False
        limit = request.limit if self.cell_timeout is None else self.cell_timeout
        if limit is not None:
            # Imports that a new worker does before its first request belong to its start.
            seconds = max(limit, self.start_timeout if self.is_fresh else 0.0)
            request.begin_by = time.monotonic() + seconds
        self.clock.reset()

    def send_failed(self, request: Request, error: SandboxLostError) -> None:
        """Note that a frame for a request could not be sent."""
        if request.failure is None:
            request.failure = SendFailure(error, time.monotonic() + self.kill_timeout)

    def begin(self, request: Request) -> bool:
        """Note that the guest has begun with a request.

        Returns:
            Whether the checkpoint before it was interrupted.
        """
        request.begun = True
        self.is_fresh = False
        if request.limit is not None:
            self.clock.start(request.limit)
        stop = request.stop
        if stop is None or stop.cause != "checkpoint" or stop.killed:
            return False
        request.stop = None
        return True

    def left(self, request: Request) -> float | None:
        """Return the seconds until the next action against a request; ``None`` for never."""
        if request.failure is not None:
            return request.failure.give_up_by - time.monotonic()
        waits = request.stop is None or request.stop.cause == "checkpoint"
        if request.interrupted and waits and self.ready_by is None:
            request.stop = self._escalation("interrupt", request.step)
            if request.interrupt_sent:
                request.stop.next_action()
        if request.stop is not None:
            if request.growth is not None and request.growth.goes_on:
                request.stop.skip_grace()
            return request.stop.left()
        if self.ready_by is not None:
            return self.ready_by - time.monotonic()
        if request.growth is not None:
            return 0.0
        if request.limit is None:
            return None
        if not request.begun:
            return request.begin_by - time.monotonic()
        return self.clock.left()

    def next_action(self, request: Request, pending: int) -> tuple[Action, int]:
        """Return the action that is due now, and the step that it is against.

        Args:
            request: the request.
            pending: the number of items from the guest that were not received yet.
        """
        if request.stop is None:
            if self.ready_by is not None:
                request.stop = self._escalation("restore", 0)
            elif request.growth is not None:
                request.stop = self._escalation("growth", request.step, pending)
            elif not request.begun:
                request.stop = self._escalation("checkpoint", request.step - 1)
            else:
                request.stop = self._escalation("limit", request.step, pending)
        return request.stop.next_action(), request.stop.step

    def explain(self, request: Request) -> None:
        """Say in the reply what was stopped and why, once that has had its effect."""
        stop, growth, notices = request.stop, request.growth, request.reply.notices
        if growth is not None and not request.reply.is_told_of_growth:
            was_cause = stop is not None and stop.cause == "growth"
            notices.append(growth.notice("The cell was interrupted." if was_cause else ""))
            request.reply.is_told_of_growth = True
        if stop is None:
            return
        if stop.cause == "limit":
            name = "cell_timeout" if request.is_cell else "start_timeout"
            notices.append(self.reached("The cell", name))
        elif stop.cause == "restore":
            notices.append(self.reached("Restoring the variables", "start_timeout"))
        elif stop.cause == "checkpoint" and self.is_fresh:
            notices.append(self.reached("The start", "start_timeout"))
        elif stop.cause == "checkpoint":
            notices.append(self.reached("The checkpoint before this cell", "cell_timeout"))
        if stop.killed and growth is not None and growth.goes_on:
            notices.append("They went on growing after its interrupt, and it was killed.")
        elif stop.killed:
            seconds = f"{self.grace:g} s"
            notices.append(f"It did not end within {seconds} after its interrupt and was killed.")

    def reached(self, what: str, option: str) -> str:
        """Return the sentence that says that something has reached its limit."""
        seconds = self.cell_timeout if option == "cell_timeout" else self.start_timeout
        if seconds is None:  # the limit was that of settle()
            return f"{what} took too long and was interrupted."
        return f"{what} reached its limit of {seconds:g} s ({option}) and was interrupted."

    def _escalation(self, cause: Cause, step: int, in_time: int = 0) -> Escalation:
        kill_timeout = self.kill_timeout
        if cause == "growth":
            kill_timeout = min(kill_timeout, GROWTH_KILL_TIMEOUT)
        return Escalation(cause, step, self.grace, kill_timeout, in_time)
