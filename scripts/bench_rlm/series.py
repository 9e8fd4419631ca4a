"""Samples of one quantity, and measuring several in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Series:
    """Samples of seconds, or of whatever ``unit`` formats."""

    samples: list[float] = field(default_factory=list)
    unit: Callable[[float], str] = field(default_factory=lambda: seconds)

    def add(self, sample: float) -> None:
        """Append one sample."""
        self.samples.append(sample)

    @contextmanager
    def timed(self, share: int = 1) -> Iterator[None]:
        """Append the block's time, divided by ``share``."""
        start = time.perf_counter()
        yield
        self.add((time.perf_counter() - start) / share)

    def drop_warm_up(self) -> None:
        """Forget the first sample, which filled caches."""
        del self.samples[:1]

    @property
    def median(self) -> float:
        """The sample in the middle."""
        return statistics.median(self.samples)

    def __str__(self) -> str:
        text = self.unit(self.median)
        if len(self.samples) > 1:
            low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
            text += f" ({self.unit(low)} – {self.unit(high)})"
        return text


def seconds_of(action: Callable[[], object]) -> float:
    """The seconds that a call takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def in_turns(runs: int, *actions: Callable[[], None], note: Callable[[str], None]) -> None:
    """Call every action once per run, and once before to warm up, in alternating order.

    So other work of the machine slows all of them alike. The actions add to their series, from
    which the caller drops the warm-up.
    """
    for run in range(runs + 1):
        note(f"{run}/{runs}" if run else "warm-up")
        for action in actions if run % 2 else reversed(actions):
            action()


def seconds(value: float) -> str:
    """Three significant digits, in seconds or milliseconds."""
    number, unit = (value, "s") if value >= 1 else (value * 1000, "ms")
    digits = 0 if number >= 100 else 1 if number >= 10 else 2
    return f"{number:.{digits}f} {unit}"


_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@contextmanager
def host_memory(series: Series) -> Iterator[None]:
    """Add this process's largest growth during the block, if the kernel (Linux) tells it."""
    try:
        _CLEAR.write_text("5")  # resets the peak, see proc(5)
        before = _read("VmRSS")
    except (OSError, ValueError):
        yield
        return
    yield
    series.add(max(0, _read("VmHWM") - before))


def megabytes(size: float) -> str:
    """A number of bytes as text."""
    return f"{size / 1e6:.0f} MB"


def _read(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    raise ValueError(name)
