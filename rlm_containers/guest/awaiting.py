"""Runs cells that use ``await`` outside of a function, as notebooks allow it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class CellLoop:
    """The event loop of such cells. It lives on between them, and so do its tasks.

    It runs only while such a cell runs. So other cells can call ``asyncio.run()``.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, cell: Coroutine[Any, Any, Any]) -> Any:
        """Run a cell to its end.

        An interrupt, or ``sys.exit()`` in another task, cancels the cell.
        """
        loop = self._loop
        if loop is None or loop.is_closed():
            loop = self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        task = loop.create_task(_outcome(cell))
        try:
            value, error = loop.run_until_complete(task)
        except BaseException:
            if not task.done():
                task.cancel()
                loop.run_until_complete(asyncio.wait((task,)))
            cell.close()  # it may not even have begun
            raise
        if error is not None:
            # Raised here, so that no frame of asyncio is in the traceback.
            raise error.with_traceback(error.__traceback__.tb_next)
        return value

    def close_idle(self) -> None:
        """Close the loop if it has nothing to do: it holds descriptors. The next cell makes one."""
        loop = self._loop
        if loop is None or loop.is_closed() or loop.is_running() or asyncio.all_tasks(loop):
            return
        self._loop = None
        asyncio.set_event_loop(None)
        loop.close()


async def _outcome(cell: Coroutine[Any, Any, Any]) -> tuple[Any, Any]:
    """Return what a cell returns and raises; one of the two is ``None``."""
    try:
        return await cell, None
    except BaseException as error:
        # asyncio raises these two, and no other, through the loop as they happen.
        return None, error


#: The loop of this worker.
cell_loop = CellLoop()
