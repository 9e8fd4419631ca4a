"""Saves the variables to ``state.dill`` after every cell, and restores them.

All variables are written to a new file, which then replaces the old one by a rename. Whoever dies
when, there is one whole file. The old one stays as ``state.dill.previous``, in case that the new
one is damaged later (:class:`rlm_guest.state.files.StatePair`). Of a large file only what has
changed is written (:mod:`rlm_guest.state.chunks`).

Each variable that can be saved has a record (:mod:`rlm_guest.state.records`), and only one that can
be loaded again counts as saved (:mod:`rlm_guest.state.proof`). :mod:`rlm_guest.state.files`
describes the rest of the file.

A record does not contain long strings (:mod:`rlm_guest.state.blobs`) or loaded contexts
(:mod:`rlm_guest.state.loaded`), but references to the files that have them.
"""

from __future__ import annotations

import errno
import functools
import importlib
import sys
import types
import zlib
from collections.abc import Callable, Iterable, Sequence
from io import BufferedReader
from typing import TYPE_CHECKING, Any

from .. import wire
from ..interrupts import Interrupts
from ..patches import PREFIX
from ..settings import Settings
from ..shortforms import error_text, type_name
from .blobs import BlobStore, Reference
from .chunks import ChunkStore, NewFile, WholeFile
from .disk import open_regular
from .failures import TOO_LONG, Failure, SlowVariable
from .files import Sink, StatePair, needed_files, read_index, write_index
from .loaded import LoadedFiles, no_collection
from .proof import ProofInterruptedError, Trial, find_failures
from .records import MissingObjectError, Records, RecordWriter
from .references import References

if TYPE_CHECKING:
    from .earlier import EarlierRecords


class Checkpoint:
    """Saves and restores the variables.

    Args:
        directory: where ``state.dill`` is, or will be.
        durable: whether a checkpoint must survive a power failure once it is written.
        proves: whether a variable must be loaded in a child process to count as saved, if it may
            be saved and not load.

    Attributes:
        loaded: the files that the host has loaded into variables.
        saved: ``[name, type, bytes]`` of each variable in the last checkpoint. The bytes include
            the files that a variable refers to as a whole.
        replacing: called with the number of an inode, before the file with that becomes the state
            file, or again if it is that and has the variables already.
        attempting: called with the name of each variable before it is saved, and with an empty name
            after the last.
    """

    def __init__(self, directory: str, *, durable: bool = False, proves: bool = True) -> None:
        self.files = StatePair(directory, durable=durable)
        self.loaded = LoadedFiles(directory)
        self.saved: list[list[Any]] = []
        self.replacing: Callable[[int], None] = lambda inode: None
        self.attempting: Callable[[str], None] = lambda name: None
        self._blobs = BlobStore(directory, durable=durable)
        self._chunks = ChunkStore(directory, durable=durable)
        self._references = References(self.loaded, self._blobs)
        self._proves = proves
        self._doubtful: set[str] = set()  # variables whose records had to be proved
        self._proved: dict[str, tuple[int, int]] = {}  # length and checksum of those records
        self._failed: dict[str, Failure] = {}
        # Length and checksum of the last file. Many cells change nothing that has to be saved.
        self._written: tuple[int, int] | None = None
        self._slow: dict[str, SlowVariable] = {}
        self._patches: set[str] = set()  # the names of what cells have set in libraries
        self._settings_hang = False  # whether reading them did not end

    # Saving

    def save(
        self,
        variables: Iterable[tuple[str, Any]],
        interrupts: Interrupts,
        settings: Settings | None = None,
        number: int | None = None,
        originals: Sequence[tuple[Any, Reference]] = (),
    ) -> dict[str, Any]:
        """Write a new ``state.dill``, unless it would be the same as the last.

        One interrupt ends the saving of one variable, a second one that of all that are left.

        Args:
            variables: the names and values.
            interrupts: allowed while a variable is saved.
            settings: what cells have set beside their variables.
            number: the request that the variables are as of.
            originals: what cells have set something else in the place of, with references to it.

        Returns:
            ``{"unsaved": [[name, type, reason], …], "error": str | None}``. With an error, such as
            a full disk, the last file stays.
        """
        variables = sorted(variables, key=self._rank)
        self._patches = {name[len(PREFIX) :] for name, _ in variables if name.startswith(PREFIX)}
        try:
            with no_collection():
                try:
                    unsaved = self._write(variables, interrupts, settings, number, originals)
                except OSError as error:
                    # A new file is worth more than the previous one.
                    if error.errno not in _DISK_FULL or not self.files.drop_previous():
                        raise
                    self._blobs.sweep(self.files.needed)
                    self._chunks.sweep(self.files.needed)
                    unsaved = self._write(variables, interrupts, settings, number, originals)
        except OSError as error:
            self._written = None
            return {"unsaved": [], "error": str(error)}
        self._blobs.end(self.files.needed)
        self._chunks.sweep(self.files.needed)
        self.loaded.end(self.files.needed)
        return {"unsaved": unsaved, "error": None}

    def _rank(self, variable: tuple[str, Any]) -> int:
        """Sort modules, functions and classes first: code that runs in a restore may use them.

        Doubtful variables come next, so that a change of others does not change their records.
        """
        name, value = variable
        if issubclass(type(value), types.ModuleType):
            return 0
        return 1 if callable(value) else 2 if name in self._doubtful else 3

    def _write(
        self,
        variables: list[tuple[str, Any]],
        interrupts: Interrupts,
        settings: Settings | None,
        number: int | None,
        originals: Sequence[tuple[Any, Reference]],
    ) -> list[list[str]]:
        slow, self._slow = self._slow, {}
        self._blobs.begin(interrupts.advance)
        self.loaded.begin((value for _, value in variables), number)
        self._references.begin(variables, originals)
        refused = self._refused_again(variables, slow, interrupts)
        file = NewFile(self.files.path + wire.UNFINISHED, self._chunks)
        sink = Sink(file, interrupts.advance)
        writer = self._write_records(sink, variables, refused, slow, interrupts)
        while self._references.search(writer) or self._fails(
            writer, file, variables, refused, interrupts
        ):
            sink.rewind((0, 0))
            writer = self._write_records(sink, variables, refused, slow, interrupts)
        unsaved = [
            [name, type_name(value), refused[name]] for name, value in variables if name in refused
        ]
        file.end_records()
        sources = writer.write_sources()
        set_beside: list[int] = []
        if settings is not None:
            raw, left_out = self._save_settings(settings, writer, interrupts)
            set_beside = [sink.length, len(raw)] if raw else []
            sink.write(raw)
            unsaved += left_out
        index = write_index(
            sink,
            file,
            sources=sources,
            settings=set_beside,
            records=[record.entry() for record in writer.records],
            objects=writer.pickler.count,
            unsaved=unsaved,
            files=sorted(self._references.files),
            superseded=sorted(self.loaded.superseded),
        )
        written = (sink.length, sink.checksum)
        if written != self._written or not self.files.is_untouched():
            self._blobs.flush()
            self.files.commit(file, needed_files(index), self.replacing)
            self._written = written
        else:
            self.replacing(self.files.inode)
        sizes = self._references.sizes
        self.saved = [
            [record.name, record.kind, record.end - record.start + sizes.get(record.name, 0)]
            for record in writer.records
        ]
        self._doubtful = {record.name for record in writer.records if record.doubtful}
        return unsaved

    def _save_settings(
        self, settings: Settings, writer: RecordWriter, interrupts: Interrupts
    ) -> tuple[bytes, list[list[str]]]:
        """Return the settings and what is left out of them; nothing if code of a cell hangs."""
        if not self._settings_hang:
            try:
                with interrupts:
                    return settings.save(writer.pickler.reductions.has_module)
            except KeyboardInterrupt:
                self._settings_hang = True  # it would cost every cell that time
            except Exception as error:
                return b"", [["settings", "setting", error_text(error)]]
        return b"", [["settings", "setting", TOO_LONG]]

    def _write_records(
        self,
        sink: Sink,
        variables: list[tuple[str, Any]],
        refused: dict[str, str],
        slow: dict[str, SlowVariable],
        interrupts: Interrupts,
    ) -> RecordWriter:
        """Write a record for each variable. Add those that fail to ``refused``, with the reason."""
        writer = self._writer(sink)
        for name, value in variables:
            if name not in refused:
                reason = self._attempt(writer, name, value, slow.get(name), interrupts)
                if reason:
                    refused[name] = reason
                    self._failed[name] = Failure(reason)
        self.attempting("")
        return writer

    def _attempt(
        self,
        writer: RecordWriter,
        name: str,
        value: Any,
        last_time: SlowVariable | None,
        interrupts: Interrupts,
    ) -> str:
        """Write a record. Return why that failed, or nothing."""
        if interrupts.received > 1:
            return "the checkpoint took too long before it came to this"
        self.attempting(name)
        try:
            with interrupts:
                writer.write(name, value)
        except OSError as error:
            if writer.has_failed:
                raise
            return error_text(error)
        except BaseException as error:
            # A __reduce__ of the cell's may raise KeyboardInterrupt or SystemExit too.
            if isinstance(error, KeyboardInterrupt) and interrupts.received:
                self._slow[name] = SlowVariable(value, last_time)
                return TOO_LONG
            return error_text(error)
        return ""

    def _refused_again(
        self,
        variables: list[tuple[str, Any]],
        slow: dict[str, SlowVariable],
        interrupts: Interrupts,
    ) -> dict[str, str]:
        """Return the variables that are not to be tried, with the reasons.

        A record that fails costs a copy of the memo. So what failed the last time is tried by
        itself first.
        """
        refused = {}
        failed, self._failed = self._failed, {}
        for name, value in variables:
            last_time = slow.get(name)
            if last_time is not None and last_time.skips(value):
                self._slow[name] = last_time
                refused[name] = last_time.reason + ", and is not tried again at once"
            elif name in failed:
                failure = failed[name]
                writer = self._writer(Sink(None))
                reason = self._attempt(writer, name, value, last_time, interrupts)
                if not reason and writer.fingerprint == failure.fingerprint:
                    reason = failure.reason
                if reason:
                    refused[name] = reason
                    self._failed[name] = Failure(reason, failure.fingerprint)
        return refused

    def _writer(self, sink: Sink) -> RecordWriter:
        return RecordWriter(sink, self._references.found.values(), self._patches)

    def _fails(
        self,
        writer: RecordWriter,
        file: NewFile,
        variables: list[tuple[str, Any]],
        refused: dict[str, str],
        interrupts: Interrupts,
    ) -> bool:
        """Prove that what was written can be loaded. Add to ``refused`` what cannot."""
        if not self._proves:
            return False
        proved, self._proved = self._proved, {}
        trials = []
        for number, record in enumerate(writer.records):
            if record.doubtful:
                raw = file.read(record.start, record.end)
                stamp = len(raw), zlib.crc32(raw)
                self._proved[record.name] = stamp
                if proved.get(record.name) != stamp:
                    before = [earlier.name for earlier in writer.records[:number]]
                    trials.append(Trial(record, raw, before))
        if not trials:
            return False
        values = dict(variables)
        try:
            failures = find_failures(trials, values, writer.pickler.objects, interrupts)
        except OSError:
            # No process can be made. What is saved may not load, but most does.
            self._proved = {}
            return False
        except ProofInterruptedError as error:
            name = error.name
            failures = {name: "loading it took too long"}
            self._slow[name] = SlowVariable(values[name], None, failures[name])
            for trial in trials:  # the others are tried again
                self._proved.pop(trial.record.name, None)
        for name, reason in failures.items():
            refused[name] = reason
            self._proved.pop(name, None)
            writer = self._writer(Sink(None))
            self._attempt(writer, name, values[name], None, interrupts)
            self._failed[name] = Failure(reason, writer.fingerprint)
        return bool(failures)

    # Saving in another process

    @property
    def is_deadly(self) -> bool:
        """Whether a variable has ended a process that tried to save it, and is left out."""
        return any(variable.deadly for variable in self._slow.values())

    @property
    def blob_seconds(self) -> float:
        """How long the last checkpoint took to write long strings, which is done once for each."""
        return self._blobs.seconds

    def lend(self, variables: Iterable[tuple[str, Any]], number: int) -> None:
        """Prepare for a forked child that saves: forget what no variable holds.

        Hold the long strings that the child may write, so that their ids stay theirs until it has
        told which it has written.

        Args:
            variables: the names and values.
            number: a number that is higher for each child.
        """
        values = [value for _, value in variables]
        self.loaded.forget_others(values)
        self._blobs.lend(values, number)

    def unwritten(self, variables: Iterable[tuple[str, Any]]) -> int:
        """Return the length of the long strings that the next checkpoint has to write."""
        values = [value for _, value in variables]
        found = self._blobs.unwritten(values)
        return sum(len(value) for value in found if id(value) not in self.loaded.texts)

    def export(self) -> dict[str, Any]:
        """Return what :meth:`adopt` takes, in plain values."""
        return {
            "files": self.files.export(),
            "blobs": self._blobs.export(),
            "removed": self.loaded.removed,
            "searched": self._references.searched,
            "saved": self.saved,
            "doubtful": self._doubtful,
            "proved": self._proved,
            "failed": self._failed,
            "written": self._written,
            "slow": self._slow,
            "settings_hang": self._settings_hang,
        }

    def adopt(self, news: dict[str, Any], number: int) -> None:
        """Take over what another process knows that has saved the variables.

        Args:
            news: what its :meth:`export` has returned.
            number: the number of that process, see :meth:`lend`.
        """
        self.files.adopt(news["files"])
        self._blobs.adopt(news["blobs"], number)
        self._chunks.find_files()
        self.loaded.adopt(news["removed"])
        self._references.searched = news["searched"]
        self.saved = news["saved"]
        self._doubtful = news["doubtful"]
        self._proved = news["proved"]
        self._failed = news["failed"]
        self._written = news["written"]
        self._slow = news["slow"]
        self._settings_hang = news["settings_hang"]

    def note_deadly(self, name: str, value: Any, reason: str) -> None:
        """Note that a variable has ended a process that tried to save it."""
        self._slow[name] = SlowVariable(value, self._slow.get(name), reason, deadly=True)

    def is_untouched(self) -> bool:
        """Return whether the last file is as it was written or read here."""
        return self.files.is_untouched()

    def find_files(self) -> None:
        """Find files that a killed process has left. The next checkpoint removes them."""
        self._blobs.find_files()
        self._chunks.find_files()

    def find_changes(self) -> None:
        """Find out what other processes have written since, without what they know."""
        self.find_files()
        self._blobs.forget_missing()
        self.files.look()
        self._written = None

    # Restoring

    def load(
        self,
        values: dict[str, Any],
        interrupts: Interrupts | None = None,
        *,
        last: bool = True,
        settings: Settings | None = None,
    ) -> dict[str, Any]:
        """Restore the variables from ``state.dill``, or from the file before it. Never raises.

        Args:
            values: where to put the variables, one by one. To restore an object may run code of
                the cells', which looks for other variables there.
            interrupts: allowed while a variable is restored, and cost that variable.
            last: whether to try the last file, or only the one before it.
            settings: sets what cells have set beside their variables.

        Returns:
            ``lost``: ``[name, type, reason]`` of each variable that could not be restored. ``*``
            stands for all, if neither file can be read.
            ``damage``: why the last file was not used; empty if it was.
            ``older``: if it was not, the names of the variables that may have had other values.
        """
        self.find_files()
        damage = "restoring it killed the interpreter"
        if last:
            try:
                lost = self._load(
                    self.files.path, values, interrupts, settings, from_previous=False
                )
                return {"lost": lost, "damage": "", "older": []}
            except Exception as error:
                damage = error_text(error)
        newer = _undamaged_index(self.files.path)
        try:
            lost = self._load(self.files.previous, values, interrupts, settings, from_previous=True)
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
        settings: Settings | None,
        *,
        from_previous: bool,
    ) -> list[list[str]]:
        """Restore from one file. Return ``lost``."""
        with open_regular(path) as own, no_collection():
            index = read_index(own)
            file = own
            if index["chunks"]:
                file = BufferedReader(WholeFile(own, index["chunks"], self._chunks))
            raw = None
            if index.get("settings"):
                offset, length = index["settings"]
                file.seek(offset)
                raw = file.read(length)
            lost = []
            if settings is not None and raw is not None:
                # Variables may need modules that only this search path leads to.
                lost += settings.restore(raw, early=True)
            lost += self._read_records(file, index, values, interrupts or Interrupts())
            if settings is not None and raw is not None:
                lost += settings.restore(raw, early=False)
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
        records: Records | EarlierRecords
        if index["format"] > 2:
            records = Records(file, index, self._fetch, foreign)
        else:
            from .earlier import EarlierRecords  # late: it needs dill

            records = EarlierRecords(file, index, self._fetch, foreign)
        for number, (name, _, kind, _, _) in enumerate(index["records"]):
            try:
                with interrupts:
                    values[name] = records.read(number)
            except BaseException as error:
                late = isinstance(error, KeyboardInterrupt) and interrupts.received
                reason = "restoring it took too long" if late else error_text(error)
                if isinstance(error, MissingObjectError):
                    reason = str(error)
                lost.append([name, kind, "it cannot be loaded: " + reason])
        self.loaded.parsed.clear()
        self._blobs.fetched.clear()
        return lost

    def _fetch(self, reference: Reference) -> Any:
        """Return the value that a reference stands for."""
        if reference[0] == "module":
            return importlib.import_module(reference[1]).__dict__
        if reference[0] == "attribute":
            module = importlib.import_module(reference[1])
            return functools.reduce(getattr, reference[2].split("."), module)
        if reference[0] in ("str", "bytes"):
            return self._blobs.fetch(reference)
        return self.loaded.fetch(reference)


#: The disk is full, or this user's quota of it.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


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
