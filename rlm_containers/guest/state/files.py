"""The form of ``state.dill``, version 2, and the pair of files that a session is saved in.

A state file consists of:

* the records, one pickle for each variable, see :mod:`rlm_guest.state.checkpoint`;
* the index: a pickle of a string of JSON, which is an object with

  * ``python``: the version of the interpreter, three numbers;
  * ``records``: for each record the name, its offset, the type, the number of objects in the
    pickler's memo before it, and the CRC-32 of the file up to its end;
  * ``unsaved``: name, type and reason of each variable that could not be saved;
  * ``files``: the names of the workspace's files that the records refer to;
  * ``superseded``: the names of loaded files to remove once no state file refers to them;

* 32 bytes: the offset of the index (8 bytes, big-endian), the length of everything before these
  32 bytes (8), its CRC-32 (4), the CRC-32 of the index alone (4), ``RLMSTAT``, and the version as
  one digit.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import stat
import sys
import zlib
from typing import Any, BinaryIO

from .. import wire

FORMAT = 2
_MAGIC = b"RLMSTAT"
_TRAILER = 32

#: The most bytes of a new file that are kept in memory.
_SPOOL_SIZE = 1024 * 1024


class StateFileError(Exception):
    """The file is not a state file, or is not whole."""


def write_index(sink: Sink, **index: Any) -> None:
    """Write what follows the records: the index, as described above, and the last 32 bytes."""
    offset = sink.length
    index["python"] = list(sys.version_info[:3])
    # JSON inside a pickle, so that a reader needs no more than pickle's reader of strings.
    raw = pickle.dumps(json.dumps(index))
    sink.write(raw)
    trailer = offset.to_bytes(8, "big") + sink.length.to_bytes(8, "big")
    trailer += sink.checksum.to_bytes(4, "big") + zlib.crc32(raw).to_bytes(4, "big")
    sink.write(trailer + _MAGIC + b"%d" % FORMAT)


def open_regular(path: str) -> io.BufferedReader:
    """Open a file for reading. Do not wait for a writer if a cell has put a FIFO there.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("{} is not a regular file".format(os.path.basename(path)))
    return os.fdopen(descriptor, "rb")


def read_index(file: io.BufferedReader, *, whole: bool = True) -> dict[str, Any]:
    """Check a state file and return its index.

    Args:
        file: the file.
        whole: check the whole file, not only the index.

    Raises:
        StateFileError: a part is missing or damaged.
    """
    size = file.seek(0, os.SEEK_END)
    if size < _TRAILER:
        raise StateFileError("it is only {} bytes long".format(size))
    file.seek(size - _TRAILER)
    trailer = file.read(_TRAILER)
    if trailer[24:31] != _MAGIC:
        raise StateFileError("its end is missing")
    version = trailer[31:].decode("ascii", "replace")
    if version != str(FORMAT):
        raise StateFileError("it has format {}, and this is for format {}".format(version, FORMAT))
    offset = int.from_bytes(trailer[:8], "big")
    length = int.from_bytes(trailer[8:16], "big")
    if length != size - _TRAILER or offset > length:
        raise StateFileError("a part of it is missing")
    if whole and _checksum(file, 0, length) != int.from_bytes(trailer[16:20], "big"):
        raise StateFileError("its checksum does not match")
    if _checksum(file, offset, length) != int.from_bytes(trailer[20:24], "big"):
        raise StateFileError("its index is damaged")
    file.seek(offset)
    index: dict[str, Any] = json.loads(pickle.load(file))
    return index


def _checksum(file: io.BufferedReader, start: int, end: int) -> int:
    file.seek(start)
    checksum = 0
    while start < end:
        chunk = file.read(min(end - start, 1 << 20))
        if not chunk:
            raise StateFileError("it became shorter while it was read")
        checksum = zlib.crc32(chunk, checksum)
        start += len(chunk)
    return checksum


class SpoolFile:
    """A new file that stays in memory until it is large or is known to be needed.

    Most checkpoints are small, and many turn out to be the same as the last: they cost no system
    call.

    Args:
        path: its temporary name on the disk.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.file: io.BytesIO | io.BufferedRandom = io.BytesIO()

    def __enter__(self) -> SpoolFile:
        return self

    def __exit__(self, *exc: object) -> None:
        if not isinstance(self.file, io.BytesIO):
            self.file.close()
            try:
                os.unlink(self.path)
            except OSError:
                pass

    def write(self, data: bytes) -> None:
        if isinstance(self.file, io.BytesIO) and self.file.tell() > _SPOOL_SIZE:
            self._move_to_disk()
        self.file.write(data)

    def truncate(self, length: int) -> None:
        """Remove everything after the first ``length`` bytes."""
        self.file.seek(length)
        self.file.truncate()

    def finish(self) -> None:
        """Write everything to the disk, under the temporary name."""
        self._move_to_disk()
        self.file.close()

    def rename(self, path: str) -> None:
        """Give the finished file its final name. Replace the file that has that name."""
        os.replace(self.path, path)
        self.file = io.BytesIO()

    def _move_to_disk(self) -> None:
        if isinstance(self.file, io.BytesIO):
            contents = self.file.getvalue()
            self.file = _create(self.path)
            self.file.write(contents)


def _create(path: str) -> io.BufferedRandom:
    """Create a file. Never write to what an earlier worker or a cell left under that name."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except FileExistsError:
        os.unlink(path)
        descriptor = os.open(path, flags, 0o666)
    return os.fdopen(descriptor, "w+b")


class Sink:
    """What the pickler writes to. Counts and checksums the bytes, and can undo writes.

    Attributes:
        length: bytes written.
        checksum: their CRC-32.
        failed: whether a write has failed.
    """

    def __init__(self, file: SpoolFile) -> None:
        self.file = file
        self.length = 0
        self.checksum = 0
        self.failed = False

    def write(self, data: bytes) -> int:
        try:
            self.file.write(data)
        except OSError:
            self.failed = True
            raise
        size = memoryview(data).nbytes
        self.length += size
        self.checksum = zlib.crc32(data, self.checksum)
        return size

    def mark(self) -> tuple[int, int]:
        """Return the present position, for :meth:`rewind`."""
        return self.length, self.checksum

    def rewind(self, mark: tuple[int, int]) -> None:
        """Undo what was written after that position."""
        self.length, self.checksum = mark
        self.file.truncate(self.length)


class Source:
    """What the unpickler reads from.

    It has no method ``peek``, so the unpickler never reads past the end of a record. ``file`` may
    be replaced between two records.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def read(self, size: int) -> bytes:
        return self.file.read(size)

    def readline(self) -> bytes:
        return self.file.readline()

    def readinto(self, buffer: Any) -> int:
        count: int = self.file.readinto(buffer)  # type: ignore[attr-defined]
        return count


class StatePair:
    """The last state file, ``state.dill``, and the one before it, ``state.dill.previous``.

    If the last one is damaged, by the disk or by a cell, the session falls back to the previous
    one. Nothing is written twice: right before a new file replaces ``state.dill``, a hard link
    gives the old one its second name. So both names have a whole file at any moment.

    Args:
        directory: where the two are, or will be.

    Attributes:
        path: the last one.
        previous: the one before it.
    """

    def __init__(self, directory: str) -> None:
        self.path = os.path.join(directory, wire.STATE)
        self.previous = os.path.join(directory, wire.PREVIOUS_STATE)
        # The files of the workspace that each of the two refers to.
        self._needed_by_last: frozenset[str] = frozenset()
        self._needed_by_previous: frozenset[str] = frozenset()
        # Identifies the file at `path` that was written or read here, and so is known to be whole.
        self._stamp: tuple[int, int, int] | None = None

    @property
    def needed(self) -> frozenset[str]:
        """The files of the workspace that one of the two refers to. They must stay."""
        return self._needed_by_last | self._needed_by_previous

    def is_untouched(self) -> bool:
        """Return whether the last file is still the one that was written or read here."""
        return self._stamp is not None and self._stamp == _stamp(self.path)

    def commit(self, file: SpoolFile, needed: frozenset[str]) -> None:
        """Make a new file the last one, and the last one the previous one.

        If somebody else has changed the last one, discard it and keep the previous one.

        Args:
            file: the new file.
            needed: the files of the workspace that it refers to.

        Raises:
            OSError: it could not be written. The last file stays.
        """
        file.finish()
        if self.is_untouched() and self._keep_last():
            self._needed_by_previous = self._needed_by_last
        file.rename(self.path)
        self._needed_by_last = needed
        self._stamp = _stamp(self.path)

    def _keep_last(self) -> bool:
        """Make the last file the previous one too. Return whether that worked; it need not."""
        link = self.previous + wire.UNFINISHED
        try:
            if os.path.lexists(link):
                os.unlink(link)
            try:
                os.link(self.path, link, follow_symlinks=False)
            except (OSError, NotImplementedError):
                # This file system has no hard links. For a moment there is no last file.
                os.replace(self.path, self.previous)
            else:
                os.replace(link, self.previous)
        except OSError:
            return False
        return True

    def drop_previous(self) -> bool:
        """Remove the previous file to free its space. Return whether there was one."""
        self._needed_by_previous = frozenset()
        try:
            os.unlink(self.previous)
        except OSError:
            return False
        return True

    def note_restored(self, index: dict[str, Any], *, from_previous: bool) -> None:
        """Remember which file the variables were restored from.

        Args:
            index: the index of that file.
            from_previous: whether it is the previous one.
        """
        if from_previous:
            self._needed_by_previous = frozenset(index["files"])
            return
        self._needed_by_last = frozenset(index["files"])
        self._stamp = _stamp(self.path)
        try:
            with open_regular(self.previous) as file:
                self._needed_by_previous = frozenset(read_index(file, whole=False)["files"])
        except Exception:  # missing or damaged, so it needs no files
            self._needed_by_previous = frozenset()


def _stamp(path: str) -> tuple[int, int, int] | None:
    """Return what changes when somebody writes to a file or replaces it."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
