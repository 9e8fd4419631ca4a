"""Two kinds of running command: a container held by its three pipes, and one that is followed.

``EngineCommand.hold`` returns a :class:`ContainerProcess`. ``EngineCommand.follow`` uses
:func:`read_lines` and :func:`end_command`.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import threading
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import sh

#: Seconds that a command has to end after SIGINT, before it is killed.
_END_TIMEOUT = 10.0

#: Longer lines are cut or split at this many bytes.
_MAX_LINE = 10_000

_COLOUR = re.compile("\x1b\\[[0-9;?]*[A-Za-z]")


class ContainerProcess:
    """The command-line client that holds a running container's standard streams.

    Attributes:
        name: the container's name.
        stdin: descriptor to write to the container's standard input.
        stdout: descriptor to read its standard output from.
        stderr: descriptor to read its standard error from, mixed with the client's own messages.

    The container lives as long as ``stdin`` is open and its program runs. This object owns the
    three descriptors; :meth:`close` closes them, and a closed one is -1.
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
        """Close the container's standard input, which tells the guest to end.

        May be called more than once.
        """
        with self._lock:
            if self.stdin >= 0:
                os.close(self.stdin)
                self.stdin = -1

    def wait(self, timeout: float) -> int | None:
        """Wait for the client to end.

        Args:
            timeout: seconds. A client that still runs then is killed. The container may go on;
                the runtime's ``remove`` ends it.

        Returns:
            The exit status, negative for a signal, or ``None`` if the client had to be killed.
        """
        overdue = threading.Event()

        def give_up() -> None:
            overdue.set()
            self.kill()

        timer = threading.Timer(timeout, give_up)
        timer.daemon = True
        timer.start()
        try:
            # RunningCommand.wait() polls, and raises for a status other than 0.
            status = int(self._running.process.wait())
        finally:
            timer.cancel()
            timer.join()
        return None if overdue.is_set() else status

    def kill(self) -> None:
        """Kill the local client if it still runs."""
        # Once sh has reaped the client, its pid may belong to another process.
        if self._running.process.exit_code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Close those of the three descriptors that are still open."""
        self.close_stdin()
        with self._lock:
            for name in ("stdout", "stderr"):
                descriptor = getattr(self, name)
                if descriptor >= 0:
                    os.close(descriptor)
                    setattr(self, name, -1)


def read_lines(descriptor: int, waiter: threading.Thread, deadline: float) -> Iterator[str]:
    """Yield the lines that a command writes to a pipe, until the command ends.

    Empty lines are left out. Colours and control characters are removed, so that a line can be
    shown on a terminal whoever wrote it.

    Args:
        descriptor: the reading end of the pipe.
        waiter: a thread that ends with the command. The command's children may keep the pipe open
            for longer.
        deadline: the ``time.monotonic()`` at which to give up.

    Raises:
        TimeoutError: the deadline has passed.
    """
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    pending = b""
    while True:
        ended = not waiter.is_alive()
        if time.monotonic() > deadline:
            raise TimeoutError
        if not poll.poll(200):
            if ended:
                break
            continue
        piece = os.read(descriptor, 65536)
        if not piece:
            break
        # A progress bar ends its lines with a carriage return.
        *complete, pending = re.split(rb"[\r\n]+", pending + piece)
        if len(pending) > _MAX_LINE:
            complete.append(pending)
            pending = b""
        yield from filter(None, map(_printable, complete))
    if text := _printable(pending):
        yield text


def _printable(line: bytes) -> str:
    text = _COLOUR.sub("", line[:_MAX_LINE].decode("utf-8", "replace"))
    return "".join(c for c in text if c == "\t" or unicodedata.category(c) != "Cc").rstrip()


def end_command(running: sh.RunningCommand, waiter: threading.Thread) -> None:
    """Interrupt a command so that it can clean up, and kill it if it does not end.

    Args:
        running: the command, which leads a session of its own.
        waiter: a thread that ends with the command.
    """
    # Kill podman's build step first: podman then sees a step that failed, and cleans up. When
    # podman itself is interrupted first, it leaves the step and its container running.
    for process in _detached_children(int(running.pid)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process, signal.SIGKILL)
            waiter.join(_END_TIMEOUT / 5)
    for number in (signal.SIGINT, signal.SIGKILL):
        if not waiter.is_alive():
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(running.pid), number)
        waiter.join(_END_TIMEOUT)


def _detached_children(leader: int) -> list[int]:
    """Find the processes that a session's members started in sessions of their own.

    Only the topmost of each such tree is returned.
    """
    parents, sessions = {}, {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # proc(5): the second field, in parentheses, may hold anything.
            fields = entry.read_text(errors="replace").rpartition(")")[2].split()
            process = int(entry.parent.name)
            parents[process], sessions[process] = int(fields[1]), int(fields[3])
    found = []
    for process, session in sessions.items():
        ancestor = parents[process]
        if session == leader or sessions.get(ancestor) != leader:
            continue
        while ancestor not in (0, leader):
            ancestor = parents.get(ancestor, 0)
        if ancestor == leader:
            found.append(process)
    return found
