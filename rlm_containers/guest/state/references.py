"""What a checkpoint saves by reference: long strings, loaded values, and pieces of documents.

The pickler can refer only to what is in its memo before the records are written. Some of it is
found by looking at the variables: most long strings are one, or are in a list or dict that is one.
The rest is found in the memo after the records are written. Then they are written once more, and
what was found is known from then on.
"""

from __future__ import annotations

import bisect
import builtins
import sys
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

from .blobs import BLOB_SIZE, BlobStore, Reference
from .loaded import LoadedFiles
from .records import Record, RecordWriter

#: The most elements of a list, tuple or dict that are looked at.
_ELEMENTS = 64


class BlobError(OSError):
    """A blob could not be written. That is a fault of the disk, not of a variable."""


class References:
    """Finds what to save by reference.

    Args:
        loaded: the files that the host has loaded.
        blobs: the files of long strings.

    Attributes:
        found: by id, each object to save by reference, and the reference.
        files: the files that the checkpoint under way refers to.
        sizes: by variable, the bytes of the files that it refers to as a whole.
        searched: by variable, how long the longest write was that was no unknown long string.
    """

    def __init__(self, loaded: LoadedFiles, blobs: BlobStore) -> None:
        self._loaded = loaded
        self._blobs = blobs
        self.found: dict[int, tuple[Any, Reference]] = {}
        # Pieces of documents that variables hold. Holding a piece keeps its id.
        self._pieces: dict[int, Any] = {}
        self.searched: dict[str, int] = {}
        self.files: set[str] = set()
        self.sizes: dict[str, int] = {}

    def begin(
        self,
        variables: Sequence[tuple[str, Any]],
        originals: Iterable[tuple[Any, Reference]],
    ) -> None:
        """Begin a checkpoint: find what is to be saved by reference, as far as it is known.

        Args:
            variables: the names and values.
            originals: as for :meth:`rlm_guest.state.checkpoint.Checkpoint.save`.

        Raises:
            BlobError: a long string could not be written.
        """
        self.files = set()
        self.sizes = {}
        self.found = {}
        self.searched = {name: self.searched.get(name, 0) for name, _ in variables}
        for namespace in (sys.modules["__main__"].__dict__, builtins.__dict__):
            self.found[id(namespace)] = (namespace, ("module", namespace["__name__"]))
        own = {id(getattr(sys, name)): name for name in ("path", "modules")}
        for _, value in variables:
            if id(value) in own:
                self.found[id(value)] = (value, ("attribute", "sys", own[id(value)]))
        self.found.update((id(value), (value, reference)) for value, reference in originals)
        for document in self._loaded.documents.values():
            self._add(document.value)
        for name, value in variables:
            self._look(name, value, levels=2)
        for value in self._blobs.held(self.found.keys()):
            self._add(value)
        for key in list(self._pieces):
            # It is held by its document, by this dict, and by the call.
            if sys.getrefcount(self._pieces[key]) <= 3 or self._add(self._pieces[key]) is None:
                del self._pieces[key]

    def _look(self, name: str, value: Any, levels: int) -> None:
        kind = type(value)
        if kind is str or kind is bytes:
            if len(value) >= BLOB_SIZE:
                self._count(name, self._add(value))
        elif kind is list or kind is dict or kind is tuple:
            if id(value) in self._loaded.documents:
                self._count(name, self._add(value))
            elif levels and len(value) <= _ELEMENTS:
                for element in value.values() if kind is dict else value:
                    self._look(name, element, levels - 1)

    def _count(self, name: str, reference: Reference | None) -> None:
        if reference is not None:
            self.sizes[name] = self.sizes.get(name, 0) + reference[2]

    def _add(self, value: Any) -> Reference | None:
        """Return the reference for a long string, a document or a piece of one."""
        if id(value) not in self.found:
            try:
                reference = self._loaded.refer(value)
                if reference is None and isinstance(value, (str, bytes)):
                    reference = self._blobs.refer(value)
            except OSError as error:
                raise BlobError(*error.args) from error
            if reference is None:
                return None
            self.found[id(value)] = (value, reference)
            self.files.add(reference[1])
        return self.found[id(value)][1]

    def search(self, writer: RecordWriter) -> bool:
        """Look for more in what was written. Return whether to write it once more."""
        known = len(self.found)
        suspects = [
            record
            for record in writer.records
            if record.longest >= BLOB_SIZE and record.longest != self.searched[record.name]
        ]
        documents = [document.ids for document in self._loaded.known_to_cells()]
        if not suspects and not documents:
            return False
        memo = writer.pickler.memo.copy()
        for ids in documents:
            for key in _common(memo, ids):
                if key not in self.found and self._add(memo[key][1]) is not None:
                    self._pieces[key] = memo[key][1]
        if suspects:
            self.searched.update((record.name, record.longest) for record in suspects)
            for key, (number, value) in memo.items():
                is_long = type(value) in (str, bytes) and len(value) >= BLOB_SIZE
                if is_long and key not in self.found:
                    self._count(_owner(suspects, number), self._add(value))
        return len(self.found) > known


def _common(memo: dict[int, Any], ids: array[int]) -> Iterable[int]:
    """Return the ids that are in both; the second are sorted."""
    if len(memo) > len(ids):
        return memo.keys() & ids
    return [key for key in memo if ids[min(bisect.bisect_left(ids, key), len(ids) - 1)] == key]


def _owner(records: Sequence[Record], number: int) -> str:
    """Return the variable in whose record an object was saved first."""
    return max((r.objects, r.name) for r in records if r is records[0] or r.objects <= number)[1]
