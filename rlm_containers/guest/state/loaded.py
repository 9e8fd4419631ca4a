"""Values that the host has loaded, contexts and histories, each from a file of the workspace.

A checkpoint refers to them by their files, as to long strings (:mod:`rlm_guest.state.blobs`). A
document (a dict or list that was loaded) can change, so its digest is compared before each
checkpoint. For 100 MB that takes some 60 ms, and pickling takes seconds.

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
import zlib
from array import array
from collections.abc import Iterable, Iterator
from itertools import compress
from typing import Any

from .blobs import Reference, check
from .disk import open_regular, remove

#: The most elements of a document that are digested at once, to bound the memory that takes.
_SLICE = 4096


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
                check(contents, file, size, checksum)
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
