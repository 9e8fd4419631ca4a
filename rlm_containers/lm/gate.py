"""How many requests of a container are answered at once, and how much memory they may take."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rlm_containers.interpreter import UntrustedJSON

#: Bytes of requests that are read or answered, parsed ones as they are in memory. The largest
#: request that fits into a frame fits in here too.
_SIZE = 512 * 1024 * 1024

#: Requests that are answered at once. Each costs a thread.
_TURNS = 64


class GateFullError(Exception):
    """There is no memory left for a request."""


class GateClosedError(Exception):
    """The sandbox closes: nothing more is answered."""


class Gate:
    """Bounds what the requests of one container cost this process.

    Args:
        size: bytes of requests held at the same time; more than any single request needs.
        turns: requests answered at the same time.
    """

    def __init__(self, size: int = _SIZE, turns: int = _TURNS) -> None:
        self._free = size
        self._turns = turns
        self._closed = False
        self._changed = threading.Condition()

    def reserve(self, count: int) -> None:
        """Reserve memory for ``count`` bytes.

        Raises:
            GateFullError: fewer are left.
        """
        with self._changed:
            if count > self._free:
                raise GateFullError
            self._free -= count

    def wait_and_reserve(self, count: int) -> None:
        """Reserve memory for ``count`` bytes as soon as they are left.

        Raises:
            GateClosedError: the gate was closed first.
        """
        with self._changed:
            self._changed.wait_for(lambda: count <= self._free or self._closed)
            if self._closed:
                raise GateClosedError
            self._free -= count

    def release(self, count: int) -> None:
        """Give back reserved memory."""
        with self._changed:
            self._free += count
            self._changed.notify_all()

    @contextmanager
    def parsed(self, payload: bytes) -> Iterator[object]:
        """Parse a request, and hold the memory of its value for the length of the ``with`` block.

        Args:
            payload: unchecked JSON, for whose own bytes memory is reserved already.

        Raises:
            ValueError: it is no JSON, or too much of it.
            GateFullError: there is no memory left for its value.
        """
        text = UntrustedJSON(payload)
        self.reserve(text.size)
        try:
            yield text.load()
        finally:
            self.release(text.size)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn, and hold it for the length of the ``with`` block.

        Raises:
            GateClosedError: the gate was closed first.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._turns or self._closed)
            if self._closed:
                raise GateClosedError
            self._turns -= 1
        try:
            yield
        finally:
            with self._changed:
                self._turns += 1
                self._changed.notify_all()

    def close(self) -> None:
        """Turn away everyone who waits, and who comes later."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
