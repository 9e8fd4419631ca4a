"""Saves the variables of a session to ``state.dill`` after every cell, and restores them.

All variables are written to a new file, which then replaces the old one by a rename. Whoever dies
when, there is one whole file. The old one stays as ``state.dill.previous``, in case that the new
one is damaged later (:class:`rlm_guest.state.files.StatePair`).

Each variable that can be saved has a record, a pickle of ``(name, value)``. One pickler writes all
records and one unpickler reads them, so that two variables which refer to the same object do so
again after a restore. :mod:`rlm_guest.state.files` describes the rest of the file.

A record does not contain long strings or loaded contexts, but references to the files that have
them (:mod:`rlm_guest.state.values`).
"""

from __future__ import annotations

import errno
import sys
import types
from collections.abc import Iterable
from io import BufferedReader
from typing import Any

from .. import wire
from ..interrupts import Interrupts
from ..shortforms import error_text, type_name
from .files import Sink, Source, SpoolFile, StatePair, open_regular, read_index, write_index
from .pickling import StatePickler, StateUnpickler
from .values import BLOB_SIZE, BlobStore, LoadedFiles, Reference

_TOO_LONG = "saving it took too long"


class Checkpoint:
    """Saves and restores the variables of a session.

    Args:
        directory: where ``state.dill`` is, or will be.

    Attributes:
        loaded: the files that the host has loaded into variables.
        saved: ``[name, type, bytes]`` of each variable in the last checkpoint. The bytes include
            the files that a variable refers to as a whole.
    """

    def __init__(self, directory: str) -> None:
        self.files = StatePair(directory)
        self.loaded = LoadedFiles(directory)
        self.saved: list[list[Any]] = []
        self._blobs = BlobStore(directory)
        self._referred: set[str] = set()  # files that the checkpoint under way refers to
        self._referred_size = 0  # bytes of those that the present variable refers to
        # Length and checksum of the last file. Many cells change nothing that has to be saved.
        self._written: tuple[int, int] | None = None
        self._slow: dict[str, _SlowVariable] = {}

    # Saving

    def save(self, variables: Iterable[tuple[str, Any]], interrupts: Interrupts) -> dict[str, Any]:
        """Write a new ``state.dill``, unless it would be the same as the last.

        One interrupt ends the saving of one variable, a second one that of all that are left.

        Returns:
            ``{"unsaved": [[name, type, reason], …], "error": str | None}``. With an error, such as
            a full disk, the last file stays.
        """
        variables = sorted(variables, key=_rank)
        try:
            try:
                unsaved = self._write(variables, interrupts)
            except OSError as error:
                # A new file is worth more than the previous one.
                if error.errno not in _DISK_FULL or not self.files.drop_previous():
                    raise
                self._blobs.sweep(self.files.needed)
                unsaved = self._write(variables, interrupts)
        except OSError as error:
            self._written = None
            return {"unsaved": [], "error": str(error)}
        self._blobs.end(self.files.needed)
        self.loaded.end(self.files.needed)
        return {"unsaved": unsaved, "error": None}

    def _write(self, variables: list[tuple[str, Any]], interrupts: Interrupts) -> list[list[str]]:
        with SpoolFile(self.files.path + wire.UNFINISHED) as file:
            sink = Sink(file)
            records, unsaved = self._write_records(sink, variables, interrupts)
            write_index(
                sink,
                records=records,
                unsaved=unsaved,
                files=sorted(self._referred),
                superseded=sorted(self.loaded.superseded),
            )
            written = (sink.length, sink.checksum)
            if written != self._written or not self.files.is_untouched():
                self.files.commit(file, frozenset(self._referred))
                self._written = written
        return unsaved

    def _write_records(
        self, sink: Sink, variables: list[tuple[str, Any]], interrupts: Interrupts
    ) -> tuple[list[list[Any]], list[list[str]]]:
        """Write a record for each variable. Return the records and ``unsaved`` of the index."""
        records: list[list[Any]] = []
        unsaved: list[list[str]] = []
        self._referred = set()
        slow, self._slow = self._slow, {}
        self.saved = []
        self._blobs.begin()
        self.loaded.begin(value for _, value in variables)
        pickler = StatePickler(sink, self._refer_and_count)
        for name, value in variables:
            start = sink.mark()
            memo_size = len(pickler.memo)
            self._referred_size = 0
            try:
                last_time = slow.get(name)
                if last_time is not None and last_time.skips(value):
                    self._slow[name] = last_time
                    raise _SkippedError(_TOO_LONG + ", and is not tried again at once")
                if interrupts.received > 1:
                    raise _SkippedError("the checkpoint took too long before it came to this")
                with interrupts:
                    pickler.dump((name, value))
            except OSError as error:
                if isinstance(error, _BlobError) or sink.failed:
                    raise
                reason = error_text(error)
            except _SkippedError as error:
                reason = str(error)
            except BaseException as error:
                # A __reduce__ of the cell's may raise KeyboardInterrupt or SystemExit too.
                reason = error_text(error)
                if isinstance(error, KeyboardInterrupt) and interrupts.received:
                    reason = _TOO_LONG
                    self._slow[name] = _SlowVariable(value, last_time)
            else:
                records.append([name, start[0], type_name(value), memo_size, sink.checksum])
                size = sink.length - start[0] + self._referred_size
                self.saved.append([name, type_name(value), size])
                continue
            sink.rewind(start)
            pickler.forget(memo_size)
            unsaved.append([name, type_name(value), reason])
        return records, unsaved

    def _refer_and_count(self, value: Any) -> Reference | None:
        reference = self._refer(value)
        # A piece of a document costs nothing: the variable that holds the document counts it.
        if reference is not None and not any(reference[4:]):
            self._referred_size += reference[2]
        return reference

    def _refer(self, value: Any) -> Reference | None:
        """Return the reference to save in place of a value, or ``None`` to save the value."""
        kind = type(value)
        if kind is dict or kind is list:
            reference = self.loaded.refer(value) if self.loaded.documents else None
        elif (kind is not str and kind is not bytes) or len(value) < BLOB_SIZE:
            return None
        else:
            try:
                reference = self.loaded.refer(value) or self._blobs.refer(value)
            except OSError as error:
                raise _BlobError(*error.args) from error
        if reference is not None:
            self._referred.add(reference[1])
        return reference

    # Restoring

    def load(
        self,
        values: dict[str, Any],
        interrupts: Interrupts | None = None,
        *,
        last: bool = True,
    ) -> dict[str, Any]:
        """Restore the variables from ``state.dill``, or from the file before it. Never raises.

        Args:
            values: where to put the variables, one by one. To restore an object may run code of
                the session's, which looks for other variables there.
            interrupts: allowed while a variable is restored, and cost that variable.
            last: whether to try the last file, or only the one before it.

        Returns:
            ``lost``: ``[name, type, reason]`` of each variable that could not be restored. ``*``
            stands for all, if neither file can be read.
            ``damage``: why the last file was not used; empty if it was.
            ``older``: if it was not, the names of the variables that may have had other values.
        """
        self._blobs.adopt()
        damage = "restoring it killed the interpreter"
        if last:
            try:
                lost = self._load(self.files.path, values, interrupts, from_previous=False)
                return {"lost": lost, "damage": "", "older": []}
            except Exception as error:
                damage = error_text(error)
        newer = _undamaged_index(self.files.path)
        try:
            lost = self._load(self.files.previous, values, interrupts, from_previous=True)
        except FileNotFoundError:
            lost = [["*", "", "state.dill cannot be read: {}".format(damage)]]
            return {"lost": lost + _as_lost(newer), "damage": damage, "older": []}
        except Exception as error:
            reason = "state.dill cannot be read: {}; nor can state.dill.previous: {}".format(
                damage, error_text(error)
            )
            return {"lost": [["*", "", reason], *_as_lost(newer)], "damage": damage, "older": []}
        older = _undamaged_index(self.files.previous)
        known = {entry[0] for entry in lost} | {record[0] for record in older["records"]}
        lost += [entry for entry in _as_lost(newer) if entry[0] not in known]
        return {"lost": lost, "damage": damage, "older": _may_differ(older, newer)}

    def _load(
        self,
        path: str,
        values: dict[str, Any],
        interrupts: Interrupts | None,
        *,
        from_previous: bool,
    ) -> list[list[str]]:
        """Restore from one file. Return ``lost``."""
        with open_regular(path) as file:
            index = read_index(file)
            lost = self._read_records(file, index, values, interrupts or Interrupts())
        self.loaded.superseded.update(index["superseded"])
        self.files.note_restored(index, from_previous=from_previous)
        return lost

    def _read_records(
        self,
        file: BufferedReader,
        index: dict[str, Any],
        values: dict[str, Any],
        interrupts: Interrupts,
    ) -> list[list[str]]:
        lost = [list(entry) for entry in index["unsaved"]]
        same = index["python"][:2] == list(sys.version_info[:2])
        foreign = None if same else ".".join(map(str, index["python"]))
        unpickler = StateUnpickler(Source(file), self._fetch, foreign)
        for name, offset, kind, memo_size, _ in index["records"]:
            file.seek(offset)
            try:
                with interrupts:
                    _, values[name] = unpickler.load()
            except BaseException as error:
                late = isinstance(error, KeyboardInterrupt) and interrupts.received
                reason = "restoring it took too long" if late else error_text(error)
                lost.append([name, kind, "it cannot be loaded: " + reason])
                unpickler = unpickler.after_failure(memo_size)
        self.loaded.parsed.clear()
        self._blobs.fetched.clear()
        return lost

    def _fetch(self, reference: Reference) -> Any:
        """Return the value that a reference stands for."""
        if reference[0] in ("text", "json"):
            return self.loaded.fetch(reference)
        return self._blobs.fetch(reference)


#: The disk is full, or this user's quota of it.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class _SkippedError(Exception):
    """A variable is not even tried to be saved."""


class _BlobError(OSError):
    """A blob could not be written. That is a fault of the disk, not of the variable."""


class _SlowVariable:
    """A variable whose saving took too long.

    It would cost every cell that time. So it is tried again when it is bound to another object,
    else after 4 checkpoints, then after 8, and so on.

    Args:
        value: the object that it is bound to.
        last_time: what was noted when it was tried before.
    """

    def __init__(self, value: object, last_time: _SlowVariable | None) -> None:
        self._key = id(value), type(value)
        again = last_time is not None and last_time._key == self._key
        self._pause: int = 2 * last_time._pause if again and last_time is not None else 4
        self._left = self._pause

    def skips(self, value: object) -> bool:
        """Return whether to leave the variable out of this checkpoint."""
        self._left -= 1
        return self._left >= 0 and self._key == (id(value), type(value))


def _rank(variable: tuple[str, Any]) -> int:
    """Sort modules, functions and classes first: code that runs in a restore may use them."""
    value = variable[1]
    return 0 if isinstance(value, types.ModuleType) else 1 if callable(value) else 2


def _undamaged_index(path: str) -> dict[str, Any]:
    """Return the index of a state file whose records may be damaged; empty if it is damaged too."""
    try:
        with open_regular(path) as file:
            return read_index(file, whole=False)
    except Exception:
        return {"records": [], "unsaved": []}


def _as_lost(newer: dict[str, Any]) -> list[list[str]]:
    """Return the variables of a file that cannot be used, each as lost."""
    reason = "it was in no other file"
    saved = [[record[0], record[2], reason] for record in newer["records"]]
    return saved + [list(entry) for entry in newer["unsaved"]]


def _may_differ(older: dict[str, Any], newer: dict[str, Any]) -> list[str]:
    """Return the variables of the older file that may have other values in the newer one.

    Up to the first record that differs, nothing has changed. After it, a record with the same
    bytes may refer to a changed object.
    """
    same = 0
    for before, after in zip(older["records"], newer["records"]):  # noqa: B905 - not in 3.9
        if before != after:
            break
        same += 1
    return [record[0] for record in older["records"][same:]]
