"""Values of this process as files that a container reads."""

from __future__ import annotations

import gc
import json
import marshal
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain, compress
from typing import Any, Literal

from rlm_containers.errors import ContextError, message_of

#: What a variable can be bound to: text, or what JSON can express.
Context = str | dict[str, Any] | list[Any]

#: Characters of a text that are encoded at once. They stay in the processor's cache until they are
#: written: with 4 MiB it takes twice as long.
_CHUNK = 256 * 1024

#: How a variable's file is read in the container.
Kind = Literal["text", "json", "marshal"]

SUFFIXES: dict[Kind, str] = {"text": "txt", "json": "json", "marshal": "marshal"}

#: The format of marshal, which every Python of a container reads, and every later one writes.
_FORMAT = 4

#: The deepest nesting that is marshalled. Python's limit is 2000.
_MAX_DEPTH = 500


class Summed:
    """The pieces of a file, and once they were iterated over their CRC-32 as ``checksum``."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self.checksum = 0
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self.checksum = zlib.crc32(chunk, self.checksum)
            yield chunk


def encode(name: str, value: Context) -> tuple[Kind, Iterable[bytes]]:
    """Encode a value as a file that the guest reads.

    Args:
        name: the variable, to be named in errors.
        value: text, in which lone surrogates are kept; or a dict or list. A dict's keys become
            strings.

    Returns:
        The kind of file, and its bytes in pieces.

    Raises:
        ContextError: the value is neither text nor JSON.
    """
    if isinstance(value, str):
        return "text", _encode_text(str.__str__(value))  # without the methods of a subclass
    if not isinstance(value, (dict, list)):
        raise ContextError(
            f"{name} must be a string, a dict or a list, not {type(value).__name__}.",
            remedy="Convert it first, for instance with str().",
        )
    try:
        if _is_plain(value):
            # In a third of the time of JSON. Only the container loads it.
            return "marshal", (marshal.dumps(value, _FORMAT),)
        return "json", (json.dumps(value).encode("ascii"),)
    except Exception as error:  # a subclass may raise anything
        raise ContextError(
            f"{name} cannot be expressed as JSON: {message_of(error)}",
            remedy="Only dicts, lists, strings, numbers, booleans and None can be sent.",
        ) from error


def _is_plain(value: object) -> bool:
    """Return whether what marshal makes of a value is what a cell would get by JSON.

    That is if it has the very types that JSON gives, no list or dict that is in it twice, and no
    great depth. Nothing here calls Python code for each element.
    """
    seen: set[int] = set()
    level = [value]
    for _ in range(_MAX_DEPTH):
        kinds = list(map(type, level))
        if not _PLAIN.issuperset(kinds):
            return False
        containers = list(compress(level, map(_CONTAINERS.__contains__, kinds)))
        if not containers:
            return True
        expected = len(seen) + len(containers)
        seen.update(map(id, containers))
        if len(seen) != expected:
            return False
        dicts = [item for item in containers if type(item) is dict]
        if not {str}.issuperset(map(type, chain.from_iterable(dicts))):
            return False
        level = gc.get_referents(*containers)
    return False


_CONTAINERS = frozenset((dict, list))
_PLAIN = frozenset((str, int, float, bool, type(None))) | _CONTAINERS


def _encode_text(text: str) -> Iterable[bytes]:
    # In pieces, so that a text of hundreds of megabytes is not in memory twice.
    for start in range(0, len(text), _CHUNK):
        yield text[start : start + _CHUNK].encode("utf-8", "surrogatepass")
