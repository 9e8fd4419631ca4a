"""What a guest says of the files in its container, checked: anything may come from there."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from rlm_containers.guest import wire
from rlm_containers.interpreter import FileCall
from rlm_containers.state.nofollow import is_link_target, is_plain_path
from rlm_containers.state.trees import Node, kept_time, kind_of

#: The greatest size, the greatest number of an inode, and the greatest mode of a file.
_GREATEST = (1 << 63) - 1
_GREATEST_INODE = (1 << 64) - 1
_GREATEST_MODE = 0o177777


@dataclass(frozen=True)
class Entry:
    """A file, a directory or a link in a container.

    Attributes:
        node: what it is.
        changed: the time of its last change, in nanoseconds, which no program can set.
        inode: its number in its file system.
        target: where a link points to; the host never follows it.
    """

    node: Node
    changed: int
    inode: int
    target: str


class PipedFile:
    """A file that is open for reading, see :class:`OpenedFile`.

    Args:
        call: an operation ``get`` that comes to this file next.
        path: its path.

    Attributes:
        entry: what the file is.

    Raises:
        OSError: it cannot be read.
        WorkspaceError: the guest sends something else.
    """

    def __init__(self, call: FileCall, path: str) -> None:
        self.entry = received_entry(call, path)
        if self.entry.node.kind != "file":
            raise call.broken("It is no file.")
        self._call = call
        self._data = b""
        self._pieces = pieces_of(call, self.size)

    @property
    def size(self) -> int:
        """Bytes that it had when it was opened."""
        return self.entry.node.size

    def read(self, most: int) -> bytes:
        pieces = []
        while most:
            self._data = self._data or next(self._pieces, b"")
            if not self._data:
                break
            piece, self._data = self._data[:most], self._data[most:]
            most -= len(piece)
            pieces.append(piece)
        return b"".join(pieces)

    def copy_to(self, target: int) -> None:
        while data := self.read(wire.BLOCK):
            view = memoryview(data)
            while view:
                view = view[os.write(target, view) :]


def pieces_of(call: FileCall, size: int, old: int = -1) -> Iterator[bytes]:
    """Yield the pieces of a file that the guest sends.

    Args:
        call: receives them.
        size: the most bytes that may come.
        old: a descriptor of the file whose blocks the guest was told of, or -1.

    Raises:
        WorkspaceError: the guest sends something else, or more.
    """
    while True:
        kind, payload = call.receive() or (wire.END, b"")
        if kind == wire.END:
            return
        if kind == wire.SAME and old >= 0:
            payload = os.pread(old, wire.BLOCK, wire.BLOCK * int.from_bytes(payload, "big"))
            call.note_progress(len(payload))
        elif kind != wire.DATA:
            raise call.broken("It is no piece of a file.")
        size -= len(payload)
        if size < 0 or not payload:
            raise call.broken("A file is not as long as it said.")
        yield payload


def received_entry(call: FileCall, path: str) -> Entry:
    """Return the one entry that the guest sends, which must be that of a path.

    Raises:
        WorkspaceError: it sends something else.
    """
    entries = _received(call)
    if entries is None or [entry.node.path for entry in entries] != [path]:
        raise call.broken("It is no file, or another one.")
    return entries[0]


def received_entries(call: FileCall) -> Iterator[Entry]:
    """Yield the entries that the guest sends until it ends.

    Raises:
        WorkspaceError: it sends something else.
    """
    while (entries := _received(call)) is not None:
        yield from entries


def _received(call: FileCall) -> list[Entry] | None:
    """Return the entries in the next record; ``None`` at the end."""
    record = call.receive()
    if record is None:
        return None
    rows = call.load(record[1]) if record[0] == wire.NODES else None
    if not isinstance(rows, list):
        raise call.broken("It is no list of files.")
    entries = [entry for entry in map(_entry, rows) if entry is not None]
    if len(entries) != len(rows):
        raise call.broken("There is something in a list of files that is none.")
    return entries


def _entry(row: object) -> Entry | None:
    """Return what a row of the guest's says; ``None`` if it says nothing that can be."""
    match row:
        case [
            str(path),
            int(mode),
            int(size),
            int(blocks),
            int(modified),
            int(changed),
            int(inode),
            int(links),
            target,
        ]:
            pass
        case _:
            return None
    sizes = (size, blocks, links, abs(modified), abs(changed))
    if not (
        all(0 <= number <= _GREATEST for number in sizes)
        and 0 <= mode <= _GREATEST_MODE
        and 0 <= inode <= _GREATEST_INODE
        and (path == "." or is_plain_path(path))
    ):
        return None
    kind = kind_of(mode)
    if kind == "symlink":
        if not is_link_target(target):
            return None
    elif target is not None:
        return None
    node = Node(
        path=path,
        kind=kind,
        mode=stat.S_IMODE(mode) & 0o777,
        size=size,
        holes=max(0, size - blocks * 512) if kind == "file" else 0,
        modified=kept_time(modified),
        ids=(-1, -1),
    )
    return Entry(node, changed, inode, target or "")
