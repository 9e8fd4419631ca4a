"""JSON from a container, parsed within bounds.

A few bytes of JSON can become many bytes of objects: the three bytes ``{},`` become a hundred. So
not only the length of a text is bounded, but also the number of its parts, and the memory that its
value will take is known before it is parsed.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

#: The most keys, values and elements of one text. A batch has one for each prompt, a list of
#: messages has five for each message.
_MAX_PARTS = 1_000_000

#: The deepest nesting. json stops at the recursion limit, but with a raised limit the C stack
#: would overflow first.
_MAX_DEPTH = 200

#: The most digits of an integer, the default of Python 3.11. The time to convert one grows with
#: the square of its length.
_MAX_DIGITS = 4300

_QUOTE = ord('"')

#: Bytes that a list or a dict with one entry takes, and any other part besides its text.
_CONTAINER_SIZE = 300
_PART_SIZE = 70

# A string or a bracket. A string that does not end takes all the rest: else the search would begin
# anew at each quotation mark in it, which takes a time that grows with the square of the length.
# Possessive, so that a text of backslashes only costs no more than any other.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?+|[][{}]', re.DOTALL)
_WIDE = re.compile(rb"\\u[dD][89abAB]")

#: By the width of the widest character: how many times the length of a text is in memory at most
#: while it is parsed. That is the text, decoded, and its value; an ASCII text also before it is
#: decoded.
_PEAK = {1: 3, 2: 4, 4: 8}


def parse_cost(payload: bytes | bytearray) -> int:
    """Return how many bytes it takes to parse a text, without what its parts take.

    Fast: nothing is copied or parsed.
    """
    return _PEAK[_width(payload)] * len(payload)


def greatest_cost(length: int) -> int:
    """Return how many bytes it may take to parse a text of that many bytes, with some parts."""
    return _PEAK[4] * length + 4096


class UntrustedJSON:
    """A text that may be JSON. Nothing is decoded before :meth:`load`.

    Args:
        payload: the text, in UTF-8. To have :meth:`load` free it, keep no reference.
        max_parts: the most keys, values and elements that it may have.

    Attributes:
        size: an upper bound of the bytes that its value will take in memory.
        cost: an upper bound of the bytes that it takes while it is parsed, and later.

    Raises:
        ValueError: it has too many parts, or is nested too deeply.
    """

    def __init__(self, payload: bytes | bytearray, max_parts: int = _MAX_PARTS) -> None:
        self._payload = payload
        containers, others = _count(payload)
        if containers > _MAX_DEPTH or containers + others > max_parts:
            # Brackets and commas in strings do not count. Finding strings is slow, so only now.
            containers, others = _count_outside_strings(payload, others, max_parts)
        others += 2  # the value itself
        parts = _CONTAINER_SIZE * containers + _PART_SIZE * others
        width = _width(payload)
        self.size = width * len(payload) + parts
        self.cost = _PEAK[width] * len(payload) + parts

    def load(self) -> Any:
        """Parse the text and return its value. May be called once: it lets go of the text.

        Raises:
            ValueError: it is not UTF-8, not JSON, or has a number that is too long.
        """
        payload, self._payload = self._payload, b""
        try:
            text = str(payload, "utf-8")
            del payload
            strict = sys.get_int_max_str_digits() == 0
            return json.loads(text, parse_int=_parse_int if strict else None)
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            reason = str(error)
        except RecursionError:
            reason = "it is nested too deeply"
        # Not from within: these errors have the whole text, which would live as long as they do.
        raise ValueError(reason)


def printable(value: object, limit: int) -> str:
    """Return what a container said as text that any stream can take.

    JSON can contain lone surrogates, which cannot be encoded, so they are escaped.

    Args:
        value: what the container said, of any type.
        limit: the most characters to keep, before escaping.
    """
    return str(value)[:limit].encode("utf-8", "backslashreplace").decode()


def _count(payload: bytes | bytearray) -> tuple[int, int]:
    """Return upper bounds of the number of lists and dicts, and of other parts."""
    containers = payload.count(b"[") + payload.count(b"{")
    return containers, payload.count(b",") + payload.count(b":")


def _count_outside_strings(
    payload: bytes | bytearray, others: int, max_parts: int
) -> tuple[int, int]:
    """Return the numbers as :func:`_count`, of what is not in a string.

    It copies nothing, since pieces of the text would take many times its memory.

    Args:
        payload: the text.
        others: the number of other parts, those in strings included.
        max_parts: how many parts there may be.

    Raises:
        ValueError: there are more, or it is nested too deeply.
    """
    containers = depth = strings = 0
    for token in _TOKEN.finditer(payload):
        start, end = token.span()
        if payload[start] == _QUOTE:
            strings += 1
            others -= payload.count(b",", start, end) + payload.count(b":", start, end)
        elif payload[start] in b"[{":
            containers += 1
            depth += 1
            if depth > _MAX_DEPTH:
                raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
        else:
            depth -= 1
            if depth < 0:
                raise ValueError("it closes more than it opens")
        if max(strings - 1, containers) > max_parts:
            break
    if containers + max(others, strings - 1) > max_parts:
        raise ValueError(f"it has more than {max_parts} parts")
    return containers, others


def _width(payload: bytes | bytearray) -> int:
    """Return the bytes per character: those of the widest one, which may be an escape."""
    if not payload.isascii() or _WIDE.search(payload):
        return 4
    return 2 if b"\\u" in payload else 1


def _parse_int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number has more than {_MAX_DIGITS} digits")
    return int(digits)
