"""An heir: a forked child of the worker that holds its variables.

It waits, has a writer write the checkpoint, and waits on, until there is a newer one, or until the
worker dies and the supervisor tells it to go on in its place. :mod:`rlm_guest.heirs` is the side of
the worker.
"""

from __future__ import annotations

import mmap
import os
import pickle
import socket
import time
import warnings
import zlib
from _signal import (  # type: ignore[import-not-found]
    SIG_BLOCK,
    SIG_DFL,
    SIG_IGN,
    SIG_SETMASK,
    SIGCHLD,
    SIGINT,
    SIGKILL,
    SIGURG,
    pthread_sigmask,
    set_wakeup_fd,
    sigtimedwait,
)
from _signal import signal as set_handler
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from .descriptors import drop_others, take
from .interrupts import BEGUN, CHECKPOINTING, NUMBERS, PHASE, SAVED, Interrupts, monotonic
from .memory import offer_to_kernel
from .memoryuse import MemoryUse
from .succession import (
    ABLE,
    CURRENT,
    ENDED,
    HEIR,
    HELD,
    ITSELF,
    KILLED,
    NOW,
    READY,
    READY_PROCESS,
    REPORT_SIZE,
    REPORT_SUM,
    REPORTS,
    SINCE,
    TAKE,
    TAKEN,
    WRITER,
    WRITING,
    WRITING_PROCESS,
    TakenOver,
    exists,
    signal_group,
)

#: Seconds without another heir after which a checkpoint is written, and the most seconds that
#: something waits to be written.
_QUIET = 0.03
_AGE = 2.0

#: Seconds between two looks at what no signal tells: while something is to be done, and while not.
_LOOK = 0.005
_LOOK_IDLE = 0.25

#: The most bytes of a writer's report. Those that nobody writes to take no memory.
_REPORT = 32 * 1024 * 1024

#: The most writers that may die of one heir's variables.
_WRITERS = 10

#: The descriptor of the socket to the supervisor over which an heir gets its streams.
_CALLS = 4

_fork = os.fork
_sleep = time.sleep


class Owner(Protocol):
    """What heirs need of the worker: :class:`rlm_guest.saving.Saving`."""

    def write(
        self, number: int, interrupts: Interrupts, note_attempt: Callable[[int], None]
    ) -> dict[str, Any]:
        """Write the checkpoint of a request, in the writer.

        Args:
            number: the request.
            interrupts: allowed while a variable is saved.
            note_attempt: called with the place of each variable before it is saved, counted from 1,
                and with 0 after the last.

        Returns:
            A report in plain values.
        """

    def note_death(self, place: int, reason: str) -> bool:
        """Note in the heir that a variable has ended the writer.

        Args:
            place: its place among the variables, counted from 1.
            reason: how the writer ended.

        Returns:
            Whether there is such a variable.
        """

    def fail(self, reason: str) -> dict[str, Any]:
        """Return the report that there is no checkpoint."""

    def adopt(self, number: int, news: dict[str, Any]) -> None:
        """Take a report; in the worker, and in the next heir."""

    def tell(self, number: int, news: dict[str, Any]) -> None:
        """Tell the host of a report, in the worker."""

    def apply_journal(self, number: int) -> int:
        """Bind, in an heir, what trivial cells have bound since. Return the last one's request."""


class Reports:
    """Memory in which writers report to the worker and to later writers.

    Args:
        progress: the numbers that are shared with the supervisor.
    """

    def __init__(self, progress: memoryview) -> None:
        self._progress = progress
        self._memory = mmap.mmap(-1, _REPORT)
        self._taken = progress[REPORTS]

    def write(self, number: int, report: Any) -> bool:
        """Make a report of the checkpoint of a request. Return whether it was short enough."""
        raw = pickle.dumps((number, report), 4)
        if len(raw) > _REPORT:
            return False
        progress = self._progress
        self._memory[: len(raw)] = raw
        progress[REPORT_SIZE] = len(raw)
        progress[REPORT_SUM] = zlib.crc32(raw)
        progress[REPORTS] += 1
        return True

    def skip(self) -> None:
        """Take the last report for one that is known."""
        self._taken = self._progress[REPORTS]

    def read(self) -> tuple[int, Any] | None:
        """Return the last report, once."""
        progress = self._progress
        count = progress[REPORTS]
        if count == self._taken:
            return None
        raw = self._memory[: progress[REPORT_SIZE]]
        if zlib.crc32(raw) != progress[REPORT_SUM] or progress[REPORTS] != count:
            return None  # the next one is being written
        self._taken = count
        found: tuple[int, Any] = pickle.loads(raw)
        return found


class Heir:
    """An heir. Made in the worker, for the child that it forks.

    Args:
        number: the request whose variables it holds.
        progress: the numbers that are shared with the supervisor.
        reports: where its writer reports.
        owner: what saves the worker's variables, as it is in this process.
        own: the descriptors that cells have nothing to do with.
        supervisor: the supervisor's process id.
        able: whether it may go on in the worker's place.
        written: whether there is a checkpoint already.
        restore_random: sets the state of ``random`` again, which reseeds itself in forked children.
    """

    def __init__(
        self,
        number: int,
        progress: memoryview,
        reports: Reports,
        owner: Owner,
        *,
        own: Iterable[int],
        supervisor: int,
        able: bool,
        written: bool,
        restore_random: Callable[[], None] | None,
    ) -> None:
        self._number = number
        self._progress = progress
        self._reports = reports
        self._owner = owner
        self._own = frozenset(own)
        self._supervisor = supervisor
        self._able = able
        self._written = written
        self._restore_random = restore_random
        self._memory = MemoryUse()
        self._group = 0
        self._took_over = False
        self._before: tuple[Any, ...] = ()  # signal mask and handlers

    def run(self) -> None:
        """Be the heir, in a forked child. Ends the process.

        Raises:
            TakenOver: it is the worker now.
        """
        try:
            self._group = os.getpid()
            os.setpgid(0, 0)
            try:
                # The worker's child ends, so that no cell has to do with it. Its group stays.
                if forked():
                    os._exit(0)
            except OSError:
                self._progress[NOW] = 1  # the worker waits for its child, which is the heir
            self._prepare()
            if not self._written:
                self._wait_and_write()
            self._wait()
        except BaseException:
            # The worker, or the supervisor, notices that this one is gone without a report.
            if self._took_over:
                raise
            signal_group(self._group, SIGKILL)
        finally:
            if not self._took_over:
                os._exit(0)

    def _prepare(self) -> None:
        mask = pthread_sigmask(SIG_BLOCK, (SIGURG, SIGCHLD))
        set_wakeup_fd(-1)
        set_handler(SIGINT, SIG_IGN)
        self._before = mask, set_handler(SIGURG, SIG_DFL), set_handler(SIGCHLD, SIG_DFL)
        drop_others(self._own)
        while os.getppid() == self._group:
            _sleep(0.0002)  # the worker's child has not ended yet
        # The supervisor has to see how its worker ends, so that must be its child.
        self._able = self._able and os.getppid() == self._supervisor
        if self._able:
            self._progress[ABLE] = self._group
        self._progress[READY_PROCESS] = os.getpid()
        self._progress[READY] = self._group
        offer_to_kernel(score=900)

    # Waiting

    def _look(self, timeout: float) -> None:
        """Wait for a signal. Take over if the supervisor says so; end if it is gone."""
        os.kill(self._supervisor, 0)  # an error ends this process
        if self._progress[TAKE] == self._group:
            self._take_over()
        sigtimedwait((SIGURG, SIGCHLD), timeout)
        if self._progress[TAKE] == self._group:
            self._take_over()

    def _wait_and_write(self) -> None:
        """Wait until it is time to write and no other heir does. Then have a writer do so."""
        progress, group = self._progress, self._group
        due = min(monotonic() + _QUIET, progress[SINCE] / 1000 + _AGE)
        while True:
            now = monotonic()
            timeout = _LOOK
            if progress[HEIR] != group:
                if progress[READY] != group:
                    os._exit(0)  # there is a newer one
                # The worker has not come to say so yet.
            elif now < due and not progress[NOW]:
                timeout = due - now
            elif not progress[ITSELF]:
                other = progress[WRITING]
                if not other or not exists(other):
                    progress[WRITING_PROCESS] = os.getpid()
                    progress[WRITING] = group
                    if progress[HEIR] != group:
                        os._exit(0)
                    if not progress[ITSELF]:
                        break
                    progress[WRITING] = 0
            self._look(timeout)
        try:
            self._have_written()
        finally:
            if progress[WRITING] == group:
                progress[WRITING] = 0
            progress[ENDED] = group
            newest = progress[HEIR]
            if newest and newest != group:
                signal_group(newest, SIGURG)

    def _wait(self) -> None:
        """Wait for the worker's death, as long as there is no newer heir and enough memory."""
        progress = self._progress
        while progress[HEIR] != self._group and progress[READY] == self._group:
            self._look(_LOOK)  # the worker has not come to say so yet
        while self._able and progress[HEIR] == self._group:
            if progress[SAVED] >= self._number and not self._memory.has_room(0):
                break  # the worker needs it, and the file has everything
            self._look(_LOOK_IDLE)

    # Writing

    def _have_written(self) -> None:
        """Have a writer write the checkpoint, and another one if it dies."""
        progress = self._progress
        # Here and once: a writer that adopted this would forget of what the one before it died.
        news = self._reports.read()
        if news is not None:
            self._owner.adopt(*news)
        status = 0
        for _ in range(_WRITERS):
            known = progress[REPORTS]
            progress[CURRENT] = 0
            try:
                writer = forked()
            except OSError:
                # There is no room for another process. Nobody can go on after that.
                self._able = False
                self._be_writer()
                return
            if writer == 0:
                try:
                    self._be_writer()
                finally:
                    os._exit(0)
            progress[WRITER] = writer
            status = self._await_writer(writer)
            if progress[REPORTS] != known:
                return
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) == SIGKILL:
                progress[KILLED] += 1
            if not self._owner.note_death(progress[CURRENT], _ended(status)):
                break
        report = self._owner.fail("what saves them {}".format(_ended(status)))
        self._reports.write(self._number, report)

    def _await_writer(self, writer: int) -> int:
        """Return how the writer has ended, as of ``waitpid()``."""
        while True:
            pid, status = os.waitpid(writer, os.WNOHANG)
            if pid:
                return status
            try:
                self._look(_LOOK_IDLE)
            except TakenOver:
                os.kill(writer, SIGKILL)
                os.waitpid(writer, 0)
                raise

    def _be_writer(self) -> None:
        """Write the checkpoint, and report."""
        numbers = self._progress[NUMBERS : 2 * NUMBERS]
        interrupts = Interrupts(numbers)
        interrupts.begin(2 * self._number + 1)
        interrupts.install()
        offer_to_kernel()
        numbers[BEGUN] = self._number
        numbers[PHASE] = CHECKPOINTING
        if self._restore_random is not None:
            self._restore_random()
        report = self._owner.write(self._number, interrupts, self._note_attempt)
        if not self._reports.write(self._number, report):
            self._reports.write(self._number, self._owner.fail("its report is too long"))
        numbers[PHASE] = 0

    def _note_attempt(self, place: int) -> None:
        """Note in the writer which variable is being saved, by its place; 0 for none."""
        self._progress[CURRENT] = place

    # Taking over

    def _take_over(self) -> None:
        """Take the worker's descriptors from the supervisor, and its place."""
        calls = socket.socket(fileno=_CALLS)
        try:
            _, ends, _, _ = socket.recv_fds(calls, 16, 4, socket.MSG_DONTWAIT)
        finally:
            calls.detach()
        take(ends, self._own)
        mask, *handlers = self._before
        for number, handler in zip((SIGURG, SIGCHLD), handlers):  # noqa: B905
            set_handler(number, SIG_DFL if handler is None else handler)
        pthread_sigmask(SIG_SETMASK, mask)
        offer_to_kernel()
        if self._restore_random is not None:
            self._restore_random()
        news = self._reports.read()
        if news is not None:
            self._owner.adopt(*news)
        self._progress[HELD] = self._owner.apply_journal(self._number)
        self._took_over = True
        # Before it leaves the group, which would look like its end.
        self._progress[TAKEN] = os.getpid()
        os.setsid()  # a session and a group of its own, as a worker has
        raise TakenOver


def forked() -> int:
    """Fork, without Python's warning of threads, which a cell may make an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _fork()


def _ended(status: int) -> str:
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == SIGKILL:
        return "was killed (SIGKILL), perhaps for its memory"
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
    return "ended its process with status {}".format(code)
