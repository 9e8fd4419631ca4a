"""When SIGINT may interrupt: while code of a cell runs, and only what it is meant for."""

from __future__ import annotations

import signal
import time
import types

# These C functions instead of the wrappers in `signal`, which convert every number to an enum, and
# which a cell may replace. They are called after every cell.
from _signal import pthread_sigmask as _set_mask  # type: ignore[import-not-found]
from _signal import signal as _set_handler

# Supervisor and worker share five numbers in memory, which outlive the worker. Their indexes:
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

#: Seconds for which an interrupt of a request leaves the checkpoint before it alone.
_INTERRUPT_DELAY = 0.5

_SIGINT = int(signal.SIGINT)
_SIG_UNBLOCK = int(signal.SIG_UNBLOCK)


class Interrupts:
    """Decides whether the signal handler may raise KeyboardInterrupt.

    Code of the cell's own runs in the cell, but also in the ``__repr__`` and ``__reduce__`` of the
    objects that it has left. Whoever calls it allows interrupts by ``with interrupts:``, inside a
    ``try`` that catches KeyboardInterrupt.

    Args:
        progress: the numbers that are shared with the supervisor; ``None`` if there are none.

    Attributes:
        allowed: whether interrupts are allowed.
        received: how many the host has sent for the present step, allowed or not.
    """

    def __init__(self, progress: memoryview | None = None) -> None:
        self.allowed = False
        self.received = 0
        self._progress = progress
        self._step = 0
        self._waiting_since: float | None = None
        self._seen = self._sent()

    def __enter__(self) -> Interrupts:
        self.allowed = True
        return self

    def __exit__(self, *exc: object) -> None:
        self.allowed = False

    def begin(self, step: int) -> None:
        """Begin a step; ``step`` is its number, see :mod:`rlm_guest.wire`."""
        self._step = step
        self._waiting_since = None
        self.received = 0

    def reaches(self, step: int) -> bool:
        """Return whether the last interrupt was meant for this step too."""
        return self._progress is not None and self._reach() >= step > 0

    def check(self) -> None:
        """Raise KeyboardInterrupt if an interrupt came after the step began."""
        if self.received:
            raise KeyboardInterrupt

    def install(self) -> None:
        """Handle SIGINT, whatever a cell has done to the handler or the signal mask."""
        _set_handler(_SIGINT, self._handle)
        _set_mask(_SIG_UNBLOCK, (_SIGINT,))

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        sent = self._sent()
        if sent != self._seen:
            self._seen = sent
            reach = self._reach()
            if reach < self._step:
                return  # meant for an earlier step
            if reach > self._step and not self._delay_is_over():
                return
            self.received += 1
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
        now = time.monotonic()
        if self._waiting_since is None:
            self._waiting_since = now
        return now > self._waiting_since + _INTERRUPT_DELAY

    def _reach(self) -> int:
        return self._progress[STEP] if self._progress else 0

    def _sent(self) -> int:
        return self._progress[INTERRUPTS] if self._progress else 0


_HERE = Interrupts.__exit__.__code__.co_filename
