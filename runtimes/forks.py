"""What a forked child of this process must not keep: the other ends of what this process holds.

A container lives as long as its standard input is open, and a session is locked as long as the lock
file is. A child inherits both. So all that would matter is dropped in each child that Python forks,
see https://docs.python.org/3/library/os.html#os.register_at_fork. Programs that are executed
inherit nothing, since all descriptors are closed on exec.

Nothing here waits: a fork that waits for a lock can wait for ever, since other libraries take locks
of their own before it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator
from typing import Protocol


class ModuleLock:
    """A lock of a module. A child gets a new one: a thread that held the old one is lost there."""

    def __init__(self) -> None:
        self.renew()
        _module_locks.append(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exc: object) -> None:
        self._lock.release()

    def renew(self) -> None:
        """Replace the lock."""
        self._lock = threading.Lock()


class Droppable(Protocol):
    """Something with descriptors."""

    def drop(self) -> None:
        """Close the descriptors, in a child. Other threads, which may hold any lock, are gone."""


_held: weakref.WeakSet[Droppable] = weakref.WeakSet()
_in_flight: set[InFlight] = set()
_module_locks: list[ModuleLock] = []


def drop_in_children(held: Droppable) -> None:
    """Let every child that is forked from now on drop this."""
    _held.add(held)


class InFlight:
    """What a program that is being started gets. Other threads' children drop it.

    Use it as a context manager around the start.
    """

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._descriptors: set[int] = set()

    def __enter__(self) -> InFlight:
        _in_flight.add(self)
        return self

    def __exit__(self, *exc: object) -> None:
        _in_flight.discard(self)

    def pipe(self) -> tuple[int, int]:
        """Make a pipe, as ``os.pipe()`` does."""
        ends = os.pipe()
        self._descriptors.update(ends)
        return ends

    def dup(self, descriptor: int) -> int:
        """Make a copy, which can be inherited."""
        copy = os.dup(descriptor)
        self._descriptors.add(copy)
        os.set_inheritable(copy, True)
        return copy

    @contextlib.contextmanager
    def theirs(self, *descriptors: int) -> Iterator[None]:
        """Say that these are closed after the ``with`` block."""
        try:
            yield
        finally:
            self._descriptors.difference_update(descriptors)

    def drop(self) -> None:
        """Close them, in a child of another thread. That of this thread is the program itself."""
        if self._thread != threading.get_ident():
            for descriptor in self._descriptors:
                with contextlib.suppress(OSError):
                    os.close(descriptor)


def _after_in_child() -> None:
    for held in (*_held, *_in_flight):
        with contextlib.suppress(OSError):
            held.drop()
    _held.clear()
    for lock in _module_locks:
        lock.renew()


os.register_at_fork(after_in_child=_after_in_child)
