"""Between threads and an event loop: blocking calls that are awaited, coroutines waited for."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

__all__ = ["AsyncFunctions", "call_in_thread"]

_T = TypeVar("_T")


class AsyncFunctions:
    """Waits, in a thread, for what async functions of the user's return.

    While a cell is awaited they run on the loop that awaits it, which is where a client that they
    share with the rest of the program belongs; else on a loop of their own.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    @contextlib.contextmanager
    def on(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Run them on a loop, which must run in another thread meanwhile."""
        before, self._loop = self._loop, loop
        try:
            yield
        finally:
            self._loop = before

    def result(self, value: Any) -> Any:
        """The value, or what it turns out to be if it is awaitable."""
        if not inspect.isawaitable(value):
            return value
        loop = self._loop
        if loop is None:
            return asyncio.run(_awaited(value))
        return asyncio.run_coroutine_threadsafe(_awaited(value), loop).result()


async def _awaited(value: Any) -> Any:
    return await value


async def call_in_thread(call: Callable[[], _T], stop: Callable[[], None]) -> _T:
    """Make a blocking call in a thread of its own.

    Not in the loop's executor: that has a handful of threads, and each sandbox may need one.

    Args:
        call: made with a copy of the caller's context variables.
        stop: called if the caller is cancelled; must make the call return soon. That is waited
            for, so that nothing goes on behind the back of whoever has cancelled.
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
    # A daemon: the interpreter must not wait for a cell that nobody awaits any more.
    threading.Thread(target=context.run, args=(work,), name="rlm-await", daemon=True).start()
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        stop()
        while not future.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait((future,))
        future.exception()  # it has been seen
        raise
