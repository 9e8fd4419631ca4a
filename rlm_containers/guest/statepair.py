"""The two files a session lives on in: ``state.dill``, and ``state.dill.previous`` before it.

Whatever happens to the newer one, a disk error or a cell that writes to it, the older is there to
go back to. It costs no second write: what was ``state.dill`` gets the other name too, by a hard
link, right before the new file takes its place. Each of the two is there, and whole, at any moment.
"""

from __future__ import annotations

import os
from typing import Any

from .statefile import SpoolFile, open_regular, read_index


class StatePair:
    """The last state file and the one before it.

    Args:
        directory: where they are, or will be.

    Attributes:
        path: the last one.
        previous: the one before.
        needed: the files of the workspace that one of the two refers to, which must stay.
    """

    def __init__(self, directory: str) -> None:
        self.path = os.path.join(directory, "state.dill")
        self.previous = self.path + ".previous"
        self._needed: frozenset[str] = frozenset()
        self._needed_before: frozenset[str] = frozenset()
        # Of the file at `path`, as long as it is one that this object knows to be whole.
        self._stamp: tuple[int, int, int] | None = None

    @property
    def needed(self) -> frozenset[str]:
        return self._needed | self._needed_before

    def exists(self) -> bool:
        """Whether there is anything to restore from."""
        return os.path.lexists(self.path) or os.path.lexists(self.previous)

    def is_untouched(self) -> bool:
        """Whether the last file is still the one that was written or read here."""
        return self._stamp is not None and self._stamp == _stamp(self.path)

    def advance(self, file: SpoolFile, needed: frozenset[str]) -> None:
        """Make a new file the last one, and the last one the previous.

        A last one that somebody else has touched is not kept: the previous one is better.

        Args:
            file: what was written.
            needed: the files that it refers to.

        Raises:
            OSError: it could not be written; what was the last file still is.
        """
        file.settle()
        if self.is_untouched() and self._keep_last():
            self._needed_before = self._needed
        file.commit(self.path)
        self._needed = needed
        self._stamp = _stamp(self.path)

    def _keep_last(self) -> bool:
        """Give the last file the previous one's name, too. It is no failure if that fails."""
        link = self.previous + ".new"
        try:
            if os.path.lexists(link):
                os.unlink(link)
            try:
                os.link(self.path, link, follow_symlinks=False)
            except (OSError, NotImplementedError):
                # Not every file system has hard links. For a moment there is no last one then.
                os.replace(self.path, self.previous)
            else:
                os.replace(link, self.previous)
        except OSError:
            return False
        return True

    def drop_previous(self) -> bool:
        """Remove the previous file, for its room; whether there was one."""
        self._needed_before = frozenset()
        try:
            os.unlink(self.previous)
        except OSError:
            return False
        return True

    def note_restored(self, index: dict[str, Any], *, from_previous: bool) -> None:
        """Take note of what was restored from.

        Args:
            index: that file's.
            from_previous: whether the last one could not be read.
        """
        if from_previous:
            self._needed_before = _files(index)
            return
        self._needed = _files(index)
        self._stamp = _stamp(self.path)
        try:
            with open_regular(self.previous) as file:
                self._needed_before = _files(read_index(file, whole=False))
        except Exception:
            # It is not there, or is of no use: then nothing needs to be kept for it.
            self._needed_before = frozenset()


def _files(index: dict[str, Any]) -> frozenset[str]:
    return frozenset(index["files"])


def _stamp(path: str) -> tuple[int, int, int] | None:
    """What a file that somebody has written to since would not have any more."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
