"""Sizes and times on the command line, and progress by what engines print."""

from __future__ import annotations

import time

import click
import pytest

from rlm_containers.cli.progress import Steps
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


DOCKER_PULL = """\
3.11-slim: Pulling from library/python
af302e5c37e9: Pulling fs layer
eeae4b9a4d45: Already exists
af302e5c37e9: Verifying Checksum
af302e5c37e9: Download complete
af302e5c37e9: Pull complete
Digest: sha256:4c8f8b1c
"""


@pytest.mark.parametrize(
    ("log", "progress"),
    [
        (DOCKER_PULL, [(0, 0), (0, 1), (1, 2), (1, 2), (1, 2), (2, 2), (2, 2)]),
        ("Step 1/4 : FROM x\n ---> abc\nStep 2/4 : RUN y", [(0, 4), (0, 4), (1, 4)]),
        ("STEP 1/3: FROM x\nSTEP 3/3: RUN y", [(0, 3), (2, 3)]),
        ("#5 [2/4] RUN pip\n#6 [base 1/2] FROM z\n#5 DONE 0.3s", [(1, 4), (1, 4), (1, 4)]),
        ("Copying blob sha256:abc\nWriting manifest", [(0, 0), (0, 0)]),
        ("Step 9/0 : x", [(0, 0)]),
    ],
)
def test_progress(log: str, progress: list[tuple[int, int]]) -> None:
    steps, seen = Steps(), []
    for line in log.splitlines():
        steps.read(line)
        seen.append((steps.done, steps.total))
    assert seen == progress
