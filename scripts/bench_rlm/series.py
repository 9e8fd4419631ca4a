"""Samples of one quantity, and how they are taken in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

__all__ = ["Series", "in_turns", "seconds", "seconds_of"]


@dataclass
class Series:
    """Seconds (or whatever ``unit`` formats), one number for each sample."""

    samples: list[float] = field(default_factory=list)
    unit: Callable[[float], str] = field(default_factory=lambda: seconds)

    def add(self, sample: float) -> None:
        """Append one sample."""
        self.samples.append(sample)

    @contextmanager
    def timed(self, share: int = 1) -> Iterator[None]:
        """Append the time that the block takes, divided by ``share``."""
        start = time.perf_counter()
        yield
        self.add((time.perf_counter() - start) / share)

    def drop_warm_up(self) -> None:
        """Forget the first sample, in which caches were filled."""
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
    """How long a call takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def in_turns(runs: int, *actions: Callable[[], None], note: Callable[[str], None]) -> None:
    """Call every action once per run and once more before, to warm up, in alternating order.

    What the machine does beside this hits all of them alike then. The actions add to their series
    as they are called; dropping the warm-up is for the caller, who knows these.
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
