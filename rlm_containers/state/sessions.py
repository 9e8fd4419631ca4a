"""The named sessions of a user, for those who have no sandbox on them: list, copy, remove."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from rlm_containers.errors import (
    ContainersError,
    OptionError,
    SessionError,
    SessionNotFoundError,
    SessionStateError,
    WorkspaceError,
    host_errors,
)
from rlm_containers.guest import wire
from rlm_containers.state.hostfiles import (
    is_session_name,
    listed,
    remove_unfinished,
    sessions_directory,
)
from rlm_containers.state.lock import FILE as LOCK
from rlm_containers.state.lock import SessionLock, owner_of
from rlm_containers.state.manifest import Manifest, now
from rlm_containers.state.nofollow import opened_directory
from rlm_containers.state.record import check_workspace, make_anew, read_state, write_state
from rlm_containers.state.snapshot_store import SnapshotStore
from rlm_containers.state.snapshots import Snapshot
from rlm_containers.state.trees import walk
from rlm_containers.state.workspace import Workspace, remove_tree

_MANIFEST = "manifest.json"

#: How the names of directories begin that are no sessions any more, or not yet.
_REMOVED = ".removed-"
IMPORTED = ".imported-"

_T = TypeVar("_T")
_U = TypeVar("_U")


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
        size: bytes of the files in its workspace; ``None`` if that is not known.
        snapshots: the number of its snapshots.
        snapshots_size: bytes that the snapshots take.
        problem: what of it cannot be read, and why; empty if all can.
    """

    name: str
    path: Path
    manifest: Manifest | None
    is_current: bool
    pid: int | None
    size: int | None
    snapshots: int
    snapshots_size: int
    problem: str


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
        """The manifest; an empty one if it is lost.

        Raises:
            SessionStateError: it cannot be read, or a later version has written it.
        """
        try:
            return Manifest.read(self.path / _MANIFEST)
        except (FileNotFoundError, ValueError):
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
        with host_errors(SessionError, f"The sessions in {self.directory} cannot be listed"):
            return [
                name for name in listed(self.directory) if is_session_name(name) and self._has(name)
            ]

    def _has(self, name: str) -> bool:
        """Tell whether a session is there. One that cannot be read is."""
        try:
            return read_state(self.directory / name) == "ready"
        except NotADirectoryError:
            return False
        except (OSError, SessionStateError):
            return True

    def inspect(self, name: str) -> SessionInfo:
        """Return what is known of a session, which may be in use.

        Raises:
            SessionNotFoundError: there is none of that name.
        """
        path = self._path(name)
        problems: list[str] = []

        def read(look: Callable[[], _T], otherwise: _U) -> _T | _U:
            try:
                return look()
            except (FileNotFoundError, ValueError):
                return otherwise
            except OSError as error:
                problems.append(f"{error.filename or path}: {error.strerror}")
            except ContainersError as error:
                problems.append(error.what)
            return otherwise

        read(lambda: check_workspace(path, name), None)
        manifest = read(lambda: Manifest.read(path / _MANIFEST), None)
        measured = read(lambda: _measure(path / "workspace"), None)
        size, state = measured if measured is not None else (None, None)
        snapshots = SnapshotStore(path)
        return SessionInfo(
            name=name,
            path=path,
            manifest=manifest,
            is_current=manifest is not None and manifest.state == state,
            pid=read(lambda: owner_of(path), 0),
            size=size,
            snapshots=read(lambda: snapshots.count, 0),
            snapshots_size=read(lambda: snapshots.size, 0),
            problem=" ".join(problems),
        )

    def remove(self, name: str) -> None:
        """Remove a session with its snapshots.

        Raises:
            SessionNotFoundError: there is none of that name.
            SessionInUseError: a sandbox has it.
            SessionError, WorkspaceError: something of it could not be removed.
        """
        path = self._path(name)
        # Nothing in it has to be readable.
        with contextlib.closing(SessionLock(path, name)):
            # Rename it first, so that half a session never has its name.
            try:
                doomed = path.rename(self._doomed())
            except OSError as error:
                raise SessionError(
                    f"The session {name!r} could not be removed: {error}.",
                    remedy=f"Remove {path} by hand.",
                ) from error
            remove_tree(doomed)
        self.sweep()

    # Snapshots

    def snapshots(self, name: str) -> list[Snapshot]:
        """Return the snapshots of a session, the oldest first.

        Raises:
            SessionNotFoundError: there is none of that name.
        """
        with self._host_errors(name):
            return SnapshotStore(self._path(name)).all()

    def snapshot(self, name: str, note: str = "") -> Snapshot:
        """Take a snapshot of a session that no sandbox has.

        Args:
            name: the session.
            note: text to remember it by, of which the first 200 characters are kept.

        Raises:
            SessionNotFoundError: there is no session of that name.
            SessionInUseError: a sandbox has it.
            WorkspaceError, SessionError, SessionStateError: as for :meth:`Sandbox.snapshot`.
        """
        with self.locked(name) as session:
            return session.snapshots.create(session.workspace, session.manifest, note)

    def restore(self, name: str, snapshot: str) -> None:
        """Reset a session that no sandbox has to a snapshot. A missing workspace is made anew.

        Args:
            name: the session.
            snapshot: the id, or an unambiguous beginning of at least 4 characters.

        Raises:
            SessionNotFoundError, SnapshotNotFoundError: there is no such session or snapshot.
            SessionInUseError: a sandbox has the session.
            SessionStateError: the snapshot is damaged.
            SessionError: there is no room for it.
        """
        with self.locked(name, whole=False) as session:
            found = session.snapshots.get(snapshot)
            created = session.manifest.created
            staged = session.snapshots.staged(found, session.workspace, durable=True)
            with staged as exchange:
                exchange.swap()
                exchange.commit()
            write_manifest(session.path, found.manifest, created)

    def remove_snapshot(self, name: str, snapshot: str) -> None:
        """Remove a snapshot, and those of its contents that no other snapshot needs.

        Args:
            name: the session, which no sandbox has.
            snapshot: the id, or the beginning of it.

        Raises:
            SessionNotFoundError, SnapshotNotFoundError: there is no such session or snapshot.
            SessionInUseError: a sandbox has the session.
            SessionError: it cannot be removed.
        """
        path = self._path(name)
        with contextlib.closing(SessionLock(path, name)):
            SnapshotStore(path).remove(snapshot)

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
        if not self._has(name):
            names = ", ".join(self.names()[:20])
            raise SessionNotFoundError(
                f"There is no session {name!r}.",
                remedy=f"There are: {names}." if names else "There is none at all.",
            )
        return path

    @contextlib.contextmanager
    def locked(self, name: str, *, whole: bool = True) -> Iterator[LockedSession]:
        """Lock a session. A restore of it that was interrupted is undone first.

        Args:
            name: the session.
            whole: whether it must have a workspace. If not, an empty one is made.

        Raises:
            SessionNotFoundError: there is none of that name.
            SessionInUseError: a sandbox has it.
            SessionStateError: its workspace is missing.
        """
        path = self._path(name)
        with self._host_errors(name), contextlib.closing(SessionLock(path, name)):
            remove_unfinished(path)
            if whole:
                check_workspace(path, name)
            with contextlib.closing(Workspace.open(path / "workspace")) as workspace:
                snapshots = SnapshotStore(path)
                snapshots.go_back(workspace)
                yield LockedSession(path, workspace, snapshots)

    @contextlib.contextmanager
    def creating(self, name: str) -> Iterator[Path]:
        """Make the directory of a new session, and remove it if the ``with`` block fails.

        It becomes a session when the block has ended.

        Raises:
            SessionError: there is a session of that name, or it cannot be made.
        """
        check_name(name)
        path = self.directory / name
        with self._host_errors(name), contextlib.closing(SessionLock(path, name, create=True)):
            if self._has(name):
                raise SessionError(
                    f"There is a session {name!r} already.",
                    remedy="Choose another name, or remove it.",
                )
            try:
                make_anew(path)
                yield path
                write_state(path, "ready")
            except BaseException:
                remove_tree(path)
                raise

    def _host_errors(self, name: str) -> contextlib.AbstractContextManager[None]:
        return host_errors(SessionError, f"The session {name!r} in {self.directory} cannot be used")

    def sweep(self) -> None:
        """Remove what processes have left that died while they made or removed a session."""
        try:
            names = listed(self.directory)
        except OSError:
            return  # the next process tries again
        for name in names:
            path = self.directory / name
            with contextlib.suppress(OSError, ContainersError):
                if self._is_left(path) and owner_of(path) is None:
                    with contextlib.closing(SessionLock(path, name)):
                        # Nobody else can have it now. Look again at what it is.
                        if self._is_left(path):
                            path = path.rename(self._doomed())
                            remove_tree(path)

    def _is_left(self, path: Path) -> bool:
        """Tell whether a directory is of a session that is being made or removed."""
        if path.name.startswith((_REMOVED, IMPORTED)):
            return True
        if not is_session_name(path.name):
            return False
        state = read_state(path)
        return state == "made" or (state is None and set(listed(path)) <= {LOCK})

    def _doomed(self) -> Path:
        """Return a new name for what is about to be removed."""
        return self.directory / f"{_REMOVED}{secrets.token_hex(6)}"


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
    target = path / _MANIFEST
    try:
        replace(manifest, created=created, used=now()).write(target, durable=True)
    except OSError as error:
        raise SessionError(
            f"{target} could not be written: {error.strerror}.", remedy="Make room on the disk."
        ) from error


def _measure(workspace: Path) -> tuple[int, tuple[int, int]]:
    """Look at a workspace without changing it, as a sandbox may have it.

    Returns:
        The bytes of all files, and the length and modification time of the state file.
    """
    size, state = 0, (0, 0)
    opening = host_errors(WorkspaceError, f"The workspace {workspace} cannot be opened")
    with opening, opened_directory(workspace) as top:
        for node, _ in walk(top):
            size += node.size if node.kind == "file" else 0
            if node.path == wire.STATE:
                state = (node.size, node.modified)
    return size, state
