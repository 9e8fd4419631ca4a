"""The state file: restored at the start, and written after a request."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from . import wire
from .interrupts import FILE, FILE_REQUEST, SAVED, Interrupts, monotonic
from .namespace import Namespace
from .paths import SearchPath
from .settings import Settings
from .shortforms import error_text
from .streams import StandardStreams
from .succession import KEPT

if TYPE_CHECKING:
    from .state.checkpoint import Checkpoint


class StateFile:
    """The file with the variables, and with what cells have set beside them.

    The worker restores it. A worker, an heir or a writer writes it, and notes for the supervisor
    which request it is as of.

    Args:
        directory: where it is.
        namespace: the variables.
        streams: silenced while code of the cells' objects runs.
        interrupts: allowed while a variable is restored; with the numbers for the supervisor.

    Attributes:
        kept: whether there is a session. Then the host is told what is in the file.
        seconds: how long it took to write the last checkpoint, but for long strings.
    """

    def __init__(
        self,
        directory: str,
        namespace: Namespace,
        streams: StandardStreams,
        interrupts: Interrupts,
    ) -> None:
        self._directory = directory
        self._namespace = namespace
        self._streams = streams
        self._interrupts = interrupts
        self._settings: Settings | None = None
        self._durable = False
        self._checkpoint: Checkpoint | None = None
        self.kept = False
        self.seconds = 0.0

    def begin(self, settings: Settings, *, kept: bool, durable: bool) -> None:
        """Note what is told at the start.

        Args:
            settings: what cells have set beside their variables.
            kept: whether there is a session, which outlives the container.
            durable: whether a checkpoint must survive a power failure once it is written.
        """
        self._settings = settings
        self._durable = durable
        self.kept = kept
        self._interrupts.progress[KEPT] = kept

    @property
    def checkpoint(self) -> Checkpoint:
        """What reads and writes the file."""
        return self.open()

    def open(self) -> Checkpoint:
        """Import what reads and writes the file, unless that was done. It takes a while."""
        if self._checkpoint is None:
            from .state.checkpoint import Checkpoint

            self._checkpoint = Checkpoint(self._directory, durable=self._durable)
        return self._checkpoint

    def exists(self) -> bool:
        """Return whether an earlier sandbox has left a file, readable or not."""
        for name in (wire.STATE, wire.PREVIOUS_STATE):
            try:
                os.stat(os.path.join(self._directory, name), follow_symlinks=False)
            except FileNotFoundError:
                continue
            except OSError:  # not "there is none": the next checkpoint would overwrite it
                pass
            return True
        return False

    def restore(self, search_path: SearchPath, *, last: bool) -> dict[str, Any]:
        """Restore the variables. Return ``lost``, ``damage`` and ``older`` of ``ready``.

        Args:
            search_path: where cells find modules.
            last: whether to try the last checkpoint, or only the one before it.
        """
        checkpoint = self.open()  # first: cells may have modules by the names of what it imports
        with self._streams.silenced(), search_path.of_cells():
            report = checkpoint.load(
                self._namespace.values, self._interrupts, last=last, settings=self._settings
            )
            report["lost"] += self._namespace.set_patches()
            return report

    def write(self, number: int, interrupts: Interrupts) -> dict[str, Any]:
        """Write the checkpoint of a request. Return what to tell the host.

        Args:
            number: the request.
            interrupts: allowed while a variable is saved.
        """
        started = monotonic()
        with self._streams.silenced():
            report = self._write(number, interrupts)
        self.seconds = monotonic() - started - self.checkpoint.blob_seconds
        return report

    def _write(self, number: int, interrupts: Interrupts) -> dict[str, Any]:
        try:
            checkpoint = self.checkpoint
            checkpoint.replacing = lambda inode: self._note_file(number, inode)
            report = checkpoint.save(
                self._namespace.saved(),
                interrupts,
                self._settings,
                number,
                self._namespace.patches.originals(),
            )
        except Exception as error:
            # A cell can break any module that saving needs. Go on without a checkpoint.
            report = unwritten(error_text(error))
        if report["error"] is None:
            self._interrupts.progress[SAVED] = number
            if self.kept:
                report["variables"] = checkpoint.saved
                report["state"] = self._stamp()
        return report

    def _note_file(self, number: int, inode: int) -> None:
        """Note that the file with this inode has what the request with this number has changed."""
        progress = self._interrupts.progress
        progress[FILE] = 0  # a death between the next two lines must not mix up two files
        progress[FILE_REQUEST] = number
        progress[FILE] = inode

    def _stamp(self) -> list[int]:
        """Return size and ``mtime_ns`` of the file, by which the host recognizes it."""
        try:
            found = os.stat(os.path.join(self._directory, wire.STATE))
        except OSError:
            return [0, 0]  # a cell has removed it
        return [found.st_size, found.st_mtime_ns]


def unwritten(reason: str) -> dict[str, Any]:
    """Return the report of a checkpoint that could not be written."""
    return {"unsaved": [], "error": reason}
