"""JSON from a container, parsed within bounds.

A few bytes of JSON can become many bytes of objects: ``{},`` is three of the one and a hundred of
the other. So it is not only how long a text is that is bounded, but also what it consists of, and
what it will take in memory is known before it is parsed.
"""

from __future__ import annotations

import json
import re
import sys
from itertools import accumulate
from typing import Any

#: Keys, values and elements that one text may have. A batch of prompts has one for each, a list of
#: messages five.
_MAX_PARTS = 1_000_000

#: How deep they may be nested. json gives up at the interpreter's limit, but that can be changed,
#: and then it is the C stack that overflows.
_MAX_DEPTH = 200

#: Digits of a whole number, as Python 3.11 has it; the time to convert it grows with its square.
_MAX_DIGITS = 4300

#: Bytes that a list or a dict takes, with one entry; and any other part, besides its text.
_CONTAINER_SIZE = 300
_PART_SIZE = 70

# Possessive, so that a text of nothing but backslashes costs no more than any other.
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_NOT_BRACKETS = re.compile(r"[^][{}]++")
_STEPS = bytes.maketrans(b"[{]}", b"\1\1\xff\xff")  # up and down, as signed bytes
_WIDE = re.compile(r"\\u[dD][89abAB]")


class UntrustedJSON:
    """A text that may be JSON.

    Args:
        payload: the text, in UTF-8.
        max_parts: keys, values and elements that it may have.

    Attributes:
        size: the bytes that its value will take in memory, or some more.

    Raises:
        ValueError: it is no text, or has too many parts, or is nested too deeply.
    """

    def __init__(self, payload: bytes, max_parts: int = _MAX_PARTS) -> None:
        self._text = text = payload.decode()
        containers, others = _count(text)
        if containers > _MAX_DEPTH or containers + others > max_parts:
            # Only now: what is in strings does not count, and to find them takes a while.
            outside = _STRING.sub("", text)
            containers, others = _count(outside)
            if containers + others > max_parts:
                raise ValueError(f"it has more than {max_parts} parts")
            if _depth(outside) > _MAX_DEPTH:
                raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
        others += 2  # the value itself, whatever it is
        self.size = _width(text) * len(text) + _CONTAINER_SIZE * containers + _PART_SIZE * others

    def load(self) -> Any:
        """The value.

        Raises:
            ValueError: it is no JSON, or has a number that is too long.
        """
        strict = sys.get_int_max_str_digits() == 0
        try:
            return json.loads(self._text, parse_int=_parse_int if strict else None)
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error


def printable(value: object, limit: int) -> str:
    """What a container said, as text of at most so many characters that any stream can take.

    A lone surrogate, which JSON can have, would be an error wherever it is written.
    """
    return str(value)[:limit].encode("utf-8", "backslashreplace").decode()


def _count(text: str) -> tuple[int, int]:
    """How many lists and dicts there may be, and how many other parts."""
    return text.count("[") + text.count("{"), text.count(",") + text.count(":")


def _depth(outside: str) -> int:
    steps = _NOT_BRACKETS.sub("", outside).encode("ascii").translate(_STEPS)
    return max(accumulate(memoryview(steps).cast("b")), default=0)


def _width(text: str) -> int:
    """Bytes for each character: as many as the widest in a string needs, which may be escaped."""
    if not text.isascii() or _WIDE.search(text):
        return 4
    return 2 if "\\u" in text else 1


def _parse_int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number has more than {_MAX_DIGITS} digits")
    return int(digits)
