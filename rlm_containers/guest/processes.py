"""The processes that cells have started, and their end."""

from __future__ import annotations

import os
import signal
import time

#: Looking again finds what was started while looking. Whoever forks faster than this is stopped by
#: the container's limit of processes: a stopped one still counts.
_ROUNDS = 100

#: Seconds to wait, at the most, until what was killed is dead.
_DYING = 0.5


def sweep(worker: int, alive: bool, since: float) -> None:
    """Kill what cells have started.

    Where the container's processes are all the cells' own, that is every process but the init and
    the supervisor. Elsewhere (``--pid=host``) it is what descends from the worker, or is in its
    session.

    Args:
        worker: the worker's process id.
        alive: whether the worker lives, and is to live on.
        since: only what was started after this, in seconds of ``CLOCK_BOOTTIME``. The kernel tells
            that to a hundredth of a second; what is in doubt is killed.
    """
    apart = _is_apart()
    spared = {1, os.getpid()} | ({worker} if alive else set())
    # Stopped first, all of them: a process that is killed makes room for another one to fork.
    stopped: set[int] = set()
    for _ in range(_ROUNDS):
        found = _started(worker, apart, since) - spared - stopped
        if not found:
            break
        for pid in found:
            _signal(pid, signal.SIGSTOP)
        stopped |= found
    for pid in stopped:
        _signal(pid, signal.SIGKILL)
    # A signal is sent before it has come to anything; the next cell must not find them alive.
    deadline = time.monotonic() + _DYING
    for pid in stopped:
        while _lives(pid) and time.monotonic() < deadline:
            time.sleep(0.001)


def _started(worker: int, apart: bool, since: float) -> set[int]:
    """The processes, of those that live, which cells have started since then."""
    table: dict[int, tuple[int, int, int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            stat = _read("/proc/{}/stat".format(entry))
            # The name before the last parenthesis may have anything in it.
            fields = stat[stat.rfind(b")") + 1 :].split()
            if len(fields) > 19 and fields[0] not in (b"Z", b"X"):
                table[int(entry)] = (int(fields[1]), int(fields[3]), int(fields[19]))
    first = int(since * os.sysconf("SC_CLK_TCK"))
    root = 1 if apart else worker
    found = set()
    for pid, (_, session, start) in table.items():
        if start >= first and (session == worker or _descends(pid, root, table)):
            found.add(pid)
    return found


def _descends(pid: int, root: int, table: dict[int, tuple[int, int, int]]) -> bool:
    """Whether a process descends from ``root``. One from outside (``docker exec``) does not."""
    seen = set()
    while pid in table and pid not in seen:
        if pid == root:
            return True
        seen.add(pid)
        pid = table[pid][0]
    return False


def _is_apart() -> bool:
    """Whether the processes to be seen are only this container's.

    Its first process, an init or this one, was started to run what this process runs.
    """
    mine = _read("/proc/self/cmdline")
    return len(mine) > 100 and _read("/proc/1/cmdline").endswith(mine)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:  # it has ended
        return b""


def _lives(pid: int) -> bool:
    stat = _read("/proc/{}/stat".format(pid))
    return stat[stat.rfind(b")") + 1 :].split()[:1] not in ([], [b"Z"], [b"X"])


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass
