"""How much memory this process and its container use."""

from __future__ import annotations

import os

from .memory import memory_directories

_PAGE = os.sysconf("SC_PAGE_SIZE")

#: The part of the limit that may be in use if a forked child came to have all pages for itself.
_ROOM = 0.9


class MemoryUse:
    """The memory of this process, and of its cgroup, of cgroups v1 or v2."""

    def __init__(self) -> None:
        self._directory, self._v2 = "", False
        for directory, v2 in memory_directories():
            if os.path.exists(os.path.join(directory, _LIMITS[v2])):
                self._directory, self._v2 = directory, v2
                break

    def resident(self) -> int:
        """Return how many bytes of memory this process has; 0 if the kernel does not say."""
        try:
            with open("/proc/self/statm", "rb", buffering=0) as file:
                return int(file.read(200).split()[1]) * _PAGE
        except (OSError, ValueError):
            return 0

    def has_room(self, size: int) -> bool:
        """Return whether the container may use so many bytes more, and have some left."""
        if not self._directory:
            return True
        try:
            limit = int(self._read(_LIMITS[self._v2]))
            used = int(self._read(_USES[self._v2]))
            # What the kernel keeps of files it can give up.
            prefix = b"" if self._v2 else b"total_"
            for line in self._read("memory.stat").splitlines():
                name, _, value = line.partition(b" ")
                if name in (prefix + b"inactive_file", prefix + b"active_file"):
                    used -= int(value)
        except (OSError, ValueError):  # "max" is not a number
            return True
        return used + size <= _ROOM * limit

    def _read(self, name: str) -> bytes:
        with open(os.path.join(self._directory, name), "rb") as file:
            return file.read()


#: The names of the files, by whether it is version 2.
_LIMITS = {True: "memory.max", False: "memory.limit_in_bytes"}
_USES = {True: "memory.current", False: "memory.usage_in_bytes"}
