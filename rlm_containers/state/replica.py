"""Copies the files of a workspace between a container and a directory of this host."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlm_containers.errors import WorkspaceError
from rlm_containers.guest import wire
from rlm_containers.interpreter import FileCall, FileCalls
from rlm_containers.state.guestfiles import Entry, PipedFile, pieces_of
from rlm_containers.state.nofollow import create_file, give_to, open_below, open_regular
from rlm_containers.state.trees import Node, kind_of, opened, walk
from rlm_containers.state.workspace import Workspace
from runtimes.text import brief

#: The order in which files are copied: a state file refers to others, which come before it.
_LAST = (wire.PREVIOUS_STATE, wire.STATE)

#: Files at least so long are compared block by block, in bytes.
_LONG = 2 * wire.BLOCK

#: Bytes of requests for files that may be under way: the guest must not wait for the host to read
#: while the host waits for the guest to do so.
_UNDER_WAY = wire.WINDOW // 2

#: In place of the time of a file's last change, if the directory may not have it whole.
_UNKNOWN = -1


def send_all(call: FileCall, workspace: Workspace) -> dict[str, Node]:
    """Send all files of a directory to a container.

    Args:
        call: an operation ``put``, which ends with this.
        workspace: the directory.

    Returns:
        What was sent, by path.

    Raises:
        OSError, WorkspaceError: something cannot be read or written.
    """
    sent = {}
    with workspace.directory() as top:
        for node, directory in walk(top):
            if node.kind != "other":
                _send(call, node, directory)
                sent[node.path] = node
    call.send(wire.END)
    call.finish()
    return sent


def _send(call: FileCall, node: Node, directory: int) -> None:
    """Send a node, whose directory is given."""
    fields: dict[str, Any] = {
        "path": node.path.split("/"),
        "kind": node.kind,
        "mode": node.mode,
        "modified": node.modified,
    }
    if node.kind == "symlink":
        fields["target"] = os.readlink(node.name, dir_fd=directory)
    call.send_node(**fields)
    if node.kind == "file":
        with opened(node, directory) as file:
            while data := os.read(file, wire.BLOCK):
                call.send(wire.DATA, data)
        call.send(wire.END)


def send_data(call: FileCall, chunk: bytes) -> int:
    """Send a chunk of a file, of any length. Return its length."""
    view = memoryview(chunk).cast("B")
    for start in range(0, len(view), wire.BLOCK):
        call.send(wire.DATA, view[start : start + wire.BLOCK])
    return len(view)


class Replica:
    """Brings a directory of this host up to date with the files of a container.

    Args:
        workspace: the directory.
        top: a descriptor of it.
        known: what the directory has, by path. Kept up to date.
    """

    def __init__(self, workspace: Workspace, top: int, known: dict[str, Entry]) -> None:
        self._workspace = workspace
        self._top = top
        self._known = known
        self._is_outdated = False  # a state file is not the one that was found
        self._room = 0  # bytes by which files may have grown since they were found

    def update(self, calls: FileCalls, found: Mapping[str, Entry], room: int) -> bool:
        """Copy what has changed, and remove what is gone.

        Args:
            calls: works on the files of the container.
            found: what the container has, each directory before its contents.
            room: how many bytes more the files may have by now.

        Returns:
            Whether that was all. If a checkpoint was written meanwhile, the state file is still the
            one before, with all that it refers to.

        Raises:
            OSError: the directory cannot be written.
            WorkspaceError: a file of the container cannot be read, or has grown too much.
        """
        self._room = room
        changed = [entry for path, entry in found.items() if self._known.get(path) != entry]
        for entry in changed:
            if entry.node.kind != "file":
                self._make(entry)
        files = [entry for entry in changed if entry.node.kind == "file"]
        files.sort(key=lambda entry: _rank(entry.node.path))
        self._is_outdated = False
        if files:
            with calls.call("get") as call:
                self._fetch(call, files)
        if not self._is_outdated:
            self.drop([path for path in self._known if path not in found])
        for entry in changed:
            if entry.node.kind == "directory":
                # Also one that a cell has locked must be open to the next update.
                with open_below(self._top, entry.node.path.split("/")) as directory:
                    os.fchmod(directory, entry.node.mode | 0o700)
                    os.utime(directory, ns=(entry.node.modified, entry.node.modified))
        return not self._is_outdated

    def drop(self, paths: Iterable[str]) -> None:
        """Remove what the container no longer has."""
        for path in paths:
            with contextlib.suppress(WorkspaceError):
                self._workspace.discard(path)
            del self._known[path]

    def _make(self, entry: Entry) -> None:
        """Make a directory or a link."""
        path, ids = entry.node.path, self._workspace.ids
        self._begin(entry)
        self._clear(path, entry.node.kind)
        *above, name = path.split("/")
        with open_below(self._top, above) as directory:
            if entry.node.kind == "symlink":
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=directory)
                os.symlink(entry.target, name, dir_fd=directory)
            else:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=directory)
            give_to(ids, name, directory)
        self._known[path] = entry

    def _begin(self, entry: Entry) -> None:
        """Note that this directory may have something of that path from now on, but not what."""
        self._known[entry.node.path] = replace(entry, changed=_UNKNOWN)

    def _clear(self, path: str, kind: str) -> None:
        """Remove what has the path, if it is of another kind."""
        *above, name = path.split("/")
        with open_below(self._top, above) as directory:
            try:
                found = os.stat(name, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                return
        if kind_of(found.st_mode) != kind:
            self._workspace.discard(path)

    def _fetch(self, call: FileCall, entries: Sequence[Entry]) -> None:
        """Fetch files, of each only the blocks that this directory does not have."""
        waiting: deque[_Wanted] = deque()
        under_way = 0
        for entry in entries:
            wanted = self._wanted(entry)
            while waiting and under_way + wanted.cost > _UNDER_WAY:
                under_way -= waiting[0].cost
                self._receive(call, waiting.popleft())
            waiting.append(wanted)
            under_way += wanted.cost
            call.send_node(path=entry.node.path.split("/"), blocks=wanted.blocks)
        call.send(wire.END)
        while waiting:
            self._receive(call, waiting.popleft())
        call.finish()

    def _wanted(self, entry: Entry) -> _Wanted:
        """Return a file to ask for, with the blocks of the old one if both are long."""
        if entry.node.path not in self._known or entry.node.size < _LONG:
            return _Wanted(entry)
        digests = []
        with self._opened(entry.node.path) as old:
            while old >= 0 and (block := os.read(old, wire.BLOCK)):
                digests.append(hashlib.sha256(block).hexdigest())
        return _Wanted(entry, "".join(digests))

    @contextlib.contextmanager
    def _opened(self, path: str) -> Iterator[int]:
        """Open a file of this directory for reading. Yield a descriptor; -1 if there is none."""
        *above, name = path.split("/")
        try:
            with open_below(self._top, above) as directory:
                file = open_regular(directory, name)
        except (FileNotFoundError, NotADirectoryError, WorkspaceError):
            yield -1
            return
        try:
            yield file
        finally:
            os.close(file)

    def _receive(self, call: FileCall, wanted: _Wanted) -> None:
        """Receive a file, and put it in the place of the old one."""
        node = wanted.entry.node
        *above, name = node.path.split("/")
        try:
            file = PipedFile(call, node.path)
        except OSError as error:
            if error.errno == errno.ENOENT:  # it was removed meanwhile
                return
            raise WorkspaceError(
                f"{brief(node.path)} in the workspace cannot be read: {error.strerror}.",
                remedy="If a cell has locked it, os.chmod() in a cell can unlock it.",
                errno=error.errno,
            ) from None
        self._room -= max(0, file.size - node.size)
        if self._room < 0:
            raise WorkspaceError(
                f"{brief(node.path)} in the workspace grew while it was copied, and there is no "
                "room for it on this host.",
                remedy="Stop what writes to it, or make room.",
            )
        with self._opened(node.path) if wanted.blocks else contextlib.nullcontext(-1) as old:
            pieces = pieces_of(call, file.size, old)
            if node.path in _LAST and file.entry != wanted.entry:
                # It may refer to files that were not fetched.
                self._is_outdated = True
                for _ in pieces:
                    pass
                return
            self._begin(file.entry)
            self._clear(node.path, "file")
            durable = self._workspace.durable
            with open_below(self._top, above) as directory:
                size = create_file(directory, name, pieces, self._workspace.ids, durable=durable)
                # The owner on this host must be able to read it.
                os.chmod(name, node.mode | 0o400, dir_fd=directory)
                os.utime(name, ns=(node.modified, node.modified), dir_fd=directory)
        if size == file.size:
            self._known[node.path] = file.entry
        else:  # it became shorter meanwhile
            self._begin(replace(file.entry, node=replace(file.entry.node, size=size)))


@dataclass(frozen=True)
class _Wanted:
    """A file that the guest was asked for.

    Attributes:
        entry: the file.
        blocks: the digests of the blocks of the one that it replaces, as in ``guest.wire``; empty
            if they are not to be compared.
    """

    entry: Entry
    blocks: str = ""

    @property
    def cost(self) -> int:
        """Bytes that the request takes at most."""
        return len(self.blocks) + 8 * len(self.entry.node.path) + 100


def _rank(path: str) -> int:
    return 1 + _LAST.index(path) if path in _LAST else 0
