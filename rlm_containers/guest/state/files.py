"""The form of ``state.dill``, version 4, and the pair of files that the variables are saved in.

A state file consists of:

* the prelude, the records, one pickle for each variable, and the sources of cells, see
  :mod:`rlm_guest.state.records`;
* what cells have set beside their variables, see :mod:`rlm_guest.settings`;
* the index: a pickle of a string of JSON, which is an object with

  * ``python``: the version of the interpreter, three numbers;
  * ``records``: for each record the name, its offset, the type, the number of objects in the
    pickler's memo before it, and the CRC-32 of the file up to its end;
  * ``sources``: the offset of the sources;
  * ``settings``: offset and length of the settings, or nothing;
  * ``objects``: the number of objects in the memo at the end;
  * ``unsaved``: name, type and reason of each variable that could not be saved;
  * ``files``: the names of the workspace's files that the records refer to;
  * ``superseded``: the names of loaded files to remove once no state file refers to them;
  * ``chunks``: offset, size and file of each chunk, see :mod:`rlm_guest.state.chunks`. The bytes in
    chunks are not in this file, but all offsets and checksums above count them;

* 32 bytes: the offset of the index (8 bytes, big-endian), the length of everything before these
  32 bytes (8), its CRC-32 (4), the CRC-32 of the index alone (4), ``RLMSTAT``, and the version as
  one digit.

Version 3 has no chunks. Version 2 has no prelude and no sources either, see
:mod:`rlm_guest.state.earlier`.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import zlib
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

from .. import wire
from .chunks import Chunk, NewFile, StateFileError
from .disk import flush_path, open_regular

FORMAT = 4
#: The formats that can be read.
READABLE = (2, 3, FORMAT)
_MAGIC = b"RLMSTAT"
_TRAILER = 32


def write_index(sink: Sink, file: NewFile, **index: Any) -> dict[str, Any]:
    """Write what follows the records: the index, as described above, and the last 32 bytes.

    Returns:
        The index.
    """
    offset = file.own_length
    index["python"] = list(sys.version_info[:3])
    index["chunks"] = file.chunks
    # JSON inside a pickle, so that a reader needs no more than pickle's reader of strings.
    raw = pickle.dumps(json.dumps(index))
    sink.write(raw)
    trailer = offset.to_bytes(8, "big") + file.own_length.to_bytes(8, "big")
    trailer += file.own_checksum.to_bytes(4, "big") + zlib.crc32(raw).to_bytes(4, "big")
    sink.write(trailer + _MAGIC + b"%d" % FORMAT)
    return index


def needed_files(index: dict[str, Any]) -> frozenset[str]:
    """Return the files of the workspace that a state file refers to, by its index."""
    return frozenset(index["files"]).union(chunk.file for chunk in index["chunks"])


def read_index(file: io.BufferedReader, *, whole: bool = True) -> dict[str, Any]:
    """Check a state file and return its index. Its chunks are checked when they are read.

    Args:
        file: the file.
        whole: check the whole file, not only the index.

    Returns:
        The index, with ``chunks`` as a list of :class:`Chunk`, and the version of the file under
        ``format``.

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
    if version not in map(str, READABLE):
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
    if (version == "2") == ("objects" in index):
        raise StateFileError("its version is damaged")
    chunks = [Chunk(*chunk) for chunk in index.get("chunks", ())]
    return {**index, "chunks": chunks, "format": int(version)}


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


class Sink:
    """What the pickler writes to. Counts and checksums the bytes, and can undo writes.

    Args:
        file: where the bytes go; ``None`` if only their length and checksum are wanted.
        on_write: called after each write.

    Attributes:
        length: bytes written.
        checksum: their CRC-32.
        longest: bytes of the longest write since somebody has set this to 0.
        failed: whether a write has failed.
        aside: collects what is written meanwhile and does not belong to the file.
    """

    def __init__(self, file: NewFile | None, on_write: Callable[[], None] = lambda: None) -> None:
        self.file = file
        self._on_write = on_write
        self.length = 0
        self.checksum = 0
        self.longest = 0
        self.failed = False
        self.aside: list[bytes] | None = None

    def write(self, data: bytes) -> int:
        size = memoryview(data).nbytes
        if self.aside is not None:
            self.aside.append(bytes(data))
            return size
        try:
            if self.file is not None:
                self.file.write(data)
        except OSError:
            self.failed = True
            raise
        self.length += size
        self.checksum = zlib.crc32(data, self.checksum)
        self.longest = max(self.longest, size)
        self._on_write()
        return size

    def mark(self) -> tuple[int, int]:
        """Return the present position, for :meth:`rewind`."""
        return self.length, self.checksum

    def rewind(self, mark: tuple[int, int]) -> None:
        """Undo what was written after that position."""
        self.length, self.checksum = mark
        if self.file is not None:
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

    If the last one is damaged, by the disk or by a cell, a restore falls back to the previous
    one. Nothing is written twice: right before a new file replaces ``state.dill``, a hard link
    gives the old one its second name. So both names have a whole file at any moment.

    Args:
        directory: where the two are, or will be.
        durable: whether a new file must survive a power failure once :meth:`commit` returns.

    Attributes:
        path: the last one.
        previous: the one before it.
    """

    def __init__(self, directory: str, *, durable: bool = False) -> None:
        self._directory = directory
        self._durable = durable
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

    @property
    def inode(self) -> int:
        """The number of the last file's inode; 0 if it is not known."""
        return self._stamp[0] if self._stamp is not None else 0

    def export(self) -> tuple[Any, ...]:
        """Return what :meth:`adopt` takes, in plain values."""
        return self._needed_by_last, self._needed_by_previous, self._stamp

    def adopt(self, news: tuple[Any, ...]) -> None:
        """Take over what another process knows that has written to the same directory."""
        self._needed_by_last, self._needed_by_previous, self._stamp = news

    def commit(
        self, file: NewFile, needed: frozenset[str], replacing: Callable[[int], None]
    ) -> None:
        """Make a new file the last one, and the last one the previous one.

        If somebody else has changed the last one, discard it and keep the previous one.

        Args:
            file: the new file.
            needed: the files of the workspace that it refers to.
            replacing: called with the number of its inode, before it becomes the last file.

        Raises:
            OSError: it could not be written. The last file stays.
        """
        inode = file.finish(durable=self._durable)
        if self.is_untouched() and self._keep_last():
            self._needed_by_previous = self._needed_by_last
        replacing(inode)
        os.replace(file.path, self.path)
        self._needed_by_last = needed
        self._stamp = _stamp(self.path)
        if self._durable:
            flush_path(self._directory)

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

    def look(self) -> None:
        """Find out which files another process has written."""
        self._stamp = None
        self._needed_by_last = frozenset()
        try:
            with open_regular(self.path) as file:
                index = read_index(file, whole=False)
        except Exception:  # there is none, or it is damaged
            return
        self.note_restored(index, from_previous=False)

    def note_restored(self, index: dict[str, Any], *, from_previous: bool) -> None:
        """Remember which file the variables were restored from.

        Args:
            index: the index of that file.
            from_previous: whether it is the previous one.
        """
        needed = needed_files(index)
        if self._durable:
            self._flush(needed, from_previous=from_previous)
        if from_previous:
            self._needed_by_previous = needed
            return
        self._needed_by_last = needed
        self._stamp = _stamp(self.path)
        try:
            with open_regular(self.previous) as file:
                self._needed_by_previous = needed_files(read_index(file, whole=False))
        except Exception:  # missing or damaged, so it needs no files
            self._needed_by_previous = frozenset()

    def _flush(self, files: Iterable[str], *, from_previous: bool) -> None:
        """Write what an earlier worker has left to the disk: it need not have done so."""
        paths = [os.path.join(self._directory, file) for file in files]
        for path in (self.previous if from_previous else self.path, *paths, self._directory):
            try:
                flush_path(path)
            except OSError:  # a file that is missing is reported as a lost variable
                pass


def _stamp(path: str) -> tuple[int, int, int] | None:
    """Return what changes when somebody writes to a file or replaces it."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
