"""Kills the processes that cells and commands have started."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Container, Iterable, Mapping

#: How often to look for processes that were started meanwhile. If they multiply faster, the
#: container's limit of processes ends that: stopped ones count too.
_ROUNDS = 100

#: The most seconds to wait for killed processes to be gone.
_KILL_TIMEOUT = 0.5


_PR_SET_CHILD_SUBREAPER = 36

#: Maps process ids to the parent, the process group, the session, and the start time in ticks of
#: the kernel.
_Table = dict[int, tuple[int, int, int, int]]


def sweep(
    worker: int,
    alive: bool,
    since: float,
    keepers: Iterable[int],
    heirs: Mapping[int, int],
    *,
    everywhere: bool = True,
) -> None:
    """Kill what cells have started.

    In a container of its own that is every process but the init, the supervisor, and the commands.
    If the container sees other processes too (``--pid=host``), it is what descends from the worker
    or belongs to its session.

    Args:
        worker: the worker's process id.
        alive: whether the worker is to live on.
        since: kill only what was started after this, in seconds of ``CLOCK_BOOTTIME``. The kernel
            has start times in hundredths of a second; in doubt, kill.
        keepers: spare these, what descends from them, and what belongs to their sessions.
        heirs: the process groups of heirs, with the heirs' processes; 0 for one that is not known
            yet. Spare these and their children. A cell's process may have joined a group.
        everywhere: whether the worker's is all that is not spared. If not, it is as with
            ``--pid=host``.
    """
    root = 1 if everywhere and _is_isolated() else worker
    keepers = set(keepers)
    spared = {1, os.getpid()} | ({worker} if alive else set())
    first = int(since * os.sysconf("SC_CLK_TCK"))

    def started(table: _Table) -> set[int]:
        return {
            pid
            for pid, (_, group, session, start) in table.items()
            if start >= first
            and not _is_of_heir(pid, group, heirs, table)
            and session not in keepers
            and (session == worker or _descends(pid, root, table))
            and not any(_descends(pid, keeper, table) for keeper in keepers)
        } - spared

    _kill(started)


def _is_of_heir(pid: int, group: int, heirs: Mapping[int, int], table: _Table) -> bool:
    heir = heirs.get(group)
    return heir is not None and (heir == 0 or _descends(pid, heir, table))


def sweep_newer(since: float, spared: Container[int], heirs: Mapping[int, int]) -> None:
    """Kill what descends from this process and was started after some time.

    Args:
        since: the time, in seconds of ``CLOCK_BOOTTIME``. In doubt, spare.
        spared: spare these, what descends from them or from anything that is older, and what
            belongs to their sessions.
        heirs: as for :func:`sweep`.
    """
    first = int(since * os.sysconf("SC_CLK_TCK")) + 1
    root = os.getpid()

    def is_newer(pid: int, table: _Table) -> bool:
        seen: set[int] = set()
        while pid in table and pid not in seen and pid != root:
            parent, group, session, start = table[pid]
            if start < first or pid in spared or session in spared:
                return False
            if _is_of_heir(pid, group, heirs, table):
                return False
            seen.add(pid)
            pid = parent
        return pid == root and bool(seen)

    _kill(lambda table: {pid for pid in table if is_newer(pid, table)})


def kill_trees(roots: Iterable[int]) -> None:
    """Kill these processes and what descends from them."""
    roots = set(roots)
    _kill(lambda table: {pid for pid in table if any(_descends(pid, r, table) for r in roots)})


def _kill(choose: Callable[[_Table], set[int]]) -> None:
    """Kill the processes that a function chooses among all, until there are no others."""
    # Stop all of them before killing any: a killed process makes room for another to fork.
    stopped: set[int] = set()
    for _ in range(_ROUNDS):
        found = choose(_table()) - stopped
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
        while not _has_ended(_stat(pid)) and time.monotonic() < deadline:
            time.sleep(0.001)


def _table() -> _Table:
    """Return the live processes."""
    table: _Table = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = _stat(int(entry))
            if len(fields) > 19 and not _has_ended(fields):
                numbers = (int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]))
                table[int(entry)] = numbers
    return table


def _descends(pid: int, root: int, table: _Table) -> bool:
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


def _has_ended(fields: list[bytes]) -> bool:
    """Return whether a process has ended: a zombie that has threads only lacks its first one."""
    return fields[:1] in ([], [b"X"]) or (fields[0] == b"Z" and int(fields[17]) < 2)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def subreaper() -> Callable[[], object]:
    """Return a function that makes the process adopt the orphans among its descendants."""
    try:
        import ctypes

        prctl = ctypes.CDLL(None).prctl
    except (ImportError, OSError, AttributeError):  # a Python without libffi
        return lambda: None
    return lambda: prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
