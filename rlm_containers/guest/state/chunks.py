"""The chunks of large state files.

A checkpoint must not write again what has not changed. So the long records of a state file are not
in ``state.dill`` itself but in *chunks*: files of at most 1 MB below ``.blobs``, each named by the
hash of its contents. A chunk that is there already is not written again, and state files share the
chunks that they have in common.

A chunk has a part of one record, or some whole records. So a record that becomes longer does not
move the bytes of other records to other chunks.
"""

from __future__ import annotations

import bisect
import io
import os
import re
import zlib
from typing import Any, BinaryIO, NamedTuple

from .. import wire
from .disk import create, flush_file, flush_path, open_regular, remove

#: Bytes of a whole chunk.
CHUNK_SIZE = 1024 * 1024

#: The fewest bytes that get a chunk. Fewer stay in the state file.
_LEAST_SIZE = 64 * 1024

_CHUNK_NAME = re.compile(r"[0-9a-f]{64}\.chunk")


class StateFileError(Exception):
    """The file is not a state file, or is not whole."""


class Chunk(NamedTuple):
    """A chunk of a state file.

    Attributes:
        offset: its place in the whole, which is the state file with its chunks.
        size: bytes.
        file: its path in the workspace.
    """

    offset: int
    size: int
    file: str


class ChunkStore:
    """The chunks in a workspace.

    Args:
        directory: the workspace.
        durable: whether chunks must survive a power failure after :meth:`flush`.
    """

    def __init__(self, directory: str, *, durable: bool = False) -> None:
        self._directory = directory
        self._durable = durable
        self._has_new = False  # whether there are chunks that flush() has not seen
        self._has_any = True  # whether there may be chunks

    def find_files(self) -> None:
        """Note that another process may have written chunks."""
        self._has_any = True

    def add(self, contents: bytes) -> str:
        """Return the path of the chunk with these contents. Write it unless it is there.

        Raises:
            OSError: it could not be written.
        """
        file = "{}/{}.chunk".format(wire.BLOBS, _hash(contents))
        path = os.path.join(self._directory, file)
        self._has_any = True
        try:
            # Its contents are not compared: a cell that changes it damages only its own state.
            if os.stat(path, follow_symlinks=False).st_size == len(contents):
                return file
        except OSError:
            pass
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self._has_new = True
        try:
            with create(path + wire.UNFINISHED) as chunk:
                chunk.write(contents)
                if self._durable:
                    flush_file(chunk)
            os.replace(path + wire.UNFINISHED, path)
        except BaseException:
            remove(path + wire.UNFINISHED)
            raise
        return file

    def read(self, chunk: Chunk) -> bytes:
        """Return the contents of a chunk.

        Raises:
            OSError: it cannot be read.
            StateFileError: it is damaged.
        """
        path = os.path.join(self._directory, chunk.file)
        with open_regular(path) as file:
            contents = file.read(chunk.size + 1)
        if os.path.basename(path) != _hash(contents) + ".chunk":
            remove(path)  # else a later checkpoint would not write it again
            raise StateFileError("{} is damaged".format(chunk.file))
        return contents

    def flush(self) -> None:
        """Write the names of new chunks to the disk. Their contents are there already.

        Raises:
            OSError: it cannot be written.
        """
        if self._durable and self._has_new:
            flush_path(os.path.join(self._directory, wire.BLOBS))
        self._has_new = False

    def sweep(self, needed: frozenset[str]) -> None:
        """Remove the chunks that no state file needs.

        Args:
            needed: the files that a state file refers to.
        """
        if not self._has_any:
            return
        self._has_any = False
        try:
            names = os.listdir(os.path.join(self._directory, wire.BLOBS))
        except OSError:
            return
        for name in filter(_CHUNK_NAME.match, names):
            file = "{}/{}".format(wire.BLOBS, name)
            if file in needed:
                self._has_any = True
            else:
                remove(os.path.join(self._directory, file))


def _hash(contents: bytes) -> str:
    from hashlib import sha256  # late: few states have chunks, and it takes memory

    return sha256(contents).hexdigest()


class _Layout:
    """Where the bytes of the whole are: in the state file itself, or in which chunk."""

    def __init__(self, chunks: list[Chunk]) -> None:
        self._chunks = chunks
        self._offsets = [chunk.offset for chunk in chunks]
        self._sizes = [0]  # of the chunks before each
        for chunk in chunks:
            self._sizes.append(self._sizes[-1] + chunk.size)

    def find(self, position: int) -> tuple[Chunk | None, int, int | None]:
        """Find a byte of the whole.

        Returns:
            Its chunk, ``None`` for the file itself; its place there; and how many bytes follow it
            there, itself included, ``None`` up to the end.
        """
        count = bisect.bisect_right(self._offsets, position)
        if count:
            chunk = self._chunks[count - 1]
            left = chunk.offset + chunk.size - position
            if left > 0:
                return chunk, position - chunk.offset, left
        following = self._offsets[count] - position if count < len(self._offsets) else None
        return None, position - self._sizes[count], following


class WholeFile(io.RawIOBase):
    """Reads a state file and its chunks as one. Errors are those of :meth:`ChunkStore.read`.

    Args:
        file: the state file.
        chunks: its chunks, by their offsets.
        store: where they are.
    """

    def __init__(self, file: BinaryIO, chunks: list[Chunk], store: ChunkStore) -> None:
        self._file = file
        self._layout = _Layout(chunks)
        self._store = store
        self._position = 0
        self._chunk: tuple[Chunk | None, bytes] = (None, b"")  # the last one that was read

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_CUR:
            offset += self._position
        self._position = offset
        return offset

    def readinto(self, buffer: Any) -> int:
        chunk, place, left = self._layout.find(self._position)
        view = memoryview(buffer)[:left]
        if chunk is None:
            self._file.seek(place)
            count: int = self._file.readinto(view)  # type: ignore[attr-defined]
        else:
            if self._chunk[0] != chunk:
                self._chunk = chunk, self._store.read(chunk)
            part = memoryview(self._chunk[1])[place : place + len(view)]
            count = len(part)
            view[:count] = part
        self._position += count
        return count


class NewFile:
    """A new state file. What is not in chunks stays in memory until it is known to be needed.

    Most checkpoints are small, and many turn out to be the same as the last: they cost no system
    call.

    Args:
        path: its temporary name on the disk.
        store: where the chunks are.

    Attributes:
        chunks: its chunks.
    """

    def __init__(self, path: str, store: ChunkStore) -> None:
        self.path = path
        self.chunks: list[Chunk] = []
        self._store = store
        self._own = bytearray()  # all that is not in chunks
        self._in_chunks = 0
        # Where in _own the next chunk begins. None before and after the records, which is not to be
        # in chunks: without it no record can be read.
        self._next: int | None = None
        self._record = 0  # where in _own the present record begins
        self._is_split = False  # whether a chunk has a part of it

    @property
    def own_length(self) -> int:
        """How many bytes are not in chunks."""
        return len(self._own)

    @property
    def own_checksum(self) -> int:
        """The CRC-32 of these."""
        return zlib.crc32(self._own)

    def begin_record(self) -> None:
        """Note that a record begins."""
        self.end_record()
        if self._next is None:
            self._next = len(self._own)
        self._record = len(self._own)

    def end_record(self) -> None:
        """Put the last part of a long record into a chunk, if it is not too short.

        Raises:
            OSError: a chunk could not be written.
        """
        if self._is_split and self._next is not None:
            size = len(self._own) - self._next
            if size >= _LEAST_SIZE:
                self._cut(self._next, size)
            self._next = len(self._own)
        self._is_split = False

    def end_records(self) -> None:
        """Note that no more records follow.

        Raises:
            OSError: a chunk could not be written.
        """
        self.end_record()
        self._next = None

    def write(self, data: bytes) -> None:
        """Append bytes.

        Raises:
            OSError: a chunk could not be written.
        """
        with memoryview(data).cast("B") as view:
            start = 0
            while self._next is not None and start < len(view):
                room = CHUNK_SIZE - (len(self._own) - self._next)
                self._own += view[start : start + room]
                start += room
                if len(self._own) - self._next == CHUNK_SIZE:
                    self._cut_whole(self._next)
            self._own += view[start:]

    def _cut_whole(self, start: int) -> None:
        earlier = self._record - start  # bytes of the records before this one
        if not earlier:
            self._cut(start, CHUNK_SIZE)
            self._is_split = True
        elif earlier >= _LEAST_SIZE:
            self._cut(start, earlier)
        else:
            self._next = self._record

    def _cut(self, start: int, size: int) -> None:
        """Move bytes to a chunk."""
        file = self._store.add(bytes(self._own[start : start + size]))
        self.chunks.append(Chunk(start + self._in_chunks, size, file))
        self._in_chunks += size
        del self._own[start : start + size]
        self._record = start

    def truncate(self, length: int) -> None:
        """Remove everything after the first ``length`` bytes of the whole, where a record began."""
        while self.chunks and self.chunks[-1].offset >= length:
            self._in_chunks -= self.chunks.pop().size
        del self._own[length - self._in_chunks :]
        self._is_split = False
        if self._next is not None:
            self._next = min(self._next, len(self._own)) if length else None

    def read(self, start: int, end: int) -> bytes:
        """Return some of the bytes that were written.

        Raises:
            OSError: a chunk cannot be read.
            StateFileError: a chunk is damaged.
        """
        layout, parts = _Layout(self.chunks), []
        while start < end:
            chunk, place, left = layout.find(start)
            size = end - start if left is None else min(left, end - start)
            contents = self._own if chunk is None else self._store.read(chunk)
            parts.append(contents[place : place + size])
            start += size
        return b"".join(parts)

    def finish(self, *, durable: bool) -> int:
        """Write the file under its temporary name; with ``durable``, until it is on the disk.

        Returns:
            The number of its inode.

        Raises:
            OSError: it could not be written.
        """
        self._store.flush()
        try:
            with create(self.path) as file:
                file.write(self._own)
                if durable:
                    flush_file(file)
                return os.fstat(file.fileno()).st_ino
        except BaseException:
            remove(self.path)
            raise
