"""Where the snapshots of a session are kept, and how one takes the place of a workspace."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from rlm_containers.errors import SessionError, SessionStateError, SnapshotNotFoundError
from rlm_containers.state.hostfiles import replace_file
from rlm_containers.state.manifest import Manifest
from rlm_containers.state.nofollow import FileOwner
from rlm_containers.state.objects import ObjectStore
from rlm_containers.state.snapshots import ID_LENGTH, Snapshot, SnapshotEntry
from rlm_containers.state.tree_writer import TreeWriter
from rlm_containers.state.trees import Node, exchange, opened, walk
from rlm_containers.state.workspace import Workspace, remove_tree

_ID = re.compile(rf"[0-9a-f]{{4,{ID_LENGTH}}}")


class SnapshotStore:
    """The snapshots of one session. One process uses it at a time.

    Args:
        directory: where; made when the first snapshot is taken. On the file system of the
            workspace.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.objects = ObjectStore(directory / "objects")
        self._records = directory / "snapshots"
        self._staging = directory / "staging"
        self._intent = directory / "restoring"

    def take(
        self, workspace: int, manifest: Manifest, note: str = "", *, record: bool = True
    ) -> Snapshot:
        """Keep what a directory holds.

        Args:
            workspace: its descriptor. Nothing should write to it meanwhile.
            manifest: what is known of the session.
            note: what to write to it; at most 200 characters.
            record: whether it is to last. Else :meth:`sweep` removes its contents again.

        Raises:
            WorkspaceError: something in it cannot be read.
            SessionError: there is no room.
        """
        entries: list[SnapshotEntry] = []
        skipped: list[str] = []
        try:
            for node, directory in walk(workspace):
                if node.kind == "other":
                    skipped.append(node.path)
                else:
                    entries.append(self._keep(node, directory))
            snapshot = Snapshot.of(entries, skipped, manifest, note)
            if record:
                self.add(snapshot)
        except OSError as error:
            raise SessionError(
                f"The snapshot could not be written to {self.directory}: {error.strerror}.",
                remedy="Make room on the disk; Sandbox.remove_snapshot() removes old ones.",
            ) from error
        return snapshot

    def _keep(self, node: Node, directory: int) -> SnapshotEntry:
        if node.kind == "symlink":
            target = os.readlink(node.name, dir_fd=directory)
            return SnapshotEntry(path=node.path, kind="symlink", target=target)
        if node.kind == "directory":
            return SnapshotEntry(
                path=node.path, kind="directory", mode=node.mode, modified=node.modified
            )
        with opened(node, directory) as descriptor:
            digest, size = self.objects.add(descriptor, node.size)
        return SnapshotEntry(
            path=node.path,
            kind="file",
            mode=node.mode,
            modified=node.modified,
            size=size,
            digest=digest,
        )

    def add(self, snapshot: Snapshot) -> None:
        """Keep the record of a snapshot whose objects are there; not twice."""
        path = self._record(snapshot.id)
        if not path.exists():
            self._records.mkdir(parents=True, exist_ok=True, mode=0o700)
            with replace_file(path, durable=True) as file:
                file.write(json.dumps(snapshot.to_json()).encode())

    def all(self) -> list[Snapshot]:
        """Those that there are, the oldest first. One that is damaged is left out."""
        found = []
        for path in self._records.glob("*.json"):
            with contextlib.suppress(SessionStateError):
                found.append(self._read(path))
        return sorted(found, key=lambda snapshot: snapshot.created)

    def get(self, snapshot: str) -> Snapshot:
        """The snapshot of that id.

        Args:
            snapshot: the id, or so much of its beginning that no other has the same, at least 4.

        Raises:
            SnapshotNotFoundError: there is none, or more than one.
            SessionStateError: it is damaged.
        """
        return self._read(self._find(snapshot))

    def remove(self, snapshot: str) -> None:
        """Remove a snapshot, and of its contents what no other needs.

        Raises:
            SnapshotNotFoundError: there is none of that id.
        """
        self._find(snapshot).unlink()
        self.sweep()

    def sweep(self) -> None:
        """Remove contents that no snapshot needs."""
        self.objects.sweep({digest for other in self.all() for digest in other.digests})

    @property
    def count(self) -> int:
        """How many there are."""
        return len(list(self._records.glob("*.json")))

    @property
    def size(self) -> int:
        """Bytes of everything that is kept."""
        return sum(
            Path(folder, name).stat().st_size
            for folder, _, names in os.walk(self.objects.directory)
            for name in names
        )

    # Restoring

    def lay_out(self, snapshot: Snapshot, top: int, owner: FileOwner) -> None:
        """Make what a snapshot has.

        Args:
            snapshot: the snapshot.
            top: a descriptor of an empty directory.
            owner: who is to own it.

        Raises:
            SessionStateError: an object is missing or damaged.
            SessionError: there is no room.
        """
        try:
            with contextlib.closing(TreeWriter(top, owner)) as writer:
                for entry in snapshot.entries:
                    if entry.kind == "directory":
                        writer.directory(entry.path, entry.mode, entry.modified)
                    elif entry.kind == "symlink":
                        writer.symlink(entry.path, entry.target)
                    else:
                        writer.file(entry.path, entry.mode, entry.modified, self._filler(entry))
        except OSError as error:
            raise SessionError(
                f"The snapshot {snapshot.id} could not be laid out: {error.strerror}.",
                remedy="Make room on the disk. Nothing has been changed.",
            ) from error

    def _filler(self, entry: SnapshotEntry) -> Callable[[int], object]:
        return lambda target: self.objects.fill(target, entry.digest, entry.size)

    @contextlib.contextmanager
    def staged(self, snapshot: Snapshot, workspace: Workspace) -> Iterator[Staged]:
        """A snapshot laid out beside a workspace, to take the place of what is in there."""
        remove_tree(self._staging)
        new, old = self._staging / "new", self._staging / "old"
        for path in (self._staging, new, old):
            path.mkdir(mode=0o700, parents=True)
        try:
            top = os.open(new, os.O_RDONLY | os.O_DIRECTORY)
            try:
                self.lay_out(snapshot, top, workspace.owner)
            finally:
                os.close(top)
            yield Staged(self, snapshot, workspace, new, old)
        finally:
            remove_tree(self._staging)

    def finish(self, workspace: Workspace) -> Snapshot | None:
        """Restore once more what was being restored when this machine or process died, if any."""
        try:
            snapshot = self.get(self._intent.read_text("ascii", "replace"))
        except (FileNotFoundError, SessionError):
            return None
        with self.staged(snapshot, workspace) as staged:
            staged.swap()
        return snapshot

    def intend(self, snapshot: Snapshot | None) -> None:
        """Note that a snapshot is about to take the place of a workspace's contents, or has."""
        if snapshot is None:
            self._intent.unlink(missing_ok=True)
        else:
            with replace_file(self._intent, durable=True) as file:
                file.write(snapshot.id.encode())

    def _find(self, snapshot: str) -> Path:
        if _ID.fullmatch(str(snapshot)) is None:
            raise SnapshotNotFoundError(f"{str(snapshot)[:80]!r} is not the id of a snapshot.")
        paths = list(self._records.glob(f"{snapshot}*.json"))
        if len(paths) != 1:
            there = ", ".join(sorted(path.stem for path in self._records.glob("*.json"))[:20])
            raise SnapshotNotFoundError(
                f"There is {'more than one' if paths else 'no'} snapshot {snapshot!r}.",
                remedy=f"There are: {there}." if there else "None has been taken.",
            )
        return paths[0]

    def _record(self, name: str) -> Path:
        return self._records / f"{name}.json"

    def _read(self, path: Path) -> Snapshot:
        try:
            snapshot = Snapshot.from_json(json.loads(path.read_bytes()))
        except (OSError, ValueError, RecursionError) as error:
            raise SessionStateError(f"The snapshot in {path} cannot be read: {error}.") from error
        if snapshot.id != path.stem:
            raise SessionStateError(f"The snapshot in {path} is not what it was.")
        return snapshot


@dataclass(frozen=True)
class Staged:
    """A snapshot that is ready to take its place."""

    store: SnapshotStore
    snapshot: Snapshot
    workspace: Workspace
    _new: Path
    _old: Path

    def swap(self, keep: Collection[str] = ()) -> None:
        """Exchange the contents of the workspace for the snapshot's.

        If this process dies in the middle of it, :meth:`SnapshotStore.finish` completes it.

        Args:
            keep: names at the top of the workspace that stay as they are.

        Raises:
            SessionError: something could not be moved.
        """
        self.store.intend(self.snapshot)
        new = os.open(self._new, os.O_RDONLY | os.O_DIRECTORY)
        old = os.open(self._old, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with self.workspace.directory() as top:
                exchange(top, new, old, keep)
        except OSError as error:
            raise SessionError(
                f"The snapshot {self.snapshot.id} could not take its place: {error}.",
                remedy="Restore it once more.",
            ) from error
        finally:
            os.close(new)
            os.close(old)
        self.store.intend(None)
