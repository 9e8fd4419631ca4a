"""The snapshots of one session: take, list, remove, restore."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rlm_containers.errors import SessionError, SessionStateError, SnapshotNotFoundError
from rlm_containers.state.hostfiles import replace_file
from rlm_containers.state.manifest import Manifest
from rlm_containers.state.objects import ObjectStore
from rlm_containers.state.snapshots import ID_LENGTH, Snapshot, SnapshotEntry
from rlm_containers.state.trees import Node, TreeWriter, opened, swap, walk
from rlm_containers.state.workspace import Workspace, remove_tree

_ID = re.compile(rf"[0-9a-f]{{4,{ID_LENGTH}}}")


class SnapshotStore:
    """The snapshots of one session. Only one process may use it at a time.

    Args:
        directory: where they are, on the file system of the workspace. It is made when the first
            snapshot is taken.

    Attributes:
        objects: the contents of their files.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.objects = ObjectStore(directory / "objects")
        self._records = directory / "snapshots"
        self._staging = directory / "staging"
        self._intent = directory / "restoring"

    def create(
        self, workspace: Workspace, manifest: Manifest, note: str = "", *, listed: bool = True
    ) -> Snapshot:
        """Take a snapshot of a workspace.

        Args:
            workspace: the workspace. Nothing should write to it meanwhile.
            manifest: what is known of its state.
            note: a note for its user, of which the first 200 characters are kept.
            listed: whether to keep it. If not, the next :meth:`sweep` removes its contents.

        Raises:
            WorkspaceError: something in the workspace cannot be read.
            SessionError: the disk is full, or the like.
        """
        entries: list[SnapshotEntry] = []
        skipped: list[str] = []
        try:
            with workspace.directory() as top:
                for node, directory in walk(top):
                    if node.kind == "other":
                        skipped.append(node.path)
                    else:
                        entries.append(self._store(node, directory))
            snapshot = Snapshot.of(entries, skipped, manifest, note)
            if listed:
                self.add(snapshot)
        except OSError as error:
            raise SessionError(
                f"The snapshot could not be written to {self.directory}: {error.strerror}.",
                remedy="Make room on the disk; Sandbox.remove_snapshot() removes old ones.",
            ) from error
        return snapshot

    def _store(self, node: Node, directory: int) -> SnapshotEntry:
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
        """List a snapshot whose objects are stored. One that is listed already stays as it is."""
        path = self._records / f"{snapshot.id}.json"
        if not path.exists():
            self._records.mkdir(parents=True, exist_ok=True, mode=0o700)
            with replace_file(path, durable=True) as file:
                file.write(json.dumps(snapshot.to_json()).encode())

    def all(self) -> list[Snapshot]:
        """Return all snapshots, the oldest first. Damaged ones are left out."""
        found = []
        for path in self._records.glob("*.json"):
            with contextlib.suppress(SessionStateError):
                found.append(self._read(path))
        return sorted(found, key=lambda snapshot: snapshot.created)

    def get(self, snapshot: str) -> Snapshot:
        """Return a snapshot.

        Args:
            snapshot: its id, or an unambiguous beginning of at least 4 characters.

        Raises:
            SnapshotNotFoundError: there is none, or more than one.
            SessionStateError: it is damaged.
        """
        return self._read(self._find(snapshot))

    def remove(self, snapshot: str) -> None:
        """Remove a snapshot, and the contents that no other needs.

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
        """The number of snapshots."""
        return len(list(self._records.glob("*.json")))

    @property
    def size(self) -> int:
        """Bytes of their contents on the disk."""
        return sum(
            Path(folder, name).stat().st_size
            for folder, _, names in os.walk(self.objects.directory)
            for name in names
        )

    # Restoring

    def lay_out(self, snapshot: Snapshot, workspace: Workspace) -> None:
        """Write the files of a snapshot into an empty workspace.

        Raises:
            SessionStateError: an object is missing or damaged.
            SessionError: the disk is full, or the like.
        """
        try:
            with (
                workspace.directory() as top,
                contextlib.closing(TreeWriter(top, workspace.ids)) as writer,
            ):
                for entry in snapshot.entries:
                    if entry.kind == "directory":
                        writer.directory(entry.path, entry.mode, entry.modified)
                    elif entry.kind == "symlink":
                        writer.symlink(entry.path, entry.target)
                    else:
                        fill = partial(self.objects.fill, digest=entry.digest, size=entry.size)
                        writer.file(entry.path, entry.mode, entry.modified, fill)
        except OSError as error:
            raise SessionError(
                f"The files of the snapshot {snapshot.id} could not be written: {error.strerror}.",
                remedy="Make room on the disk. Nothing has been changed.",
            ) from error

    @contextlib.contextmanager
    def staged(self, snapshot: Snapshot, workspace: Workspace) -> Iterator[Staged]:
        """Write the files of a snapshot beside a workspace, ready to be swapped into it.

        Raises:
            As :meth:`lay_out`.
        """
        remove_tree(self._staging)
        self._staging.mkdir(mode=0o700, parents=True)
        try:
            with (
                contextlib.closing(Workspace.open(self._staging / "new", workspace.ids)) as new,
                contextlib.closing(Workspace.open(self._staging / "old", workspace.ids)) as old,
            ):
                self.lay_out(snapshot, new)
                yield Staged(self, snapshot, workspace, new, old)
        finally:
            remove_tree(self._staging)

    def finish(self, workspace: Workspace) -> Snapshot | None:
        """Complete a restore that was interrupted by the end of its process.

        Returns:
            The snapshot that is restored now; ``None`` if no restore was interrupted.
        """
        try:
            snapshot = self.get(self._intent.read_text("ascii", "replace"))
        except (FileNotFoundError, SessionError):
            return None
        with self.staged(snapshot, workspace) as staged:
            staged.swap()
        return snapshot

    @contextlib.contextmanager
    def restoring(self, snapshot: Snapshot) -> Iterator[None]:
        """Note that a snapshot is being restored, until the ``with`` block has succeeded."""
        with replace_file(self._intent, durable=True) as file:
            file.write(snapshot.id.encode())
        yield
        self._intent.unlink(missing_ok=True)

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
    """A snapshot whose files are ready to be swapped into a workspace."""

    store: SnapshotStore
    snapshot: Snapshot
    workspace: Workspace
    _new: Workspace
    _old: Workspace

    def swap(self, keep: Collection[str] = ()) -> None:
        """Swap the contents of the workspace for the snapshot's.

        If this process dies meanwhile, :meth:`SnapshotStore.finish` completes it.

        Args:
            keep: names at the top of the workspace that stay as they are.

        Raises:
            SessionError: something could not be moved.
        """
        try:
            with (
                self.store.restoring(self.snapshot),
                self.workspace.directory() as top,
                self._new.directory() as new,
                self._old.directory() as old,
            ):
                swap(top, new, old, keep)
        except OSError as error:
            raise SessionError(
                f"The snapshot {self.snapshot.id} could not be restored: {error}.",
                remedy="Restore it once more.",
            ) from error
