"""Whom the kernel killed for the container's memory.

A process that the kernel kills for memory dies of SIGKILL, as one that was killed by anything else.
What tells them apart is a counter of the container's cgroup, which nothing in the container can
write to. The kernel counts before it kills, so the counter has risen when the death is seen.
"""

from __future__ import annotations

import os

#: Bytes that the kernel may not get to give out below a limit, for it takes many pages at once.
_SLACK = 1 << 20


class MemoryWatch:
    """The counters of this process's memory cgroup.

    Args:
        root: what stands before ``/proc`` and ``/sys``, for tests.
    """

    def __init__(self, root: str = "") -> None:
        self.directory = ""
        self.v2 = False
        self.events = -1
        for directory, v2 in _candidates(root):
            try:
                name = "memory.events" if v2 else "memory.oom_control"
                # Close-on-exec, and closed with all others in the worker.
                self.events = os.open(os.path.join(directory, name), os.O_RDONLY)
            except OSError:
                continue
            self.directory, self.v2 = directory, v2
            break
        self.kills = self.count() or 0

    def count(self) -> int | None:
        """How many processes were killed so far; ``None`` where that cannot be found out."""
        if self.events < 0:
            return None
        try:
            # From the beginning: the kernel writes it anew for each. A microsecond.
            return _field(os.pread(self.events, 4096, 0), b"oom_kill")
        except OSError:
            return None

    def look(self) -> int | None:
        """How many were killed since the last look; ``None`` as above."""
        count = self.count()
        if count is None:
            return None
        killed, self.kills = count - self.kills, count
        return killed

    def limit(self) -> int | None:
        """The limit in bytes that was reached; ``None`` if it was the machine that had no more."""
        try:
            if self.v2:
                limit = int(self._read("memory.max"))
                reached = _field(self._read("memory.events"), b"oom") or 0
                return limit if reached else None
            # v1 does not tell one from the other, but the most that was ever used.
            limit = int(self._read("memory.limit_in_bytes"))
            peak = int(self._read("memory.max_usage_in_bytes"))
            return limit if peak > limit - _SLACK else None
        except (OSError, ValueError):  # "max"
            return None

    def report(self) -> str:
        """For the host, in JSON: whether the counter can be read, and the limit."""
        if self.events < 0:
            return "null"
        limit = self.limit()
        return '{{"limit": {}}}'.format("null" if limit is None else limit)

    def _read(self, name: str) -> bytes:
        with open(os.path.join(self.directory, name), "rb") as file:
            return file.read()


def offer_to_kernel() -> None:
    """Be the first that the kernel kills for memory, in this container and on this machine.

    Children inherit that. A process may always raise this number, without any privilege.
    """
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass


def _candidates(root: str) -> list[tuple[str, bool]]:
    """Where the memory cgroup of this process may be, and whether it is one of cgroups v2."""
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
            # An engine shows a container either the whole tree or, without saying so in the path,
            # the container's part of it.
            found += [(mount + path, not controllers), (mount, not controllers)]
    # v1 first: where both are mounted, v2 has no controller of memory.
    return sorted(found, key=lambda candidate: candidate[1])


def _field(text: bytes, name: bytes) -> int | None:
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == name:
            return int(words[1])
    return None
