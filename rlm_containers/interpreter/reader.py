"""The one thread that reads what all containers of this process say.

Each descriptor has an iterator, which takes a turn whenever there is something to read. A turn is
short and waits for nothing, so that no container can hold up the others: who has more to do says
so, and goes on once all others have had their turn.
"""

from __future__ import annotations

import contextlib
import enum
import os
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator

from rlm_containers.errors import SandboxError
from rlm_containers.interpreter.threads import start_thread
from runtimes.forks import drop_in_children


class Next(enum.Enum):
    """When to go on with an iterator. One that is at its end reads no more."""

    READ = enum.auto()
    """When there is something to read."""
    MORE = enum.auto()
    """When all others have had their turn."""
    PAUSE = enum.auto()
    """After :meth:`Reader.resume`."""


Turns = Iterator[Next]


class Reader:
    """Reads many descriptors in one thread, which ends when nobody holds it any more.

    Made by :func:`hold_reader`, which says what it raises.
    """

    def __init__(self) -> None:
        with contextlib.ExitStack() as undo:
            try:
                self._selector = undo.enter_context(selectors.DefaultSelector())
                self._woken, self._waker = socket.socketpair()
            except OSError as error:
                raise SandboxError(
                    f"This process cannot read from another container: {error.strerror}.",
                    remedy="Close files or sandboxes, or raise the limit: `ulimit -n`.",
                ) from None
            for end in (self._woken, self._waker):
                undo.callback(end.close)
                end.setblocking(False)
            self._selector.register(self._woken, selectors.EVENT_READ)
            drop_in_children(self)
            self._process = os.getpid()
            # A signal handler may call while the code below it holds the lock.
            self._lock = threading.RLock()
            self._holders = 1
            self._ended = False
            self._calls: deque[Callable[[], None]] = deque()
            # Only its own thread uses these.
            self._turns: dict[int, Turns] = {}
            self._more: set[int] = set()
            self._undo = undo.pop_all()
        try:
            self._thread = start_thread(self._run, "rlm-reader")
        except SandboxError:
            self._undo.close()
            raise

    @property
    def is_alive(self) -> bool:
        """Whether it reads. If not, nobody will ever read what it was given."""
        return not self._ended and self._process == os.getpid()

    def is_this_thread(self) -> bool:
        """Whether the caller is in one of its turns."""
        return threading.current_thread() is self._thread

    def hold(self) -> bool:
        """Keep it from ending. Return whether it still reads."""
        with self._lock:
            self._holders += 1
            return self.is_alive

    def add(self, descriptor: int, turns: Turns) -> None:
        """Read a descriptor from now on, until its turns or :meth:`remove` end that."""
        self._call(lambda: self._add(descriptor, turns))

    def resume(self, descriptor: int) -> None:
        """Go on with a descriptor whose turns pause; with any other, do nothing."""
        self._call(lambda: self._resume(descriptor))

    # For turns only

    def remove(self, descriptor: int) -> None:
        """Read a descriptor no more, so that it can be closed."""
        if self._turns.pop(descriptor, None) is not None:
            self._more.discard(descriptor)
            if descriptor in self._selector.get_map():
                self._selector.unregister(descriptor)

    def release(self) -> None:
        """End the thread after this turn if nobody else holds it."""
        with self._lock:
            self._holders -= 1

    def drop(self) -> None:
        """In a forked child, close the descriptors. What they watch stays its parent's."""
        for held in (self._selector, self._woken, self._waker):
            held.close()

    def _call(self, function: Callable[[], None]) -> None:
        """Have its thread call something."""
        with self._lock:  # so that nothing is sent to a descriptor that was closed meanwhile
            if self.is_alive:
                self._calls.append(function)
                with contextlib.suppress(BlockingIOError):  # it is going to wake anyway
                    self._waker.send(b"x")

    # Its own thread

    def _run(self) -> None:
        try:
            while not self._is_over():
                ready = [key.fd for key, _ in self._selector.select(0 if self._more else None)]
                for descriptor in (*ready, *self._more.difference(ready)):
                    self._take_turn(descriptor)
                # Not in between: a number among the ready ones may be another descriptor's by now.
                while self._calls:
                    self._calls.popleft()()
        finally:
            # Whatever has ended this thread, those who wait for its turns look whether it lives.
            with self._lock:
                self._ended = True
                self._undo.close()

    def _is_over(self) -> bool:
        with self._lock:
            self._ended = not self._holders
            return self._ended

    def _take_turn(self, descriptor: int) -> None:
        if descriptor == self._woken.fileno():
            self._woken.recv(4096)
            return
        turns = self._turns.get(descriptor)
        if turns is None:
            return  # another's turn has removed it
        after = next(turns, None)
        self._more.discard(descriptor)
        if after is None:
            self.remove(descriptor)
        elif after is Next.MORE:
            self._more.add(descriptor)
        elif after is Next.PAUSE:
            self._selector.unregister(descriptor)

    def _add(self, descriptor: int, turns: Turns) -> None:
        self._turns[descriptor] = turns
        self._selector.register(descriptor, selectors.EVENT_READ)

    def _resume(self, descriptor: int) -> None:
        if descriptor in self._turns and descriptor not in self._selector.get_map():
            self._selector.register(descriptor, selectors.EVENT_READ)
            self._more.add(descriptor)  # it may have read more than it has handled


_shared: Reader | None = None


def is_reader_thread() -> bool:
    """Whether all containers wait for this thread. Only a ``__del__`` of a user's can ask here."""
    return _shared is not None and _shared.is_this_thread()


def hold_reader() -> Reader:
    """Return the reader of this process. Whoever calls this releases it.

    Raises:
        SandboxError: this process has no thread or no descriptor left.
    """
    global _shared
    reader = _shared
    if reader is None or not (reader.is_alive and reader.hold()):
        reader = _shared = Reader()  # two threads may make one each, which does no harm
    return reader
