"""The records of a state file, one for each variable.

A record is a pickle of ``(name, value)``. One pickler writes all records and one unpickler reads
them, so that two variables which refer to the same object do so again after a restore.

The file begins with the *prelude*: a pickle that loads what is saved by reference. After the
records comes a pickle of the sources of those cells that the code in the records is from.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
from collections.abc import Callable, Container, Iterable
from io import BufferedReader
from typing import Any, NamedTuple

from .. import sources
from ..shortforms import type_name
from .blobs import Reference
from .files import Sink, Source
from .pickling import Anything, Missing, Skimmer, StatePickler, StateUnpickler, is_whole


class Record(NamedTuple):
    """One record of a file that is being written.

    Attributes:
        name: the variable.
        kind: the name of its type.
        start: its first byte in the file.
        end: the first byte after it.
        objects: the number of objects in the memo before it.
        checksum: of the file up to its end.
        longest: bytes of the longest single write: that of its longest string, if that is long.
        doubtful: whether it may not load although it was saved.
    """

    name: str
    kind: str
    start: int
    end: int
    objects: int
    checksum: int
    longest: int
    doubtful: bool

    def entry(self) -> list[Any]:
        """Return the record's entry in the index of the file."""
        return [self.name, self.start, self.kind, self.objects, self.checksum]


class RecordWriter:
    """Writes the prelude and the records.

    Args:
        sink: where to.
        references: the objects to save by reference.
        patches: names that lead to something else in a later process, such as ``json.dumps``.

    Attributes:
        records: those written so far.
        pickler: what writes them.
    """

    def __init__(
        self,
        sink: Sink,
        references: Iterable[tuple[Any, Reference]],
        patches: Container[str] = (),
    ) -> None:
        self._sink = sink
        self.records: list[Record] = []
        self.pickler = StatePickler(sink, patches)
        self.pickler.write_prelude(references)

    @property
    def has_failed(self) -> bool:
        """Whether the file could not be written."""
        return self._sink.failed

    @property
    def fingerprint(self) -> tuple[int, int]:
        """The length and the checksum of what was written."""
        return self._sink.mark()

    def write(self, name: str, value: Any) -> Record:
        """Write one record. If that fails, nothing is left of it."""
        pickler, sink = self.pickler, self._sink
        if sink.file is not None:
            sink.file.begin_record()
        start = sink.mark()
        objects = pickler.count
        sink.longest = 0
        pickler.reductions.doubtful = False
        try:
            pickler.write_record(name, value)
        except BaseException:
            if not sink.failed:
                sink.rewind(start)
            raise
        record = Record(
            name=name,
            kind=type_name(value),
            start=start[0],
            end=sink.length,
            objects=objects,
            checksum=sink.checksum,
            longest=sink.longest,
            doubtful=pickler.reductions.doubtful,
        )
        self.records.append(record)
        return record

    def write_sources(self) -> int:
        """Write the sources of the cells that the code in the records is from. Return where."""
        start: int = self._sink.mark()[0]
        self._sink.write(pickle.dumps(sources.texts(self.pickler.reductions.filenames), 4))
        return start


class MissingObjectError(Exception):
    """A record refers to an object that could not be loaded."""


class Records:
    """Reads the records of a file.

    Objects that a failed record left half built must not turn up in other records. So
    :class:`Missing` objects take their places in the memo, and a record that has got one is lost.

    Args:
        file: the file.
        index: its index.
        fetch: returns the value that a reference stands for.
        foreign: the version of Python that wrote the file, if it is not this one.
    """

    def __init__(
        self,
        file: BufferedReader,
        index: dict[str, Any],
        fetch: Callable[[Reference], Any],
        foreign: str | None = None,
    ) -> None:
        self._file = file
        self._source = Source(file)
        self._fetch = fetch
        self._foreign = foreign
        self._records = index["records"]
        self._sizes = [record[3] for record in self._records] + [index["objects"]]
        self._missing: list[Missing] = []
        self._failed: int | None = None
        self._unpickler = self._new_unpickler()
        file.seek(index["sources"])
        sources.restore(pickle.load(file))
        file.seek(0)
        self._missing += [one for one in self._unpickler.load() if type(one) is Missing]

    def read(self, number: int) -> Any:
        """Return the value of a record. After an error, read the next one all the same.

        Raises:
            BaseException: it cannot be loaded, for any reason.
        """
        if self._failed is not None:
            self._replace(self._failed)
        self._failed = number
        before = self._counts()
        self._file.seek(self._records[number][1])
        _, value = self._unpickler.load()
        for place, count in enumerate(self._counts()):
            if count > before[place]:
                raise MissingObjectError(self._missing[place].reason)
        self._failed = None
        return value

    def _counts(self) -> list[int]:
        """Return how often each missing object is referred to."""
        return [sys.getrefcount(one) for one in self._missing]

    def _new_unpickler(self) -> StateUnpickler:
        return StateUnpickler(self._source, self._fetch, self._foreign)

    def _replace(self, failed: int) -> None:
        """Take a new unpickler after a record that failed."""
        missing = Missing("it shares an object with a variable that cannot be loaded")
        self._missing.append(missing)
        before = self._sizes[failed]
        kept = self._skimmed(failed)
        memo = self._unpickler.memo.copy()
        kept.update((n, obj) for n, obj in memo.items() if n < before or is_whole(obj))
        self._unpickler = self._new_unpickler()
        self._unpickler.put(range(self._sizes[failed + 1]), kept, missing)

    def _skimmed(self, number: int) -> dict[int, Any]:
        """Return the strings and numbers in a record that failed, by their numbers in the memo.

        Others share them: the keys of dicts, the names of attributes.
        """
        before = self._sizes[number]
        skimmer = Skimmer(self._source, self._fetch)
        skimmer.put(range(before), {}, Anything)
        self._file.seek(self._records[number][1])
        with contextlib.suppress(Exception):
            skimmer.load()
        memo = skimmer.memo.copy()
        return {n: obj for n, obj in memo.items() if n >= before and is_whole(obj)}
