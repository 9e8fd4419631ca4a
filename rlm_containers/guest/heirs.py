"""Saves the variables beside the worker, in a forked child that has them as they were.

After an answer the worker forks an *heir*, and goes on at once. The heir holds the variables. After
a while without another, it forks a *writer*, which writes the checkpoint and reports to the worker
through shared memory. If the writer dies of a variable, the heir forks another, which leaves that
out. An heir survives the worker's death: what it holds is saved. :mod:`rlm_guest.heir` is its side.

It is no child of the worker's, so that ``os.wait()`` in a cell does not return it: the worker's
child forks it and ends.
"""

from __future__ import annotations

import os
import sys
import time
from _signal import SIGKILL  # type: ignore[import-not-found]
from _thread import _count as count_threads
from collections.abc import Callable, Iterable

from . import lm
from .descriptors import descriptors
from .heir import Heir, Owner, Reports, forked
from .interrupts import monotonic
from .memoryuse import MemoryUse
from .succession import (
    ABLE,
    ENDED,
    HEIR,
    HELD,
    ITSELF,
    NOW,
    READY,
    SINCE,
    WRITING,
    exists,
    hurry,
    is_pending,
    signal_group,
)
from .threads import find_strangers, has_children

#: Seconds that a fork takes, and seconds for each MiB of memory, until that was measured.
_FORK_BASE = 0.0005
_FORK_PER_MIB = 0.00002
#: Seconds that the worker may take longer if it saves by itself: in all that is less work.
_PREFERENCE = 0.002
#: Seconds that are not worth a journal.
_CHEAP = 0.001
#: What part of a writer's time the worker may need: all of the writer's memory is new to it.
_OF_WRITER = 0.25
#: Seconds that it takes to save what a MiB of new memory holds, and the MiB that a cell may take
#: without leaving anything.
_SAVE_PER_MIB = 0.002
_TRANSIENT = 4

#: The threads of this process, a directory for each.
_TASKS = "/proc/self/task"
#: Forks in vain after which no more are tried.
_TRIES = 5

_sleep = time.sleep
_MIB = 1024 * 1024


class Heirs:
    """The heirs of a worker.

    Args:
        progress: the numbers that are shared with the supervisor.
        owner: what saves the worker's variables.
        descriptors: those that belong to this package, and not to cells.
    """

    def __init__(self, progress: memoryview, owner: Owner, descriptors: Iterable[int]) -> None:
        self._progress = progress
        self._owner = owner
        self._supervisor = os.getppid()
        self._own = frozenset(descriptors)
        self._reports = Reports(progress)
        self._settled = progress[HELD]  # the last request that there is nothing to do for
        self._children: list[int] = []
        self._memory = MemoryUse()
        self._cost = 0.0  # seconds of the last checkpoint
        self._saved_at = self._memory.resident()  # bytes in use at the last checkpoint
        self._fork_seconds = (0.0, 0)  # of the last fork, and the bytes in use then
        # Threads that have lived on through a fork, and how many forks were in vain for that.
        self._strangers: frozenset[str] = frozenset()
        self._failures = 0

    # In the worker

    @property
    def held(self) -> int:
        """The last request whose variables an heir holds, or has held."""
        return int(self._progress[HELD])

    def is_pending(self) -> bool:
        """Return whether the newest heir has something left to write."""
        return is_pending(self._progress)

    def is_writing(self) -> bool:
        """Return whether a checkpoint is being written."""
        group = self._progress[WRITING]
        return group != 0 and exists(group)

    def is_better(self, unwritten: int, *, wanted: bool) -> bool:
        """Return whether to fork now costs the worker less than to save.

        Args:
            unwritten: the length of the long strings that are to be written.
            wanted: whether an heir is better in any case.
        """
        resident = self._memory.resident()
        grown = (resident - self._saved_at) / _MIB - _TRANSIENT
        saving = self._cost + max(0.0, grown, unwritten / _MIB) * _SAVE_PER_MIB
        seconds, size = self._fork_seconds
        per_mib = seconds / max(size / _MIB, 25) if size else _FORK_PER_MIB
        is_cheap = saving <= _FORK_BASE + per_mib * resident / _MIB + _PREFERENCE
        # While a writer is at work, to save would mean to wait for it.
        if is_cheap and not wanted and not self.is_writing():
            return False
        self._cost = max(self._cost, saving)
        return self._is_alone() and self._memory.has_room(resident)

    def is_orphaned(self) -> bool:
        """Return whether the newest heir is gone without a report."""
        return bool(self._progress[HELD] > self._settled)

    def is_cheap(self) -> bool:
        """Return whether to save takes so little that there is nothing to be gained."""
        return self._cost < _CHEAP

    def note_saved(self, seconds: float, *, by_writer: bool = False) -> None:
        """Note how long a checkpoint took, here or in a writer."""
        self._cost = seconds * _OF_WRITER if by_writer else seconds
        self._saved_at = self._memory.resident()

    def fork(self, number: int, *, able: bool, written: bool = False) -> bool:
        """Fork an heir that holds the variables as of a request. Return whether that worked.

        Args:
            number: the request.
            able: whether the heir may go on in the worker's place, for all that the worker knows.
            written: whether there is a checkpoint already.

        Raises:
            TakenOver: this is the heir, and the worker now.
        """
        progress = self._progress
        self.reap()
        before = progress[HEIR]
        if not self.is_pending():
            progress[SINCE] = _milliseconds()
        progress[NOW] = 0
        is_anything_open = self._is_anything_open()
        heir = Heir(
            number,
            progress,
            self._reports,
            self._owner,
            own=self._own,
            supervisor=self._supervisor,
            able=able and not is_anything_open and not has_children(),
            written=written,
            restore_random=random_state(),
        )
        noted = progress[READY], progress[ABLE]
        started = monotonic()
        try:
            child = forked()
        except OSError:
            return False
        if child == 0:
            heir.run()
        try:
            os.setpgid(child, child)
        except OSError:
            pass  # it has done so itself
        if self._find_strangers():
            self._undo(child, noted)
            return False
        progress[HELD] = number
        if written:
            progress[ENDED] = child
            self._settled = number
        progress[HEIR] = child
        self._children.append(child)
        self._fork_seconds = monotonic() - started, self._memory.resident()
        self._saved_at = self._fork_seconds[1]
        if before and before != progress[WRITING]:
            signal_group(before, SIGKILL)
        if is_anything_open:
            # What a cell closes now must be closed, and not be open in another process.
            self.reap()
            while progress[READY] != child and exists(child):
                _sleep(0.0002)
        return True

    def reap(self, *, wait: bool = True) -> None:
        """Collect the children that have forked heirs, so that no cell sees them."""
        for child in list(self._children):
            try:
                if os.waitpid(child, 0 if wait else os.WNOHANG)[0] == 0:
                    continue
            except ChildProcessError:
                pass  # the cells ignore SIGCHLD
            self._children.remove(child)

    def look(self) -> bool:
        """Adopt a report if there is a new one. Return whether there is more to come."""
        self.reap(wait=False)
        pending = self.is_pending()  # first: the report comes before the end
        self._adopt_last()
        return bool(self._children) or pending

    def hurry(self) -> None:
        """Have the newest heir write at once."""
        hurry(self._progress)

    def hold(self) -> None:
        """Before the worker writes, let no heir begin to. Wait for the one that does.

        The newest one stays: until the worker has written, it alone may have what it holds.
        """
        self._progress[ITSELF] = 1
        while self.is_writing():
            _sleep(0.001)
        self._adopt_last()

    def release(self, *, drop: bool) -> None:
        """Let heirs write again. With ``drop``, end the newest one: nobody needs it."""
        progress = self._progress
        if drop:
            newest = progress[HEIR]
            progress[HEIR] = 0
            if newest:
                signal_group(newest, SIGKILL)
            self._settled = progress[HELD]
        progress[ITSELF] = 0

    def _adopt_last(self) -> None:
        """Adopt the last report."""
        found = self._reports.read()
        if found is not None:
            self._settled = max(self._settled, found[0])
            self._owner.adopt(*found)
            self._owner.tell(*found)

    def _is_alone(self) -> bool:
        """Return whether no other thread is known that may hold a lock in a forked child."""
        if count_threads():
            return False
        try:
            # A link for each thread, and two for the directory itself.
            if os.stat(_TASKS).st_nlink == 3:
                return True
            return self._failures < _TRIES and self._strangers.isdisjoint(os.listdir(_TASKS))
        except OSError:
            return False

    def _find_strangers(self) -> bool:
        """After a fork, return whether this process has threads that know nothing of it."""
        found = find_strangers()
        if found:
            self._strangers = found
            self._failures += 1
        return bool(found)

    def _undo(self, child: int, before: tuple[int, int]) -> None:
        """End an heir that was just forked, and restore what it may have noted."""
        signal_group(child, SIGKILL)
        os.waitpid(child, 0)
        _sleep(0.001)  # until its own child is gone too, which is nobody's to wait for
        self._progress[READY], self._progress[ABLE] = before

    def _is_anything_open(self) -> bool:
        """Return whether cells have anything open."""
        return bool(descriptors() - self._own - lm.descriptors())

    def may_be_able(self) -> bool:
        """Return whether an heir may go on in the worker's place, for all that is open."""
        self.reap()
        return not self._is_anything_open() and not has_children()

    def forget_reports(self) -> None:
        """In a branch, take no report of what the worker's heirs have written."""
        self._reports.skip()

    def begin_again(self) -> None:
        """Begin as the heirs of a process that was one itself."""
        self._supervisor = os.getppid()
        self._children.clear()
        self._settled = self._progress[HELD]


def _milliseconds() -> int:
    return int(monotonic() * 1000)


def random_state() -> Callable[[], None] | None:
    """Return what sets the state of ``random`` again, which reseeds itself in a forked child."""
    random = sys.modules.get("random")
    try:
        state = random.getstate()  # type: ignore[union-attr]
        setstate = random.setstate  # type: ignore[union-attr]
    except Exception:  # it is not loaded, or a cell has replaced it
        return None
    return lambda: setstate(state)
