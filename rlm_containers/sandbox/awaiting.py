"""The sandbox for programs with an event loop."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rlm_containers.interpreter.results import CellResult, OutputCallback, StreamName
from rlm_containers.sandbox.awaitables import AsyncFunctions, call_in_thread

if TYPE_CHECKING:
    from rlm_containers.sandbox.context import Context

__all__ = ["AsyncMethods"]


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
