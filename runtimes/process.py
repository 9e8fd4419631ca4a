"""Running commands: a container held by its three pipes, and how the output of others is read.

``EngineCommand.hold`` returns a :class:`ClientProcess`. ``EngineCommand.run`` uses
:func:`read_pieces` and :class:`Excerpt`, ``EngineCommand.follow`` uses :func:`read_lines` and
:func:`end_command`.
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
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import sh

from runtimes.forks import drop_in_children

#: Seconds that a command has to end after SIGINT, before it is killed.
_END_TIMEOUT = 10.0

#: Milliseconds between two looks whether a command has ended whose children keep its pipes open.
_CHECK = 200

#: Longer lines are cut or split at this many bytes.
_MAX_LINE = 10_000

_COLOUR = re.compile("\x1b\\[[0-9;?]*[A-Za-z]")


class ContainerProcess(ABC):
    """A running container's program, held by its standard streams.

    Attributes:
        name: the container's name.
        stdin: descriptor to write to the container's standard input.
        stdout: descriptor to read its standard output from.
        stderr: descriptor to read its standard error from, mixed with the engine's own messages.

    The container lives as long as ``stdin`` is open and its program runs. This object owns the
    three descriptors; :meth:`close` closes them, and a closed one is -1.
    """

    def __init__(self, name: str, stdin: int, stdout: int, stderr: int) -> None:
        self.name = name
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        drop_in_children(self)
        self._lock = threading.RLock()  # a signal handler may close stdin as well

    @property
    @abstractmethod
    def pid(self) -> int:
        """The process id of the client that ends when ``stdin`` is closed; 0 if there is none."""

    @abstractmethod
    def wait(self, timeout: float) -> int | None:
        """Wait for the program to end.

        Args:
            timeout: seconds. A client that still runs then is killed. The container may go on;
                the runtime's ``remove`` ends it.

        Returns:
            The exit status, negative for a signal, or ``None`` if the client had to be killed, or
            nobody knows.
        """

    @abstractmethod
    def kill(self) -> None:
        """Kill the local client and its children, such as ssh, if it is this process's own."""

    def leave(self, pid: int) -> int:
        """End the client, and watch the engine's own process for the container in its place.

        The streams lead nowhere then, and stay open until :meth:`close`.

        Args:
            pid: a process in the container, by its id on this host.

        Returns:
            The process that is watched; 0 if there is none, and the client goes on.
        """
        return 0

    def close_stdin(self) -> None:
        """Close the container's standard input, which tells the guest to end.

        May be called more than once.
        """
        with self._lock:
            self._close("stdin")

    def close_output(self) -> None:
        """Close standard output and error, which nobody will read."""
        with self._lock:
            self._close("stdout", "stderr")

    def drop(self) -> None:
        """In a forked child, close the descriptors. The container stays its parent's."""
        # Without the lock, which a thread may hold that is gone here.
        self._close("stdin", "stdout", "stderr")

    def close(self) -> None:
        """Close those of the three descriptors that are still open."""
        with self._lock:
            self._close("stdin", "stdout", "stderr")

    def _close(self, *names: str) -> None:
        for name in names:
            descriptor = getattr(self, name)
            setattr(self, name, -1)
            if descriptor >= 0:
                os.close(descriptor)


class ClientProcess(ContainerProcess):
    """The command-line client that holds a running container's standard streams."""

    def __init__(
        self, name: str, running: sh.RunningCommand, stdin: int, stdout: int, stderr: int
    ) -> None:
        super().__init__(name, stdin, stdout, stderr)
        self._pid = int(running.pid)
        self._owner = os.getpid()
        self._status: int | None = None
        self._is_lost = False  # something else in this process has waited for it
        self._monitor = 0  # what is watched once the client is left
        # sh has a thread for each process, which looks once a second whether that lives. It ends
        # once it finds a status. From then on nobody but this object waits for the process.
        process: Any = running.process
        with process._wait_lock:
            self._status = process.exit_code
            process.exit_code = 0
        process._quit_threads.set()

    @property
    def pid(self) -> int:
        """The process id of the local client."""
        return self._pid

    def leave(self, pid: int) -> int:
        monitor = _monitor_of(pid)
        if monitor:
            self._wait(0)  # kills it
            self._monitor = monitor
        return monitor

    def wait(self, timeout: float) -> int | None:
        if not self._monitor:
            return self._wait(timeout)
        # The exit status is the engine's to say. What has ended before the container, or does not
        # end, has not seen to its removal.
        status, deadline, pause = None, time.monotonic() + timeout, 0.001
        while _lives(self._monitor):
            if time.monotonic() > deadline:
                return None
            status = 0
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        return status

    def _wait(self, timeout: float) -> int | None:
        """Wait for the client to end. See :meth:`wait`."""
        deadline = time.monotonic() + timeout
        pause, overdue = 0.001, False
        # Without a thread: at the interpreter's end none can be started.
        while not self._has_ended():
            if time.monotonic() > deadline and not overdue:
                overdue = True
                self.kill()
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        return None if overdue else self._status

    def kill(self) -> None:
        with self._lock:
            # Once it was waited for, its pid may belong to another process.
            if self._owner == os.getpid() and not self._has_ended():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._pid, signal.SIGKILL)

    def _has_ended(self) -> bool:
        with self._lock:
            if self._status is None and not self._is_lost:
                try:
                    pid, status = os.waitpid(self._pid, os.WNOHANG)
                except ChildProcessError:
                    self._is_lost = True  # so nobody knows how it ended
                else:
                    if pid:
                        self._status = os.waitstatus_to_exitcode(status)
            return self._status is not None or self._is_lost


def _monitor_of(pid: int) -> int:
    """Return the process that an engine has for a container, such as conmon; 0 if there is none.

    Args:
        pid: a process in the container.
    """
    try:
        while pid:
            # Of processes in other namespaces there are several ids, see proc(5).
            found = dict(
                line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            )
            if len(found["NSpid"].split()) == 1:
                return pid
            pid = int(found["PPid"])
    except (OSError, KeyError, ValueError):
        pass
    return 0


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # some hosts have no init that waits for orphans


def read_pieces(
    descriptors: Iterable[int], waiter: threading.Thread, deadline: float
) -> Iterator[tuple[int, bytes]]:
    """Yield what a command writes to its pipes, until the command ends.

    Args:
        descriptors: the reading ends of the pipes.
        waiter: a thread that ends with the command. The command's children may keep the pipes open
            for longer.
        deadline: the ``time.monotonic()`` at which to give up.

    Yields:
        A pipe's descriptor, and bytes from it.

    Raises:
        TimeoutError: the deadline has passed.
    """
    poll = select.poll()
    still_open = set(descriptors)
    for descriptor in still_open:
        poll.register(descriptor, select.POLLIN)
    while still_open:
        ended = not waiter.is_alive()
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        ready = poll.poll(min(_CHECK, 1 + 1000 * left))
        if not ready and ended:
            return
        for descriptor, _ in ready:
            if piece := os.read(descriptor, 65536):
                yield descriptor, piece
            else:
                poll.unregister(descriptor)
                still_open.discard(descriptor)
    waiter.join(max(0.0, deadline - time.monotonic()))
    if waiter.is_alive():
        raise TimeoutError


class Excerpt:
    """The beginning and the end of a stream, in bounded memory.

    Args:
        head: bytes to keep of the beginning.
        tail: bytes to keep of the end.
    """

    def __init__(self, head: int, tail: int) -> None:
        self._head_size = head
        self._tail_size = tail
        self._head = bytearray()
        self._tail = bytearray()
        self._cut = 0

    def add(self, piece: bytes) -> None:
        """Add bytes to the stream."""
        room = self._head_size - len(self._head)
        self._head += piece[:room]
        self._tail += piece[room:]
        if (over := len(self._tail) - self._tail_size) > 0:
            self._cut += over
            del self._tail[:over]

    def text(self) -> str:
        """Return what was kept, with a line in between that says how much was not."""
        if not self._cut:
            return (self._head + self._tail).decode("utf-8", "replace")
        head, tail = (part.decode("utf-8", "replace") for part in (self._head, self._tail))
        return f"{head}\n[… {self._cut} bytes …]\n{tail}"


def read_lines(descriptor: int, waiter: threading.Thread, deadline: float) -> Iterator[str]:
    """Yield the lines that a command writes to a pipe, until the command ends.

    Empty lines are left out. Colours and control characters are removed, so that a line can be
    shown on a terminal whoever wrote it.

    The arguments and errors are those of :func:`read_pieces`.
    """
    pending = b""
    for _, piece in read_pieces((descriptor,), waiter, deadline):
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
