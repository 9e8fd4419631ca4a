"""How much memory this process needs for something."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench_rlm.series import Series

__all__ = ["host_memory", "megabytes"]

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@contextmanager
def host_memory(series: Series) -> Iterator[None]:
    """Add by how much this process grows at most in the block, where the kernel (Linux) tells."""
    try:
        _CLEAR.write_text("5")  # the peak is counted from here on, see proc(5)
        before = _read("VmRSS")
    except (OSError, ValueError):
        yield
        return
    yield
    series.add(max(0, _read("VmHWM") - before))


def megabytes(size: float) -> str:
    """A size in words."""
    return f"{size / 1e6:.0f} MB"


def _read(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    raise ValueError(name)
