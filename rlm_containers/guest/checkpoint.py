"""What a session lives on in: ``state.dill``, written after every cell.

All variables are written to a new file, which then takes the place of the old one by a rename:
whoever dies when, there is one complete file. The old one stays as ``state.dill.previous``, for the
day when the new one turns out to be damaged (:mod:`rlm_guest.statepair`).

For each variable that can be saved there is a record, a pickle of ``(name, value)``. All are
written by one pickler and read by one unpickler, so that two variables which refer to the same
object do so again after a restore. The rest of the file's form is in :mod:`rlm_guest.statefile`.

Long strings are written once, to a file of their own (:mod:`rlm_guest.blobs`), and from then on
only referred to; so are contexts, which have a file already (:mod:`rlm_guest.loaded`): a cell that
says ``x = 1`` must not cost what the context costs.
"""

from __future__ import annotations

import errno
import sys
import types
from collections.abc import Iterable
from io import BufferedReader
from typing import Any

from .blobs import BLOB_SIZE, BlobStore
from .interrupts import Interrupts
from .loaded import LoadedFiles, Reference
from .pickling import StatePickler, StateUnpickler
from .shortforms import error_text, type_name
from .statefile import Sink, Source, SpoolFile, open_regular, read_index, write_index
from .statepair import StatePair

_TOO_LONG = "saving it took too long"


class Checkpoint:
    """Saves and loads the variables of a session.

    Args:
        directory: where ``state.dill`` is, or will be.

    Attributes:
        loaded: the files that the host had loaded into variables.
        saved: what the last checkpoint has: ``[name, type, bytes]`` of each variable, the files
            that it refers to as a whole included.
    """

    def __init__(self, directory: str) -> None:
        self.files = StatePair(directory)
        self.loaded = LoadedFiles(directory)
        self.saved: list[list[Any]] = []
        self._referred_size = 0
        self._blobs = BlobStore(directory)
        self._referred: set[str] = set()
        # Length and checksum of the file that is there: most cells of a conversation change
        # little, and many change nothing.
        self._written: tuple[int, int] | None = None
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
        variables = sorted(variables, key=_rank)
        try:
            try:
                unsaved = self._write(variables, interrupts)
            except OSError as error:
                # A new file is worth more than one to go back to.
                if error.errno not in _NO_ROOM or not self.files.drop_previous():
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
        with SpoolFile(self.files.path + ".new") as file:
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
                self.files.advance(file, frozenset(self._referred))
                self._written = written
        return unsaved

    def _write_records(
        self, sink: Sink, variables: list[tuple[str, Any]], interrupts: Interrupts
    ) -> tuple[list[list[Any]], list[list[str]]]:
        records: list[list[Any]] = []
        unsaved: list[list[str]] = []
        self._referred = set()
        stalled, self._stalled = self._stalled, {}
        self.saved = []
        self._blobs.begin()
        self.loaded.begin(value for _, value in variables)
        pickler = StatePickler(sink, self._refer_and_count)
        for name, value in variables:
            mark = sink.mark()
            known = len(pickler.memo)
            self._referred_size = 0
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
                records.append([name, mark[0], type_name(value), known, sink.checksum])
                size = sink.length - mark[0] + self._referred_size
                self.saved.append([name, type_name(value), size])
                continue
            sink.rewind(mark)
            pickler.forget(known)
            unsaved.append([name, type_name(value), reason])
        return records, unsaved

    def _refer_and_count(self, value: Any) -> Reference | None:
        reference = self._refer(value)
        # A piece of a document is not counted: the document is, where it is.
        if reference is not None and not any(reference[4:]):
            self._referred_size += reference[2]
        return reference

    def _refer(self, value: Any) -> Reference | None:
        """The reference that stands for a value, or ``None`` to save the value itself."""
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

    # Loading

    def load(
        self,
        values: dict[str, Any],
        interrupts: Interrupts | None = None,
        *,
        last: bool = True,
    ) -> dict[str, Any]:
        """Read ``state.dill``, or, where it cannot be read, the one before it.

        Args:
            values: where the variables go, one by one: restoring an object may run code of the
                session's own, which looks for them there.
            interrupts: allowed while an object is restored, and cost that variable.
            last: whether the last file may be tried at all, or only the one before.

        Returns:
            ``lost``: ``[name, type, reason]`` for each that was there and is not now. Does not
            raise: where neither file can be read that is the loss of ``"*"``.
            ``damage``: why the last file was not used; empty if it was.
            ``older``: then, the names of those that may have had another value.
        """
        self._blobs.adopt()
        damage = "restoring it killed the interpreter"
        if last:
            try:
                lost = self._load(self.files.path, values, interrupts, from_previous=False)
                return {"lost": lost, "damage": "", "older": []}
            except Exception as error:
                damage = error_text(error)
        newer = _intact_index(self.files.path)
        try:
            lost = self._load(self.files.previous, values, interrupts, from_previous=True)
        except FileNotFoundError:
            lost = [["*", "", "state.dill cannot be read: {}".format(damage)]]
            return {"lost": lost + _named(newer), "damage": damage, "older": []}
        except Exception as error:
            reason = "state.dill cannot be read: {}; nor can state.dill.previous: {}".format(
                damage, error_text(error)
            )
            return {"lost": [["*", "", reason], *_named(newer)], "damage": damage, "older": []}
        older = _intact_index(self.files.previous)
        known = {entry[0] for entry in lost} | {record[0] for record in older["records"]}
        lost += [entry for entry in _named(newer) if entry[0] not in known]
        return {"lost": lost, "damage": damage, "older": _changed(older, newer)}

    def _load(
        self,
        path: str,
        values: dict[str, Any],
        interrupts: Interrupts | None,
        *,
        from_previous: bool,
    ) -> list[list[str]]:
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
        for name, offset, kind, known, _ in index["records"]:
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


#: The disk is full, or what of it this user may use.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


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


def _intact_index(path: str) -> dict[str, Any]:
    """The index of a state file that may be damaged elsewhere; an empty one if it is, too."""
    try:
        with open_regular(path) as file:
            return read_index(file, whole=False)
    except Exception:
        return {"records": [], "unsaved": []}


def _named(newer: dict[str, Any]) -> list[list[str]]:
    """The variables of a file that is not used, each as lost."""
    reason = "it was in no other file"
    saved = [[record[0], record[2], reason] for record in newer["records"]]
    return saved + [list(entry) for entry in newer["unsaved"]]


def _changed(older: dict[str, Any], newer: dict[str, Any]) -> list[str]:
    """The variables of the older file that may have another value in the newer.

    As far as both are the same from their beginning, nothing has changed. After the first
    difference a record with the same bytes may refer to something else.
    """
    same = 0
    for before, after in zip(older["records"], newer["records"]):  # noqa: B905 - not in 3.9
        if before != after:
            break
        same += 1
    return [record[0] for record in older["records"][same:]]
