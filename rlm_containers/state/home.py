"""Where a sandbox lives: its workspace, its snapshots, and what becomes of them at its end."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlm_containers.errors import SessionError, WorkspaceError
from rlm_containers.state.hostfiles import (
    passing_snapshots_directory,
    sessions_directory,
    workspaces_directory,
)
from rlm_containers.state.lock import SessionLock
from rlm_containers.state.manifest import Manifest, now
from rlm_containers.state.nofollow import FileOwner
from rlm_containers.state.snapshot_store import SnapshotStore
from rlm_containers.state.trees import give_tree_to
from rlm_containers.state.workspace import Workspace, remove_tree

logger = logging.getLogger("rlm_containers")

#: Seconds between two writes of a manifest while cells run; its last version is never left out.
_PERIOD = 1.0


class Home:
    """That of a sandbox whose session ends with it.

    Args:
        name: the sandbox's name.

    Attributes:
        kept: whether the session outlives the sandbox.
        is_new: whether nothing has run in it before.
        began: whether an interpreter has been ready in this sandbox.
        snapshots: its snapshots.
        manifest: what is known of it.
    """

    kept = False
    is_new = True

    def __init__(self, name: str) -> None:
        self.name = name
        self.snapshots = SnapshotStore(passing_snapshots_directory() / name)
        self.manifest = Manifest.new()
        self.began = False
        self._workspace: Workspace | None = None
        #: What a reaper removes when this process dies; a session's directory stays.
        self.passing_workspace: Path | None = workspaces_directory() / name
        self.passing_snapshots: Path | None = self.snapshots.directory
        #: A descriptor that a reaper holds until the container is gone.
        self.lock: int | None = None

    def open_workspace(self, owner: FileOwner, record: str) -> Workspace:
        """Make the workspace, or open that which is there.

        Args:
            owner: the UID and GID that the container writes as, seen from the host.
            record: says whose a workspace is that ends with this process.

        Raises:
            WorkspaceError: it cannot be made.
            SessionError: what was begun before cannot be ended.
        """
        self._workspace = Workspace(self.name, owner, record)
        return self._workspace

    def begin(self, python: str, image: str, engine: str) -> None:
        """Take note that an interpreter is ready."""
        self.manifest = replace(self.manifest, python=python, image=image[:250], engine=engine)
        self.began = True

    def note(self, report: Mapping[str, Any]) -> None:
        """Take note of what the guest says of its checkpoint."""
        self.manifest = replace(self.manifest.reported(report), used=now())

    def restored(self, manifest: Manifest) -> None:
        """Take note that the state is that of a snapshot again."""
        self.manifest = replace(
            self.manifest,
            variables=manifest.variables,
            unsaved=manifest.unsaved,
            state=manifest.state,
            used=now(),
        )

    def close(self) -> None:
        """Remove what is not to stay. The container must be gone.

        Raises:
            WorkspaceError: something could not be removed.
        """
        try:
            remove_tree(self.snapshots.directory)
        finally:
            if self._workspace is not None:
                self._workspace.remove()

    def release(self) -> None:
        """Let others have the session. Nothing may use it any more."""


class KeptHome(Home):
    """That of a named session, which is locked as long as this is open.

    Args:
        name: the sandbox's name.
        session: the session's name.
        new: whether it must not be there yet.

    Raises:
        SessionInUseError: another sandbox has it.
        SessionError: it is there already, or cannot be made.
    """

    kept = True

    def __init__(self, name: str, session: str, *, new: bool = False) -> None:
        super().__init__(name)
        self.session = session
        self.path = path = sessions_directory() / session
        try:
            self._lock = SessionLock(path, session, create=True)
        except OSError as error:
            raise SessionError(
                f"The session {session!r} cannot be opened in {path}: {error.strerror}.",
                remedy="Make the directory writable, or set XDG_STATE_HOME to one that is.",
            ) from error
        self.snapshots = SnapshotStore(path)
        self.passing_workspace = self.passing_snapshots = None
        self.lock = self._lock.descriptor
        self._manifest_path = path / "manifest.json"
        self._written = 0.0
        self.is_new = not (path / "workspace").exists()
        if new and not self.is_new:
            self._lock.close()
            raise SessionError(
                f"There is a session {session!r} already.",
                remedy="Choose another name, or remove it.",
            )
        try:
            self.manifest = Manifest.read(self._manifest_path)
        except ValueError as error:
            if not self.is_new:
                # What counts is in the workspace; this only tells of it.
                logger.warning("the manifest of the session %r is lost: %s", session, error)

    def open_workspace(self, owner: FileOwner, record: str) -> Workspace:
        workspace = KeptWorkspace(self.path / "workspace", owner)
        if (finished := self.snapshots.finish(workspace)) is not None:
            logger.warning(
                "the session %r goes on with the snapshot %s, which was being restored",
                self.session,
                finished.id,
            )
        self._workspace = workspace
        return workspace

    def begin(self, python: str, image: str, engine: str) -> None:
        super().begin(python, image, engine)
        self.write()

    def note(self, report: Mapping[str, Any]) -> None:
        super().note(report)
        if time.monotonic() - self._written > _PERIOD:
            self.write()

    def restored(self, manifest: Manifest) -> None:
        super().restored(manifest)
        self.write()

    def write(self) -> None:
        """Write the manifest."""
        try:
            self.manifest.write(self._manifest_path)
        except OSError as error:
            # Not worth a cell: the next one is written soon.
            logger.warning("%s: the manifest could not be written: %s", self.name, error)
        self._written = time.monotonic()

    def close(self) -> None:
        if self.began:
            self.write()
        if self._workspace is not None:
            self._workspace.remove()  # which only closes it
        if self.is_new and not self.began:
            # Its start has failed, and there is nothing in it that anybody has made.
            remove_tree(self.path)

    def release(self) -> None:
        self._lock.close()


class KeptWorkspace(Workspace):
    """The workspace of a session: there already, or made; and not removed.

    Args:
        path: the directory.
        owner: the UID and GID that the container writes as, seen from the host. What belongs to
            somebody else is given to them, which only root can do.

    Raises:
        WorkspaceError: it cannot be opened, or belongs to somebody else.
    """

    def __init__(self, path: Path, owner: FileOwner) -> None:
        self.path = path
        self.owner = owner
        try:
            path.mkdir(mode=0o700, exist_ok=True)
            if path.lstat().st_mode & 0o700 != 0o700:  # a cell has locked everybody out
                path.chmod(0o700)
            self._open()
            with self.directory() as top:
                # An engine that runs containers as somebody else may have made it.
                before = os.fstat(top)
                if (before.st_uid, before.st_gid) != owner:
                    give_tree_to(top, owner)
        except OSError as error:
            raise WorkspaceError(
                f"The workspace {path} could not be opened: {error.strerror}.",
                remedy="Make the directory writable, or set XDG_STATE_HOME to one that is.",
            ) from error
        if os.getuid() not in (0, before.st_uid):
            self.close()
            raise WorkspaceError(
                f"The workspace {path} belongs to the user {before.st_uid}.",
                remedy="Use the session as that user.",
            )

    def remove(self) -> None:
        """Close it."""
        self.close()
