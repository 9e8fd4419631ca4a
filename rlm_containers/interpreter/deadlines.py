"""How long the host waits for the guest, and which of its limits applies now."""

from __future__ import annotations

import time

from rlm_containers.errors import SandboxLostError
from rlm_containers.interpreter.clock import CellClock
from rlm_containers.interpreter.request import (
    GROWTH_KILL_TIMEOUT,
    Action,
    Cause,
    Escalation,
    Request,
    SendFailure,
)


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
