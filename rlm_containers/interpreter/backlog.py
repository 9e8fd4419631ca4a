"""What one thread has for another, bounded by what it weighs and not by how much of it there is."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

_Item = TypeVar("_Item")


class Backlog(Generic[_Item]):
    """A queue of items with a weight, for one thread that puts and one that takes.

    Args:
        limit: the weight of all waiting items. A single one may be heavier.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: deque[tuple[_Item, int]] = deque()
        self._weight = 0
        self._woken = False
        self._abandoned = False
        self._lock = threading.Lock()
        self._filled = threading.Condition(self._lock)
        self._emptied = threading.Condition(self._lock)

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: _Item, weight: int) -> None:
        """Add an item, once there is room for it. Does nothing after :meth:`abandon`."""
        with self._lock:
            while self._items and self._weight + weight > self._limit and not self._abandoned:
                self._emptied.wait()
            if self._abandoned:
                return
            self._items.append((item, weight))
            self._weight += weight
            self._filled.notify()

    def take(self, timeout: float | None) -> _Item:
        """The next item.

        Args:
            timeout: seconds to wait for one; ``None`` for as long as it takes.

        Raises:
            TimeoutError: there was none in time, or :meth:`wake` was called.
        """
        with self._lock:
            # A wait for something that is there already costs a lock; most items are waited for.
            if not self._items:
                self._filled.wait_for(lambda: self._items or self._woken, timeout)
            self._woken = False
            if not self._items:
                raise TimeoutError
            item, weight = self._items.popleft()
            self._weight -= weight
            self._emptied.notify()
            return item

    def wake(self) -> None:
        """Let whoever waits in :meth:`take` come back without an item. In any thread."""
        with self._lock:
            self._woken = True
            self._filled.notify()

    def abandon(self) -> None:
        """Nobody takes anything any more."""
        with self._lock:
            self._abandoned = True
            self._emptied.notify()
