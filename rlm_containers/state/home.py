"""What a sandbox keeps on the host while it runs, and what of that stays after it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlm_containers.errors import SessionError
from rlm_containers.state.hostfiles import (
    flush_directory,
    is_there,
    passing_snapshots_directory,
    remove_unfinished,
    sessions_directory,
    workspaces_directory,
)
from rlm_containers.state.lock import SessionLock
from rlm_containers.state.manifest import Manifest, now
from rlm_containers.state.nofollow import Ids
from rlm_containers.state.record import (
    SessionState,
    check_workspace,
    make_anew,
    read_state,
    write_state,
)
from rlm_containers.state.snapshot_store import SnapshotStore
from rlm_containers.state.workspace import Workspace, remove_tree
from runtimes.text import get_logger

logger = get_logger("rlm_containers")

#: Seconds between two writes of a manifest while cells run. The last version is always written.
_WRITE_INTERVAL = 1.0


class Home:
    """The workspace and snapshots of a sandbox without a session; both end with it.

    Args:
        name: the sandbox's name.

    Attributes:
        state: ``"made"`` until an interpreter was ready here for the first time and the setup code
            has run; ``"ready"`` from then on.
        snapshots: its snapshots.
        manifest: what is known of its state.
        passing_workspace: the directory that a reaper removes if this process dies; ``None`` if it
            stays.
        passing_snapshots: likewise.
        lock: a descriptor that the reaper must hold until the container is gone, or ``None``.
    """

    state: SessionState = "made"

    def __init__(self, name: str) -> None:
        self.name = name
        self.snapshots = SnapshotStore(passing_snapshots_directory() / name, durable=False)
        self.manifest = Manifest.new()
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
            SessionError: a restore that was interrupted cannot be undone.
        """
        self._workspace = Workspace.create(self.name, ids, owner)
        return self._workspace

    def begin(self, python: str, image: str, engine: str) -> None:
        """Note that an interpreter is ready, and where it runs.

        Raises:
            SessionError: that cannot be recorded.
        """
        self.manifest = replace(self.manifest, python=python, image=image[:250], engine=engine)
        self.state = "ready"

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
        durable: whether what is written to it must survive a power failure.

    Raises:
        SessionInUseError: another sandbox has it.
        SessionError: it exists and must not, or it cannot be made.
    """

    def __init__(
        self, name: str, session: str, *, new: bool = False, durable: bool = False
    ) -> None:
        super().__init__(name)
        self._durable = durable
        self.session = session
        self.path = path = sessions_directory() / session
        self._lock = SessionLock(path, session, create=True)
        self.snapshots = SnapshotStore(path)
        self.passing_workspace = self.passing_snapshots = None
        self.lock = self._lock.descriptor
        self._manifest_path = path / "manifest.json"
        self._written = 0.0
        try:
            self._look(new=new)
        except OSError as error:
            self._lock.close()
            raise SessionError(
                f"The session {session!r} cannot be opened in {path}: {error.strerror}.",
                remedy="Make the directory readable and writable.",
            ) from error
        except BaseException:
            self._lock.close()
            raise

    def _look(self, *, new: bool) -> None:
        """Look at what is there."""
        remove_unfinished(self.path)
        state = read_state(self.path)
        if state != "ready":
            make_anew(self.path)
        elif new:
            raise SessionError(
                f"There is a session {self.session!r} already.",
                remedy="Choose another name, or remove it.",
            )
        else:
            check_workspace(self.path, self.session)
            self.state = state
        try:
            self.manifest = Manifest.read(self._manifest_path)
        except (FileNotFoundError, ValueError) as error:
            # The workspace is what counts; the manifest only describes it.
            if self.state == "ready":
                logger.warning(
                    "%s: the manifest of the session %r is lost and is made anew: %s",
                    self.name,
                    self.session,
                    error,
                )
            if is_there(self._manifest_path):
                self._manifest_path.rename(self._manifest_path.with_suffix(".damaged"))

    def open_workspace(self, ids: Ids, owner: str) -> Workspace:
        workspace = Workspace.open(self.path / "workspace", ids, durable=self._durable)
        if self._durable and self.state == "made":
            flush_directory(self.path.parent)
        if self.snapshots.go_back(workspace):
            logger.warning(
                "%s: restoring a snapshot of the session %r was interrupted; it goes on from its "
                "state before that",
                self.name,
                self.session,
            )
        self._workspace = workspace
        return workspace

    def begin(self, python: str, image: str, engine: str) -> None:
        is_new = self.state == "made"
        super().begin(python, image, engine)
        self.write()
        if is_new:
            try:
                write_state(self.path, "ready")
            except OSError as error:
                self.state = "made"
                raise SessionError(
                    f"The session {self.session!r} could not be recorded in {self.path}: "
                    f"{error.strerror}.",
                    remedy="Make room on the disk.",
                ) from error

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
            self.manifest.write(self._manifest_path, durable=self._durable)
        except OSError as error:
            logger.warning("%s: the manifest could not be written: %s", self.name, error)
        self._written = time.monotonic()

    def close(self) -> None:
        if self._workspace is not None:
            self._workspace.close()
        if self.state == "ready":
            self.write()
        else:
            remove_tree(self.path)  # the sandbox has not started

    def release(self) -> None:
        self._lock.close()
