"""Blocking calls for programs with an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from rlm_containers.interpreter import StreamName, start_thread
from rlm_containers.lm import AsyncFunctions
from rlm_containers.sandbox.turn import Turn

_P = ParamSpec("_P")
_S = TypeVar("_S")
_T = TypeVar("_T")
_D = TypeVar("_D", str, bytes)


def _nothing() -> None:
    pass


class _Result(Generic[_T]):
    """What a call in another thread returned, until somebody takes it or nobody will.

    Args:
        discard: called with a result that nobody takes.
    """

    def __init__(self, discard: Callable[[_T], None] | None) -> None:
        self._discard = discard
        self._lock = threading.Lock()
        self._value: _T | None = None
        self._is_there = self._abandoned = False

    def put(self, value: _T) -> None:
        """Hand a result over. If nobody waits any more, discard it, in this thread."""
        with self._lock:
            self._value, self._is_there = value, not self._abandoned
            abandoned = self._abandoned
        if abandoned and self._discard is not None:
            self._discard(value)

    def abandon(self) -> Callable[[], None]:
        """Take note that nobody waits any more. Return what discards the result if it is there."""
        with self._lock:
            self._abandoned = True
            if not self._is_there or self._discard is None:
                return _nothing
            self._is_there = False
            return functools.partial(self._discard, self._value)  # type: ignore[arg-type]


async def call_in_thread(
    call: Callable[[], _T],
    stop: Callable[[], None] = _nothing,
    discard: Callable[[_T], None] | None = None,
) -> _T:
    """Make a blocking call in a thread of its own.

    The loop's executor would not do: it has a handful of threads, and each sandbox may need one.

    Args:
        call: what to call, with a copy of the caller's context variables.
        stop: called in another thread if the caller is cancelled. Must make ``call`` return soon:
            it is waited for, so that nothing goes on in the background.
        discard: called in another thread with the result that came too late for a caller that was
            cancelled, or whose loop has ended.

    Raises:
        SandboxError: this process can start no more threads.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()
    handed = _Result(discard)

    def settle(result: _T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result: _T | None = None
        error: BaseException | None = None
        try:
            result = call()
            handed.put(result)
        except BaseException as caught:
            # A future does not take StopIteration.
            error = RuntimeError(str(caught)) if isinstance(caught, StopIteration) else caught
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:  # the loop has been closed: nobody waits
            handed.abandon()()

    context = contextvars.copy_context()
    start_thread(context.run, "rlm-await", work)
    taken = False
    try:
        result = await asyncio.shield(future)
        taken = True
        return result
    except asyncio.CancelledError:
        discard_now = handed.abandon()
        waits = [asyncio.ensure_future(call_in_thread(stop))] if stop is not _nothing else []
        if discard_now is not _nothing:
            waits.append(asyncio.ensure_future(call_in_thread(discard_now)))
        everything: tuple[asyncio.Future[Any], ...] = (future, *waits)
        while not all(wait.done() for wait in everything):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(everything)
        for wait in everything:
            if not wait.cancelled():
                wait.exception()  # asked for, it is not logged by asyncio
        raise
    finally:
        # Also where the coroutine is closed with its loop. What is there is then discarded in the
        # background: nothing can be awaited any more.
        if not taken and (late := handed.abandon()) is not _nothing:
            start_thread(late, "rlm-discard")


def in_thread(
    method: Callable[Concatenate[_S, _P], _T],
) -> Callable[Concatenate[_S, _P], Coroutine[Any, Any, _T]]:
    """Return the async twin of a blocking method, which calls it in a thread of its own."""
    name = method.__name__

    @functools.wraps(method)
    async def twin(self: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        # Look the method up, since a subclass may have overridden it.
        return await call_in_thread(lambda: getattr(self, name)(*args, **kwargs))

    twin.__name__ = f"a{name}"
    twin.__qualname__ = method.__qualname__.removesuffix(name) + twin.__name__
    return twin


class AwaitedCall:
    """One call that somebody awaits, with an ``on_output`` that is called in the loop's thread.

    Args:
        stop: makes the call end soon. Must not wait.
    """

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._loop = asyncio.get_running_loop()
        self._failure: BaseException | None = None

    async def run(self, call: Callable[[], _T]) -> _T:
        """Await the call. If the caller is cancelled, stop it and wait for its end.

        Args:
            call: makes the call, in the thread that calls it.
        """
        result = await call_in_thread(call, self._stop)
        if self._failure is not None:
            raise self._failure
        return result

    def in_loop(
        self, on_output: Callable[[StreamName, _D], None] | None
    ) -> Callable[[StreamName, _D], None] | None:
        """Return a callback for the call's thread that calls ``on_output`` in the loop's thread.

        If ``on_output`` fails, the call is stopped, and :meth:`run` raises the exception.
        """
        if on_output is None:
            return None

        def call(stream: StreamName, data: _D) -> None:
            if self._failure is None:
                try:
                    on_output(stream, data)
                except BaseException as error:
                    self._failure = error
                    self._stop()

        def pass_on(stream: StreamName, data: _D) -> None:
            self._loop.call_soon_threadsafe(call, stream, data)

        return pass_on


class AwaitedCell(AwaitedCall):
    """One cell that somebody awaits.

    Args:
        turn: whose turn it is to use the sandbox.
        async_functions: runs the async functions that the cell calls, on the caller's loop.
        interrupt: interrupts the cell that runs.
    """

    def __init__(
        self,
        turn: Turn,
        async_functions: AsyncFunctions,
        interrupt: Callable[[], None],
    ) -> None:
        super().__init__(self._interrupt_own)
        self._turn = turn
        self._async_functions = async_functions
        self._interrupt = interrupt
        self._stopped = self._running = False
        self._lock = threading.Lock()

    async def run(self, call: Callable[[], _T]) -> _T:
        """Await the cell. If the caller is cancelled, interrupt it and wait for its end.

        Args:
            call: runs the cell, in the thread that calls it.
        """
        return await super().run(lambda: self._take_turn(call))

    def _take_turn(self, execute: Callable[[], _T]) -> _T:
        with self._turn.calls(), self._async_functions.on(self._loop):
            with self._lock:
                if self._stopped:  # while it waited for its turn
                    raise asyncio.CancelledError
                self._running = True
            try:
                return execute()
            finally:
                with self._lock:
                    self._running = False

    def _interrupt_own(self) -> None:
        """Interrupt the cell, but not one that runs before it."""
        with self._lock:
            self._stopped = True
            if self._running:
                self._interrupt()
