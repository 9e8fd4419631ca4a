"""Numbers of bytes as people write and read them."""

from __future__ import annotations

import re

#: The value of a limit that this library chooses.
AUTO = "auto"

_UNITS = {"b": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}


def parse_size(value: object) -> object:
    """A number of bytes for a string such as ``"512m"`` or ``"2g"``; any other value as it is.

    The units are b, k, m, g and t, of 1024 each. A number needs one: ``"512"`` may mean anything.
    """
    if isinstance(value, str):
        match = re.fullmatch(r"([0-9]{1,18})([bkmgt])", value, re.IGNORECASE)
        if match:
            return int(match[1]) * _UNITS[match[2].lower()]
    return value
