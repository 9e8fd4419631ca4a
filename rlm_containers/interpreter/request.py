"""One request to the guest and its answer, and how it is ended when it does not end by itself."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, Literal

from rlm_containers.interpreter.output import Reply

#: Seconds that what is interrupted has for its end before its worker is killed.
GRACE = 5.0

#: Seconds that the supervisor has to say that it was killed. Many processes may be in its way.
PATIENCE = 20.0

#: Why something is stopped: the cell's limit, an interrupt by the user, the checkpoint before the
#: request that does not end, or a worker that does not become ready.
Cause = Literal["limit", "interrupt", "checkpoint", "restore"]

Action = Literal["interrupt", "kill", "give up"]


class Escalation:
    """What is done, one after the other, about something that should have ended.

    It is interrupted, and once more after half of the grace time: an interrupt may be lost in a
    ``__del__``, or be swallowed by one ``except:``. Then the worker is killed. A supervisor that
    does not even do that is not there any more.

    Args:
        cause: why.
        step: what is to be interrupted, see :mod:`rlm_containers.guest.wire`.
        backlog: how many items from the guest had come in time and wait to be looked at.

    Attributes:
        backlog: how many of those still do, less than 0 once something has come too late.
        killed: whether it came to that.
    """

    def __init__(self, cause: Cause, step: int, backlog: int = 0) -> None:
        self.cause: Cause = cause
        self.step = step
        self.backlog = backlog
        self.killed = False
        now = time.monotonic()
        self._plan: list[tuple[float, Action]] = [
            (now, "interrupt"),
            (now + GRACE / 2, "interrupt"),
            (now + GRACE, "kill"),
            (now + GRACE + PATIENCE, "give up"),
        ]

    def left(self) -> float:
        """Seconds until something is to be done."""
        return self._plan[0][0] - time.monotonic()

    @property
    def is_final(self) -> bool:
        """Whether what is to be done next cannot be undone by an answer."""
        return self._plan[0][1] != "interrupt"

    def take(self) -> Action:
        """The next thing to do."""
        _, action = self._plan.pop(0) if len(self._plan) > 1 else self._plan[0]
        self.killed = self.killed or action == "kill"
        return action

    def hurry(self) -> None:
        """Do without the rest of the grace time."""
        now = time.monotonic()
        if not self.killed:
            self._plan = [(now, "kill"), (now + PATIENCE, "give up")]


@dataclass
class Request:
    """A request on its way.

    Attributes:
        number: of the request.
        message: all of it.
        reply: what has come of it so far.
        limit: seconds it may take, waiting for the host not counted; ``None`` for no limit.
        begin_by: when the checkpoint before it must be written, as ``time.monotonic()`` has it.
        begun: whether the guest has said that it has begun with it, which it is asked to if there
            is a limit.
        interrupted: whether the user wants it to end.
        interrupted_at: when the last time, as ``time.monotonic()`` has it.
        killed: whether its worker was killed because it would not end.
        died: whether its worker died of it.
        done: whether nothing more will come of it.
        stop: what is being done to end it, or what it waits for.
        unread: how many items from the guest are still looked at before the next thing is done to
            end it; ``None`` while it is not time for that.
        deaths: how many workers have died meanwhile.
    """

    number: int
    message: dict[str, Any]
    reply: Reply
    limit: float | None
    begin_by: float = 0.0
    begun: bool = False
    interrupted: bool = False
    interrupted_at: float = -math.inf
    killed: bool = False
    died: bool = False
    done: bool = False
    stop: Escalation | None = None
    unread: int | None = None
    deaths: int = 0

    @property
    def is_cell(self) -> bool:
        return self.message.get("op") == "cell"

    @property
    def step(self) -> int:
        """The number of what the guest does for it, see :mod:`rlm_containers.guest.wire`."""
        return 2 * self.number
