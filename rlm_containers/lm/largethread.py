"""One thread in which all large texts of a container are allocated and parsed.

glibc's allocator has an arena for each few threads, and keeps up to 64 MB of freed memory in each.
With a thread for each request, a flood of large ones would leave gigabytes there. Parsing holds the
interpreter's lock anyway, so nothing is lost by doing it in one thread.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from rlm_containers.errors import SandboxError
from rlm_containers.interpreter import start_thread

_T = TypeVar("_T")


class LargeThread:
    """The thread of one container. It starts with the first call, and ends with :meth:`close`."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def run(self, function: Callable[..., _T], *args: Any) -> _T:
        """Call a function in the thread. Return what it returns, or raise what it raises.

        After :meth:`close`, and while the system has no thread left, it is called in the caller's
        own thread.
        """
        answer: Future[_T] = Future()

        def call() -> None:
            try:
                answer.set_result(function(*args))
            except BaseException as error:
                answer.set_exception(error)

        with self._lock:
            if self._thread is None and not self._closed:
                with contextlib.suppress(SandboxError):
                    self._thread = start_thread(self._serve, "rlm-large")
            if self._thread is not None and not self._closed:
                self._calls.put(call)
            else:
                call()
        return answer.result()

    def close(self) -> None:
        """End the thread, once it has done what was asked before."""
        with self._lock:
            self._closed = True
            self._calls.put(None)

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            del call  # an idle thread must hold no memory
