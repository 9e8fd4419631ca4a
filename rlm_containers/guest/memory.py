"""Whether the kernel has killed a process for its memory.

Such a process dies of SIGKILL, as one does that anything else has killed. A counter of the
container's cgroup tells them apart; nothing in the container can write to it. The kernel counts
before it kills, so the counter has risen by the time that the death is seen.

The source for the files is the kernel's Documentation/admin-guide: cgroup-v2.rst and
cgroup-v1/memory.rst.
"""

from __future__ import annotations

import os
from collections.abc import Callable

#: Bytes below a limit at which it counts as reached: the kernel charges many pages at once.
_SLACK = 1 << 20


class MemoryWatch:
    """The counters of this process's memory cgroup, of cgroups v1 or v2.

    Args:
        root: the path of the directory that has ``proc`` and ``sys``, for tests.

    Attributes:
        noticed: whether :meth:`new_kills` has counted any. Its caller resets this.
        own_kills: called with the number of processes that were killed; returns how many of them
            the cells have not started.
    """

    def __init__(self, root: str = "") -> None:
        self.directory = ""
        self.v2 = False
        self.events = -1
        for directory, v2 in memory_directories(root):
            try:
                name = "memory.events" if v2 else "memory.oom_control"
                # The worker closes it, with all descriptors above 4.
                self.events = os.open(os.path.join(directory, name), os.O_RDONLY)
            except OSError:
                continue
            self.directory, self.v2 = directory, v2
            break
        self.kills = self.count() or 0
        self.noticed = False
        self.own_kills: Callable[[int], int] = lambda killed: 0

    def count(self) -> int | None:
        """Return how many processes were killed so far; ``None`` if the kernel does not say."""
        if self.events < 0:
            return None
        try:
            # Each read from the start gets the present numbers, in a microsecond.
            return _field(os.pread(self.events, 4096, 0), b"oom_kill")
        except OSError:
            return None

    def new_kills(self) -> int | None:
        """Return how many were killed since the last call; ``None`` if the kernel does not say.

        Those of this package's own that :attr:`own_kills` knows do not count.
        """
        count = self.count()
        if count is None:
            return None
        killed, self.kills = count - self.kills, count
        killed = max(0, killed - self.own_kills(killed))
        self.noticed = self.noticed or killed > 0
        return killed

    def limit(self) -> int | None:
        """Return the limit in bytes if it was reached; ``None`` if the machine had no more."""
        try:
            if self.v2:
                limit = int(self._read("memory.max"))
                reached = _field(self._read("memory.events"), b"oom") or 0
                return limit if reached else None
            # v1 does not say which it was, but it has the most that was ever used.
            limit = int(self._read("memory.limit_in_bytes"))
            peak = int(self._read("memory.max_usage_in_bytes"))
            return limit if peak > limit - _SLACK else None
        except (OSError, ValueError):  # "max" is not a number
            return None

    def report(self) -> str:
        """Return ``memory`` of an event, as JSON, see :mod:`rlm_guest.wire`."""
        if self.events < 0:
            return "null"
        limit = self.limit()
        return '{{"limit": {}}}'.format("null" if limit is None else limit)

    def _read(self, name: str) -> bytes:
        with open(os.path.join(self.directory, name), "rb") as file:
            return file.read()


def offer_to_kernel(pid: int | None = None, *, score: int = 1000) -> None:
    """Make a process the first that the kernel kills for memory, on the whole machine.

    Its children inherit that. This needs no privilege.

    Args:
        pid: the process; ``None`` for this one.
        score: the one with the highest is killed first, up to 1000. See proc(5).
    """
    try:
        with open("/proc/{}/oom_score_adj".format(pid or "self"), "w") as file:
            file.write(str(score))
    except OSError:
        pass


def memory_directories(root: str = "") -> list[tuple[str, bool]]:
    """Return the directories that may be this process's memory cgroup, each with "is v2"."""
    found = []
    try:
        with open(root + "/proc/self/cgroup") as file:
            lines = file.read().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "memory" in controllers.split(","):
            mount = root + "/sys/fs/cgroup" + ("/memory" if controllers else "")
            # Some engines show a container the whole tree, others only its own part, although the
            # path is that of the whole tree.
            found += [(mount + path, not controllers), (mount, not controllers)]
    # v1 first: if both are mounted, v2 has no memory controller.
    return sorted(found, key=lambda candidate: candidate[1])


def _field(text: bytes, name: bytes) -> int | None:
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == name:
            return int(words[1])
    return None
