"""Who may use a sandbox now: one call at a time, none inside of another, and closing always.

Commands are an exception: they run beside that one call, and beside each other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rlm_containers.errors import SandboxBusyError
from rlm_containers.interpreter import is_reader_thread


class _Service:
    """One call of a host function that a cell waits for.

    Attributes:
        turn: the turn of the sandbox whose cell it is.
        ended: whether the function has returned.
    """

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self.ended = False


#: The cells that wait for the code that runs in this context.
_SERVICES: ContextVar[tuple[_Service, ...]] = ContextVar("_SERVICES", default=())


class _Beside(threading.local):
    """A lock of each thread, held while a call of that thread runs beside others."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


class Turn:
    """Lets one call at a time use a sandbox. Calls of several threads wait for each other.

    A call inside of another one would wait for itself, so it is refused. It can come from a
    signal handler, from ``on_output`` or ``__del__``, which run in the thread of the call; or from
    a tool or a model's callable, for which the call waits.

    All state is in locks that the ``with`` statement itself releases, so that an exception of
    a signal handler cannot leave it wrong, wherever it strikes.

    Args:
        name: returns the sandbox's name, for errors.
        check: raises an error if nobody in this process may use the sandbox.
        hang_up: makes the call under way end soon. Must not wait.
        close: removes what the sandbox uses. May be called again.

    Attributes:
        lent: whether branches of the sandbox go on in its place.
    """

    def __init__(
        self,
        name: Callable[[], str],
        check: Callable[[], None],
        hang_up: Callable[[], None],
        close: Callable[[], None],
    ) -> None:
        self.lent = False
        self._name = name
        self._check = check
        self._hang_up = hang_up
        self._close = close
        self._lock = threading.RLock()  # held by the thread whose turn it is
        self._call = threading.Lock()  # held during a call of that thread
        self._beside = _Beside()
        self._outer: tuple[_Service, ...] = ()
        self._close_wanted = False

    @contextmanager
    def call(self, *, of_branch: bool = False) -> Iterator[None]:
        """Wait for the turn, and make one call.

        Args:
            of_branch: whether it may be made while the sandbox has branches.

        Raises:
            SandboxBusyError: another call of the sandbox waits for this one, or it has branches.
        """
        with self.calls(), self._call:
            if self.lent and not of_branch:
                raise SandboxBusyError(
                    "The sandbox has open branches, which go on in its place.",
                    remedy="Keep one of them, or close them: leave the block of `with "
                    "box.branch(…)`. Commands and files can be used meanwhile.",
                    container=self._name(),
                )
            self._outer = _SERVICES.get()
            yield

    @contextmanager
    def calls(self) -> Iterator[None]:
        """Wait for the turn, and make several calls, between which no other thread gets it.

        Raises:
            SandboxBusyError: another call of the sandbox waits for this one.
        """
        self._check()  # before the lock, which a thread may have held when this process was forked
        if any(service.turn is self and not service.ended for service in _SERVICES.get()):
            raise self._busy()
        if self._beside.lock.locked() or is_reader_thread():
            raise self._busy()
        with self._lock:
            if self._call.locked():
                raise self._busy()
            try:
                yield
            finally:
                if self._close_wanted:
                    self._close()

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Make a call that runs beside those of other threads, without waiting for them.

        A function of the host that a cell waits for may make one. A signal handler, ``on_output``
        or ``__del__`` may not: the call below it may hold what this one needs.

        Raises:
            SandboxBusyError: it is made inside of another call of this thread.
        """
        self._check()
        if self._is_inside() or is_reader_thread():
            raise self._busy()
        try:
            with self._beside.lock:
                yield
        finally:
            if self._close_wanted:
                self.close()

    def _is_inside(self) -> bool:
        """Whether this thread is in the middle of a call."""
        if self._beside.lock.locked():
            return True
        if not self._lock.acquire(blocking=False):
            return False  # it is the turn of another thread
        try:
            return self._call.locked()
        finally:
            self._lock.release()

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Note that what runs in this block is a function of the host that a cell waits for."""
        service = _Service(self)
        token = _SERVICES.set((*self._outer, service))
        try:
            yield
        finally:
            service.ended = True
            _SERVICES.reset(token)

    def close(self) -> None:
        """Close the sandbox.

        Inside of a call of this very thread, return at once: the call ends, and closes the sandbox
        before it returns. Its frames may be anywhere, even in the middle of a start.
        """
        self._close_wanted = True
        if self._beside.lock.locked():
            self._hang_up()
            return
        if not self._lock.acquire(blocking=False):
            self._hang_up()
            self._lock.acquire()
        try:
            if self._call.locked():
                self._hang_up()
            else:
                self._close()
        finally:
            self._lock.release()

    def _busy(self) -> SandboxBusyError:
        return SandboxBusyError(
            "This call was made inside of another call of the same sandbox, which waits for it, or "
            "by a __del__ in the thread that reads what sandboxes say.",
            remedy="Make it once the other has returned. A signal handler, on_output, a tool or lm "
            "may call close(), interrupt() and the methods for files; a tool or lm command(), too.",
            container=self._name(),
        )
