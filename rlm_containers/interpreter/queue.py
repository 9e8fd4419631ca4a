"""A queue that is bounded by the size of what waits in it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar


class Woken(TimeoutError):  # noqa: N818
    """Nothing has come, but :meth:`BoundedQueue.wake` was called."""


_T = TypeVar("_T")


class BoundedQueue(Generic[_T]):
    """A queue between one thread that puts and one that gets, bounded by the size of its items.

    Nobody waits to put: who has filled it is told, and goes on once there is room.
    ``queue.Queue`` bounds the number of items only, and cannot be woken.

    Args:
        limit: the total size of the waiting items, or ``math.inf``. The last one may go past it.
        on_room: called when a full queue has room again, in the thread that makes it.

    Attributes:
        is_full: whether there is no room for more.
    """

    def __init__(self, limit: float, on_room: Callable[[], None] = lambda: None) -> None:
        self.is_full = False
        self._limit = limit
        self._on_room = on_room
        self._items: deque[tuple[_T, int]] = deque()
        self._size = 0
        self._woken = False
        self._closed = False
        self._lock = threading.Lock()
        self._filled = threading.Condition(self._lock)

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: _T, size: int) -> None:
        """Add an item. Drop it after :meth:`close`."""
        with self._lock:
            if self._closed:
                return
            self._items.append((item, size))
            self._size += size
            self.is_full = self._size >= self._limit
            self._filled.notify()

    def get(self, timeout: float | None) -> _T:
        """Remove and return the next item.

        Args:
            timeout: seconds to wait for one; ``None`` to wait without a limit.

        Raises:
            Woken: :meth:`wake` was called.
            TimeoutError: none came in time.
        """
        with self._lock:
            # wait_for() would allocate a lock even if there is an item, as there mostly is.
            if not self._items:
                self._filled.wait_for(lambda: self._items or self._woken, timeout)
            woken, self._woken = self._woken, False
            if not self._items:
                raise Woken if woken else TimeoutError
            item, size = self._items.popleft()
            self._size -= size
            # Not as soon as one fits: who puts would stop and go on with each item.
            has_room = self.is_full and self._size <= self._limit // 2
            self.is_full &= not has_room
        if has_room:
            self._on_room()
        return item

    def wake(self) -> None:
        """Make a waiting :meth:`get` return without an item. Any thread may call this.

        A signal handler may, too. So this does not wait for the lock, which the code below the
        handler may hold. That code may then begin to wait, and notices at its next timeout.
        """
        self._woken = True
        if self._lock.acquire(blocking=False):
            try:
                self._filled.notify()
            finally:
                self._lock.release()

    def close(self) -> None:
        """Let the queue never be full any more: nobody will get what is put."""
        with self._lock:
            self._closed = True
            was_full, self.is_full = self.is_full, False
        if was_full:
            self._on_room()
