"""What worker, heirs and supervisor share, and what the supervisor does about heirs.

An *heir* is a forked child of the worker that holds the variables of one moment, see
:mod:`rlm_guest.heirs`. It outlives the worker. Its child, the *writer*, writes the checkpoint. The
two are in a process group of their own, whose number stands for both.
"""

from __future__ import annotations

import os
import signal
import time

from .interrupts import BEGUN, CHECKPOINTING, INTERRUPTS, NUMBERS, PHASE, STEP, StallWatch

# The writer has numbers as the worker has, by the same indexes, beginning at NUMBERS. After them:
#: The group of the newest heir, 0 for none, and the request that it holds the variables of; by the
#: worker.
HEIR = 2 * NUMBERS
HELD = HEIR + 1
#: The group that writes a checkpoint, 0 for none, and its writer's process; by the heir.
WRITING = HEIR + 2
WRITER = HEIR + 3
#: The last group that has nothing left to write; by the heir.
ENDED = HEIR + 4
#: The last group that has given up what the cells have open; by the heir.
READY = HEIR + 5
#: Whether to write at once; by the worker and the supervisor.
NOW = HEIR + 6
#: Since when there is something to write, in milliseconds of ``time.monotonic()``; by the worker.
SINCE = HEIR + 7
#: The variable that is being saved, counted from 1; 0 for none; by the writer.
CURRENT = HEIR + 8
#: How many reports writers have made, and length and checksum of the last; by the writer.
REPORTS = HEIR + 9
REPORT_SIZE = HEIR + 10
REPORT_SUM = HEIR + 11
#: How many writers died of SIGKILL; by the heir.
KILLED = HEIR + 12
#: Whether the worker waits for the writer; by the worker.
WAITING = HEIR + 13
#: Whether the session outlives the container; by the worker.
KEPT = HEIR + 14
#: The last group that may go on in the worker's place; by the heir. The group that is to do so; by
#: the supervisor. The process that has; by the heir.
ABLE = HEIR + 15
TAKE = HEIR + 16
TAKEN = HEIR + 17
#: The process of the heir that READY names, and of the one that WRITING names; by the heirs.
READY_PROCESS = HEIR + 18
WRITING_PROCESS = HEIR + 19
#: Whether the worker writes a checkpoint itself, so that no heir begins to; by the worker, until it
#: is dead.
ITSELF = HEIR + 20
#: The last request that the journal has, 0 for none; the request that its first entry came after;
#: and its bytes. By the worker, see :mod:`rlm_guest.journal`.
JOURNALED = HEIR + 21
JOURNAL_BASE = HEIR + 22
JOURNAL_LENGTH = HEIR + 23
#: How many numbers there are in all.
SHARED = HEIR + 24
#: A branch has numbers by the same indexes, and three more: its process id, whether it is ready,
#: and why it could not be made, as of ``errno``. See :mod:`rlm_guest.branching`.
PID = SHARED
MADE = SHARED + 1
FAILED = SHARED + 2
SLOT = SHARED + 3

#: Seconds to wait for killed processes to be gone, or for news of a dead one.
_KILL_TIMEOUT = 0.5
_NEWS_TIMEOUT = 0.05

#: Seconds between two looks at an heir that writes.
_LOOK = 0.01


class TakenOver(BaseException):
    """This process, an heir, is the worker now. Leads it back to the worker's loop."""


class Branched(BaseException):
    """This process is a branch now. Leads it back to the worker's loop.

    Args:
        progress: the numbers that it shares with the supervisor.
    """

    def __init__(self, progress: memoryview) -> None:
        super().__init__()
        self.progress = progress


# Cells can write to the numbers too, and group 1 would stand for every process.


def exists(group: int) -> bool:
    """Return whether a process group has any process."""
    try:
        os.killpg(group if group > 1 else -1, 0)
    except PermissionError:
        pass
    except (OSError, OverflowError):
        return False
    return True


def signal_group(group: int, number: int) -> None:
    """Send a signal to a process group, if it is there."""
    try:
        os.killpg(group if group > 1 else -1, number)
    except (OSError, OverflowError):
        pass


def _signal_process(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (OSError, OverflowError):
        pass


def is_pending(progress: memoryview) -> bool:
    """Return whether the newest heir has something left to write."""
    heir = progress[HEIR]
    return heir != 0 and progress[ENDED] != heir and exists(heir)


def hurry(progress: memoryview) -> None:
    """Have the newest heir write at once, in place of an older one that writes."""
    progress[NOW] = 1
    heir, other = progress[HEIR], progress[WRITING]
    if heir:
        if other not in (0, heir) and is_pending(progress):
            signal_group(other, signal.SIGKILL)
        signal_group(heir, signal.SIGURG)


class Succession:
    """What the supervisor does about heirs.

    Args:
        progress: the shared numbers.
    """

    def __init__(self, progress: memoryview) -> None:
        self._progress = progress
        self._writer = progress[NUMBERS : 2 * NUMBERS]
        self._stall = StallWatch(self._writer)
        self._killed = 0

    def groups(self) -> dict[int, int]:
        """Return the process groups of heirs, each with the heir's process; 0 if unknown yet."""
        progress = self._progress
        newest = progress[HEIR]
        found = {
            newest: progress[READY_PROCESS] if progress[READY] == newest else 0,
            progress[WRITING]: progress[WRITING_PROCESS],
        }
        found.pop(0, None)
        return found

    def is_pending(self) -> bool:
        """Return whether the newest heir has something left to write."""
        return is_pending(self._progress)

    def hurry(self) -> None:
        """Have the newest heir write at once."""
        hurry(self._progress)

    def await_checkpoint(self, seconds: float) -> None:
        """Have the newest heir write at once, and wait for that, at most this long."""
        self.hurry()
        while self.is_pending() and seconds > 0:
            time.sleep(_LOOK)
            seconds -= _LOOK

    def note_death(self, written: int) -> None:
        """Note that the worker is dead: if it was writing a checkpoint, an heir may begin now.

        Unless the worker had written all. Then the heir holds less, and is ended.

        Args:
            written: the last request whose checkpoint is written.
        """
        if self._progress[ITSELF] and self._progress[HELD] < written:
            self.end()
        self._progress[ITSELF] = 0

    def is_awaited(self) -> bool:
        """Return whether the worker waits for the writer."""
        return bool(self._progress[WAITING])

    def interrupt(self, step: int) -> None:
        """Interrupt the variable that is being saved. The interrupt reaches up to ``step``."""
        self._writer[STEP] = step
        self._writer[INTERRUPTS] += 1
        if self._progress[WRITING]:
            _signal_process(self._progress[WRITER], signal.SIGINT)

    def watch(self) -> bool:
        """Once a second, interrupt a writer that does not get on. Return whether there is any."""
        if not (self._progress[WRITING] and self._writer[PHASE]):
            return self.is_pending()
        action = self._stall.action()
        if action == "kill":
            # Its heir takes another writer, which leaves that variable out.
            _signal_process(self._progress[WRITER], signal.SIGKILL)
        elif action:
            self.interrupt(2 * self._writer[BEGUN] + (self._writer[PHASE] == CHECKPOINTING))
        return True

    def new_kills(self, killed: int) -> int:
        """Return how many writers died of SIGKILL since the last call.

        Args:
            killed: how many processes the kernel has killed.
        """
        progress = self._progress
        deadline = time.monotonic() + _NEWS_TIMEOUT
        while (
            killed
            and progress[KILLED] == self._killed
            and progress[WRITING]
            and not _lives(progress[WRITER])
            and exists(progress[WRITING])
            and time.monotonic() < deadline
        ):
            time.sleep(0.001)  # its heir is about to say so
        found, self._killed = progress[KILLED] - self._killed, progress[KILLED]
        return found

    def saved(self, written: int) -> int:
        """Return the last request whose changes the next worker finds.

        Args:
            written: the last one whose checkpoint is written.
        """
        progress = self._progress
        return max(written, progress[JOURNALED] if progress[JOURNAL_BASE] <= written else 0)

    def is_able(self) -> bool:
        """Return whether the newest heir may go on in the worker's place."""
        heir = self._progress[HEIR]
        return heir != 0 and self._progress[ABLE] == heir and exists(heir)

    def is_unready(self) -> bool:
        """Return whether the newest heir was forked just now, and does not know what it is."""
        heir = self._progress[HEIR]
        return heir != 0 and self._progress[READY] != heir and exists(heir)

    def hand_over(self) -> None:
        """Have the newest heir go on. What it needs was sent to it before."""
        progress = self._progress
        progress[TAKEN] = 0
        progress[TAKE] = progress[HEIR]
        signal_group(progress[HEIR], signal.SIGURG)

    def successor(self) -> int:
        """Return the process that goes on, a living child of this one; 0 while there is none."""
        pid = int(self._progress[TAKEN])
        try:
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except (OSError, OverflowError):
            return 0  # nobody would see how it ends
        return pid if ended is None else 0

    def take_over(self) -> int:
        """Forget the heir that goes on, and end an older one. Return the request that it holds."""
        progress = self._progress
        older = progress[WRITING]
        if older not in (0, progress[HEIR]):
            signal_group(older, signal.SIGKILL)
        for index in (HEIR, WRITING, WRITER, ENDED, READY, NOW, WAITING, ABLE, TAKE, TAKEN):
            progress[index] = 0
        return int(progress[HELD])

    def end(self) -> None:
        """Kill all heirs, and forget them."""
        groups = self.groups()
        for group in groups:
            signal_group(group, signal.SIGKILL)
        deadline = time.monotonic() + _KILL_TIMEOUT
        while any(map(exists, groups)) and time.monotonic() < deadline:
            for group in groups:
                try:
                    os.waitpid(-group, os.WNOHANG)  # if this process is PID 1
                except (OSError, OverflowError):
                    pass
            time.sleep(0.001)
        for index in range(NUMBERS, JOURNALED):
            if index not in (REPORTS, KILLED):
                self._progress[index] = 0


def _lives(pid: int) -> bool:
    try:
        with open("/proc/{}/stat".format(pid), "rb") as file:
            stat = file.read()
    except OSError:
        return False
    return stat[stat.rfind(b")") + 1 :].split()[:1] not in ([b"Z"], [b"X"])
