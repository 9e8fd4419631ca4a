"""The file a session lives on in: ``state.dill``.

After every cell all variables are written to a new file, which then takes the place of the old
one by a rename: whoever dies when, there is one complete file.

For each variable that can be saved there is a record, a pickle of ``(name, value)``. All are
written by one pickler and read by one unpickler, so that two variables which refer to the same
object do so again after a restore. The rest of the file's form is in :mod:`rlm_guest.statefile`.

Long strings are written once, to a file of their own (:mod:`rlm_guest.blobs`), and from then on
only referred to; so are contexts, which have a file already (:mod:`rlm_guest.loaded`): a cell that
says ``x = 1`` must not cost what the context costs.
"""

from __future__ import annotations

import os
import types
from collections.abc import Iterable
from io import BufferedReader
from typing import Any

from .blobs import BLOB_SIZE, BlobStore
from .interrupts import Interrupts
from .loaded import LoadedFiles, Reference
from .pickling import StatePickler, StateUnpickler
from .shortforms import error_text, type_name
from .statefile import Sink, Source, SpoolFile, read_index, write_index

__all__ = ["Checkpoint"]

_TOO_LONG = "saving it took too long"


class Checkpoint:
    """Saves and loads the variables of a session.

    Args:
        directory: where ``state.dill`` is, or will be.

    Attributes:
        loaded: the files that the host had loaded into variables.
    """

    def __init__(self, directory: str) -> None:
        self.path = os.path.join(directory, "state.dill")
        self.loaded = LoadedFiles(directory)
        self._blobs = BlobStore(directory)
        # Length, checksum and inode of the file that is there: most cells of a conversation
        # change little, and many change nothing.
        self._written: tuple[int, int, int] | None = None
        # By name, of variables whose saving took too long.
        self._stalled: dict[str, _Stall] = {}

    # Saving

    def save(self, variables: Iterable[tuple[str, Any]], interrupts: Interrupts) -> dict[str, Any]:
        """Write a new ``state.dill``, unless it would be the same as the one that is there.

        Returns:
            ``{"unsaved": [[name, type, reason], …], "error": str | None}``; with an error, such
            as a full disk, the file before this one is still there.

        An interrupt ends the saving of one variable, and a second one that of all that are left.
        """
        temporary = self.path + ".new"
        try:
            with SpoolFile(temporary) as file:
                sink = Sink(file)
                records, unsaved = self._write_records(sink, variables, interrupts)
                write_index(sink, records, unsaved)
                written = (sink.length, sink.checksum)
                if (*written, _inode(self.path)) != self._written:
                    file.commit(self.path)
                    self._written = (*written, _inode(self.path))
        except OSError as error:
            self._written = None
            return {"unsaved": [], "error": str(error)}
        self._blobs.end()
        self.loaded.end()
        return {"unsaved": unsaved, "error": None}

    def _write_records(
        self, sink: Sink, variables: Iterable[tuple[str, Any]], interrupts: Interrupts
    ) -> tuple[list[list[Any]], list[list[str]]]:
        records: list[list[Any]] = []
        unsaved: list[list[str]] = []
        variables = sorted(variables, key=_rank)
        stalled, self._stalled = self._stalled, {}
        self._blobs.begin()
        self.loaded.begin(value for _, value in variables)
        pickler = StatePickler(sink, self._refer)
        for name, value in variables:
            mark = sink.mark()
            known = len(pickler.memo)
            try:
                stall = stalled.get(name)
                if stall is not None and stall.skips(value):
                    self._stalled[name] = stall
                    raise _StalledError(_TOO_LONG + ", and is not tried again at once")
                if interrupts.received > 1:
                    raise _StalledError("the checkpoint took too long before it came to this")
                with interrupts:
                    pickler.dump((name, value))
            except OSError as error:
                if isinstance(error, _BlobError) or sink.failed:
                    raise
                reason = error_text(error)
            except _StalledError as error:
                reason = str(error)
            except BaseException as error:
                # Also KeyboardInterrupt and SystemExit: from a __reduce__ of the cell's own.
                reason = error_text(error)
                if isinstance(error, KeyboardInterrupt) and interrupts.received:
                    reason = _TOO_LONG
                    self._stalled[name] = _Stall(value, stall)
            else:
                records.append([name, mark[0], type_name(value), known])
                continue
            sink.rewind(mark)
            pickler.forget(known)
            unsaved.append([name, type_name(value), reason])
        return records, unsaved

    def _refer(self, value: Any) -> Reference | None:
        """The reference that stands for a value, or ``None`` to save the value itself."""
        kind = type(value)
        if kind is dict or kind is list:
            return self.loaded.refer(value) if self.loaded.documents else None
        if (kind is not str and kind is not bytes) or len(value) < BLOB_SIZE:
            return None
        try:
            return self.loaded.refer(value) or self._blobs.refer(value)
        except OSError as error:
            raise _BlobError(*error.args) from error

    # Loading

    def load(self, values: dict[str, Any], interrupts: Interrupts | None = None) -> list[list[str]]:
        """Read ``state.dill``.

        Args:
            values: where the variables go, one by one: restoring an object may run code of the
                session's own, which looks for them there.
            interrupts: allowed while an object is restored, and cost that variable.

        Returns:
            ``[name, type, reason]`` for each that was there and is not now. Does not raise: a
            file that cannot be read is reported as the loss of ``"*"``.
        """
        try:
            with open(self.path, "rb") as file:
                index = read_index(file)
                return self._read_records(file, index, values, interrupts or Interrupts())
        except Exception as error:
            return [["*", "", "state.dill cannot be read: {}".format(error_text(error))]]

    def _read_records(
        self,
        file: BufferedReader,
        index: dict[str, Any],
        values: dict[str, Any],
        interrupts: Interrupts,
    ) -> list[list[str]]:
        lost = [list(entry) for entry in index["unsaved"]]
        unpickler = StateUnpickler(Source(file), self._fetch)
        for name, offset, kind, known in index["records"]:
            file.seek(offset)
            try:
                with interrupts:
                    _, values[name] = unpickler.load()
            except BaseException as error:
                late = isinstance(error, KeyboardInterrupt) and interrupts.received
                reason = "restoring it took too long" if late else error_text(error)
                lost.append([name, kind, "it cannot be loaded: " + reason])
                unpickler = unpickler.without(known)
        self.loaded.parsed.clear()
        self._blobs.fetched.clear()
        return lost

    def _fetch(self, reference: Reference) -> Any:
        """The value that a reference stands for."""
        if reference[0] in ("text", "json"):
            return self.loaded.fetch(reference)
        return self._blobs.fetch(reference)


class _StalledError(Exception):
    """A variable that is not even tried to be saved."""


class _Stall:
    """A variable whose saving took too long.

    To try it again after every cell would cost every cell that time. So it is tried again when it
    is bound to something else, and else ever more seldom.

    Args:
        value: what it is bound to.
        last: the same of the last time that it was tried.
    """

    def __init__(self, value: object, last: _Stall | None) -> None:
        self._key = id(value), type(value)
        again = last is not None and last._key == self._key
        self._pause: int = 2 * last._pause if again and last is not None else 4
        self._left = self._pause

    def skips(self, value: object) -> bool:
        """Whether to leave the variable out of this checkpoint."""
        self._left -= 1
        return self._left >= 0 and self._key == (id(value), type(value))


class _BlobError(OSError):
    """A blob could not be written, which is the disk's fault and not the variable's."""


def _rank(variable: tuple[str, Any]) -> int:
    """Modules, functions and classes come first: restoring the rest may run code that uses them."""
    value = variable[1]
    return 0 if isinstance(value, types.ModuleType) else 1 if callable(value) else 2


def _inode(path: str) -> int:
    try:
        return os.stat(path, follow_symlinks=False).st_ino
    except OSError:
        return -1
