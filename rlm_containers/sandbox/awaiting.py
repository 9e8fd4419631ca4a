"""The sandbox for programs with an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from rlm_containers.interpreter import CellResult, OutputCallback, StreamName
from rlm_containers.lm import AsyncFunctions

if TYPE_CHECKING:
    from rlm_containers.sandbox.context import Context


class AsyncMethods:
    """What :class:`~rlm_containers.sandbox.sandbox.Sandbox` has for ``await``.

    Each call blocks a thread of its own and not the loop, so that any number of sandboxes can be
    used from one loop at once. A call that is cancelled interrupts its cell and waits for its end.
    """

    if TYPE_CHECKING:
        _lock: threading.RLock
        _async_functions: AsyncFunctions

        def start(self) -> Self: ...
        def close(self) -> None: ...
        def interrupt(self) -> None: ...
        def load(self, name: str, value: Context, *, keep: bool = False) -> None: ...
        def execute(self, code: str, *, on_output: OutputCallback | None = None) -> CellResult: ...

    async def __aenter__(self) -> Self:
        return await self.astart()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def astart(self) -> Self:
        """As :meth:`start`. If it is cancelled, nothing is left running."""
        return await call_in_thread(self.start, self.close)

    async def aclose(self) -> None:
        """As :meth:`close`."""
        await call_in_thread(self.close, lambda: None)

    async def aload(self, name: str, value: Context) -> None:
        """As :meth:`load`."""
        await call_in_thread(lambda: self.load(name, value), lambda: None)

    async def aexecute(self, code: str, *, on_output: OutputCallback | None = None) -> CellResult:
        """As :meth:`execute`; several calls take turns.

        Args:
            code: Python source.
            on_output: called in the loop's thread.

        An async ``lm`` and async tools run on this loop meanwhile.
        """
        loop = asyncio.get_running_loop()
        cell = _AwaitedCell(self, on_output, loop)
        result = await call_in_thread(lambda: cell.run(code), cell.stop)
        if cell.failure is not None:
            raise cell.failure
        return result


class _AwaitedCell:
    """One cell that somebody awaits."""

    def __init__(
        self,
        sandbox: AsyncMethods,
        on_output: OutputCallback | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.failure: BaseException | None = None
        self._sandbox = sandbox
        self._on_output = on_output
        self._loop = loop
        self._stopped = self._running = False
        self._lock = threading.Lock()

    def run(self, code: str) -> CellResult:
        sandbox = self._sandbox
        with sandbox._lock, sandbox._async_functions.on(self._loop):
            with self._lock:
                if self._stopped:  # while it waited for its turn
                    raise asyncio.CancelledError
                self._running = True
            try:
                callback = None if self._on_output is None else self._pass_on
                return sandbox.execute(code, on_output=callback)
            finally:
                with self._lock:
                    self._running = False

    def stop(self) -> None:
        """Interrupt the cell, if it is this one that runs."""
        with self._lock:
            self._stopped = True
            if self._running:
                self._sandbox.interrupt()

    def _pass_on(self, stream: StreamName, text: str) -> None:
        self._loop.call_soon_threadsafe(self._call_back, stream, text)

    def _call_back(self, stream: StreamName, text: str) -> None:
        if self.failure is not None:
            return
        assert self._on_output is not None
        try:
            self._on_output(stream, text)
        except BaseException as error:
            self.failure = error
            self.stop()


_T = TypeVar("_T")


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
