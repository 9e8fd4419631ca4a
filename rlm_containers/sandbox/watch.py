"""Watches how much the cells of a sandbox write into its workspace."""

from __future__ import annotations

import math
import threading
import time

from rlm_containers.errors import ContainersError
from rlm_containers.interpreter import BranchTable, Commands, Interpreter, Reply, start_thread
from rlm_containers.state import Excess, Space
from runtimes.text import get_logger

logger = get_logger("rlm_containers")

#: Seconds until what killed commands have written last has been seen.
_GRACE = 0.5


class SpaceWatch:
    """Stops what makes the files of a workspace grow past their limit.

    It has a thread of its own: what a cell has left running writes on while no cell runs, and then
    no other thread of this process is there to notice.

    Args:
        container: the container's name.
        space: how much the files may take, and take.
        interpreter: runs the cells.
        commands: runs commands beside them.
        branches: the copies of the interpreter, which run cells in its place.
    """

    def __init__(
        self,
        container: str,
        space: Space,
        interpreter: Interpreter,
        commands: Commands,
        branches: BranchTable,
    ) -> None:
        self._container = container
        self._space = space
        self._interpreter = interpreter
        self._commands = commands
        self._branches = branches
        self._unsaid: Excess | None = None
        self._commands_killed_at = -math.inf
        self._closed = threading.Event()
        self._thread = start_thread(self._run, f"rlm-space-{container}", container=container)

    def is_watching_here(self) -> bool:
        """Whether this thread is the one for which :meth:`close` waits."""
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        self._thread.join()

    def end_cell(self, reply: Reply) -> None:
        """Look at the files that a cell has left, and say so in its reply if they are too large."""
        try:
            excess = self._space.end_cell()
        except (ContainersError, OSError) as error:
            logger.debug("%s: the workspace cannot be measured: %s", self._container, error)
            return
        unsaid, self._unsaid = self._unsaid, None
        excess = excess or unsaid
        if excess is not None and not reply.is_told_of_growth:
            reply.notices.append(
                f"{excess.fact} A cell that makes them grow further is interrupted. {excess.remedy}"
            )

    def _run(self) -> None:
        looked = time.monotonic()
        while not self._closed.wait(self._space.pause()):
            since, looked = looked, time.monotonic()
            try:
                excess = self._space.look()
                if excess is not None:
                    self._unsaid = None if self._stop(excess, since) else excess
            except Exception as error:
                # It is being closed, its container is gone, or there is no descriptor left.
                logger.debug("%s: %s", self._container, error)

    def _stop(self, excess: Excess, since: float) -> bool:
        """Stop what writes. Return whether the user will be told."""
        # Nobody can tell which of them writes. A command cannot be interrupted as a cell can.
        if excess.far:
            now = time.monotonic()
            if self._commands.kill_all(f"{excess.fact} The command was killed. {excess.remedy}"):
                self._commands_killed_at = now
            if now < self._commands_killed_at + _GRACE:
                return True
        running = self._branches.interpreters or [self._interpreter]
        busy = [interpreter for interpreter in running if interpreter.is_busy]
        told = [
            interpreter.stop_growth(excess.fact, excess.remedy, far=excess.far, since=since)
            for interpreter in busy or running
        ]
        return any(told)
