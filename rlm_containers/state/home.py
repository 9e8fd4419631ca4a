"""What a sandbox keeps on the host while it runs, and what of that stays after it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlm_containers.errors import SessionError
from rlm_containers.state.hostfiles import (
    passing_snapshots_directory,
    sessions_directory,
    workspaces_directory,
)
from rlm_containers.state.lock import SessionLock
from rlm_containers.state.manifest import Manifest, now
from rlm_containers.state.nofollow import Ids
from rlm_containers.state.snapshot_store import SnapshotStore
from rlm_containers.state.workspace import Workspace, remove_tree

logger = logging.getLogger("rlm_containers")

#: Seconds between two writes of a manifest while cells run. The last version is always written.
_WRITE_INTERVAL = 1.0


class Home:
    """The workspace and snapshots of a sandbox without a session; both end with it.

    Args:
        name: the sandbox's name.

    Attributes:
        is_new: whether no sandbox has used it before.
        began: whether an interpreter has been ready in this sandbox.
        snapshots: its snapshots.
        manifest: what is known of its state.
        passing_workspace: the directory that a reaper removes if this process dies; ``None`` if it
            stays.
        passing_snapshots: likewise.
        lock: a descriptor that the reaper must hold until the container is gone, or ``None``.
    """

    is_new = True

    def __init__(self, name: str) -> None:
        self.name = name
        self.snapshots = SnapshotStore(passing_snapshots_directory() / name)
        self.manifest = Manifest.new()
        self.began = False
        self.passing_workspace: Path | None = workspaces_directory() / name
        self.passing_snapshots: Path | None = self.snapshots.directory
        self.lock: int | None = None
        self._workspace: Workspace | None = None

    def open_workspace(self, ids: Ids, owner: str) -> Workspace:
        """Make the workspace, or open the one of the session.

        Args:
            ids: the user and group that the container writes as, as the host sees them.
            owner: the contents of the owner file of a workspace that ends with this process.

        Raises:
            WorkspaceError: it cannot be made or opened.
            SessionError: a restore that was interrupted cannot be completed.
        """
        self._workspace = Workspace.create(self.name, ids, owner)
        return self._workspace

    def begin(self, python: str, image: str, engine: str) -> None:
        """Note that an interpreter is ready, and where it runs."""
        self.manifest = replace(self.manifest, python=python, image=image[:250], engine=engine)
        self.began = True

    def note(self, report: Mapping[str, Any]) -> None:
        """Note what the guest reports of a checkpoint."""
        self.manifest = replace(self.manifest.reported(report), used=now())

    def restored(self, manifest: Manifest) -> None:
        """Note that the state is that of a snapshot, whose manifest is given."""
        self.manifest = replace(
            self.manifest,
            variables=manifest.variables,
            unsaved=manifest.unsaved,
            state=manifest.state,
            used=now(),
        )

    def close(self) -> None:
        """Remove what does not stay. The container must be gone.

        Raises:
            WorkspaceError: something could not be removed.
        """
        try:
            remove_tree(self.snapshots.directory)
        finally:
            if self._workspace is not None:
                self._workspace.remove()

    def release(self) -> None:
        """Give up the lock of the session. Nothing may use it any more."""


class KeptHome(Home):
    """The directory of a named session, which stays. It is locked while this object is open.

    Args:
        name: the sandbox's name.
        session: the session's name.
        new: whether the session must not exist.

    Raises:
        SessionInUseError: another sandbox has it.
        SessionError: it exists and must not, or it cannot be made.
    """

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
                # The workspace is what counts; the manifest only describes it.
                logger.warning(
                    "%s: the manifest of the session %r is lost and is made anew: %s",
                    name,
                    session,
                    error,
                )

    def open_workspace(self, ids: Ids, owner: str) -> Workspace:
        workspace = Workspace.open(self.path / "workspace", ids)
        if (finished := self.snapshots.finish(workspace)) is not None:
            logger.warning(
                "%s: the session %r goes on from the snapshot %s; restoring it was interrupted",
                self.name,
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
        if time.monotonic() - self._written > _WRITE_INTERVAL:
            self.write()

    def restored(self, manifest: Manifest) -> None:
        super().restored(manifest)
        self.write()

    def write(self) -> None:
        """Write the manifest. A failure is logged only: the next cell causes another write."""
        try:
            self.manifest.write(self._manifest_path)
        except OSError as error:
            logger.warning("%s: the manifest could not be written: %s", self.name, error)
        self._written = time.monotonic()

    def close(self) -> None:
        if self.began:
            self.write()
        if self._workspace is not None:
            self._workspace.close()
        if self.is_new and not self.began:
            remove_tree(self.path)  # the sandbox has not started, so the session is empty

    def release(self) -> None:
        self._lock.close()
