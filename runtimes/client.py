"""A command that is followed while it runs: what it prints, and how to end it early."""

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

#: Seconds that a command which is to end may take for it.
_END_TIMEOUT = 10.0

#: Bytes of a line that are passed on.
_LONGEST = 10_000

_COLOUR = re.compile("\x1b\\[[0-9;?]*[A-Za-z]")


def lines_of(descriptor: int, waiter: threading.Thread, deadline: float) -> Iterator[str]:
    """The lines that come from a pipe until a command ends.

    None is empty, and none has colours or control characters in it: whoever wrote it, a terminal
    may show it.

    Args:
        descriptor: the pipe.
        waiter: a thread that ends with the command: children may hold the pipe for longer.
        deadline: when to give up, as ``time.monotonic()`` has it.

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
        if len(pending) > _LONGEST:
            complete.append(pending)
            pending = b""
        yield from filter(None, map(_printable, complete))
    if text := _printable(pending):
        yield text


def _printable(line: bytes) -> str:
    text = _COLOUR.sub("", line[:_LONGEST].decode("utf-8", "replace"))
    return "".join(c for c in text if c == "\t" or unicodedata.category(c) != "Cc").rstrip()


def end_command(running: sh.RunningCommand, waiter: threading.Thread) -> None:
    """End a command that may have things to put away, and kill it if it does not end.

    Args:
        running: the command, the leader of its session.
        waiter: a thread that ends with it.
    """
    # First what podman runs in containers for a build. It takes that for a step that has failed
    # and cleans up; told to end itself, it leaves the step running and its container behind.
    for process in _contained(int(running.pid)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process, signal.SIGKILL)
            waiter.join(_END_TIMEOUT / 5)
    for number in (signal.SIGINT, signal.SIGKILL):
        if not waiter.is_alive():
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(running.pid), number)
        waiter.join(_END_TIMEOUT)


def _contained(leader: int) -> list[int]:
    """The descendants of a process that have left its session, without their descendants."""
    parents, sessions = {}, {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The name, in parentheses, may hold anything.
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
