"""How many requests of a container are answered at once, and how much memory they may take."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar

from rlm_containers.errors import format_size
from rlm_containers.interpreter import UntrustedJSON
from rlm_containers.lm.largethread import LargeThread

_T = TypeVar("_T")

_MIB = 1024 * 1024

#: Bytes that large requests may take, from before they are read until they are answered: their
#: texts, their values, and the copies that a backend makes. A text of 64 MiB fits in here, and one
#: with emojis up to 40.
_LARGE = 320 * _MIB

#: Bytes besides, for small requests only, so that they need not wait for large ones.
_SMALL = 32 * _MIB

#: The bytes that a small request takes at most. A text of 128 KiB takes no more.
_SMALL_REQUEST = _MIB + 4096

#: Bytes of large requests that may be given back before the allocator is told to return what is
#: free. It would keep some for each of its arenas, and so for each few threads: a gigabyte in all.
_TRIM = 64 * _MIB

#: Requests that are answered at once. Each costs a thread.
_TURNS = 64

_TOO_MUCH = "too much is being asked at once; ask less, or wait for answers"


class GateFullError(Exception):
    """There is no memory left for a request now. ``str()`` says so to a cell."""

    def __init__(self, text: str = _TOO_MUCH) -> None:
        super().__init__(text)


class RequestTooLargeError(GateFullError):
    """There is not enough memory for a request, whatever else is going on."""


class GateClosedError(Exception):
    """The sandbox closes: nothing more is answered."""


class Room:
    """The memory of one request. Use it as a context manager, or call :meth:`release`."""

    def __init__(self, pool: _Pool, count: int) -> None:
        self._pool = pool
        self._count = count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def resize(self, count: int) -> None:
        """Change it to so many bytes, now that more is known.

        Raises:
            GateFullError: fewer are left. It has not changed.
            RequestTooLargeError: there are fewer in all. It has not changed.
        """
        self._pool.take(count - self._count, count)
        self._count = count

    def load(self, text: UntrustedJSON) -> Any:
        """Parse the text of the request.

        Raises:
            ValueError: it is not JSON, or too much of it.
            GateFullError: there is no memory left for its value.
            RequestTooLargeError: there is not enough memory for its value.
        """
        self.resize(text.cost)
        value = self._pool.run(text.load)
        self._pool.trim(self._count)  # the text is not needed any more
        return value

    def buffer(self, length: int) -> bytearray:
        """Return a buffer for the text of the request."""
        return self._pool.run(bytearray, length)

    def release(self) -> None:
        """Give it back. What it was for must be freed already."""
        self._pool.trim(self._count)
        self.resize(0)


class _Pool:
    """Bytes for requests of one kind.

    Args:
        size: how many.
        changed: notified when some come back.
        thread: where large texts are allocated and parsed; ``None`` for small ones.
    """

    def __init__(
        self, size: int, changed: threading.Condition, thread: LargeThread | None = None
    ) -> None:
        self.size = size
        self.free = size
        self._changed = changed
        self._thread = thread
        self._untrimmed = 0

    def take(self, count: int, total: int) -> None:
        """Take bytes; give them back if the number is negative.

        Args:
            count: how many.
            total: how many the request has then.

        Raises:
            GateFullError, RequestTooLargeError: there are fewer.
        """
        with self._changed:
            if count > self.free:
                raise self.refusal(total)
            self.free -= count
            if count < 0:
                self._changed.notify_all()

    def refusal(self, total: int) -> GateFullError:
        """Return the error for a request that would have so many bytes."""
        if total <= self.size:
            return GateFullError()
        return RequestTooLargeError(
            f"the request is too large: it takes {format_size(total)} of the host's memory, and "
            f"may take {format_size(self.size)}; send less text"
        )

    def run(self, function: Callable[..., _T], *args: Any) -> _T:
        """Call a function that allocates much."""
        return function(*args) if self._thread is None else self._thread.run(function, *args)

    def trim(self, count: int) -> None:
        """Return freed memory to the system, if by now there is much of it."""
        if self._thread is None:
            return
        with self._changed:
            self._untrimmed += count
            if self._untrimmed < _TRIM:
                return
            self._untrimmed = 0
        _return_free_memory()


def _return_free_memory() -> None:
    import ctypes  # noqa: PLC0415  # slow to import, and needed only after large requests

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's only
    if trim is not None:
        trim(0)


class Gate:
    """Bounds what the requests of one container cost this process.

    Args:
        large: bytes of requests held at the same time; more than most single requests need.
        small: bytes besides, for small requests only.
        turns: requests answered at the same time.
    """

    def __init__(self, large: int = _LARGE, small: int = _SMALL, turns: int = _TURNS) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._thread = LargeThread()
        self._large = _Pool(large, self._changed, self._thread)
        self._small = _Pool(small, self._changed)
        self._turns = turns
        self._closed = False

    def enter(self, count: int) -> Room:
        """Take memory for a request.

        Args:
            count: bytes.

        Raises:
            GateFullError: fewer are left.
            RequestTooLargeError: there are fewer in all.
        """
        with self._changed:
            room = self._take(count)
        if room is not None:
            return room
        raise self._large.refusal(count)

    def wait(self, count: int) -> Room:
        """Take memory for a request as soon as it is left.

        Args:
            count: bytes. No more than there are in all are taken; :meth:`Room.resize` finds out
                whether they are enough.

        Raises:
            GateClosedError: the gate was closed first.
        """
        count = min(count, self._large.size)
        with self._changed:
            while not self._closed:
                if (room := self._take(count)) is not None:
                    return room
                self._changed.wait()
        raise GateClosedError

    def _take(self, count: int) -> Room | None:
        """Take memory if it is left."""
        for pool in (self._small, self._large):
            if count <= pool.free and (pool is self._large or count <= _SMALL_REQUEST):
                pool.free -= count
                return Room(pool, count)
        return None

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
        self._thread.close()
