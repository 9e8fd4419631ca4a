"""All the sessions of a user, for whoever has no sandbox on them: to list, copy, move, remove."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rlm_containers.errors import SessionError, SessionNotFoundError, WorkspaceError
from rlm_containers.guest import wire
from rlm_containers.state.directory import (
    check_name,
    copy_workspace,
    kept_workspace,
    manifest_of,
    opened,
    write_manifest,
)
from rlm_containers.state.home import KeptWorkspace
from rlm_containers.state.hostfiles import is_session_name, sessions_directory
from rlm_containers.state.lock import SessionLock, owner_of
from rlm_containers.state.manifest import Manifest, now
from rlm_containers.state.snapshot_store import SnapshotStore
from rlm_containers.state.snapshots import Snapshot
from rlm_containers.state.trees import walk
from rlm_containers.state.workspace import remove_tree


@dataclass(frozen=True, kw_only=True)
class SessionInfo:
    """What is known of a session.

    Attributes:
        name: its name.
        path: its directory.
        manifest: what is in it, and where it ran; ``None`` if that is lost.
        is_current: whether the manifest is of the state that is there. One of a process that was
            killed may be of a state some cells before.
        pid: the process that has it; 0 if it is unknown which, ``None`` if nobody has.
        size: bytes of the files in its workspace.
        snapshots: how many snapshots it has.
        snapshots_size: bytes that they take.
    """

    name: str
    path: Path
    manifest: Manifest | None
    is_current: bool
    pid: int | None
    size: int
    snapshots: int
    snapshots_size: int


class SessionStore:
    """The sessions of this user.

    Whatever changes a session, or must not see it change, takes its lock, and fails with
    :class:`SessionInUseError` while a sandbox has it.

    Args:
        directory: where they are; ``None`` for where sandboxes have them.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory or sessions_directory()

    def names(self) -> list[str]:
        """The names of all sessions, sorted."""
        try:
            entries = sorted(os.scandir(self.directory), key=lambda entry: entry.name)
        except FileNotFoundError:
            return []
        return [
            entry.name
            for entry in entries
            if is_session_name(entry.name) and (self.directory / entry.name / "workspace").is_dir()
        ]

    def inspect(self, name: str) -> SessionInfo:
        """What is known of a session, whether somebody has it or not.

        Raises:
            SessionNotFoundError: there is none of that name.
            WorkspaceError: its workspace cannot be read.
        """
        path = self._path(name)
        manifest = None
        with contextlib.suppress(ValueError):
            manifest = Manifest.read(path / "manifest.json")
        state, size = (0, 0), 0
        with opened(path / "workspace") as top:
            for node, _ in walk(top):
                size += node.size if node.kind == "file" else 0
                if node.path == wire.STATE:
                    state = (node.size, node.modified)
        snapshots = SnapshotStore(path)
        return SessionInfo(
            name=name,
            path=path,
            manifest=manifest,
            is_current=manifest is not None and manifest.state == state,
            pid=owner_of(path),
            size=size,
            snapshots=snapshots.count,
            snapshots_size=snapshots.size,
        )

    def remove(self, name: str) -> None:
        """Remove a session with its snapshots.

        Raises:
            SessionNotFoundError, SessionInUseError: as they say.
            SessionError, WorkspaceError: something of it could not be removed.
        """
        self._path(name)
        with self.locked(name) as path:
            # Under another name first, so that there is no half of a session at any time.
            doomed = self.directory / f".removed-{secrets.token_hex(6)}"
            try:
                path.rename(doomed)
            except OSError as error:
                raise SessionError(
                    f"The session {name!r} could not be removed: {error}.",
                    remedy=f"Remove {path} by hand.",
                ) from error
            remove_tree(doomed)
        self.sweep()

    # Snapshots

    def snapshots(self, name: str) -> list[Snapshot]:
        """The snapshots of a session, the oldest first.

        Raises:
            SessionNotFoundError: there is none of that name.
        """
        return SnapshotStore(self._path(name)).all()

    def snapshot(self, name: str, note: str = "") -> Snapshot:
        """Take a snapshot of a session that nobody uses; see :meth:`Sandbox.snapshot`."""
        with self.locked(name) as path, opened(path / "workspace") as top:
            return SnapshotStore(path).take(top, manifest_of(path), note)

    def restore(self, name: str, snapshot: str) -> None:
        """Have a session that nobody uses go on from a snapshot; see :meth:`Sandbox.restore`."""
        with self.locked(name) as path:
            store = SnapshotStore(path)
            found = store.get(snapshot)
            workspace = kept_workspace(path)
            with contextlib.closing(workspace), store.staged(found, workspace) as staged:
                staged.swap()
            write_manifest(path, found.manifest, manifest_of(path).created)

    def remove_snapshot(self, name: str, snapshot: str) -> None:
        """Remove a snapshot; see :meth:`Sandbox.remove_snapshot`."""
        with self.locked(name) as path:
            SnapshotStore(path).remove(snapshot)

    def fork(self, name: str, new: str, snapshot: str | None = None) -> None:
        """Make a new session of one that nobody uses, or of a snapshot of it.

        Args:
            name: the session.
            new: the name of the new one, which has no snapshots.
            snapshot: the id of the snapshot to begin with; ``None`` for the present state.

        Raises:
            SessionError: there is a session ``new``, or no room.
            SessionNotFoundError, SessionInUseError, SnapshotNotFoundError: as they say.
        """
        with self.locked(name) as path, self.made(new) as made:
            store = SnapshotStore(path)
            found = store.get(snapshot) if snapshot is not None else None
            with contextlib.closing(kept_workspace(path)) as source:
                target = KeptWorkspace(made / "workspace", source.owner)
                with (
                    contextlib.closing(target),
                    target.directory() as top,
                    source.directory() as below,
                ):
                    if found is not None:
                        store.lay_out(found, top, target.owner)
                    else:
                        copy_workspace(below, top, target)
            write_manifest(made, found.manifest if found is not None else manifest_of(path), now())

    # The rest

    def _path(self, name: str) -> Path:
        check_name(name)
        path = self.directory / name
        if not (path / "workspace").is_dir():
            near = ", ".join(self.names()[:20])
            raise SessionNotFoundError(
                f"There is no session {name!r}.",
                remedy=f"There are: {near}." if near else "There is none at all.",
            )
        return path

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[Path]:
        """The directory of a session, which nobody else has meanwhile.

        Raises:
            SessionNotFoundError, SessionInUseError: as they say.
        """
        path = self._path(name)
        with contextlib.closing(SessionLock(path, name)):
            with contextlib.closing(kept_workspace(path)) as workspace:
                SnapshotStore(path).finish(workspace)
            yield path

    @contextlib.contextmanager
    def made(self, name: str) -> Iterator[Path]:
        """The directory of a new session, removed again if what is done with it fails.

        Raises:
            SessionError: there is a session of that name.
        """
        check_name(name)
        path = self.directory / name
        with contextlib.closing(SessionLock(path, name, create=True)):
            if (path / "workspace").exists():
                raise SessionError(
                    f"There is a session {name!r} already.",
                    remedy="Choose another name, or remove it.",
                )
            try:
                for entry in path.iterdir():  # of one who died in the middle of this
                    if entry.is_dir():
                        remove_tree(entry)
                yield path
            except BaseException:
                remove_tree(path)
                raise

    def sweep(self) -> None:
        """Remove what those have left who died in the middle of removing or importing."""
        for pattern in (".removed-*", ".imported-*"):
            for path in self.directory.glob(pattern):
                if owner_of(path) is None:
                    with contextlib.suppress(WorkspaceError):
                        remove_tree(path)
