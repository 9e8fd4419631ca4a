"""The snapshots of one session: take, list, remove, lay out."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from rlm_containers.errors import (
    SessionError,
    SessionStateError,
    SnapshotNotFoundError,
    remedy_for,
)
from rlm_containers.state.exchange import Exchange
from rlm_containers.state.hostfiles import flush_directory, listed, make_private, replace_file
from rlm_containers.state.manifest import Manifest
from rlm_containers.state.objects import ObjectStore
from rlm_containers.state.sealed import DamagedFileError, UnreadableFileError, read_sealed, seal
from rlm_containers.state.snapshots import SHORT_LENGTH, Snapshot, SnapshotEntry
from rlm_containers.state.trees import Node, TreeWriter, opened, walk
from rlm_containers.state.workspace import Workspace
from runtimes.text import get_logger

logger = get_logger("rlm_containers")

_ID = re.compile(r"[0-9a-f]{4,64}")

#: Characters of an id, and of those that earlier versions gave a record as its name.
_LENGTH = 64
_EARLIER_LENGTH = 16


class SnapshotStore:
    """The snapshots of one session. Only one process may use it at a time.

    A record that cannot be read is an error, and is left as it is: what it needs is unknown, so
    nothing is swept while there is one.

    Args:
        directory: where they are, on the file system of the workspace. It is made when the first
            snapshot is taken. It is named as the session or the sandbox.
        durable: whether snapshots must survive a power failure.

    Attributes:
        objects: the contents of their files.
    """

    def __init__(self, directory: Path, *, durable: bool = True) -> None:
        self.directory = directory
        self.objects = ObjectStore(directory / "objects", durable=durable)
        self._durable = durable
        self._records = directory / "snapshots"

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
            SessionStateError: this state has a record already, which cannot be read.
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
                remedy=remedy_for(error) + " Sandbox.remove_snapshot() removes old snapshots.",
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
        """List a snapshot whose objects are stored.

        One that is listed already stays as it is. A damaged record of it is written again.

        Raises:
            OSError: it cannot be written.
            SessionStateError: it has a record already, which cannot be read.
        """
        self.objects.flush()
        damaged = []
        for path in self._matching(snapshot.id):
            try:
                self._read(path)
            except UnreadableFileError:
                raise
            except SessionStateError as error:
                logger.warning("%s It is written again, without its old note.", error.what)
                damaged.append(path)
            else:
                return
        make_private(self._records)
        record = self._records / f"{snapshot.id}.json"
        with replace_file(record, durable=self._durable) as file:
            file.write(seal(snapshot.to_json()))
        if self._durable:
            flush_directory(self.directory)
        for path in damaged:
            if path != record:
                path.unlink()

    def all(self) -> list[Snapshot]:
        """Return the snapshots, the oldest first. A warning names each that cannot be read.

        Raises:
            SessionStateError: their directory cannot be read.
        """
        found = []
        for path in self._paths():
            try:
                found.append(self._read(path))
            except SessionError as error:
                logger.warning("%s", error)
        return sorted(found, key=lambda snapshot: snapshot.created)

    def every(self) -> list[Snapshot]:
        """Return all snapshots, the oldest first.

        Raises:
            SessionStateError: one cannot be read.
        """
        return sorted(map(self._read, self._paths()), key=lambda snapshot: snapshot.created)

    def get(self, snapshot: str) -> Snapshot:
        """Return a snapshot.

        Args:
            snapshot: its id, or an unambiguous beginning of at least 4 characters.

        Raises:
            SnapshotNotFoundError: there is none, or more than one.
            SessionStateError: it is damaged or cannot be read.
        """
        found = self._read(self._find(snapshot))
        if not found.id.startswith(snapshot):
            raise SnapshotNotFoundError(f"There is no snapshot {snapshot!r}.")
        return found

    def remove(self, snapshot: str) -> None:
        """Remove a snapshot, readable or not, and the contents that no other needs.

        Raises:
            SnapshotNotFoundError: there is none of that id.
            SessionError: it cannot be removed.
        """
        path = self._find(snapshot)
        try:
            path.unlink()
            if self._durable:
                flush_directory(path.parent)
        except OSError as error:
            raise SessionError(
                f"The snapshot in {path} could not be removed: {error.strerror}.",
                remedy="Remove it by hand.",
            ) from error
        self.sweep()

    def sweep(self) -> None:
        """Remove contents that no snapshot needs. Remove none if a snapshot cannot be read.

        Raises:
            SessionError: something cannot be removed.
        """
        try:
            self.objects.sweep({digest for other in self.every() for digest in other.digests})
        except SessionStateError as error:
            logger.warning(
                "the contents of files in %s are all kept, since it is not known which are "
                "needed: %s",
                self.objects.directory,
                error,
            )
        except OSError as error:
            raise SessionError(
                f"{self.objects.directory} could not be swept: {error.strerror}.",
                remedy="Make it writable.",
            ) from error

    @property
    def count(self) -> int:
        """The number of snapshots, readable or not."""
        return len(self._paths())

    @property
    def size(self) -> int:
        """Bytes of their contents on the disk.

        Raises:
            SessionStateError: a directory cannot be read.
        """
        try:
            return self.objects.size
        except OSError as error:
            raise UnreadableFileError(
                f"{self.objects.directory} cannot be read: {error.strerror}"
            ) from error

    # Restoring

    def lay_out(self, snapshot: Snapshot, workspace: Workspace, *, durable: bool = False) -> None:
        """Write the files of a snapshot into an empty workspace.

        Args:
            snapshot: the snapshot. The contents of its files are compared with their digests.
            workspace: the workspace.
            durable: whether the files must survive a power failure.

        Raises:
            SessionStateError: the contents of a file are missing, damaged or cannot be read.
            SessionError: the disk is full, or the like.
        """

        def fill(descriptor: int, entry: SnapshotEntry) -> None:
            try:
                self.objects.fill(descriptor, entry.digest, entry.size)
            except SessionStateError as error:
                raise SessionStateError(
                    f"The snapshot {snapshot.short_id} of {self.directory.name!r} is without the "
                    f"contents of {entry.path!r}: {error.what}",
                    remedy="Nothing has been changed. Restore another snapshot. If a file of "
                    "these contents is in the workspace, a new snapshot repairs this one.",
                ) from error
            if durable:
                os.fsync(descriptor)

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
                        writer.file(
                            entry.path, entry.mode, entry.modified, partial(fill, entry=entry)
                        )
        except OSError as error:
            raise SessionError(
                f"The files of the snapshot {snapshot.short_id} of {self.directory.name!r} could "
                f"not be written: {error.strerror}.",
                remedy=f"{remedy_for(error)} Nothing has been changed.",
            ) from error

    @contextlib.contextmanager
    def staged(
        self, snapshot: Snapshot, workspace: Workspace, *, durable: bool = False
    ) -> Iterator[Exchange]:
        """Write the files of a snapshot beside a workspace, ready to be exchanged for it.

        What has been exchanged and not committed goes back at the end of the ``with`` block.

        Raises:
            As :meth:`lay_out`.
        """
        exchange = self._exchange(workspace)
        exchange.go_back()
        try:
            with contextlib.closing(exchange.prepare(durable=durable)) as new:
                self.lay_out(snapshot, new, durable=durable)
            yield exchange
        finally:
            exchange.go_back()

    def go_back(self, workspace: Workspace) -> bool:
        """Undo a restore that was interrupted by the end of its process.

        Returns:
            Whether there was one.

        Raises:
            SessionStateError: something could not be moved back.
        """
        return self._exchange(workspace).go_back()

    def _exchange(self, workspace: Workspace) -> Exchange:
        return Exchange(self.directory / "staging", workspace)

    # Records

    def _paths(self) -> list[Path]:
        """Return the files of all records."""
        try:
            names = listed(self._records)
        except OSError as error:
            raise UnreadableFileError(
                f"{self._records} cannot be read: {error.strerror}"
            ) from error
        return [self._records / name for name in names if re.fullmatch(r"[^.].*\.json", name)]

    def _matching(self, snapshot: str) -> list[Path]:
        """Return the records that an id or its beginning may mean: several, if it is too short."""
        paths = self._paths()
        return [path for path in paths if path.stem == snapshot] or [
            path
            for path in paths
            if path.stem.startswith(snapshot)
            or (len(path.stem) == _EARLIER_LENGTH and snapshot.startswith(path.stem))
        ]

    def _find(self, snapshot: str) -> Path:
        if _ID.fullmatch(str(snapshot)) is None:
            raise SnapshotNotFoundError(f"{str(snapshot)[:80]!r} is not the id of a snapshot.")
        paths = self._matching(snapshot)
        if len(paths) != 1:
            there = ", ".join(path.stem[:SHORT_LENGTH] for path in self._paths()[:20])
            raise SnapshotNotFoundError(
                f"There is {'more than one' if paths else 'no'} snapshot {snapshot!r}.",
                remedy=f"There are: {there}." if there else "None has been taken.",
            )
        return paths[0]

    def _read(self, path: Path) -> Snapshot:
        try:
            snapshot = Snapshot.from_json(read_sealed(path))
            if len(path.stem) not in (_LENGTH, _EARLIER_LENGTH) or not snapshot.id.startswith(
                path.stem
            ):
                raise DamagedFileError(f"{path} has not the name that its contents have")
        except FileNotFoundError:
            raise SnapshotNotFoundError(
                f"The snapshot {path.stem} has just been removed."
            ) from None
        except ValueError as error:
            short = path.stem[:SHORT_LENGTH]
            raise SessionStateError(
                f"The snapshot {short} of {self.directory.name!r} cannot be used: {error}.",
                remedy=f"Restore another one, or remove it: Sandbox.remove_snapshot({short!r}), "
                f"or `rlm-containers sessions remove {self.directory.name} --snapshot {short}`.",
            ) from error
        return snapshot
