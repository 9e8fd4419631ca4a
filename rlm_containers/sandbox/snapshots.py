"""The snapshots of a sandbox, and what a start or restore did not bring back."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from rlm_containers.errors import (
    OptionError,
    SessionError,
    SessionStateError,
    WorkspaceError,
    host_errors,
)
from rlm_containers.guest import wire
from rlm_containers.interpreter import UnsavedVariable
from rlm_containers.sandbox.lifecycle import Lifecycle
from rlm_containers.sandbox.running import SETTLE_TIMEOUT, Running
from rlm_containers.sandbox.variables import Variables
from rlm_containers.state import Snapshot
from runtimes.text import get_logger

logger = get_logger("rlm_containers")

#: Variables that a warning names.
_NAMED = 20


class Snapshots:
    """The snapshots of one sandbox.

    A snapshot is the saved state: the files, and those variables that can be saved. The snapshots
    of a named session are kept with it; those of another sandbox end with the sandbox.

    Args:
        life: the sandbox's lifecycle.
        variables: its variables.

    Attributes:
        lost: the variables that the last start or restore has not brought back.
    """

    def __init__(self, life: Lifecycle, variables: Variables) -> None:
        self.lost: tuple[UnsavedVariable, ...] = ()
        self._life = life
        self._variables = variables

    def create(self, note: str) -> str:
        """See :meth:`Sandbox.snapshot`."""
        if not isinstance(note, str):
            raise OptionError(f"note must be a string, not {type(note).__name__}.")
        running = self.settled()
        with self._host_errors("The snapshot could not be taken"), running.workspace.held():
            files = running.workspace.pull()
            return running.home.snapshots.create(files, running.home.manifest, note).id

    def all(self) -> list[Snapshot]:
        """See :meth:`Sandbox.snapshots`."""
        with self._host_errors("The snapshots could not be listed"):
            return self._life.running.home.snapshots.all()

    def restore(self, snapshot: str) -> tuple[UnsavedVariable, ...]:
        """See :meth:`Sandbox.restore`."""
        running = self._life.running
        with self._host_errors("The snapshot could not be restored"), running.workspace.held():
            return self._restore(running, snapshot)

    def _restore(self, running: Running, snapshot: str) -> tuple[UnsavedVariable, ...]:
        home = running.home
        found = home.snapshots.get(snapshot)
        running.settle()  # or the last cell's changes would be lost if the snapshot cannot be read
        # What belongs to the host, such as a compacted history, does not go back.
        kept = self._variables.host_files()
        has_state = any(entry.path in (wire.STATE, wire.PREVIOUS_STATE) for entry in found.entries)
        workspace = running.workspace
        with home.snapshots.staged(found, workspace.pull(), durable=workspace.durable) as exchange:

            def swap() -> None:
                exchange.swap(kept)
                workspace.push()

            def go_back() -> None:
                exchange.go_back()
                workspace.push()

            try:
                lost = running.interpreter.restart(swap, restores=has_state)
                if any(variable.name == "*" for variable in lost):
                    raise SessionStateError(
                        f"The variables of the snapshot {found.short_id} cannot be read: "
                        f"{lost[0].reason}.",
                        remedy="The sandbox is as it was before. Restore another snapshot.",
                        container=self._life.name,
                    )
            except BaseException:
                # No interpreter may go on with the variables of the one and the files of the other.
                running.interpreter.restart(go_back, restores=True)
                self.lost = tuple(running.interpreter.reports.unsaved)
                raise
            finally:
                self._variables.retain_files()
            exchange.commit()
        self.lost = tuple(lost)
        home.restored(found.manifest)
        return self.lost

    def remove(self, snapshot: str) -> None:
        """See :meth:`Sandbox.remove_snapshot`."""
        with self._host_errors("The snapshot could not be removed"):
            self._life.running.home.snapshots.remove(snapshot)

    @contextlib.contextmanager
    def _host_errors(self, what: str) -> Iterator[None]:
        """Name the container in errors of the host's file system."""
        try:
            with host_errors(SessionError, what):
                yield
        except (SessionError, WorkspaceError) as error:
            error.name_container(self._life.name)
            raise

    def settled(self) -> Running:
        """Wait until the last checkpoint is on disk.

        Raises:
            SessionStateError: the variables could not be saved.
            SandboxClosedError, SandboxLostError: as for :meth:`Sandbox.execute`.
        """
        running = self._life.running
        if not running.settle():
            raise SessionStateError(
                f"The variables were not saved within {SETTLE_TIMEOUT:g} s.",
                remedy="Does the __reduce__ of a class in a cell run for ever?",
                container=self._life.name,
            )
        failed = [v for v in running.interpreter.reports.unsaved if v.name == "*"]
        if failed:
            raise SessionStateError(
                f"The variables could not be saved: {failed[0].reason}",
                remedy="Make room, or see box.unsaved.",
                container=self._life.name,
            )
        return running

    def resume(self, running: Running, session: str | None) -> None:
        """Check what the sandbox has started from, and keep a way back if something is missing.

        Args:
            running: the sandbox, just started.
            session: the name of its session, for messages.

        Raises:
            SessionStateError: no variable of the session can be restored.
        """
        home, before = running.home, running.home.manifest
        self.lost = tuple(running.interpreter.reports.unsaved)
        if any(variable.name == "*" for variable in self.lost):
            raise SessionStateError(
                f"The variables of the session {session!r} cannot be read: {self.lost[0].reason}.",
                remedy="Nothing has been changed. Restore a snapshot of it, raise memory=… if "
                "that was too little, or remove the session.",
                container=self._life.name,
            )
        if home.state == "made":
            return  # nothing was there, or it is a fork, whose source still has what is missing
        python = running.python_version
        known = {variable.name for variable in before.unsaved}
        missing = [variable for variable in self.lost if variable.name not in known]
        current = dataclasses.replace(before, python=python)
        foreign = bool(before.python) and before.minor != current.minor
        damage = running.interpreter.reports.damage
        if not missing and not foreign and not damage:
            return
        # The next checkpoint overwrites what could not be restored, so keep it first.
        note = f"before Python {python}" if foreign else "before variables were dropped"
        with running.workspace.held():
            snapshot = home.snapshots.create(running.workspace.pull(), before, note)
        reasons = []
        if foreign:
            reasons.append(f"was made with Python {before.python}, and this is {python}")
        if damage:
            reasons.append("goes on from the state before its last one, which cannot be read")
        if missing:
            names = "; ".join(map(str, missing[:_NAMED])) + ("; …" * (len(missing) > _NAMED))
            reasons.append(f"could not bring back: {names}")
        logger.warning(
            "%s: the session %r %s. Its state before that is kept as the snapshot %s.",
            self._life.name,
            session,
            "; ".join(reasons),
            snapshot.id,
        )
