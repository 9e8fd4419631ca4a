"""Blocking calls for programs with an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

from rlm_containers.interpreter import OutputCallback, StreamName
from rlm_containers.lm import AsyncFunctions

_P = ParamSpec("_P")
_S = TypeVar("_S")
_T = TypeVar("_T")


def _nothing() -> None:
    pass


async def call_in_thread(
    call: Callable[[], _T],
    stop: Callable[[], None] = _nothing,
    discard: Callable[[_T], None] | None = None,
) -> _T:
    """Make a blocking call in a thread of its own.

    The loop's executor would not do: it has a handful of threads, and each sandbox may need one.

    Args:
        call: what to call, with a copy of the caller's context variables.
        stop: called if the caller is cancelled. Must make ``call`` return soon: it is waited for,
            so that nothing goes on in the background.
        discard: called with the result that came too late for a cancelled caller.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

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
        except BaseException as caught:
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits
            loop.call_soon_threadsafe(settle, result, error)

    context = contextvars.copy_context()
    # A daemon: this process must not wait at its end for a cell that nobody awaits any more.
    threading.Thread(target=context.run, args=(work,), name="rlm-await", daemon=True).start()
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        stop()
        while not future.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait((future,))
        # Asking for the exception also keeps asyncio from logging it.
        if future.exception() is None and discard is not None:
            await call_in_thread(functools.partial(discard, future.result()))
        raise


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


class AwaitedCell:
    """One cell that somebody awaits.

    Args:
        turn: the lock that is held while a cell runs.
        async_functions: runs the async functions that the cell calls, on the caller's loop.
        interrupt: interrupts the cell that runs.
    """

    def __init__(
        self,
        turn: threading.RLock,
        async_functions: AsyncFunctions,
        interrupt: Callable[[], None],
    ) -> None:
        self._turn = turn
        self._async_functions = async_functions
        self._interrupt = interrupt
        self._loop = asyncio.get_running_loop()
        self._failure: BaseException | None = None
        self._stopped = self._running = False
        self._lock = threading.Lock()

    async def run(self, execute: Callable[[], _T]) -> _T:
        """Await the cell. If the caller is cancelled, interrupt it and wait for its end.

        Args:
            execute: runs the cell, in the thread that calls it.
        """
        result = await call_in_thread(lambda: self._take_turn(execute), self._stop)
        if self._failure is not None:
            raise self._failure
        return result

    def in_loop(self, on_output: OutputCallback | None) -> OutputCallback | None:
        """Return a callback for the cell's thread that calls ``on_output`` in the loop's thread.

        If ``on_output`` fails, the cell is interrupted, and :meth:`run` raises the exception.
        """
        if on_output is None:
            return None

        def call(stream: StreamName, text: str) -> None:
            if self._failure is None:
                try:
                    on_output(stream, text)
                except BaseException as error:
                    self._failure = error
                    self._stop()

        def pass_on(stream: StreamName, text: str) -> None:
            self._loop.call_soon_threadsafe(call, stream, text)

        return pass_on

    def _take_turn(self, execute: Callable[[], _T]) -> _T:
        with self._turn, self._async_functions.on(self._loop):
            with self._lock:
                if self._stopped:  # while it waited for its turn
                    raise asyncio.CancelledError
                self._running = True
            try:
                return execute()
            finally:
                with self._lock:
                    self._running = False

    def _stop(self) -> None:
        """Interrupt the cell, but not one that runs before it."""
        with self._lock:
            self._stopped = True
            if self._running:
                self._interrupt()
