"""Sizes and times as people write them on the command line, and as tables show them."""

from __future__ import annotations

import re
import time
from typing import Any

import click

_BYTES = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


class _Size(click.ParamType[int]):
    """``20GB``, ``512m`` and the like, in bytes; units are of 1024 each."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"([0-9]{1,15})([kmgt]?)(i?b)?", str(value).strip().lower())
        if match is None:
            self.fail(f"{value!r} is no size such as 500MB or 20GB.", param, ctx)
        return int(match[1]) * _BYTES[match[2]]


class _Age(click.ParamType[float]):
    """``30d``, ``12h`` and the like, in seconds."""

    name = "age"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        match = re.fullmatch(r"([0-9]{1,9})([smhdw])", str(value).strip().lower())
        if match is None:
            self.fail(f"{value!r} is no time such as 12h or 30d.", param, ctx)
        return float(int(match[1]) * _SECONDS[match[2]])


SIZE = _Size()
AGE = _Age()


def ago(moment: float) -> str:
    """How long ago something was, in seconds since 1970, as people say it."""
    passed = max(0.0, time.time() - moment)
    for unit, name in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if passed >= unit:
            number = int(passed // unit)
            return f"{number} {name}{'' if number == 1 else 's'} ago"
    return "just now"
