"""Values that a checkpoint refers to by the name of a file, instead of saving them again.

A cell that says ``x = 1`` must not cost what a context of 100 MB costs. So a checkpoint refers to

* *loaded values*, contexts and histories, which the host has put into a file of the workspace,
* *long strings* of the cells' own, which are written once to a file below ``.blobs``.

Strings cannot change. A document (a dict or list that was loaded) can, so its digest is
compared before each checkpoint. For 100 MB that takes some 60 ms, and pickling takes seconds.

Cells keep pieces of a document in other variables: ``row = context[3]``, or a list of the rows that
matter. After a restore they must be the same objects again, so a checkpoint refers to a piece by
the file and its path in the document.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import gc
import json
import marshal
import mmap
import os
import pickle
import re
import sys
import time
import zlib
from array import array
from collections.abc import Callable, Container, Iterable, Iterator
from itertools import compress, islice
from typing import Any

from .. import wire
from .disk import flush_file, flush_path, open_regular, remove

#: What a checkpoint has in place of a value: ``("text", file, size, checksum)``, ``("json" or
#: "marshal", file, size, checksum, path)``, or ``("str" or "bytes", file, size, checksum)`` for a
#: long string. Only plain types, since it is in a pickle.
Reference = tuple[Any, ...]

#: Strings of at least this many characters or bytes are long.
BLOB_SIZE = 256 * 1024

#: The most elements of a document that are digested at once, to bound the memory that takes.
_SLICE = 4096

#: The most bytes of a long string that are written at once.
_PART = 16 * 1024 * 1024

#: The most elements of lists, dicts and tuples that are looked at for long strings to hold.
_LOOKED_AT = 2000

_BLOB_NAME = re.compile(r"\d{8,}\Z")


class LoadedFiles:
    """The files that the host has loaded into variables, and their values.

    Args:
        directory: the workspace.

    Attributes:
        superseded: files whose variable was loaded from another file since. Each is removed once no
            state file refers to it.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        # By id of the value. Holding the value keeps the id from being used again.
        self.texts: dict[int, tuple[str, str]] = {}
        self.documents: dict[int, _Document] = {}
        self.superseded: set[str] = set()
        self.removed: set[str] = set()  # superseded files that are gone
        self.stamps: dict[str, tuple[int, int]] = {}  # size and checksum, by file
        self.parsed: dict[Reference, Any] = {}  # values of one restore
        self.number: int | None = None  # the request whose checkpoint is under way

    def load(
        self, kind: str, file: str, size: int, checksum: int, number: int | None = None
    ) -> Any:
        """Return the value in a file of the workspace that the host has made.

        Args:
            kind: ``"text"``, ``"json"`` or ``"marshal"``.
            file: its path in the workspace.
            size: its size in bytes, as the host has written it.
            checksum: its CRC-32, likewise. It is not compared now.
            number: the request that loads it, if nothing else is done in that.

        Raises:
            OSError: it cannot be read, or is not a regular file.
            ValueError: it has another size.
        """
        with _mapped(os.path.join(self.directory, file)) as contents:
            if len(contents) != size:
                raise ValueError("{} has changed since it was written".format(file))
            value = _decode(kind, contents)
        self._add(value, kind, file, number)
        self.stamps[file] = (size, checksum)
        return value

    def _add(self, value: Any, kind: str, file: str, number: int | None = None) -> None:
        """Note that ``value`` was loaded from ``file``."""
        if kind == "text":
            self.texts[id(value)] = (value, file)
        else:
            self.documents[id(value)] = _Document(value, kind, file, number)

    def file_of(self, value: Any) -> str | None:
        """Return the file that a value was loaded from, if any."""
        key = id(value)
        if key in self.texts:
            return self.texts[key][1]
        return self.documents[key].file if key in self.documents else None

    def begin(self, values: Iterable[Any], number: int | None = None) -> None:
        """Prepare a checkpoint: forget values that have changed or that no variable holds.

        Args:
            values: those that variables hold.
            number: the request that the checkpoint is of.
        """
        self.number = number
        self.forget_others(values)
        for key, document in list(self.documents.items()):
            if not (self._is_new(document) or document.is_unchanged()):
                del self.documents[key]

    def _is_new(self, document: _Document) -> bool:
        """Return whether no cell has run since it was loaded.

        Then it is as it was, and no other variable has a piece of it. To find that out takes most
        of the time of a checkpoint.
        """
        return self.number is not None and document.number == self.number

    def known_to_cells(self) -> list[_Document]:
        """Return the documents that variables may hold pieces of."""
        return [document for document in self.documents.values() if not self._is_new(document)]

    def forget_others(self, values: Iterable[Any]) -> None:
        """Forget all values but these."""
        held = {id(value) for value in values}
        for known in (self.texts, self.documents):
            for key in [key for key in known if key not in held]:
                del known[key]

    def adopt(self, removed: set[str]) -> None:
        """Take over which superseded files another process has removed."""
        self.removed |= removed
        self.superseded -= removed

    def files(self) -> set[str]:
        """Return the files of the values."""
        used = {file for _, file in self.texts.values()}
        used.update(document.file for document in self.documents.values())
        return used

    def end(self, needed: frozenset[str]) -> None:
        """After a checkpoint, remove the superseded files that nothing refers to.

        Args:
            needed: the files that a state file refers to.
        """
        for file in self.superseded - self.files() - needed:
            self.superseded.discard(file)
            self.removed.add(file)
            remove(os.path.join(self.directory, file))

    def refer(self, value: Any) -> Reference | None:
        """Return the reference for a loaded value or a piece of one, else ``None``."""
        key = id(value)
        if key in self.texts:
            file = self.texts[key][1]
            return ("text", file, *self.stamps[file])
        document = self.documents.get(key)
        if document is not None:
            return (document.kind, document.file, *self.stamps[document.file], ())
        for document in self.known_to_cells():
            path = document.path_to(value)
            if path is not None:
                return (document.kind, document.file, *self.stamps[document.file], path)
        return None

    def fetch(self, reference: Reference) -> Any:
        """Return the value that a reference stands for.

        Raises:
            OSError: its file is gone.
            ValueError: its file has changed.
        """
        key = reference[:4]
        if key not in self.parsed:
            kind, file, size, checksum = key
            with _mapped(os.path.join(self.directory, file)) as contents:
                _check(contents, file, size, checksum)
                self.parsed[key] = _decode(kind, contents)
            self._add(self.parsed[key], kind, file)
            self.stamps[file] = (size, checksum)
        value = self.parsed[key]
        for step in reference[4] if len(reference) > 4 else ():
            value = value[step]
        return value


class _Document:
    """A dict or list that was loaded from a file.

    Args:
        value: it.
        kind: how the file is read.
        file: its path in the workspace.
        number: the request that has loaded it, and did nothing else.
    """

    def __init__(self, value: Any, kind: str, file: str, number: int | None) -> None:
        self.value = value
        self.kind = kind
        self.file = file
        self.number = number
        self.digest = _digest(value)
        self.paths: dict[int, tuple[Any, ...]] | None = None

    @functools.cached_property
    def ids(self) -> array[int]:
        """The ids of all containers in it. Most values are none of them, and this says so quickly.

        Made once another dict or list is saved beside it.
        """
        return array("Q", sorted(_ids(self.value)))

    def is_unchanged(self) -> bool:
        try:
            return _digest(self.value) == self.digest
        except (ValueError, TypeError):  # something in it is not JSON any more
            return False

    def path_to(self, value: Any) -> tuple[Any, ...] | None:
        """Return the keys and indexes that lead to a container below it, else ``None``."""
        key = id(value)
        place = bisect.bisect_left(self.ids, key)
        if place == len(self.ids) or self.ids[place] != key:
            return None
        if self.paths is None:
            self.paths = {id(item): path for path, item in _containers(self.value)}
        path = self.paths.get(key)
        if path is None:
            return None
        # The digest does not show that a cell replaced an element by an equal one.
        found = self.value
        try:
            for step in path:
                found = found[step]
        except (LookupError, TypeError):
            return None
        return path if found is value else None


@contextlib.contextmanager
def _mapped(path: str) -> Iterator[bytes | mmap.mmap]:
    """Open a regular file, and give its contents without a copy."""
    with open_regular(path) as file:
        if not os.fstat(file.fileno()).st_size:
            yield b""  # which cannot be mapped
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as contents:
            yield contents


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Collect no garbage: that would look at all new objects again and again, and find none."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _decode(kind: str, contents: bytes | mmap.mmap) -> Any:
    """Return the value in a file. It is the host's, whom this process trusts."""
    with no_collection():
        if kind == "marshal":
            return marshal.loads(contents)
        if kind == "pickle":  # of an earlier version
            return pickle.loads(contents)
        text = str(contents, "utf-8", "surrogatepass")
        return text if kind == "text" else json.loads(text)


def _ids(value: Any) -> list[int]:
    """Return the ids of all dicts and lists of a document, level by level."""
    ids: list[int] = []
    level = [value]
    while level:
        ids += map(id, level)
        inner = gc.get_referents(*level)
        level = list(compress(inner, map(_CONTAINERS.__contains__, map(type, inner))))
    return ids


_CONTAINERS = frozenset((dict, list))


def _containers(value: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield each dict and list of a document with its path, the document itself included."""
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), value)]
    while waiting:
        path, item = waiting.pop()
        yield path, item
        steps = item.items() if type(item) is dict else enumerate(item)
        for step, inner in steps:
            if type(inner) is dict or type(inner) is list:
                waiting.append(((*path, step), inner))


def _digest(value: Any) -> int:
    """Return a checksum of everything in a document and of its order.

    Uses marshal's format 2, because later formats depend on reference counts.
    """
    items = list(value.items()) if type(value) is dict else value
    checksum = len(items)
    for start in range(0, len(items), _SLICE):
        checksum = zlib.crc32(marshal.dumps(items[start : start + _SLICE], 2), checksum)
    return checksum


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
        _check(raw, file, size, checksum)
        value = raw.decode("utf-8", "surrogatepass") if kind == "str" else raw
        self.known[id(value)] = (value, reference)
        self.fetched[reference] = value
        return value


def _blob(name: str) -> str:
    return "{}/{}".format(wire.BLOBS, name)


def _check(raw: bytes | mmap.mmap, file: str, size: int, checksum: int) -> None:
    if (len(raw), zlib.crc32(raw)) != (size, checksum):
        raise ValueError("{} has changed since it was saved".format(file))
