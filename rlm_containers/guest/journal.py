"""The values that trivial cells have bound since the variables were saved as a whole.

They are in memory that the supervisor shares, so they survive the worker. Who restores the
variables, or writes them for an heir, binds these names after that.

The journal is a row of entries. Each is the length of a pickle (4 bytes, big-endian) and the pickle
of the number of a request and of the values by their names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .succession import JOURNAL_BASE, JOURNAL_LENGTH, JOURNALED

#: Bytes of the journal, and of its longest entry.
SIZE = 256 * 1024
_ENTRY = 16 * 1024


class Journal:
    """The journal.

    Args:
        progress: the numbers that are shared with the supervisor.
        memory: the memory for the entries.
    """

    def __init__(self, progress: memoryview, memory: memoryview) -> None:
        self._progress = progress
        self._memory = memory

    @property
    def last(self) -> int:
        """The request of the last entry; 0 if there is none."""
        return int(self._progress[JOURNALED])

    def note(self, number: int, base: int, values: dict[str, Any]) -> bool:
        """Add an entry.

        Args:
            number: the request that has bound the names.
            base: the request whose variables were saved as a whole before the first entry.
            values: the values, which are plain.

        Returns:
            Whether there was room for it.
        """
        import pickle

        raw = pickle.dumps((number, values), 4)
        progress = self._progress
        start = progress[JOURNAL_LENGTH]
        end = start + 4 + len(raw)
        if len(raw) > _ENTRY or end > SIZE:
            return False
        self._memory[start:end] = len(raw).to_bytes(4, "big") + raw
        progress[JOURNAL_BASE] = base
        progress[JOURNAL_LENGTH] = end
        progress[JOURNALED] = number
        return True

    def clear(self) -> None:
        """Remove all entries."""
        self._progress[JOURNALED] = 0
        self._progress[JOURNAL_LENGTH] = 0
        self._progress[JOURNAL_BASE] = 0

    def apply(self, values: dict[str, Any], base: int, *, exact: bool) -> int:
        """Bind the names of all entries after a request to their values.

        Args:
            values: where to bind them.
            base: the request that ``values`` is from.
            exact: whether they must be what the first entry came after, and not newer.

        Returns:
            The request of the last entry; ``base`` if none was used.
        """
        progress = self._progress
        first = progress[JOURNAL_BASE]
        raw = bytes(self._memory[: progress[JOURNAL_LENGTH]])
        if not raw or progress[JOURNAL_BASE] != first:
            return base  # newer variables were saved as a whole
        if first != base if exact else first > base:
            return base
        last = base
        for number, bound in _entries(raw):
            if number > base:
                values.update(bound)
                last = number
        return last


def _entries(raw: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    import pickle  # late: the supervisor imports this module, and does not need it

    start = 0
    while start < len(raw):
        end = start + 4 + int.from_bytes(raw[start : start + 4], "big")
        yield pickle.loads(raw[start + 4 : end])
        start = end
