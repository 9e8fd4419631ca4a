"""How much of its disk a workspace takes, and how much it may take.

Cells write to the workspace through a mount, which no engine can limit. So the host looks: at the
free space of the file system, which takes a microsecond, and only once that has fallen by what is
left of the limit at the files themselves.
"""

from __future__ import annotations

import math
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol, Self

from rlm_containers.errors import WorkspaceError, format_size
from rlm_containers.guest import wire
from rlm_containers.state.nofollow import DIRECTORY
from rlm_containers.state.trees import MAX_DEPTH, MAX_NODES
from runtimes.text import brief

_MiB = 1024**2
_GiB = 1024**3

#: What a workspace may grow to by default: what it has, and half of what is free, at most this.
_LARGEST_SHARE = 16 * _GiB

#: However little is free, they may grow by this.
_LEAST_LIMIT = _MiB

#: A file takes at least this, also an empty one: file systems have room for so many files only.
_LEAST_FILE = 4096

#: The free space that is kept for checkpoints: an eighth of what was free, at most this.
_LARGEST_RESERVE = _GiB

#: Bytes by which files may grow past their limit unnoticed. A log that gets a line does no harm.
_SLACK = _MiB

#: A fall of the free space by less than this is not looked into.
_GRAIN = 64 * 1024

#: Bytes past the limit at which what does not stop is killed: an eighth of the limit, within these.
_MARGINS = (64 * _MiB, _GiB)

#: The fastest that cells are expected to write, in bytes per second, and the least and the most
#: seconds between two looks.
_SPEED = 4 * _GiB
_PAUSES = (0.05, 1.0)

#: Counting files takes at most a fifth of a processor.
_REST = 4


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a workspace takes on its disk.

    Attributes:
        files: bytes of its files and directories.
        state: bytes of the saved variables, which are not in ``files``.
        whole: whether everything was counted.
    """

    files: int
    state: int
    whole: bool


@dataclass(frozen=True, kw_only=True)
class Excess:
    """Files that have grown past what they may take.

    Attributes:
        fact: a sentence that says how much they take.
        remedy: a sentence that says what to do.
        far: whether they have grown so far that whoever does not stop is to be killed.
    """

    fact: str
    remedy: str
    far: bool


def measure(top: int) -> Usage:
    """Count what a workspace takes. Follows no link, and waits for nothing that a cell has made.

    A file with several names counts once, and a sparse one as much as it takes.

    Args:
        top: a descriptor of the workspace.
    """
    count = _Count()
    count.add(top, 1)
    return Usage(files=count.files, state=count.state, whole=count.whole)


class _Count:
    """Adds up the files of a workspace. The attributes are those of :class:`Usage`."""

    def __init__(self) -> None:
        self.files = self.state = 0
        self.whole = True
        self._nodes = 0
        self._linked: set[int] = set()

    def add(self, directory: int, depth: int, *, saved: bool = False) -> None:
        """Add everything in a directory.

        Args:
            directory: a descriptor.
            depth: 1 for the workspace itself, 2 for a directory in it, and so on.
            saved: whether it is one of saved variables.
        """
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    self._nodes += 1
                    if self._nodes > MAX_NODES:
                        self.whole = False
                        return
                    is_saved = saved or (depth == 1 and entry.name in wire.RESERVED)
                    try:
                        self._add_entry(entry, directory, depth, is_saved)
                    except FileNotFoundError:
                        pass  # removed meanwhile
                    except OSError:  # a directory that a cell has locked
                        self.whole = False
        except OSError:
            self.whole = False

    def _add_entry(self, entry: os.DirEntry[str], directory: int, depth: int, saved: bool) -> None:
        found = entry.stat(follow_symlinks=False)
        is_directory = stat.S_ISDIR(found.st_mode)
        if found.st_nlink > 1 and not is_directory:
            if found.st_ino in self._linked:
                return
            self._linked.add(found.st_ino)
        size = max(_LEAST_FILE, found.st_blocks * 512)
        if saved:
            self.state += size
        else:
            self.files += size
        if not is_directory:
            return
        if depth >= MAX_DEPTH:
            self.whole = False
            return
        below = os.open(entry.name, DIRECTORY, dir_fd=directory)
        try:
            self.add(below, depth + 1, saved=saved)
        finally:
            os.close(below)


class Meter(Protocol):
    """Measures one workspace.

    Its methods raise WorkspaceError if the workspace is closed, and OSError or another
    ContainersError if it cannot be asked.
    """

    def free(self) -> Free:
        """Return what its file system has left."""

    def measure(self) -> Usage:
        """Count what it takes."""


class DirectoryMeter:
    """Measures a directory of this host, see :class:`Meter`.

    Args:
        directory: yields a descriptor of it, see :meth:`Workspace.directory`.
    """

    def __init__(self, directory: Callable[[], AbstractContextManager[int]]) -> None:
        self._directory = directory

    def free(self) -> Free:
        with self._directory() as top:
            return Free.of(top)

    def measure(self) -> Usage:
        with self._directory() as top:
            return measure(top)


class Space:
    """How much the files of one workspace may take, and how much they take.

    The saved variables have room of their own, so that files leave the checkpoint its own: what
    they take counts only past ``state_size``. Any thread may call.

    Args:
        meter: measures the workspace.
        size: bytes that the files may take; ``None`` for what they take now, and a share of what
            is free.
        state_size: bytes that the saved variables may take besides; ``None`` for as much as
            the files.

    Attributes:
        limit: bytes that the files may take.
        reserve: bytes of free space that are kept for checkpoints. Where less is left because of
            these files, they may not grow either.

    Raises:
        WorkspaceError: the workspace is closed.
        OSError, ContainersError: it cannot be asked.
    """

    def __init__(
        self,
        meter: Meter,
        size: int | None,
        state_size: int | None = None,
    ) -> None:
        self._meter = meter
        self._lock = threading.Lock()
        self._state_size = state_size
        free = meter.free()
        usage = meter.measure()
        if size is None:
            size = usage.files + max(_LEAST_LIMIT, min(free.bytes // 2, _LARGEST_SHARE))
        self.limit = size
        self.reserve = min(free.bytes // 8, _LARGEST_RESERVE)
        self._margin = min(max(self.limit // 8, _MARGINS[0]), _MARGINS[1])
        self._slack = min(_SLACK, self.limit // 16)
        self._last_whole = usage.files, free
        # The last count: what was used, and the free space then, or the most that was since.
        self._used = self._first = self._counted(usage, free)
        self._free = free
        self._left = max(0, self.limit - self._used)
        self._rests_until = -math.inf
        #: What the files may take without being in excess: more than the limit if they did so when
        #: the last cell ended, so that a cell that does not make them grow can run.
        self._granted = max(self.limit, self._used)
        self._told = self._granted  # more than this is a new excess
        self._is_scarce = False
        self._has_ended = False  # a cell, and what it has left was not looked at

    def look(self) -> Excess | None:
        """Look whether the files have grown past what they may take.

        Returns:
            How far they have grown; ``None`` if they have not, or not since the last excess.

        Raises:
            WorkspaceError, OSError: as for the class.
        """
        with self._lock:
            excess = self._look()
            if self._has_ended:
                self._grant()
                if excess is not None:
                    excess = replace(excess, far=False)  # the cell may have done it
            return excess

    def end_cell(self) -> Excess | None:
        """Look at what a cell has left. From now on only further growth is an excess.

        Leaves it to the next look of :meth:`look` if the files can hardly have grown past it since
        the last one, which is the usual case, or if another thread looks at them now.

        Raises:
            WorkspaceError, OSError: as for the class.
        """
        self._has_ended = True
        if self._left > _SPEED * _PAUSES[0] or not self._lock.acquire(blocking=False):
            return None
        try:
            excess = self._look()
            self._grant()
            return excess
        finally:
            self._lock.release()

    def pause(self) -> float:
        """Return the seconds until the next look: the less room is left, the fewer."""
        return min(max(self._left / _SPEED, _PAUSES[0]), _PAUSES[1])

    def admit(self, name: str, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield what this process writes into the workspace, as long as there is room for it.

        Args:
            name: the name of the file, for the error.
            chunks: its contents.

        Raises:
            WorkspaceError: its files would take more than the limit.
        """
        left: int | None = None
        for chunk in chunks:
            size = memoryview(chunk).nbytes
            if left is None or size > left:
                # What is written so far counts already. Then only a count is sure: somebody else
                # may have freed on the disk what this has taken.
                left = self._room(size, count=left is not None)
            if size > left:
                raise WorkspaceError(
                    f"There is no room for {brief(name)} in the workspace: its files would take "
                    f"more than {format_size(self.limit)} (workspace_size).",
                    remedy=_REMEDY,
                )
            left -= size
            # It may count twice until the next count. That is sooner then, and no file is missed.
            with self._lock:
                self._used = max(self._used, min(self._used + size, self.limit))
            yield chunk

    def _room(self, needed: int, *, count: bool) -> int:
        """Return how many bytes may be written. Count the files if asked, or if that matters."""
        with self._lock:
            free = self._meter.free()
            room = self.limit - self._used - self._free.fall_to(free)
            if count or room < needed:
                self._count(free)
                room = self.limit - self._used
            return room

    def _look(self) -> Excess | None:
        free = self._meter.free()
        # Files that were granted and are removed are granted no more.
        shrinks = self._granted > self.limit and self._free.bytes + _GRAIN < free.bytes
        self._free = self._free.most(free)  # others may have made room
        fall = self._free.fall_to(free)
        room = min(self._told + self._slack - self._used, self._free.bytes - self.reserve)
        self._left = max(0, room - fall)
        rests = time.monotonic() < self._rests_until and fall < self._margin
        if rests or (fall < max(room, _GRAIN) and not shrinks):
            return None
        self._count(free)
        scarce = free.bytes < self.reserve <= free.bytes + self._used - self._first
        if scarce != self._is_scarce:
            # Whose writes made it scarce is not known. It matters who goes on.
            self._is_scarce = scarce
            self._told = self._used if scarce else self._granted
        far = self._used > self._granted + self._margin or (
            self._is_scarce and free.bytes < self.reserve // 2
        )
        if self._used <= self._told + self._slack:
            return None
        self._told = self._used
        fact = f"The files in the workspace take {format_size(self._used)}"
        if self._used > self.limit:
            fact += f", and may take {format_size(self.limit)} (workspace_size)."
            return Excess(fact=fact, remedy=_REMEDY, far=far)
        fact += f", and their disk has only {format_size(free.bytes)} left."
        return Excess(fact=fact, remedy="Remove some, or make room on the disk.", far=far)

    def _count(self, free: Free) -> None:
        begun = time.monotonic()
        self._used = self._counted(self._meter.measure(), free)
        self._free = free
        self._left = max(0, self.limit - self._used)
        self._granted = max(self.limit, min(self._granted, self._used))
        self._told = max(min(self._told, self._used), 0 if self._is_scarce else self._granted)
        now = time.monotonic()
        self._rests_until = now + _REST * (now - begun)

    def _counted(self, usage: Usage, free: Free) -> int:
        """Return what the files take, by a count and the free space at its time."""
        room = self.limit if self._state_size is None else self._state_size
        used = usage.files + max(0, usage.state - room)
        if usage.whole:
            self._last_whole = used, free
            return used
        # What was not counted may be all that the disk has lost.
        before, then = self._last_whole
        return max(used, before + then.fall_to(free))

    def _grant(self) -> None:
        """Let what is there stay: from now on only further growth is an excess."""
        self._has_ended = False
        self._granted = max(self.limit, self._used)
        if not self._is_scarce:
            self._told = self._granted


_REMEDY = "Remove files from it, or raise workspace_size."


@dataclass(frozen=True)
class Free:
    """What a file system has left.

    Attributes:
        bytes: bytes that can be written.
        files: files that can be made; 0 if it does not say.
    """

    bytes: int
    files: int

    @classmethod
    def of(cls, file: int) -> Self:
        """Ask the file system of an open file."""
        found = os.fstatvfs(file)
        return cls(found.f_bavail * found.f_frsize, found.f_favail)

    def most(self, other: Free) -> Free:
        """Return the most of both."""
        return Free(max(self.bytes, other.bytes), max(self.files, other.files))

    def fall_to(self, later: Free) -> int:
        """Return how many bytes were taken meanwhile. Files count as :func:`measure` does it."""
        return max(self.bytes - later.bytes, (self.files - later.files) * _LEAST_FILE, 0)
