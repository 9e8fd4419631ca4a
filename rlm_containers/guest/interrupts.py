"""When SIGINT may interrupt: while code of a cell runs, and only what it is meant for."""

from __future__ import annotations

import signal
import time
import types

# These C functions instead of the wrappers in `signal`, which convert every number to an enum, and
# which a cell may replace. They are called after every cell.
from _signal import pthread_sigmask as _set_mask  # type: ignore[import-not-found]
from _signal import signal as _set_handler

# Supervisor and worker share numbers in memory, which outlive the worker. Their indexes:
#: The last request whose checkpoint is written; by the worker.
SAVED = 0
#: The last request that the worker began with; by the worker.
BEGUN = 1
#: The step that the last interrupt reaches, see :mod:`rlm_guest.wire`; by the supervisor.
STEP = 2
#: The number of interrupts so far; by the supervisor.
INTERRUPTS = 3
#: 1 while there is a checkpoint to write that must not be lost, else 0; by the worker.
SAVING = 4
#: What the worker does, one of the three numbers below, or 0 while it waits; by the worker.
PHASE = 5
#: A number that grows with all that the worker gets done. Odd while code of the cells' runs; by the
#: worker.
PROGRESS = 6
#: The inode number of the last state file that the worker was about to put in its place, 0 for
#: none, and the request that it is the checkpoint of; by the worker. Who is there tells whether the
#: worker died before or after that.
FILE = 7
FILE_REQUEST = 8
#: How many numbers there are. More follow, see :mod:`rlm_guest.succession`.
NUMBERS = 9

#: A cell runs.
RUNNING = 1
#: A cell has ended, and the answer is made. That runs code of its objects, such as ``__repr__``.
ANSWERING = 2
#: The checkpoint is written. That runs code of the cells' objects too, such as ``__reduce__``.
CHECKPOINTING = 3

#: Seconds for which an interrupt of a request leaves the checkpoint before it alone.
_INTERRUPT_DELAY = 0.5

_gettime, _CLOCK = time.clock_gettime, time.CLOCK_MONOTONIC


def monotonic() -> float:
    """Return the time on the clock of ``time.monotonic()``, which a cell may have replaced."""
    return _gettime(_CLOCK)


_SIGINT = int(signal.SIGINT)
_SIG_UNBLOCK = int(signal.SIG_UNBLOCK)


class Interrupts:
    """Decides whether the signal handler may raise KeyboardInterrupt.

    Code of the cell's own runs in the cell, but also in the ``__repr__`` and ``__reduce__`` of the
    objects that it has left. Whoever calls it allows interrupts by ``with interrupts:``, inside a
    ``try`` that catches KeyboardInterrupt.

    Args:
        progress: the numbers that are shared with the supervisor; ``None`` if they are not shared.

    Attributes:
        progress: these numbers.
        allowed: whether interrupts are allowed.
        received: how many the host has sent for the present step, allowed or not.
        entered: set to true whenever they are allowed, which is whenever code of a cell may run.
    """

    def __init__(self, progress: memoryview | None = None) -> None:
        if progress is None:
            progress = memoryview(bytearray(8 * NUMBERS)).cast("Q")
        self.share(progress)

    def share(self, progress: memoryview) -> None:
        """Begin with these numbers; again, if this process takes the place of another."""
        self.allowed = False
        self.received = 0
        self.entered = True
        self.progress = progress
        self._step = 0
        self._waiting_since: float | None = None
        self._seen = progress[INTERRUPTS]
        self._late = 0

    def __enter__(self) -> Interrupts:
        self.progress[PROGRESS] = (self.progress[PROGRESS] | 1) + 2
        self.entered = True
        self.allowed = True
        return self

    def __exit__(self, *exc: object) -> None:
        self.allowed = False
        self.progress[PROGRESS] = (self.progress[PROGRESS] | 1) + 1

    def advance(self) -> None:
        """Show the supervisor that the code which may be interrupted gets on."""
        self.progress[PROGRESS] += 2

    def begin(self, step: int) -> None:
        """Begin a step; ``step`` is its number, see :mod:`rlm_guest.wire`."""
        self._step = step
        self._waiting_since = None
        self.received = 0
        self._late = 0

    def reaches(self, step: int) -> bool:
        """Return whether the last interrupt was meant for this step too."""
        return self.progress[STEP] >= step > 0

    def check(self) -> None:
        """Raise KeyboardInterrupt if an interrupt came after the step began."""
        if self.received:
            raise KeyboardInterrupt

    def install(self) -> None:
        """Handle SIGINT, whatever a cell has done to the handler or the signal mask."""
        _set_handler(_SIGINT, self._handle)
        _set_mask(_SIG_UNBLOCK, (_SIGINT,))

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        sent = self.progress[INTERRUPTS]
        if sent != self._seen:
            # The supervisor counts an interrupt before it sends the signal. So one signal may show
            # that several were counted, and the others may still come.
            self._late = sent - self._seen - 1
            self._seen = sent
            reach = self.progress[STEP]
            if reach < self._step:
                return  # meant for an earlier step
            if reach > self._step and not self._delay_is_over():
                return
            self.received += 1
        elif self._late > 0:
            self._late -= 1
            return
        elif self._step % 2:
            # A signal that the cell has sent itself, too late, or a second one of the host's.
            return
        # While __exit__() runs, an exception would leave interrupts allowed. This handler may
        # itself have been interrupted in the middle of __exit__().
        if self.allowed and not (frame is not None and frame.f_code.co_filename == _HERE):
            raise KeyboardInterrupt

    def _delay_is_over(self) -> bool:
        """Return whether a checkpoint has been in the way of an interrupted request for too long.

        Most checkpoints take milliseconds, and are worth waiting for.
        """
        now = monotonic()
        if self._waiting_since is None:
            self._waiting_since = now
        return now > self._waiting_since + _INTERRUPT_DELAY


_HERE = Interrupts.__exit__.__code__.co_filename


class StallWatch:
    """Notices code of the cells' objects that does not get on, such as a ``__repr__`` that waits.

    The supervisor asks once a second while the worker has something to do. A cell itself may take
    any time: the host limits it.

    Args:
        progress: the numbers that are shared with the worker.
    """

    def __init__(self, progress: memoryview) -> None:
        self._progress = progress
        self._last: tuple[int, ...] = ()
        self._seconds = 0

    def action(self, *, waits: bool = False) -> str:
        """Return what to do about it: ``"interrupt"``, ``"kill"``, or nothing.

        Args:
            waits: whether the worker may be waiting for an heir.
        """
        progress = self._progress
        now = progress[PHASE], progress[PROGRESS], progress[BEGUN]
        limit = _STALL_LIMITS.get(progress[PHASE])
        is_ours = progress[PROGRESS] % 2 == 0
        if now != self._last or limit is None or (is_ours and waits):
            self._last = now
            self._seconds = 0
            return ""
        self._seconds += 1
        if is_ours:
            return "kill" if self._seconds >= _STALL_OURS else ""
        over = self._seconds - limit
        if over >= _STALL_KILL:
            return "kill"
        return "interrupt" if over >= 0 and over % _STALL_REPEAT == 0 else ""

    def step(self) -> int:
        """Return the number of the step to interrupt."""
        return 2 * self._progress[BEGUN] + (self._progress[PHASE] == CHECKPOINTING)


#: Seconds that code of an object may take without getting on, by the phase.
_STALL_LIMITS = {ANSWERING: 2, CHECKPOINTING: 10}
#: Seconds until the next interrupt, and until the kill of a worker that ignores them.
_STALL_REPEAT = 3
_STALL_KILL = 30
#: Seconds until the kill of a worker whose own code does not get on, into which a cell has hooked
#: its own: an audit hook, a key of ``globals()``. To flush to a slow disk takes less.
_STALL_OURS = 120
