"""JSON from a container, parsed within bounds.

A few bytes of JSON can become many bytes of objects: the three bytes ``{},`` become a hundred. So
not only the length of a text is bounded, but also the number of its parts, and the memory that its
value will take is known before it is parsed.
"""

from __future__ import annotations

import json
import re
import sys
from itertools import accumulate
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

#: Bytes that a list or a dict with one entry takes, and any other part besides its text.
_CONTAINER_SIZE = 300
_PART_SIZE = 70

# Possessive, so that a text of backslashes only costs no more than any other.
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_NOT_BRACKETS = re.compile(r"[^][{}]++")
_STEPS = bytes.maketrans(b"[{]}", b"\1\1\xff\xff")  # up and down, as signed bytes
_WIDE = re.compile(r"\\u[dD][89abAB]")


class UntrustedJSON:
    """A text that may be JSON.

    Args:
        payload: the text, in UTF-8.
        max_parts: the most keys, values and elements that it may have.

    Attributes:
        size: an upper bound of the bytes that its value will take in memory.

    Raises:
        ValueError: it is not UTF-8, has too many parts, or is nested too deeply.
    """

    def __init__(self, payload: bytes, max_parts: int = _MAX_PARTS) -> None:
        self._text = text = payload.decode()
        containers, others = _count(text)
        if containers > _MAX_DEPTH or containers + others > max_parts:
            # Brackets and commas in strings do not count. Removing strings is slow, so only now.
            outside = _STRING.sub("", text)
            containers, others = _count(outside)
            if containers + others > max_parts:
                raise ValueError(f"it has more than {max_parts} parts")
            if _depth(outside) > _MAX_DEPTH:
                raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
        others += 2  # the value itself
        self.size = _width(text) * len(text) + _CONTAINER_SIZE * containers + _PART_SIZE * others

    def load(self) -> Any:
        """Parse the text and return its value.

        Raises:
            ValueError: it is not JSON, or has a number that is too long.
        """
        strict = sys.get_int_max_str_digits() == 0
        try:
            return json.loads(self._text, parse_int=_parse_int if strict else None)
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error


def printable(value: object, limit: int) -> str:
    """Return what a container said as text that any stream can take.

    JSON can contain lone surrogates, which cannot be encoded, so they are escaped.

    Args:
        value: what the container said, of any type.
        limit: the most characters to keep, before escaping.
    """
    return str(value)[:limit].encode("utf-8", "backslashreplace").decode()


def _count(text: str) -> tuple[int, int]:
    """Return upper bounds of the number of lists and dicts, and of other parts."""
    return text.count("[") + text.count("{"), text.count(",") + text.count(":")


def _depth(outside: str) -> int:
    steps = _NOT_BRACKETS.sub("", outside).encode("ascii").translate(_STEPS)
    return max(accumulate(memoryview(steps).cast("b")), default=0)


def _width(text: str) -> int:
    """Return the bytes per character: those of the widest one, which may be an escape."""
    if not text.isascii() or _WIDE.search(text):
        return 4
    return 2 if "\\u" in text else 1


def _parse_int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number has more than {_MAX_DIGITS} digits")
    return int(digits)
