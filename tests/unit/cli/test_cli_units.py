"""Sizes and times on the command line."""

from __future__ import annotations

import time

import click
import pytest

from rlm_containers.cli.units import AGE, SIZE, ago


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("512", 512), ("5k", 5120), ("20GB", 20 * 1000**3), ("20 gb", None),
        ("1GiB", 1024**3), ("2T", 2 * 1024**4), ("lots", None), ("-1", None), ("1.5g", None),
        ("", None), ("10b", 10),
    ],
)  # fmt: skip
def test_sizes(text: str, size: int | None) -> None:
    if size is None:
        with pytest.raises(click.BadParameter, match="is no size such as 500MB or 20GB"):
            SIZE.convert(text, None, None)
    else:
        assert SIZE.convert(text, None, None) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30d", 30 * 86_400),
        ("12h", 43_200),
        ("2w", 14 * 86_400),
        ("0s", 0),
        ("5", None),
        ("1y", None),
    ],
)
def test_ages(text: str, seconds: int | None) -> None:
    if seconds is None:
        with pytest.raises(click.BadParameter, match="is no time such as 12h or 30d"):
            AGE.convert(text, None, None)
    else:
        assert AGE.convert(text, None, None) == seconds


@pytest.mark.parametrize(
    ("passed", "text"),
    [
        (0, "just now"), (59, "just now"), (60, "1 minute ago"), (7300, "2 hours ago"),
        (86_400 * 3, "3 days ago"), (-100, "just now"),
    ],
)  # fmt: skip
def test_ago(passed: float, text: str) -> None:
    assert ago(time.time() - passed - 0.5) == text
