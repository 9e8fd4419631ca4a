"""How much of a container's requests this process holds in memory at the same time."""

from __future__ import annotations

import threading


class Gate:
    """A number of bytes that many threads share.

    Args:
        size: how many there are. More than any single request needs.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._left = size
        self._closed = False
        self._changed = threading.Condition()

    def take(self, count: int) -> bool:
        """Take bytes if there are so many."""
        with self._changed:
            if count > self._left:
                return False
            self._left -= count
            return True

    def wait_and_take(self, count: int) -> bool:
        """Take bytes as soon as there are so many; ``False`` after :meth:`close`."""
        with self._changed:
            self._changed.wait_for(lambda: count <= self._left or self._closed)
            if self._closed:
                return False
            self._left -= count
            return True

    def give_back(self, count: int) -> None:
        """Give back bytes that were taken."""
        with self._changed:
            self._left += count
            self._changed.notify_all()

    def close(self) -> None:
        """Let nobody wait any longer."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
