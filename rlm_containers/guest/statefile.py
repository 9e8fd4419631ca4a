"""The form of ``state.dill``, version 2, one after the other:

* the records, each a pickle, see :mod:`rlm_guest.checkpoint`;
* the index: a pickle of a string of JSON, an object with

  * ``python``: the version of the interpreter, three numbers;
  * ``records``: of each the name, offset, type, number of objects before it, and the CRC-32 of the
    file up to its end;
  * ``unsaved``: name, type and reason of each variable that could not be saved;
  * ``files``: the names of the workspace's files that the records refer to;
  * ``superseded``: those of loaded files that may go once no state file refers to them;

* 32 bytes: the offset of the index (8 bytes, big-endian), the length of everything before these
  32 bytes (8), its CRC-32 (4), that of the index alone (4), ``RLMSTAT`` and the version, one
  digit.
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

FORMAT = 2
_MAGIC = b"RLMSTAT"
_TRAILER = 32

#: Bytes of a new file that are kept in memory until it is known to be needed.
_SPOOL_SIZE = 1024 * 1024


class StateFileError(Exception):
    """The file is not a state file, or not whole."""


def write_index(sink: Sink, **index: Any) -> None:
    """Write what follows after the records: the index, whose parts the module describes."""
    offset = sink.length
    index["python"] = list(sys.version_info[:3])
    # As JSON inside of a pickle: whoever reads it need not trust it.
    raw = pickle.dumps(json.dumps(index))
    sink.write(raw)
    trailer = offset.to_bytes(8, "big") + sink.length.to_bytes(8, "big")
    trailer += sink.checksum.to_bytes(4, "big") + zlib.crc32(raw).to_bytes(4, "big")
    sink.write(trailer + _MAGIC + b"%d" % FORMAT)


def open_regular(path: str) -> io.BufferedReader:
    """Open a file to read it. A cell may have put a FIFO there, which one would wait for.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("{} is no regular file".format(os.path.basename(path)))
    return os.fdopen(descriptor, "rb")


def read_index(file: io.BufferedReader, *, whole: bool = True) -> dict[str, Any]:
    """Check a state file and return its index.

    Args:
        file: the file.
        whole: check all of it, and not the index alone.

    Raises:
        StateFileError: something in it is missing or is not what was written.
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
    found = 0
    while start < end:
        chunk = file.read(min(end - start, 1 << 20))
        if not chunk:
            raise StateFileError("it becomes shorter while it is read")
        found = zlib.crc32(chunk, found)
        start += len(chunk)
    return found


class SpoolFile:
    """A new file, the beginning of which is kept in memory until it is known to be needed.

    Most checkpoints are small, and many are not needed: those cost no system call.
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
            self._spill()
        self.file.write(data)

    def cut(self, length: int) -> None:
        """Take back everything after the first ``length`` bytes."""
        self.file.seek(length)
        self.file.truncate()

    def settle(self) -> None:
        """Have all of it on disk, under its own name. Nothing can be written to it any more."""
        self._spill()
        self.file.close()

    def commit(self, path: str) -> None:
        """Give the settled file its name, in place of the one that has it."""
        os.replace(self.path, path)
        self.file = io.BytesIO()

    def _spill(self) -> None:
        if isinstance(self.file, io.BytesIO):
            contents = self.file.getvalue()
            self.file = _create(self.path)
            self.file.write(contents)


def _create(path: str) -> io.BufferedRandom:
    """A new file. What an earlier worker or a cell has left under the name is not written to."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except FileExistsError:
        os.unlink(path)
        descriptor = os.open(path, flags, 0o666)
    return os.fdopen(descriptor, "w+b")


class Sink:
    """What the pickler writes to: a file with a checksum, that can be taken back."""

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
        return self.length, self.checksum

    def rewind(self, mark: tuple[int, int]) -> None:
        self.length, self.checksum = mark
        self.file.cut(self.length)


class Source:
    """What the unpickler reads from.

    Without a method ``peek`` it never reads past the record that it was sent to. ``file`` may be
    exchanged between records.
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
