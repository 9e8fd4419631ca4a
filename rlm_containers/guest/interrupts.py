"""When SIGINT may interrupt: while code of the cell's own runs, and at no other time."""

from __future__ import annotations

import mmap
import signal
import time
import types

# Without the wrappers that turn every number into an enum, and that a cell may replace: this is
# called after every cell.
from _signal import pthread_sigmask as _set_mask  # type: ignore[import-not-found]
from _signal import signal as _set_handler

#: Seconds for which an interrupt of a request does not disturb the checkpoint before it.
_PATIENCE = 0.5

_SIGINT = int(signal.SIGINT)
_SIG_UNBLOCK = int(signal.SIG_UNBLOCK)


class Interrupts:
    """Whether the signal handler may raise KeyboardInterrupt right now.

    Code of the cell's own runs in the cell, but also in the ``__repr__`` and ``__reduce__`` of what
    it has left behind. Those who call it allow interrupts and expect them. Used as a context
    manager, inside of a ``try`` that catches KeyboardInterrupt.

    Args:
        progress: the memory that the supervisor writes to as well, see
            :class:`rlm_guest.supervisor.Supervisor`; ``None`` if there is none.

    Attributes:
        allowed: whether interrupts are allowed.
        received: how many the host has sent for the step that runs, allowed or not.
    """

    def __init__(self, progress: mmap.mmap | None = None) -> None:
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
        """Something else runs from here on; ``step`` is its number, see :mod:`rlm_guest.wire`."""
        self._step = step
        self._waiting_since = None
        self.received = 0

    def reaches(self, step: int) -> bool:
        """Whether the host's last interrupt was meant for this step too."""
        return self._progress is not None and self._asked() >= step > 0

    def check(self) -> None:
        """Raise the KeyboardInterrupt that came after the step had begun and before this."""
        if self.received:
            raise KeyboardInterrupt

    def install(self) -> None:
        """Take SIGINT, whatever a cell has done to it."""
        _set_handler(_SIGINT, self._handle)
        _set_mask(_SIG_UNBLOCK, (_SIGINT,))

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        sent = self._sent()
        if sent != self._seen:
            self._seen = sent
            asked = self._asked()
            if asked < self._step:
                return  # it was meant for what has ended meanwhile
            if asked > self._step and not self._is_urgent():
                return
            self.received += 1
        elif self._step % 2:
            return  # the cell's own signal.raise_signal(), too late; or the host's, seen already
        # In here an exception would leave interrupts allowed after those who expect them. This
        # handler may itself be interrupted, in the middle of __exit__().
        if self.allowed and not (frame is not None and frame.f_code.co_filename == _HERE):
            raise KeyboardInterrupt

    def _is_urgent(self) -> bool:
        """Whether what runs must end because it is in the way of what is to be interrupted.

        A checkpoint is, nearly always for some milliseconds only, and is worth waiting for.
        """
        now = time.monotonic()
        if self._waiting_since is None:
            self._waiting_since = now
        return now > self._waiting_since + _PATIENCE

    def _asked(self) -> int:
        return int.from_bytes(self._progress[16:24], "big") if self._progress else 0

    def _sent(self) -> int:
        return int.from_bytes(self._progress[24:32], "big") if self._progress else 0


_HERE = Interrupts.__exit__.__code__.co_filename
