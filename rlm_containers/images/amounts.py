"""Sizes and times as people write them: ``20GB``, ``30d``."""

from __future__ import annotations

import re

from rlm_containers.errors import OptionError

_SIZES = {"": 1, "b": 1}
_SIZES |= {f"{unit}b": 1000 ** (n + 1) for n, unit in enumerate("kmgt")}
_SIZES |= {f"{unit}{ib}": 1024 ** (n + 1) for n, unit in enumerate("kmgt") for ib in ("", "ib")}

_TIMES = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}

_AMOUNT = re.compile(r"\s*([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """A number of bytes: ``"20GB"``, of 1000s; ``"20GiB"`` and ``"20g"``, of 1024s; ``"512"``.

    Raises:
        OptionError: it is none.
    """
    return int(_parsed(text, _SIZES, 'a size such as "20GB" or "500MiB"'))


def parse_seconds(text: str) -> float:
    """A number of seconds: ``"30d"``, ``"2w"``, ``"12h"``, ``"90m"``, ``"10s"``.

    Raises:
        OptionError: it is none.
    """
    return _parsed(text, _TIMES, 'a time such as "30d" or "12h"')


def _parsed(text: str, units: dict[str, int], expected: str) -> float:
    found = _AMOUNT.fullmatch(text)
    unit = units.get(found[2].lower()) if found else None
    if found is None or unit is None:
        raise OptionError(f"{text!r} is not {expected}.")
    return float(found[1]) * unit
