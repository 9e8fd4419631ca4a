"""Brings a session's files to this host while its sandbox runs."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from rlm_containers.errors import ContainersError, SandboxLostError
from rlm_containers.interpreter import start_thread
from rlm_containers.state import WorkspaceFiles
from runtimes.text import get_logger

logger = get_logger("rlm_containers")


class Replication:
    """Pulls the files of a workspace after each change, in a thread of its own.

    No cell waits for it. It takes at most half of the time, so that it does not fill a slow
    connection.

    Args:
        container: the container's name.
        workspace: the files.
        saved: returns the last request whose checkpoint is written in the container.

    Attributes:
        pulled: the last request whose changes this host has for sure.
    """

    def __init__(self, container: str, workspace: WorkspaceFiles, saved: Callable[[], int]) -> None:
        self.pulled = 0
        self._saved = saved
        self._container = container
        self._workspace = workspace
        self._closed = False
        self._has_warned = False
        # A signal handler may put something into it wherever it strikes, unlike to set an Event.
        self._changes: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._thread = start_thread(self._run, f"rlm-pull-{container}", container=container)

    def wake(self) -> None:
        """Note that something may have changed. Any thread may call this."""
        if self._changes.empty():
            self._changes.put(None)

    def is_pulling_here(self) -> bool:
        """Whether this thread is the one for which :meth:`close` waits."""
        return threading.current_thread() is self._thread

    def pull(self) -> None:
        """Pull the files now. Any thread may call this.

        Raises:
            As :meth:`PipedWorkspace.pull`.
        """
        saved = self._saved()
        self._workspace.pull()
        self.pulled = max(self.pulled, saved)

    def close(self) -> None:
        """Pull no more. Wait for the pull that is under way."""
        self._closed = True
        self._ended.set()
        self._changes.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._changes.get()
            if self._closed:
                return
            try:
                begun = time.monotonic()
                self.pull()
                self._has_warned = False
            except SandboxLostError:
                pass  # another container may take its place
            except (ContainersError, OSError) as error:
                self._say(error)
            self._ended.wait(time.monotonic() - begun)

    def _say(self, error: Exception) -> None:
        """Warn of an error, once until all is well. A guest could have it differ each time."""
        if not (self._closed or self._has_warned):
            self._has_warned = True
            logger.warning(
                "%s: this host has not what has changed in the session: %s", self._container, error
            )
