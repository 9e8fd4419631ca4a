"""Values that came out of files of the workspace: contexts and histories.

A checkpoint refers to such a file instead of saving its contents again, as long as the value is
still what the file says. Strings cannot change. A document (a dict or list from JSON) can, so
before every checkpoint its digest is compared: 100 MB take some 60 ms, and to pickle them seconds.

Cells keep pieces of a document in other variables: ``row = context[3]``, or a list of the rows that
matter. Those are the same objects, and must be again after a restore, so a checkpoint refers to
them too: by the file and the path inside of it.
"""

from __future__ import annotations

import bisect
import json
import marshal
import os
import zlib
from array import array
from collections.abc import Iterable, Iterator
from typing import Any

from .statefile import open_regular

#: What stands for a value in a checkpoint: ``("text", file, size, checksum)`` or
#: ``("json", file, size, checksum, path)``. It is in a pickle, so it is of plain types.
Reference = tuple[Any, ...]

#: Elements of a document that are digested at once; bounds the memory that takes.
_SLICE = 4096


class LoadedFiles:
    """The files of a workspace that the host had loaded, and what became of them.

    Args:
        directory: the workspace.

    Attributes:
        superseded: files whose variable has been loaded from another since. Each is removed as soon
            as no state file refers to it any more.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        # By identity, of values that are kept alive so that their ids stay theirs.
        self.texts: dict[int, tuple[str, str]] = {}
        self.documents: dict[int, _Document] = {}
        self.superseded: set[str] = set()
        self.stamps: dict[str, tuple[int, int]] = {}
        self.parsed: dict[Reference, Any] = {}

    def read(self, file: str) -> bytes:
        """The contents of a file of the workspace.

        Raises:
            OSError: it cannot be read, or is no regular file.
        """
        with open_regular(os.path.join(self.directory, file)) as source:
            return source.read()

    def add(self, value: Any, file: str) -> None:
        """Note that ``value`` is what ``file`` holds, which nothing else was loaded from."""
        if isinstance(value, str):
            self.texts[id(value)] = (value, file)
        else:
            self.documents[id(value)] = _Document(value, file)

    def file_of(self, value: Any) -> str | None:
        """The file that a value was loaded from, if it was."""
        key = id(value)
        if key in self.texts:
            return self.texts[key][1]
        return self.documents[key].file if key in self.documents else None

    def begin(self, values: Iterable[Any]) -> None:
        """Before a checkpoint: forget what has changed, and what no variable holds any more."""
        held = {id(value) for value in values}
        for key in [key for key in self.texts if key not in held]:
            del self.texts[key]
        for key, document in list(self.documents.items()):
            if key not in held or not document.unchanged():
                del self.documents[key]

    def end(self, needed: frozenset[str]) -> None:
        """After a checkpoint: remove superseded files that no state file refers to.

        Args:
            needed: those that one refers to.
        """
        used = {file for _, file in self.texts.values()}
        used.update(document.file for document in self.documents.values())
        for file in self.superseded - used - needed:
            self.superseded.discard(file)
            try:
                os.unlink(os.path.join(self.directory, file))
            except OSError:
                pass  # a cell has removed it

    def refer(self, obj: Any) -> Reference | None:
        """The reference that stands for a value, if there is one."""
        key = id(obj)
        if key in self.texts:
            file = self.texts[key][1]
            return ("text", file, *self._stamp(file))
        for document in self.documents.values():
            path = document.path_to(obj)
            if path is not None:
                return ("json", document.file, *self._stamp(document.file), path)
        return None

    def fetch(self, reference: Reference) -> Any:
        """The value that a reference stands for.

        Raises:
            OSError, ValueError: its file is gone or is not what it was.
        """
        key = reference[:4]
        if key not in self.parsed:
            kind, file, size, checksum = key
            raw = self.read(file)
            if (len(raw), zlib.crc32(raw)) != (size, checksum):
                raise ValueError("{} is not what it was".format(file))
            text = raw.decode("utf-8", "surrogatepass")
            self.parsed[key] = text if kind == "text" else json.loads(text)
            self.add(self.parsed[key], file)
            self.stamps[file] = (size, checksum)
        value = self.parsed[key]
        for step in reference[4] if len(reference) > 4 else ():
            value = value[step]
        return value

    def _stamp(self, file: str) -> tuple[int, int]:
        """The size and checksum of a file, read once: at the checkpoint after it was loaded."""
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
    """A dict or list that was read from a JSON file."""

    def __init__(self, value: Any, file: str) -> None:
        self.value = value
        self.file = file
        self.digest = _digest(value)
        # The ids of all containers inside, to tell quickly that something is none of them.
        self.ids = array("Q", sorted(id(item) for _, item in _containers(value)))
        self.paths: dict[int, tuple[Any, ...]] | None = None

    def unchanged(self) -> bool:
        try:
            return _digest(self.value) == self.digest
        except (ValueError, TypeError):  # something is in it now that JSON has no word for
            return False

    def path_to(self, obj: Any) -> tuple[Any, ...] | None:
        """Where in the document an object is; ``()`` for the document, ``None`` for nowhere."""
        key = id(obj)
        place = bisect.bisect_left(self.ids, key)
        if place == len(self.ids) or self.ids[place] != key:
            return None
        if self.paths is None:
            self.paths = {id(item): path for path, item in _containers(self.value)}
        path = self.paths.get(key)
        if path is None:
            return None
        # An element may have been replaced by an equal one, which no digest shows.
        found = self.value
        try:
            for step in path:
                found = found[step]
        except (LookupError, TypeError):
            return None
        return path if found is obj else None


def _containers(value: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every dict and list of a document, itself included, each with its path."""
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), value)]
    while waiting:
        path, item = waiting.pop()
        yield path, item
        steps = item.items() if type(item) is dict else enumerate(item)
        for step, inner in steps:
            if type(inner) is dict or type(inner) is list:
                waiting.append(((*path, step), inner))


def _digest(value: Any) -> int:
    """A checksum of everything in a document, its order included.

    Marshal's format 2, because later ones depend on reference counts.
    """
    items = list(value.items()) if type(value) is dict else value
    checksum = len(items)
    for start in range(0, len(items), _SLICE):
        checksum = zlib.crc32(marshal.dumps(items[start : start + _SLICE], 2), checksum)
    return checksum
