"""A request under way, and what is done to end one that should have ended."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from rlm_containers.errors import SandboxLostError
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


#: Seconds between two interrupts of one request. In a flood of signals the handler interrupts
#: itself until its calls are nested too deeply.
_INTERRUPT_INTERVAL = 0.05


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

    def may_act(self, pending: int) -> bool:
        """Whether an action that is due may be taken now; count down to it.

        Before a kill, all items that came in time are received: the answer may be among them.

        Args:
            pending: the number of items from the guest that were not received yet.
        """
        if self.unread is None:
            self.unread = pending if self.next_is_final else 0
        self.unread -= 1
        return self.unread < 0

    def may_interrupt(self) -> bool:
        """Whether to interrupt it now for the user. If so, not again for a moment."""
        now = time.monotonic()
        is_over = self.done or (self.begun and not self.is_cell)
        if is_over or now < self.interrupted_at + _INTERRUPT_INTERVAL:
            return False
        self.interrupted_at = now
        return True

    def note_growth(self, growth: Growth, *, far: bool) -> None:
        """Note that files have grown too much.

        Args:
            growth: says so.
            far: whether it may come to a kill.
        """
        if self.growth is None:
            self.growth = growth
        elif far and growth.since > self.growth.since + GROWTH_GRACE:
            self.growth.goes_on = True

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
