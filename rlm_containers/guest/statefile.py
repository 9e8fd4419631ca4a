"""The form of ``state.dill``, version 1, one after the other:

* the records, each a pickle, see :mod:`rlm_guest.checkpoint`;
* the index: a pickle of a string of JSON, an object with ``format``, ``python``, ``records`` (the
  name, offset, type, and number of objects before it, of each) and ``unsaved`` (name, type and
  reason of each variable that could not be saved);
* 28 bytes: the offset of the index (8 bytes, big-endian), the length of everything before these
  28 bytes (8), its CRC-32 (4), and the magic ``RLMSTAT1``.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import zlib
from typing import Any, BinaryIO

__all__ = ["Sink", "Source", "SpoolFile", "StateFileError", "read_index", "write_index"]

FORMAT = 1
_MAGIC = b"RLMSTAT1"
_TRAILER = 28

#: Bytes of a new file that are kept in memory until it is known to be needed.
_SPOOL_SIZE = 1024 * 1024


class StateFileError(Exception):
    """The file is not a state file, or not whole."""


def write_index(sink: Sink, records: list[list[Any]], unsaved: list[list[str]]) -> None:
    """Write what follows after the records."""
    offset = sink.length
    index = {
        "format": FORMAT,
        "python": list(sys.version_info[:3]),
        "records": records,
        "unsaved": unsaved,
    }
    # As JSON inside of a pickle: whoever reads it need not trust it.
    sink.write(pickle.dumps(json.dumps(index)))
    trailer = offset.to_bytes(8, "big") + sink.length.to_bytes(8, "big")
    sink.write(trailer + sink.checksum.to_bytes(4, "big") + _MAGIC)


def read_index(file: io.BufferedReader) -> dict[str, Any]:
    """Check the whole file and return its index.

    Raises:
        StateFileError: something in it is missing or is not what was written.
    """
    size = file.seek(0, os.SEEK_END)
    if size < _TRAILER:
        raise StateFileError("it is only {} bytes long".format(size))
    file.seek(size - _TRAILER)
    trailer = file.read(_TRAILER)
    offset = int.from_bytes(trailer[:8], "big")
    length = int.from_bytes(trailer[8:16], "big")
    checksum = int.from_bytes(trailer[16:20], "big")
    if trailer[20:] != _MAGIC or length != size - _TRAILER or offset > length:
        raise StateFileError("its end is missing")
    file.seek(0)
    found = 0
    left = length
    while left:
        chunk = file.read(min(left, 1 << 20))
        found = zlib.crc32(chunk, found)
        left -= len(chunk)
    if found != checksum:
        raise StateFileError("its checksum does not match")
    file.seek(offset)
    index: dict[str, Any] = json.loads(pickle.load(file))
    if index["format"] != FORMAT:
        raise StateFileError("it has format {}, not {}".format(index["format"], FORMAT))
    return index


class SpoolFile:
    """A new file, of which little is kept in memory and which only :meth:`commit` makes last.

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

    def commit(self, path: str) -> None:
        """Give the file its name, in place of the one that has it."""
        self._spill()
        self.file.close()
        os.replace(self.path, path)
        self.file = io.BytesIO()

    def _spill(self) -> None:
        if isinstance(self.file, io.BytesIO):
            contents = self.file.getvalue()
            self.file = open(self.path, "w+b")  # noqa: SIM115
            self.file.write(contents)


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
