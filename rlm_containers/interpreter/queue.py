"""A queue that is bounded by the size of what waits in it."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar


class Woken(TimeoutError):  # noqa: N818
    """Nothing has come, but :meth:`BoundedQueue.wake` was called."""


_T = TypeVar("_T")


class BoundedQueue(Generic[_T]):
    """A queue between one thread that puts and one that gets, bounded by the size of its items.

    ``queue.Queue`` bounds the number of items only, and cannot be woken.

    Args:
        limit: the total size of the waiting items. A single item may be larger.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: deque[tuple[_T, int]] = deque()
        self._size = 0
        self._woken = False
        self._closed = False
        self._lock = threading.Lock()
        self._filled = threading.Condition(self._lock)
        self._emptied = threading.Condition(self._lock)

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: _T, size: int) -> None:
        """Add an item as soon as it fits. Drop it after :meth:`close`."""
        with self._lock:
            while self._items and self._size + size > self._limit and not self._closed:
                self._emptied.wait()
            if self._closed:
                return
            self._items.append((item, size))
            self._size += size
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
            self._emptied.notify()
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
        """Let no :meth:`put` wait any more: nobody will get its item."""
        with self._lock:
            self._closed = True
            self._emptied.notify()
