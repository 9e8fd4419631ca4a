"""What a sandbox was, to go back to or to go on from twice."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

from rlm_containers.errors import OptionError, SessionStateError
from rlm_containers.guest import wire
from rlm_containers.interpreter import Interpreter, UnsavedVariable
from rlm_containers.lm import LMBroker, LMCallable
from rlm_containers.options import SandboxOptions
from rlm_containers.sandbox.awaiting import call_in_thread
from rlm_containers.sandbox.tools import ToolFunction
from rlm_containers.state import Home, Snapshot, Workspace

logger = logging.getLogger("rlm_containers")

#: Seconds for a checkpoint to be written before what it belongs to is copied, or closed.
_SETTLE_TIMEOUT = 120.0


class SnapshotMethods:
    """What :class:`~rlm_containers.sandbox.sandbox.Sandbox` has for snapshots and forks.

    A snapshot is the saved state: variables and files, of which those that cannot be saved are no
    part. Of a named session snapshots are kept with it; else they go with the sandbox.
    """

    if TYPE_CHECKING:
        name: str
        options: SandboxOptions
        scaffold: bool
        lost: tuple[UnsavedVariable, ...]
        python_version: str | None
        _lm: LMCallable | LMBroker | None
        _tools: Mapping[str, ToolFunction]
        _told: dict[str, Any]
        _files: dict[str, tuple[str | None, int]]
        _home: Home | None
        _workspace: Workspace | None
        _interpreter: Interpreter | None
        _seed: Callable[[Workspace], None] | None
        _lock: threading.RLock

        def _open_interpreter(self) -> Interpreter: ...
        def start(self) -> Self: ...
        def close(self) -> None: ...

    def snapshot(self, note: str = "") -> str:
        """Keep the variables and files as they are now, to come back to with :meth:`restore`.

        Contents that an earlier snapshot has already are not kept again.

        Args:
            note: what to write to it; of a longer one the first 200 characters stay.

        Returns:
            Its id, which the same state always has.

        Raises:
            SessionStateError: the state could not be saved.
            SessionError: there is no room for it.
            WorkspaceError: a file in the workspace cannot be read.
            SandboxClosedError, SandboxLostError: as for :meth:`execute`.
        """
        if not isinstance(note, str):
            raise OptionError(f"note must be a string, not {type(note).__name__}.")
        with self._lock:
            home, workspace = self._settled()
            return home.snapshots.create(workspace, home.manifest, note).id

    def snapshots(self) -> list[Snapshot]:
        """The snapshots that there are, the oldest first."""
        with self._lock:
            self._open_interpreter()
            assert self._home is not None
            return self._home.snapshots.all()

    def restore(self, snapshot: str) -> tuple[UnsavedVariable, ...]:
        """Go back to a snapshot: its variables and its files take the place of the present ones.

        The interpreter is exchanged for a new one, which takes some hundredths of a second and what
        it takes to load the variables. What only it held is gone: connections, generators.

        Args:
            snapshot: the id, or the beginning of it.

        Returns:
            The variables that the snapshot does not bring back.

        Raises:
            SnapshotNotFoundError: there is none of that id.
            SessionStateError: it is damaged. If that shows only in the interpreter, no variable is
                left in it, but other snapshots can still be restored.
            SessionError: there is no room for it.
            SandboxClosedError, SandboxLostError: as for :meth:`execute`.
        """
        with self._lock:
            session = self._open_interpreter()
            assert self._home is not None
            assert self._workspace is not None
            found = self._home.snapshots.get(snapshot)
            # What belongs to the host, such as a compacted history, is not the cells' to go back.
            kept = {item["file"] for item in self._told["kept"]}
            state = (wire.STATE, f"{wire.STATE}.previous")
            has_state = any(entry.path in state for entry in found.entries)
            with self._home.snapshots.staged(found, self._workspace) as staged:
                lost = session.restart(lambda: staged.swap(kept), restores=has_state)
            # Files that variables were loaded from may be others now; their names stay taken.
            self._files = {name: (None, count) for name, (_, count) in self._files.items()}
            self.lost = tuple(lost)
            if any(variable.name == "*" for variable in lost):
                raise SessionStateError(
                    f"The variables of the snapshot {found.id} cannot be read: {lost[0].reason}.",
                    remedy="Restore another one.",
                    container=self.name,
                )
            self._home.restored(found.manifest)
            return self.lost

    def remove_snapshot(self, snapshot: str) -> None:
        """Remove a snapshot, and of its contents what no other needs.

        Raises:
            SnapshotNotFoundError: there is none of that id.
        """
        with self._lock:
            self._open_interpreter()
            assert self._home is not None
            self._home.snapshots.remove(snapshot)

    def fork(self, session: str | None = None) -> Self:
        """A second sandbox that goes on from the same variables and files, by itself.

        It has the options, tools and language model of this one. The setup code is not run again:
        what it made is there.

        Args:
            session: the name of a new session for it to be; ``None`` for one that ends with it.

        Returns:
            The sandbox, started; for its user to close, as ``with`` does it.

        Raises:
            SessionError: there is a session of that name, or no room.
            ContainersError: as for :meth:`start`.
        """
        with self._lock:
            _, workspace = self._settled()
            options = {
                field.name: getattr(self.options, field.name)
                for field in dataclasses.fields(self.options)
            }
            options["session"] = session
            lm = self._lm
            if isinstance(lm, LMBroker):  # which keeps the calls of one sandbox apart
                lm = LMBroker(lm.backend, lm.subcall, lm.max_concurrent_subcalls)
            other = type(self)(lm=lm, tools=self._tools, scaffold=self.scaffold, **options)  # type: ignore[call-arg]
            other._told["kept"] = [dict(item) for item in self._told["kept"]]
            other._told["kept_names"] = list(self._told["kept_names"])
            other._files = {name: (None, count) for name, (_, count) in self._files.items()}
            other._seed = workspace.copy_to
            return other.start()

    async def asnapshot(self, note: str = "") -> str:
        """As :meth:`snapshot`."""
        return await call_in_thread(lambda: self.snapshot(note), lambda: None)

    async def arestore(self, snapshot: str) -> tuple[UnsavedVariable, ...]:
        """As :meth:`restore`."""
        return await call_in_thread(lambda: self.restore(snapshot), lambda: None)

    async def afork(self, session: str | None = None) -> Self:
        """As :meth:`fork`."""
        return await call_in_thread(lambda: self.fork(session), lambda: None)

    def _settled(self) -> tuple[Home, Workspace]:
        """Where this sandbox lives, once everything that was acknowledged is on disk."""
        session = self._open_interpreter()
        assert self._home is not None
        assert self._workspace is not None
        if not session.settle(_SETTLE_TIMEOUT):
            raise SessionStateError(
                f"The variables were not saved within {_SETTLE_TIMEOUT:g} s.",
                remedy="Does a __reduce__ of a cell's own go on for ever?",
                container=self.name,
            )
        failed = [variable for variable in session.reports.unsaved if variable.name == "*"]
        if failed:
            raise SessionStateError(
                f"The variables could not be saved: {failed[0].reason}",
                remedy="Make room, or see box.unsaved.",
                container=self.name,
            )
        return self._home, self._workspace

    def _settle_for_good(self) -> None:
        """Before a session that is kept is closed: wait for what it has acknowledged."""
        if self._interpreter is None or self._home is None or not self._home.began:
            return
        try:
            saved = self._interpreter.settle(_SETTLE_TIMEOUT)
        except Exception as error:
            logger.info("%s: %s", self.name, error)  # it was lost before
        else:
            if not saved:
                logger.warning("%s: what the last cell changed may not be saved", self.name)

    def _go_on(self, python: str) -> None:
        """Take note of what a session goes on from, and see to it that nothing of it is lost.

        Raises:
            SessionStateError: nothing of it can be restored.
        """
        assert self._home is not None
        assert self._interpreter is not None
        assert self._workspace is not None
        home, before = self._home, self._home.manifest
        self.lost = tuple(self._interpreter.reports.unsaved)
        if any(variable.name == "*" for variable in self.lost):
            raise SessionStateError(
                f"The variables of the session {self.options.session!r} cannot be read: "
                f"{self.lost[0].reason}.",
                remedy="Nothing has been changed. Restore a snapshot of it, raise memory=… if "
                "that was too little, or remove the session.",
                container=self.name,
            )
        if home.is_new:
            return  # a fork: its source goes on with what cannot be saved
        known = {variable.name for variable in before.unsaved}
        news = [variable for variable in self.lost if variable.name not in known]
        current = dataclasses.replace(before, python=python)
        foreign = bool(before.python) and before.minor != current.minor
        damage = self._interpreter.reports.damage
        if not news and not foreign and not damage:
            return
        # The next checkpoint will not have them, so that a way back must be kept before it.
        why = f"before Python {python}" if foreign else "before variables were dropped"
        snapshot = home.snapshots.create(self._workspace, before, why)
        said = []
        if foreign:
            said.append(f"was made with Python {before.python}, and this is {python}")
        if damage:
            said.append("goes on from the state before its last one, which cannot be read")
        if news:
            names = "; ".join(map(str, news[:20])) + ("; …" if len(news) > 20 else "")
            said.append(f"could not bring back: {names}")
        logger.warning(
            "%s: the session %r %s. As it was it is kept as the snapshot %s.",
            self.name,
            self.options.session,
            "; ".join(said),
            snapshot.id,
        )
