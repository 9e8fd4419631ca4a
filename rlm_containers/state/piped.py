"""A workspace whose files the host reaches through the pipe only.

The container has them in memory or on the engine's disk. The host has a directory for them as well,
the *replica*, which has the form of any other workspace: so sessions, snapshots and forks are the
same for both. The replica has the files as they were at the last :meth:`PipedWorkspace.pull`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rlm_containers.errors import SessionError, WorkspaceError, format_size, host_errors
from rlm_containers.guest import wire
from rlm_containers.interpreter import FileCall, FileCalls, Pipe
from rlm_containers.state.files import IN_THE_WAY, Name, explained
from rlm_containers.state.guestfiles import Entry, PipedFile, received_entries, received_entry
from rlm_containers.state.nofollow import directory_parts, free_space, relative_parts
from rlm_containers.state.replica import Replica, send_all, send_data
from rlm_containers.state.space import Free, Space, Usage
from rlm_containers.state.trees import MAX_DEPTH, MAX_NODES, Node, TreeBounds
from rlm_containers.state.workspace import Workspace

#: How often to begin anew because a checkpoint was written meanwhile.
_PULLS = 5

#: Files of the guest that are being written.
_UNFINISHED = (wire.STATE + wire.UNFINISHED, wire.PREVIOUS_STATE + wire.UNFINISHED, wire.HELLO)


class PipedWorkspace:
    """The files in a container, see :class:`WorkspaceFiles`.

    Args:
        replica: the directory of this host.
        calls: works on the files in the container.
        most: the most bytes that the files may have together, for the replica's sake; ``None`` if
            only the disk limits them.

    Attributes:
        space: how much the files may take; ``None`` if they are not limited, or by the kernel.
    """

    def __init__(self, replica: Workspace, calls: FileCalls, most: int | None) -> None:
        self.durable = replica.durable
        self.space: Space | None = None
        self._replica = replica
        self._calls = calls
        self._most = most
        self._lock = threading.RLock()
        # What the replica has, as the guest has described it.
        self._known: dict[str, Entry] = {}
        # The container that has all that it should have of the replica's files.
        self._filled: Pipe | None = calls.pipe

    # Single files

    def write(self, name: Name, chunks: Iterable[bytes], *, mode: int = 0o600) -> int:
        parts = relative_parts(name)
        size = 0
        if self.space is not None:
            chunks = self.space.admit("/".join(parts), chunks)
        with self._call("put", parts, "could not be written into", IN_THE_WAY) as call:
            call.send_node(path=parts, kind="file", mode=mode, modified=None)
            for chunk in chunks:
                size += send_data(call, chunk)
            call.send(wire.END)
            call.send(wire.END)
            call.finish()
        return size

    @contextlib.contextmanager
    def read(self, name: Name) -> Iterator[PipedFile]:
        parts = relative_parts(name)
        with self._call("get", parts, "cannot be read in") as call:
            call.send_node(path=parts, blocks="")
            call.send(wire.END)
            yield PipedFile(call, "/".join(parts))

    def nodes(self, name: Name = ".", *, deep: bool = True) -> Iterator[Node]:
        parts = directory_parts(name)
        for entry in self._entries(parts, deep=deep):
            yield entry.node

    def node(self, name: Name) -> Node:
        parts = directory_parts(name)
        with self._call("stat", parts, "cannot be found in", path=parts) as call:
            return received_entry(call, "/".join(parts) or ".").node

    def make_directory(self, name: Name) -> None:
        if parts := directory_parts(name):
            self._do("make_directory", parts, "could not be made in", IN_THE_WAY, path=parts)

    def discard(self, name: Name) -> None:
        parts = relative_parts(name)
        otherwise = "A command or a cell may be able to remove it: `rm -rf`."
        self._do("discard", parts, "could not be removed from", otherwise, path=parts)

    def move(self, source: Name, target: Name) -> None:
        parts, to = relative_parts(source), relative_parts(target)
        self._do("move", parts, "could not be moved in", IN_THE_WAY, path=parts, target=to)

    def has(self, name: str) -> bool:
        try:
            self.node(name)
        except WorkspaceError as error:
            if error.errno is None:
                raise
            return False
        return True

    def _do(
        self, op: str, parts: Sequence[str], what: str, otherwise: str, **arguments: Any
    ) -> None:
        with self._call(op, parts, what, otherwise, **arguments) as call:
            call.finish()

    @contextlib.contextmanager
    def _call(
        self, op: str, parts: Sequence[str], what: str, *otherwise: str, **arguments: Any
    ) -> Iterator[FileCall]:
        """Begin an operation, and explain its errors. See :func:`explained`."""
        with (
            explained(parts, f"{what} the workspace", *otherwise),
            self._calls.call(op, **arguments) as call,
        ):
            yield call

    def _entries(self, parts: Sequence[str] = (), *, deep: bool = True) -> Iterator[Entry]:
        """Walk a directory of the container.

        Raises:
            WorkspaceError: it cannot be read, or there are too many nodes or levels.
        """
        levels = MAX_DEPTH if deep else 1
        bounds = TreeBounds()
        prefix = "".join(f"{part}/" for part in parts)
        with self._call(
            "list", parts, "cannot be listed in", path=parts, depth=levels, most=MAX_NODES + 1
        ) as call:
            for entry in received_entries(call):
                path = entry.node.path
                bounds.add(path, entry.target)
                depth = path.count("/") - len(parts) + 1
                if path == "." or not path.startswith(prefix) or depth > levels:
                    raise call.broken("It lists what is elsewhere.")
                yield entry
                if deep and entry.node.kind == "directory" and depth >= MAX_DEPTH:
                    raise WorkspaceError(
                        f"The directories in the workspace are more than {MAX_DEPTH} deep, at "
                        f"{entry.node.path[:80]!r}….",
                        remedy="Remove them.",
                    )

    # The replica

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        with self._lock:
            yield

    def pull(self) -> Workspace:
        """Bring the replica up to date, and return it. Only what has changed is sent.

        Raises:
            WorkspaceError: the files cannot be read, or have no room on this host.
            SessionError: the replica cannot be written.
        """
        what = f"The files could not be written to {self._replica.path}"
        with self._lock, host_errors(SessionError, what), self._replica.directory() as top:
            if self._calls.pipe is not self._filled:
                # Else what this one lacks would be removed here.
                raise WorkspaceError(
                    f"The container has not got all files of {self._replica.path}. These stay as "
                    "they are.",
                    remedy="Make a new Sandbox.",
                )
            replica = Replica(self._replica, top, self._known)
            for _ in range(_PULLS):
                found = {
                    entry.node.path: entry
                    for entry in self._entries()
                    if entry.node.kind != "other" and entry.node.path not in _UNFINISHED
                }
                free = free_space(top)
                room = self._room_beside(found, free)
                gone = {path: entry for path, entry in self._known.items() if path not in found}
                if self._is_too_much(gone, free):
                    # The state here may need some of it until the next one has come. But a guest
                    # that lets every pull fail would leave more and more.
                    replica.drop(gone)
                if replica.update(self._calls, found, room):
                    break
        return self._replica

    def _is_too_much(self, gone: Mapping[str, Entry], free: int) -> bool:
        """Tell whether files that the container no longer has must not stay any longer."""
        size = _size(gone)
        return size > (free if self._most is None else self._most) or len(gone) > MAX_NODES

    def push(self) -> None:
        with self._lock:
            pipe, self._filled = self._calls.pipe, None
            with self._call("put", (), "could not be written into", clear=True) as call:
                sent = send_all(call, self._replica)
            self._known = {
                entry.node.path: entry
                for entry in (self._entries() if sent else ())
                if _is_same(sent.get(entry.node.path), entry.node)
            }
            self._filled = pipe

    def _room_beside(self, found: Mapping[str, Entry], free: int) -> int:
        """Return how many bytes there is room for in the replica beside files of the container.

        Raises:
            WorkspaceError: there is no room for these.
        """
        size, held = _size(found), _size(self._known)
        room = held + free - size
        why = f"the disk of {self._replica.path} has no room for a copy"
        if self._most is not None and self._most - size < room:
            room = self._most - size
            why = f"may be {format_size(self._most)}"
        if room < 0:
            raise WorkspaceError(
                f"The files in the workspace are {format_size(size)} long, and {why}.",
                remedy="Remove some, or make room. Are there files with holes among them?",
            )
        return room


def _size(entries: Mapping[str, Entry]) -> int:
    return sum(entry.node.size for entry in entries.values() if entry.node.kind == "file")


class PipedMeter:
    """Measures the files in a container, see :class:`Meter`.

    Args:
        calls: works on the files in the container.
    """

    def __init__(self, calls: FileCalls) -> None:
        self._calls = calls

    def free(self) -> Free:
        return self._ask(count=False)[1]

    def measure(self) -> Usage:
        return self._ask(count=True)[0]

    def _ask(self, *, count: bool) -> tuple[Usage, Free]:
        with self._calls.call("usage", count=count, depth=MAX_DEPTH, most=MAX_NODES) as call:
            kind, payload = call.receive() or (wire.END, b"")
            match call.load(payload) if kind == wire.NODES else None:
                case [int(files), int(state), bool(whole), int(room), int(left)]:
                    call.finish()
                    numbers = (files, state, room, left)
                    if all(0 <= number < 1 << 62 for number in numbers):
                        usage = Usage(files=files, state=state, whole=whole)
                        return usage, Free(bytes=room, files=left)
            raise call.broken("It is no measure of its files.")


def _is_same(sent: Node | None, there: Node) -> bool:
    """Tell whether a node is as it was sent. The size of a directory means nothing."""
    if sent is None or sent.kind != there.kind:
        return False
    return sent.kind == "directory" or sent.size == there.size
