"""How long a cell has run, without the time that it waited for the host."""

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

    The clock stands while a request of the guest is under way: a call of a language model or of a
    function of the host. It is kept by the host, because only the host knows what it has answered.

    Nothing polls and no thread ticks. The thread that waits for the cell asks :meth:`left` how
    long it may wait, and is woken if that turns out to be too long.

    Args:
        longest_wait: seconds for which one request may stop the clock, so that a request that is
            never answered does not stop it for ever.
        now: returns the time in seconds.

    Attributes:
        wake: called in any thread when the last answer of :meth:`left` has become too long.
    """

    def __init__(self, longest_wait: float, now: Callable[[], float] = time.monotonic) -> None:
        self.longest_wait = longest_wait
        self.wake: Callable[[], None] = lambda: None
        self._now = now
        self._lock = threading.Lock()
        self._limit: float | None = None
        self._used = 0.0
        self._counted_to = 0.0
        # Maps each request under way to the time until which it stops the clock, in rising order.
        self._under_way: dict[int, float] = {}
        self._numbers = itertools.count()
        self._promised = 0.0

    def reset(self) -> None:
        """Forget the last cell and its requests: another cell is about to be sent."""
        with self._lock:
            self._limit = None
            self._under_way.clear()

    def start(self, limit: float) -> None:
        """Begin to count the time of a cell that may use ``limit`` seconds."""
        with self._lock:
            self._limit = limit
            self._used = 0.0
            self._counted_to = self._now()

    def left(self) -> float | None:
        """Return the seconds after which the limit may be reached; ``None`` without a limit.

        While the clock stands, that is when it goes on at the latest, plus the rest of the limit.
        """
        with self._lock:
            if self._limit is None:
                return None
            deadline = self._deadline(self._limit)
            self._promised = deadline
            return max(0.0, deadline - self._counted_to)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Stop the clock while the guest waits for the host's answer. Many threads may enter."""
        with self._lock:
            if self._limit is not None:
                self._deadline(self._limit)
            number = next(self._numbers)
            self._under_way[number] = self._now() + self.longest_wait
        try:
            yield
        finally:
            with self._lock:
                sooner = False
                if self._limit is not None:
                    self._deadline(self._limit)
                    self._under_way.pop(number, None)
                    sooner = self._deadline(self._limit) < self._promised - _ROUNDING
                else:
                    self._under_way.pop(number, None)
            if sooner:
                self.wake()

    def _deadline(self, limit: float) -> float:
        """Count the time up to now. Return when the limit is reached if nothing changes."""
        now = self._now()
        goes_on = max(self._counted_to, next(reversed(self._under_way.values()), 0.0))
        self._used += max(0.0, now - goes_on)
        self._counted_to = now
        return max(now, goes_on) + limit - self._used
