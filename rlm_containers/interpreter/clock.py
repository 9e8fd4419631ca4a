"""How long a cell has run, the time left out in which it waited for the host."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Seconds by which two sums of the same times may differ.
_ROUNDING = 1e-6


class CellClock:
    """Counts the seconds of a cell that has a limit.

    It stands while a request of the guest is in flight: a call of a language model, or of a
    function of the host, whichever way it came and whoever answers it. It is kept by the host,
    which alone knows what it has answered.

    Nobody polls and no thread ticks: who waits for the cell asks :meth:`left` how long it may wait,
    and is woken if it has to be sooner.

    Args:
        longest_wait: seconds for which one request may stop the clock. What the host never answers
            must not stop it for ever.
        now: the time, in seconds.

    Attributes:
        wake: called, in any thread, when what :meth:`left` has said last is too long.
    """

    def __init__(self, longest_wait: float, now: Callable[[], float] = time.monotonic) -> None:
        self.longest_wait = longest_wait
        self.wake: Callable[[], None] = lambda: None
        self._now = now
        self._lock = threading.Lock()
        self._limit: float | None = None
        self._used = 0.0
        self._counted_to = 0.0
        # The requests in flight, and until when each of them stops the clock; the latest is last.
        self._in_flight: dict[int, float] = {}
        self._numbers = itertools.count()
        self._promised = 0.0

    def reset(self) -> None:
        """Another cell is about to be sent. What earlier ones have asked does not concern it."""
        with self._lock:
            self._limit = None
            self._in_flight.clear()

    def start(self, limit: float) -> None:
        """The cell begins; it may use ``limit`` seconds."""
        with self._lock:
            self._limit = limit
            self._used = 0.0
            self._counted_to = self._now()

    def left(self) -> float | None:
        """Seconds to wait until the limit can have been reached; 0 if it is, ``None`` without one.

        While the clock stands these are the seconds until it goes on at the latest, and the rest.
        """
        with self._lock:
            if self._limit is None:
                return None
            deadline = self._deadline()
            self._promised = deadline
            return max(0.0, deadline - self._counted_to)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The guest waits for the host's answer meanwhile. May be entered by many threads."""
        with self._lock:
            if self._limit is not None:
                self._deadline()
            number = next(self._numbers)
            self._in_flight[number] = self._now() + self.longest_wait
        try:
            yield
        finally:
            with self._lock:
                sooner = False
                if self._limit is not None:
                    self._deadline()
                    self._in_flight.pop(number, None)
                    sooner = self._deadline() < self._promised - _ROUNDING
                else:
                    self._in_flight.pop(number, None)
            if sooner:
                self.wake()

    def _deadline(self) -> float:
        """Count the time up to now, and say when the limit is reached if nothing changes."""
        assert self._limit is not None
        now = self._now()
        goes_on = max(self._counted_to, next(reversed(self._in_flight.values()), 0.0))
        self._used += max(0.0, now - goes_on)
        self._counted_to = now
        return max(now, goes_on) + self._limit - self._used
