"""A container's program as seen from outside: three pipes and an exit status."""

from __future__ import annotations

import contextlib
import os
import signal
import threading

import sh


class ContainerProcess:
    """The command-line client that holds a running container's standard streams.

    Attributes:
        name: the container's name.
        stdin: descriptor to write to the container's standard input.
        stdout: descriptor to read its standard output from.
        stderr: descriptor to read its standard error from, mixed with the client's own messages.

    The container lives as long as ``stdin`` is open and its program runs. All three descriptors
    belong to this object; :meth:`close` closes them.
    """

    def __init__(
        self, name: str, running: sh.RunningCommand, stdin: int, stdout: int, stderr: int
    ) -> None:
        self.name = name
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self._running = running
        self._lock = threading.Lock()

    @property
    def pid(self) -> int:
        """The process id of the local client."""
        return int(self._running.pid)

    def close_stdin(self) -> None:
        """Close the container's standard input: the guest's signal to end. May be called twice."""
        with self._lock:
            if self.stdin >= 0:
                os.close(self.stdin)
                self.stdin = -1

    def wait(self, timeout: float) -> int | None:
        """Wait for the client to end and return its exit status, negative for a signal.

        Args:
            timeout: seconds. A client that is still there then is killed; only the client: what
                becomes of the container is for the runtime's ``remove`` to settle.

        Returns:
            The exit status, or ``None`` if the client had to be killed.
        """
        overdue = threading.Event()

        def give_up() -> None:
            overdue.set()
            self.kill()

        timer = threading.Timer(timeout, give_up)
        timer.daemon = True
        timer.start()
        try:
            # Not RunningCommand.wait(): it polls, and raises for a non-zero status, which is
            # this caller's ordinary answer.
            status = int(self._running.process.wait())
        finally:
            timer.cancel()
            timer.join()
        return None if overdue.is_set() else status

    def kill(self) -> None:
        """Kill the local client, if it still runs."""
        # Only a client that sh has not reaped yet: its pid may be another process's by now.
        if self._running.process.exit_code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Close what is still open of the three descriptors."""
        self.close_stdin()
        with self._lock:
            for name in ("stdout", "stderr"):
                descriptor = getattr(self, name)
                if descriptor >= 0:
                    os.close(descriptor)
                    setattr(self, name, -1)
