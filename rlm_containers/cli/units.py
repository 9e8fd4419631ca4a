"""Sizes and times: as the command line reads them, and as tables show them."""

from __future__ import annotations

import re
import time
from typing import Any

import click

from rlm_containers.options import parse_size

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


class _Size(click.ParamType[int]):
    """A number of bytes, or a size as :func:`~rlm_containers.options.parse_size` reads it."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).strip()
        size = int(text) if re.fullmatch("[0-9]{1,18}", text) else parse_size(text)
        if size is None:
            self.fail(f"{value!r} is no size such as 500MB or 20GB.", param, ctx)
        return size


class _Age(click.ParamType[float]):
    """Seconds, from ``30d``, ``12h`` and the like."""

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
    """Say how long ago a moment was.

    Args:
        moment: seconds since 1970.
    """
    passed = max(0.0, time.time() - moment)
    for unit, name in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if passed >= unit:
            number = int(passed // unit)
            return f"{number} {name}{'' if number == 1 else 's'} ago"
    return "just now"
