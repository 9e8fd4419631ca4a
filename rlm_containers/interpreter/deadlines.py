"""How long the host waits for the guest, and what it does after that."""

from __future__ import annotations

import time

from rlm_containers.interpreter import request as requests
from rlm_containers.interpreter.clock import CellClock
from rlm_containers.interpreter.request import Action, Escalation, Request


class Deadlines:
    """The limits of one session, and where in them it is.

    A request waits for three things: for a worker that is ready, for the checkpoint before it, and
    for its own end. Each has its limit.

    Args:
        clock: counts the time of cells.
        cell_timeout: seconds that a cell may use, and that the checkpoint before it may take;
            ``None`` for no limit.
        start_timeout: seconds for a worker to become ready.

    Attributes:
        ready_by: when the worker that is being started must be ready, as ``time.monotonic()`` has
            it; ``None`` while there is one.
        is_fresh: whether the worker has not begun with any request yet.
    """

    def __init__(self, clock: CellClock, cell_timeout: float | None, start_timeout: float) -> None:
        self.clock = clock
        self.cell_timeout = cell_timeout
        self.start_timeout = start_timeout
        self.ready_by: float | None = None
        self.is_fresh = True

    def limit(self, op: str) -> float | None:
        """Seconds that a request of that kind may take once it has begun."""
        if op == "cell" or self.cell_timeout is None:
            return self.cell_timeout
        return max(self.cell_timeout, self.start_timeout)  # no code of the cell's own

    def restart(self) -> None:
        """A worker has been told to start."""
        self.ready_by = time.monotonic() + self.start_timeout

    def ready(self) -> None:
        """It is ready."""
        self.ready_by = None
        self.is_fresh = True

    def send(self, request: Request) -> None:
        """A request is about to be sent."""
        request.begun = False
        limit = request.limit if self.cell_timeout is None else self.cell_timeout
        if limit is not None:
            # A new worker has imports to do before its first request, which belong to its start.
            seconds = max(limit, self.start_timeout if self.is_fresh else 0.0)
            request.begin_by = time.monotonic() + seconds
        self.clock.reset()

    def begin(self, request: Request) -> bool:
        """The guest has begun with it. Whether the checkpoint before it had to be interrupted."""
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
        """Seconds until something is to be done about a request; ``None`` for never."""
        waits = request.stop is None or request.stop.cause == "checkpoint"
        if request.interrupted and waits and self.ready_by is None:
            request.stop = Escalation("interrupt", request.step)
            request.stop.take()  # the first interrupt has been sent
        if request.stop is not None:
            return request.stop.left()
        if self.ready_by is not None:
            return self.ready_by - time.monotonic()
        if request.limit is None:
            return None
        if not request.begun:
            return request.begin_by - time.monotonic()
        return self.clock.left()

    def act(self, request: Request, backlog: int) -> tuple[Action, int]:
        """What to do now that nothing is left, and to which step.

        Args:
            request: the request.
            backlog: how many items from the guest wait to be looked at.
        """
        if request.stop is None:
            if self.ready_by is not None:
                request.stop = Escalation("restore", 0)
            elif not request.begun:
                request.stop = Escalation("checkpoint", request.step - 1)
            else:
                request.stop = Escalation("limit", request.step, backlog)
        return request.stop.take(), request.stop.step

    def explain(self, request: Request) -> None:
        """Say in the reply what was stopped, and why, once that has had its effect."""
        stop, notices = request.stop, request.reply.notices
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
        if stop.killed:
            seconds = f"{requests.GRACE:g} s"
            notices.append(f"It did not end within {seconds} after its interrupt and was killed.")

    def reached(self, what: str, option: str) -> str:
        """The sentence that says that something has reached its limit."""
        seconds = self.cell_timeout if option == "cell_timeout" else self.start_timeout
        if seconds is None:  # nobody waits for a session to settle for ever
            return f"{what} took too long and was interrupted."
        return f"{what} reached its limit of {seconds:g} s ({option}) and was interrupted."
