"""Kills the processes that cells have started."""

from __future__ import annotations

import os
import signal
import time

#: How often to look for processes that were started meanwhile. If they multiply faster, the
#: container's limit of processes ends that: stopped ones count too.
_ROUNDS = 100

#: The most seconds to wait for killed processes to be gone.
_KILL_TIMEOUT = 0.5


def sweep(worker: int, alive: bool, since: float) -> None:
    """Kill what cells have started.

    In a container of its own that is every process but the init and the supervisor. If the
    container sees other processes too (``--pid=host``), it is what descends from the worker or
    belongs to its session.

    Args:
        worker: the worker's process id.
        alive: whether the worker is to live on.
        since: kill only what was started after this, in seconds of ``CLOCK_BOOTTIME``. The kernel
            has start times in hundredths of a second; in doubt, kill.
    """
    isolated = _is_isolated()
    spared = {1, os.getpid()} | ({worker} if alive else set())
    # Stop all of them before killing any: a killed process makes room for another to fork.
    stopped: set[int] = set()
    for _ in range(_ROUNDS):
        found = _started(worker, isolated, since) - spared - stopped
        if not found:
            break
        for pid in found:
            _signal(pid, signal.SIGSTOP)
        stopped |= found
    for pid in stopped:
        _signal(pid, signal.SIGKILL)
    # A signal takes effect later, and the next cell must not find them alive.
    deadline = time.monotonic() + _KILL_TIMEOUT
    for pid in stopped:
        while _lives(pid) and time.monotonic() < deadline:
            time.sleep(0.001)


def _started(worker: int, isolated: bool, since: float) -> set[int]:
    """Return the live processes that cells have started since then."""
    table: dict[int, tuple[int, int, int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = _stat(int(entry))
            if len(fields) > 19 and fields[0] not in (b"Z", b"X"):
                table[int(entry)] = (int(fields[1]), int(fields[3]), int(fields[19]))
    first = int(since * os.sysconf("SC_CLK_TCK"))
    root = 1 if isolated else worker
    found = set()
    for pid, (_, session, start) in table.items():
        if start >= first and (session == worker or _descends(pid, root, table)):
            found.add(pid)
    return found


def _descends(pid: int, root: int, table: dict[int, tuple[int, int, int]]) -> bool:
    """Return whether a process descends from ``root``, unlike those of ``docker exec``."""
    seen = set()
    while pid in table and pid not in seen:
        if pid == root:
            return True
        seen.add(pid)
        pid = table[pid][0]
    return False


def _is_isolated() -> bool:
    """Return whether only this container's processes can be seen.

    Then process 1 is an init with this process's command line as its arguments, or this process.
    """
    mine = _read("/proc/self/cmdline")
    return len(mine) > 100 and _read("/proc/1/cmdline").endswith(mine)


def _stat(pid: int) -> list[bytes]:
    """Return the fields of ``/proc/<pid>/stat`` from the state on (proc(5)), empty if it ended."""
    stat = _read("/proc/{}/stat".format(pid))
    return stat[stat.rfind(b")") + 1 :].split()  # the name in parentheses may contain anything


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:  # it has ended
        return b""


def _lives(pid: int) -> bool:
    return _stat(pid)[:1] not in ([], [b"Z"], [b"X"])


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass
