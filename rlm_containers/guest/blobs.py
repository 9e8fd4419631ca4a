"""Long strings of a session, each in a file of its own."""

from __future__ import annotations

import os
import re
import zlib

from .loaded import Reference
from .statefile import open_regular

#: Strings of at least this many characters or bytes get a file of their own.
BLOB_SIZE = 256 * 1024

_FOLDER = ".blobs"
_NAME = re.compile(r"\d{8,}\Z")


class BlobStore:
    """Writes a long string once and refers to it from then on.

    A reference is ``("str" or "bytes", file, size, checksum)``.

    Args:
        directory: the workspace.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        # By identity: the string, kept alive so that its id stays its own, and its reference.
        self.known: dict[int, tuple[object, Reference]] = {}
        self.used: set[int] = set()
        self.files: set[str] = set()
        # While loading: two variables that share a string get the same one.
        self.fetched: dict[Reference, str | bytes] = {}
        self.next = 0

    def adopt(self) -> None:
        """Take over the files of an earlier worker, to be removed when they are not needed."""
        try:
            found = os.listdir(os.path.join(self.directory, _FOLDER))
        except OSError:
            return
        self.files.update("{}/{}".format(_FOLDER, name) for name in found if _NAME.match(name))

    def begin(self) -> None:
        """Before a checkpoint: nothing is referred to yet."""
        self.used = set()

    def refer(self, value: str | bytes) -> Reference:
        """The reference to a string, which is written to its file unless it is there.

        Raises:
            OSError: it could not be written.
        """
        key = id(value)
        self.used.add(key)
        if key in self.known:
            return self.known[key][1]
        raw = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        os.makedirs(os.path.join(self.directory, _FOLDER), exist_ok=True)
        while True:
            name = "{}/{:08d}".format(_FOLDER, self.next)
            self.next += 1
            path = os.path.join(self.directory, name)
            if not os.path.lexists(path):  # an earlier worker's
                break
        try:
            with open(path, "xb") as file:
                file.write(raw)
        except BaseException:  # an interrupt, too
            _remove(path)  # half of it would take the room that the next checkpoint needs
            raise
        self.files.add(name)
        reference = (type(value).__name__, name, len(raw), zlib.crc32(raw))
        self.known[key] = (value, reference)
        return reference

    def end(self, needed: frozenset[str]) -> None:
        """After a checkpoint: forget the strings that it does not refer to; see :meth:`sweep`."""
        for key in [key for key in self.known if key not in self.used]:
            del self.known[key]
        self.sweep(needed)

    def sweep(self, needed: frozenset[str]) -> None:
        """Remove the files that nothing refers to.

        Args:
            needed: those that a state file refers to.
        """
        known = {reference[1] for _, reference in self.known.values()}
        for name in self.files - needed - known:
            self.files.discard(name)
            _remove(os.path.join(self.directory, name))

    def fetch(self, reference: Reference) -> str | bytes:
        """The string that a reference stands for.

        Raises:
            OSError, ValueError: its file is gone or is not what it was.
        """
        if reference in self.fetched:
            return self.fetched[reference]
        kind, name, size, checksum = reference
        with open_regular(os.path.join(self.directory, name)) as file:
            raw = file.read()
        if (len(raw), zlib.crc32(raw)) != (size, checksum):
            raise ValueError("{} is not what it was".format(name))
        value = raw.decode("utf-8", "surrogatepass") if kind == "str" else raw
        self.known[id(value)] = (value, reference)
        self.fetched[reference] = value
        return value


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # a cell has removed it
