"""Sizes and times as people write them."""

from __future__ import annotations

import pytest

from rlm_containers.errors import OptionError
from rlm_containers.images.amounts import parse_bytes, parse_seconds


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("512", 512),
        ("1b", 1),
        ("20GB", 20 * 10**9),
        ("1.5 gb", 1_500_000_000),
        ("500MiB", 500 * 2**20),
        ("2g", 2 * 2**30),
        ("1TB", 10**12),
        (" 3k ", 3072),
    ],
)
def test_sizes(text: str, value: int) -> None:
    assert parse_bytes(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("30d", 2_592_000), ("2w", 1_209_600), ("12h", 43_200), ("90m", 5400), ("0.5S", 0.5)],
)
def test_times(text: str, value: float) -> None:
    assert parse_seconds(text) == value


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1e9", "20XB", "1,5GB", "nan", "20GBs", "١GB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(OptionError, match="is not a size such as"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1y", "1d 2h"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(OptionError, match="is not a time such as"):
        parse_seconds(text)
