"""Values that a checkpoint refers to by the name of a file, instead of saving them again.

A cell that says ``x = 1`` must not cost what a context of 100 MB costs. So a checkpoint refers to

* *loaded values*, contexts and histories, which the host has put into a file of the workspace,
* *long strings* of the session's own, which are written once to a file below ``.blobs``.

Strings cannot change. A document (a dict or list that was loaded from JSON) can, so its digest is
compared before each checkpoint. For 100 MB that takes some 60 ms, and pickling takes seconds.

Cells keep pieces of a document in other variables: ``row = context[3]``, or a list of the rows that
matter. After a restore they must be the same objects again, so a checkpoint refers to a piece by
the file and its path in the document.
"""

from __future__ import annotations

import bisect
import json
import marshal
import os
import re
import zlib
from array import array
from collections.abc import Iterable, Iterator
from typing import Any

from .. import wire
from .files import open_regular

#: What a checkpoint has in place of a value: ``("text", file, size, checksum)``, ``("json", file,
#: size, checksum, path)``, or ``("str" or "bytes", file, size, checksum)`` for a long string. Only
#: plain types, since it is in a pickle.
Reference = tuple[Any, ...]

#: Strings of at least this many characters or bytes are long.
BLOB_SIZE = 256 * 1024

#: The most elements of a document that are digested at once, to bound the memory that takes.
_SLICE = 4096

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
        self.stamps: dict[str, tuple[int, int]] = {}  # size and checksum, by file
        self.parsed: dict[Reference, Any] = {}  # values of one restore

    def read(self, file: str) -> bytes:
        """Return the contents of a file of the workspace.

        Raises:
            OSError: it cannot be read, or is not a regular file.
        """
        with open_regular(os.path.join(self.directory, file)) as source:
            return source.read()

    def add(self, value: Any, file: str) -> None:
        """Note that ``value`` was loaded from ``file``."""
        if isinstance(value, str):
            self.texts[id(value)] = (value, file)
        else:
            self.documents[id(value)] = _Document(value, file)

    def file_of(self, value: Any) -> str | None:
        """Return the file that a value was loaded from, if any."""
        key = id(value)
        if key in self.texts:
            return self.texts[key][1]
        return self.documents[key].file if key in self.documents else None

    def begin(self, values: Iterable[Any]) -> None:
        """Prepare a checkpoint: forget values that have changed or that no variable holds."""
        held = {id(value) for value in values}
        for key in [key for key in self.texts if key not in held]:
            del self.texts[key]
        for key, document in list(self.documents.items()):
            if key not in held or not document.is_unchanged():
                del self.documents[key]

    def end(self, needed: frozenset[str]) -> None:
        """After a checkpoint, remove the superseded files that nothing refers to.

        Args:
            needed: the files that a state file refers to.
        """
        used = {file for _, file in self.texts.values()}
        used.update(document.file for document in self.documents.values())
        for file in self.superseded - used - needed:
            self.superseded.discard(file)
            _remove(os.path.join(self.directory, file))

    def refer(self, value: Any) -> Reference | None:
        """Return the reference for a loaded value or a piece of one, else ``None``."""
        key = id(value)
        if key in self.texts:
            file = self.texts[key][1]
            return ("text", file, *self._stamp(file))
        for document in self.documents.values():
            path = document.path_to(value)
            if path is not None:
                return ("json", document.file, *self._stamp(document.file), path)
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
            raw = self.read(file)
            _check(raw, file, size, checksum)
            text = raw.decode("utf-8", "surrogatepass")
            self.parsed[key] = text if kind == "text" else json.loads(text)
            self.add(self.parsed[key], file)
            self.stamps[file] = (size, checksum)
        value = self.parsed[key]
        for step in reference[4] if len(reference) > 4 else ():
            value = value[step]
        return value

    def _stamp(self, file: str) -> tuple[int, int]:
        """Return the size and checksum of a file. Read it once, for the first checkpoint."""
        if file not in self.stamps:
            size = checksum = 0
            with open_regular(os.path.join(self.directory, file)) as source:
                while True:
                    chunk = source.read(1 << 20)
                    if not chunk:
                        break
                    size += len(chunk)
                    checksum = zlib.crc32(chunk, checksum)
            self.stamps[file] = (size, checksum)
        return self.stamps[file]


class _Document:
    """A dict or list that was loaded from a JSON file."""

    def __init__(self, value: Any, file: str) -> None:
        self.value = value
        self.file = file
        self.digest = _digest(value)
        # The ids of all containers in it. Most values are none of them, and this says so quickly.
        self.ids = array("Q", sorted(id(item) for _, item in _containers(value)))
        self.paths: dict[int, tuple[Any, ...]] | None = None

    def is_unchanged(self) -> bool:
        try:
            return _digest(self.value) == self.digest
        except (ValueError, TypeError):  # something in it is not JSON any more
            return False

    def path_to(self, value: Any) -> tuple[Any, ...] | None:
        """Return the keys and indexes that lead to a container in it, else ``None``."""
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
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        # By id of the string. Holding the string keeps the id from being used again.
        self.known: dict[int, tuple[object, Reference]] = {}
        self.used: set[int] = set()  # ids that the checkpoint under way refers to
        self.files: set[str] = set()
        self.fetched: dict[Reference, str | bytes] = {}  # strings of one restore
        self.next = 0

    def adopt(self) -> None:
        """Take over the files of an earlier worker, to remove those that nothing refers to."""
        try:
            found = os.listdir(os.path.join(self.directory, wire.BLOBS))
        except OSError:
            return
        self.files.update(_blob(name) for name in found if _BLOB_NAME.match(name))

    def begin(self) -> None:
        """Prepare a checkpoint, which does not refer to any string yet."""
        self.used = set()

    def refer(self, value: str | bytes) -> Reference:
        """Return the reference for a string. Write its file unless that was done before.

        Raises:
            OSError: the file could not be written.
        """
        key = id(value)
        self.used.add(key)
        if key in self.known:
            return self.known[key][1]
        raw = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        os.makedirs(os.path.join(self.directory, wire.BLOBS), exist_ok=True)
        while True:
            file = _blob("{:08d}".format(self.next))
            self.next += 1
            path = os.path.join(self.directory, file)
            if not os.path.lexists(path):  # else it is an earlier worker's
                break
        try:
            with open(path, "xb") as blob:
                blob.write(raw)
        except BaseException:  # an interrupt too
            _remove(path)  # half a string would take the space that the next checkpoint needs
            raise
        self.files.add(file)
        reference = (type(value).__name__, file, len(raw), zlib.crc32(raw))
        self.known[key] = (value, reference)
        return reference

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
            _remove(os.path.join(self.directory, file))

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


def _check(raw: bytes, file: str, size: int, checksum: int) -> None:
    if (len(raw), zlib.crc32(raw)) != (size, checksum):
        raise ValueError("{} has changed since it was saved".format(file))


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # a cell has removed it
