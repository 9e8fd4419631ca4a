"""The named sessions of a user, for those who have no sandbox on them: list, copy, remove."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rlm_containers.errors import OptionError, SessionError, SessionNotFoundError, WorkspaceError
from rlm_containers.guest import wire
from rlm_containers.state.hostfiles import is_session_name, sessions_directory
from rlm_containers.state.lock import SessionLock, owner_of
from rlm_containers.state.manifest import Manifest, now
from rlm_containers.state.nofollow import DIRECTORY
from rlm_containers.state.snapshot_store import SnapshotStore
from rlm_containers.state.snapshots import Snapshot
from rlm_containers.state.trees import walk
from rlm_containers.state.workspace import Workspace, remove_tree

_MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class SessionInfo:
    """What is known of a session.

    Attributes:
        name: its name.
        path: its directory.
        manifest: what is in it, and where it ran; ``None`` if that is lost.
        is_current: whether the manifest describes the present state. If its process was killed, it
            may describe one some cells earlier.
        pid: the process that has it: 0 if it is unknown which, ``None`` if none has.
        size: bytes of the files in its workspace.
        snapshots: the number of its snapshots.
        snapshots_size: bytes that the snapshots take.
    """

    name: str
    path: Path
    manifest: Manifest | None
    is_current: bool
    pid: int | None
    size: int
    snapshots: int
    snapshots_size: int


@dataclass(frozen=True)
class LockedSession:
    """A session that this process has the lock of.

    Attributes:
        path: its directory.
        workspace: its workspace, open.
        snapshots: its snapshots.
    """

    path: Path
    workspace: Workspace
    snapshots: SnapshotStore

    @property
    def manifest(self) -> Manifest:
        """The manifest; an empty one if it is lost."""
        try:
            return Manifest.read(self.path / _MANIFEST)
        except ValueError:
            return Manifest.new()


class SessionStore:
    """The sessions of this user.

    What changes a session, or must not see it change, takes its lock. It fails with
    :class:`SessionInUseError` while a sandbox has the session.

    Args:
        directory: the directory of all sessions; ``None`` for the one that sandboxes use.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory or sessions_directory()

    def names(self) -> list[str]:
        """Return the names of all sessions, sorted."""
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
        """Return what is known of a session, which may be in use.

        Raises:
            SessionNotFoundError: there is none of that name.
            WorkspaceError: its workspace cannot be read.
        """
        path = self._path(name)
        manifest = None
        with contextlib.suppress(ValueError):
            manifest = Manifest.read(path / _MANIFEST)
        size, state = _measure(path / "workspace")
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
            SessionNotFoundError: there is none of that name.
            SessionInUseError: a sandbox has it.
            SessionError, WorkspaceError: something of it could not be removed.
        """
        with self.locked(name) as session:
            # Rename it first, so that half a session never has its name.
            doomed = self.directory / f".removed-{secrets.token_hex(6)}"
            try:
                session.path.rename(doomed)
            except OSError as error:
                raise SessionError(
                    f"The session {name!r} could not be removed: {error}.",
                    remedy=f"Remove {session.path} by hand.",
                ) from error
            remove_tree(doomed)
        self.sweep()

    # Snapshots

    def snapshots(self, name: str) -> list[Snapshot]:
        """Return the snapshots of a session, the oldest first.

        Raises:
            SessionNotFoundError: there is none of that name.
        """
        return SnapshotStore(self._path(name)).all()

    def snapshot(self, name: str, note: str = "") -> Snapshot:
        """Take a snapshot of a session that no sandbox has; see :meth:`Sandbox.snapshot`."""
        with self.locked(name) as session:
            return session.snapshots.create(session.workspace, session.manifest, note)

    def restore(self, name: str, snapshot: str) -> None:
        """Reset a session that no sandbox has to a snapshot; see :meth:`Sandbox.restore`."""
        with self.locked(name) as session:
            found = session.snapshots.get(snapshot)
            with session.snapshots.staged(found, session.workspace) as staged:
                staged.swap()
            write_manifest(session.path, found.manifest, session.manifest.created)

    def remove_snapshot(self, name: str, snapshot: str) -> None:
        """Remove a snapshot; see :meth:`Sandbox.remove_snapshot`."""
        with self.locked(name) as session:
            session.snapshots.remove(snapshot)

    def fork(self, name: str, new: str, snapshot: str | None = None) -> None:
        """Make a new session from one that no sandbox has, or from a snapshot of it.

        Args:
            name: the session.
            new: the name of the new session, which has no snapshots.
            snapshot: the id of the snapshot to begin with; ``None`` for the present state.

        Raises:
            SessionNotFoundError, SnapshotNotFoundError: there is no such session or snapshot.
            SessionInUseError: a sandbox has the session.
            SessionError: there is a session ``new``, or no space on the disk.
        """
        with self.locked(name) as session, self.creating(new) as path:
            found = session.snapshots.get(snapshot) if snapshot is not None else None
            target = Workspace.open(path / "workspace", session.workspace.ids)
            with contextlib.closing(target):
                if found is not None:
                    session.snapshots.lay_out(found, target)
                else:
                    session.workspace.copy_to(target)
            write_manifest(path, found.manifest if found else session.manifest, now())

    # The directories of sessions

    def _path(self, name: str) -> Path:
        check_name(name)
        path = self.directory / name
        if not (path / "workspace").is_dir():
            names = ", ".join(self.names()[:20])
            raise SessionNotFoundError(
                f"There is no session {name!r}.",
                remedy=f"There are: {names}." if names else "There is none at all.",
            )
        return path

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[LockedSession]:
        """Lock a session. A restore of it that was interrupted is completed first.

        Raises:
            SessionNotFoundError: there is none of that name.
            SessionInUseError: a sandbox has it.
        """
        path = self._path(name)
        with (
            contextlib.closing(SessionLock(path, name)),
            contextlib.closing(Workspace.open(path / "workspace")) as workspace,
        ):
            snapshots = SnapshotStore(path)
            snapshots.finish(workspace)
            yield LockedSession(path, workspace, snapshots)

    @contextlib.contextmanager
    def creating(self, name: str) -> Iterator[Path]:
        """Make the directory of a new session, and remove it if the ``with`` block fails.

        It becomes a session once there is a ``workspace`` in it.

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
                for entry in path.iterdir():  # left by a process that died here
                    if entry.is_dir():
                        remove_tree(entry)
                yield path
            except BaseException:
                remove_tree(path)
                raise

    def sweep(self) -> None:
        """Remove what processes have left that died while they removed or imported a session."""
        for pattern in (".removed-*", ".imported-*"):
            for path in self.directory.glob(pattern):
                if owner_of(path) is None:
                    with contextlib.suppress(WorkspaceError):
                        remove_tree(path)


def check_name(name: str) -> None:
    """Check that a session can have this name.

    Raises:
        OptionError: it cannot.
    """
    if not is_session_name(name):
        raise OptionError(
            f"{str(name)[:80]!r} is not the name of a session.",
            remedy="It has up to 64 letters, digits, '.', '_' and '-', a letter or digit first.",
        )


def write_manifest(path: Path, manifest: Manifest, created: str) -> None:
    """Write the manifest of a session whose state has just been put there."""
    replace(manifest, created=created, used=now()).write(path / _MANIFEST)


def _measure(workspace: Path) -> tuple[int, tuple[int, int]]:
    """Look at a workspace without changing it, as a sandbox may have it.

    Returns:
        The bytes of all files, and the length and modification time of the state file.
    """
    size, state = 0, (0, 0)
    try:
        top = os.open(workspace, DIRECTORY)
    except OSError as error:
        raise WorkspaceError(
            f"The workspace {workspace} cannot be opened: {error.strerror}."
        ) from error
    try:
        for node, _ in walk(top):
            size += node.size if node.kind == "file" else 0
            if node.path == wire.STATE:
                state = (node.size, node.modified)
    finally:
        os.close(top)
    return size, state
