"""Long strings of the cells, each written once to a file below ``.blobs``.

A cell that says ``x = 1`` must not cost what a string of 100 MB costs. So a checkpoint refers to
such strings by their files. They cannot change.
"""

from __future__ import annotations

import mmap
import os
import re
import sys
import time
import zlib
from collections.abc import Callable, Container, Iterable, Iterator
from itertools import islice
from typing import Any

from .. import wire
from .disk import flush_file, flush_path, open_regular, remove

#: What a checkpoint has in place of a value: ``("text", file, size, checksum)``, ``("json" or
#: "marshal", file, size, checksum, path)``, or ``("str" or "bytes", file, size, checksum)`` for a
#: long string. ``("module", name)`` and ``("attribute", module, name)`` stand for what is always
#: there. Only plain types, since it is in a pickle.
Reference = tuple[Any, ...]

#: Strings of at least this many characters or bytes are long.
BLOB_SIZE = 256 * 1024

#: The most bytes of a long string that are written at once.
_PART = 16 * 1024 * 1024

#: The most elements of lists, dicts and tuples that are looked at for long strings to hold.
_LOOKED_AT = 2000

_BLOB_NAME = re.compile(r"\d{8,}\Z")


class BlobStore:
    """Writes each long string once, to a file of its own.

    Args:
        directory: the workspace.
        durable: whether the files must survive a power failure after :meth:`flush`.
    """

    def __init__(self, directory: str, *, durable: bool = False) -> None:
        self.directory = directory
        self._durable = durable
        self._has_new = False  # whether there are files that flush() has not seen
        # By id of the string. Holding the string keeps the id from being used again.
        self.known: dict[int, tuple[str | bytes, Reference]] = {}
        self.used: set[int] = set()  # ids that the checkpoint under way refers to
        self.seconds = 0.0  # that it has taken to write strings
        # Strings that a forked child may write, by id, with the numbers of the first and the last
        # child that has them.
        self._lent: dict[int, tuple[str | bytes, int, int]] = {}
        self.files: set[str] = set()
        self.fetched: dict[Reference, str | bytes] = {}  # strings of one restore
        self.next = 0
        self._on_write: Callable[[], None] = lambda: None

    def find_files(self) -> None:
        """Find the files of an earlier worker, to remove those that nothing refers to."""
        try:
            found = os.listdir(os.path.join(self.directory, wire.BLOBS))
        except OSError:
            return
        self.files.update(_blob(name) for name in found if _BLOB_NAME.match(name))

    def forget_missing(self) -> None:
        """Forget the files that another process has removed."""
        for key, (_, reference) in list(self.known.items()):
            try:
                found = os.stat(os.path.join(self.directory, reference[1]), follow_symlinks=False)
            except OSError:
                found = None
            if found is None or found.st_size != reference[2]:
                del self.known[key]

    def held(self, others: Container[int]) -> Iterator[str | bytes]:
        """Yield each string that has a file and that somebody still holds.

        Args:
            others: the ids of strings to leave out.
        """
        for key in list(self.known):
            # It is held by this dict's tuple and by the call.
            if key not in others and sys.getrefcount(self.known[key][0]) > 2:
                yield self.known[key][0]

    def begin(self, on_write: Callable[[], None] = lambda: None) -> None:
        """Prepare a checkpoint, which does not refer to any string yet.

        Args:
            on_write: called after each part of a string that is written.
        """
        self.used = set()
        self.seconds = 0.0
        self._lent.clear()
        self._on_write = on_write

    def refer(self, value: str | bytes) -> Reference:
        """Return the reference for a string. Write its file unless that was done before.

        Raises:
            OSError: the file could not be written.
        """
        key = id(value)
        self.used.add(key)
        if key in self.known:
            return self.known[key][1]
        started = time.perf_counter()
        raw = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        os.makedirs(os.path.join(self.directory, wire.BLOBS), exist_ok=True)
        while True:
            file = _blob("{:08d}".format(self.next))
            self.next += 1
            path = os.path.join(self.directory, file)
            if not os.path.lexists(path):  # else it is an earlier worker's
                break
        checksum = 0
        try:
            with open(path, "xb") as blob:
                for start in range(0, len(raw), _PART):
                    part = memoryview(raw)[start : start + _PART]
                    blob.write(part)
                    checksum = zlib.crc32(part, checksum)
                    self._on_write()
                if self._durable:
                    flush_file(blob)
        except BaseException:  # an interrupt too
            remove(path)  # half a string would take the space that the next checkpoint needs
            raise
        self.files.add(file)
        self._has_new = True
        self.seconds += time.perf_counter() - started
        reference = (type(value).__name__, file, len(raw), checksum)
        self.known[key] = (value, reference)
        return reference

    def lend(self, values: Iterable[Any], number: int) -> None:
        """Hold long strings until a forked child has told which of them it has written.

        Args:
            values: what has them. Those deep inside are not looked for.
            number: the child's number.
        """
        for key in list(self.known):
            if sys.getrefcount(self.known[key][0]) <= 2 and key not in self._lent:
                del self.known[key]  # only this tuple and the call hold it
        for value in self.unwritten(values):
            _, first, _ = self._lent.get(id(value), (value, number, number))
            self._lent[id(value)] = (value, first, number)

    def unwritten(self, values: Iterable[Any]) -> list[str | bytes]:
        """Return long strings among values that have no file. Those deep inside are not found."""
        found = []
        left = _LOOKED_AT
        waiting = list(values)
        for _ in range(3):
            inner: list[Any] = []
            for value in waiting:
                kind = type(value)
                if kind is str or kind is bytes:
                    if len(value) >= BLOB_SIZE and id(value) not in self.known:
                        found.append(value)
                elif (kind is list or kind is dict or kind is tuple) and len(inner) < left:
                    inner += islice(value.values() if kind is dict else value, left - len(inner))
            left -= len(inner)
            waiting = inner
        return found

    def export(self) -> tuple[Any, ...]:
        """Return what :meth:`adopt` takes, in plain values."""
        known = {key: reference for key, (_, reference) in self.known.items()}
        return known, self.files, self.next

    def adopt(self, news: tuple[Any, ...], number: int) -> None:
        """Take over what another process knows that has written strings of this one.

        Args:
            news: what its :meth:`export` has returned.
            number: its number.
        """
        known, files, self.next = news
        self.files |= files
        for key, reference in known.items():
            value, first, _ = self._lent.get(key, (None, number + 1, 0))
            # An id says what it is of only if the string was held all the time since.
            if key not in self.known and first <= number and value is not None:
                self.known[key] = (value, reference)
        for key in [key for key in self.known if key not in known]:
            del self.known[key]
        for key in [key for key, (_, _, last) in self._lent.items() if last <= number]:
            del self._lent[key]

    def flush(self) -> None:
        """Write the names of new files to the disk. Their contents are there already.

        Raises:
            OSError: it cannot be written.
        """
        if self._durable and self._has_new:
            flush_path(os.path.join(self.directory, wire.BLOBS))
        self._has_new = False

    def end(self, needed: frozenset[str]) -> None:
        """After a checkpoint, forget the strings that it does not use, then :meth:`sweep`."""
        for key in [key for key in self.known if key not in self.used]:
            del self.known[key]
        self.sweep(needed)

    def sweep(self, needed: frozenset[str]) -> None:
        """Remove the files that nothing refers to.

        Args:
            needed: the files that a state file refers to.
        """
        known = {reference[1] for _, reference in self.known.values()}
        for file in self.files - needed - known:
            self.files.discard(file)
            remove(os.path.join(self.directory, file))

    def fetch(self, reference: Reference) -> str | bytes:
        """Return the string that a reference stands for.

        Raises:
            OSError: its file is gone.
            ValueError: its file has changed.
        """
        if reference in self.fetched:
            return self.fetched[reference]
        kind, file, size, checksum = reference
        with open_regular(os.path.join(self.directory, file)) as blob:
            raw = blob.read()
        check(raw, file, size, checksum)
        value = raw.decode("utf-8", "surrogatepass") if kind == "str" else raw
        self.known[id(value)] = (value, reference)
        self.fetched[reference] = value
        return value


def _blob(name: str) -> str:
    return "{}/{}".format(wire.BLOBS, name)


def check(raw: bytes | mmap.mmap, file: str, size: int, checksum: int) -> None:
    """Raise ValueError if a file is not as it was when it was saved."""
    if (len(raw), zlib.crc32(raw)) != (size, checksum):
        raise ValueError("{} has changed since it was saved".format(file))
