"""What there is of a sandbox while it runs, and when all of that is saved."""

from __future__ import annotations

from dataclasses import dataclass

from rlm_containers.container import Reaper
from rlm_containers.errors import SandboxLostError
from rlm_containers.interpreter import BranchTable, Commands, Interpreter, Reply
from rlm_containers.lm import Gateway
from rlm_containers.sandbox.replication import Replication
from rlm_containers.sandbox.watch import SpaceWatch
from rlm_containers.state import Home, WorkspaceFiles
from runtimes import Runtime

#: Seconds for a checkpoint to be written before its workspace is copied or closed.
SETTLE_TIMEOUT = 120.0


@dataclass(frozen=True, kw_only=True)
class Running:
    """What exists only while a sandbox runs.

    Attributes:
        runtime: the engine.
        home: keeps the workspace, the snapshots and the manifest.
        workspace: the files in the container's ``/workspace``.
        reaper: cleans up if this process dies.
        gateway: answers the cells' calls of models and tools.
        interpreter: the conversation with the container's interpreter.
        watch: bounds what cells write into the workspace; ``None`` if nothing does.
        commands: runs commands beside it.
        branches: knows the copies of it.
        replication: brings the files of a session here while it runs; ``None`` if nothing does.
        python_version: the version of its Python, such as ``"3.11.4"``.
    """

    runtime: Runtime
    home: Home
    workspace: WorkspaceFiles
    reaper: Reaper
    gateway: Gateway
    interpreter: Interpreter
    watch: SpaceWatch | None
    commands: Commands
    branches: BranchTable
    replication: Replication | None
    python_version: str

    def settle(self, reply: Reply | None = None) -> bool:
        """Wait until the last checkpoint is on disk, see :meth:`Interpreter.settle`."""
        return self.interpreter.settle(SETTLE_TIMEOUT, reply)

    def note_changes(self) -> None:
        """Note that cells or the user may have changed files."""
        if self.replication is not None:
            self.replication.wake()

    def save(self, reply: Reply | None = None) -> bool:
        """Wait until a session has the last checkpoint and the files on this host.

        Args:
            reply: as for :meth:`settle`.

        Returns:
            As :meth:`settle`.

        Raises:
            SandboxLostError: the container is gone.
            WorkspaceError, SessionError: as for :meth:`PipedWorkspace.pull`.
        """
        saved = self.settle(reply)
        while self.replication is not None:
            try:
                self.replication.pull()
                break
            except SandboxLostError:
                # Another container may take its place, which this waits for.
                if self.settle(reply):
                    raise
                saved = False
        return saved
