"""How long all commands of one operation may take together.

A start calls the engine several times, and each call may find it stuck. If each had a limit of its
own, the start could take a multiple of what its caller allowed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from runtimes.errors import EngineTimeoutError

# The limit of the operation that this thread is in.
_current: ContextVar[TimeLimit | None] = ContextVar("runtimes_time_limit", default=None)

#: Seconds that are as good as no limit. Locks and timers do not take infinity.
_LONGEST = 1e6


class Lock(Protocol):
    """A lock of ``threading``."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
    def release(self) -> None: ...


class TimeLimit:
    """The time of one operation. It begins to run at once.

    Args:
        seconds: how much there is.
        what: the operation, for errors, such as ``"the start"``.
        option: the option that sets it; empty if there is none.
        container: the container's name, for errors.
    """

    def __init__(
        self, seconds: float, what: str, *, option: str = "", container: str | None = None
    ) -> None:
        self.seconds = seconds
        self.what = what
        self.option = option
        self.container = container
        self._end = time.monotonic() + min(seconds, _LONGEST)
        self._paused_at: float | None = None

    @staticmethod
    def current() -> TimeLimit | None:
        """Return the limit that is applied here, if there is one."""
        return _current.get()

    def left(self) -> float:
        """Return the seconds that are left; 0 if none are."""
        now = time.monotonic() if self._paused_at is None else self._paused_at
        return max(0.0, self._end - now)

    @contextmanager
    def applied(self) -> Iterator[TimeLimit]:
        """Let it hold for each command in the ``with`` block that has no timeout of its own.

        It replaces a limit that holds around the block.
        """
        token = _current.set(self)
        try:
            yield self
        finally:
            _current.reset(token)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the time for the length of the ``with`` block.

        Each command in it still has no more than what is left.
        """
        self._paused_at = time.monotonic()
        try:
            yield
        finally:
            self._end += time.monotonic() - self._paused_at
            self._paused_at = None

    @contextmanager
    def holding(self, lock: Lock) -> Iterator[None]:
        """Hold a lock that somebody else may hold while the engine is stuck.

        Raises:
            EngineTimeoutError: nobody gave it back in time.
        """
        if not lock.acquire(timeout=self.left()):
            raise EngineTimeoutError(
                f"The engine was not free in time: {self.what} had {self.seconds:g} s in all, and "
                "another thread still waits for the engine.",
                remedy=f"See whether the engine is stuck.{self.advice()}",
                container=self.container,
            )
        try:
            yield
        finally:
            lock.release()

    def advice(self) -> str:
        """Return how to get more time, to be added to a remedy; empty if there is no way."""
        return f" If it is only slow, raise {self.option}." if self.option else ""


@contextmanager
def within_limit(lock: Lock) -> Iterator[None]:
    """Hold a lock, within the time of the operation here; see :meth:`TimeLimit.holding`."""
    limit = TimeLimit.current() or TimeLimit(_LONGEST, "it")
    with limit.holding(lock):
        yield
