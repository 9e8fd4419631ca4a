"""What a soak has seen."""

from __future__ import annotations

import collections
import ctypes
import gc
import os
import resource
import statistics
import threading
import time
from pathlib import Path

__all__ = ["Figures", "Usage", "resident"]


class Usage:
    """What this process uses, at one moment.

    Attributes:
        resident: MiB that are in memory.
        used: those that are once the C library's allocator has given back the pages that nothing is
            in, of which it holds on to some: what a leak would keep is all there is to see.
        objects: the number that Python's garbage collector knows.
        descriptors: that are open.
        threads: Python's.
    """

    def __init__(self) -> None:
        self.resident = resident()
        gc.collect()
        _give_back()
        self.used = resident()
        self.objects = len(gc.get_objects())
        self.descriptors = len(os.listdir("/proc/self/fd"))
        self.threads = threading.active_count()

    def __str__(self) -> str:
        return (
            f"{self.resident:.0f} MB, {self.used:.0f} MB of them in use, {self.objects} objects, "
            f"{self.descriptors} descriptors, {self.threads} threads"
        )


def resident() -> float:
    """MiB of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def _give_back() -> None:
    """``malloc_trim(3)``."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; musl holds on to little
    if trim is not None:
        trim(0)


class Figures:
    """Counted by many threads at once."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.lock = threading.Lock()
        self.cells: collections.Counter[str] = collections.Counter()
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.times: collections.defaultdict[str, list[float]] = collections.defaultdict(list)
        self.sandboxes = 0
        self.lost_sandboxes = 0
        self.failures: list[str] = []

    def note(self, kind: str, outcome: str, seconds: float) -> int:
        """One cell; how many there were."""
        with self.lock:
            self.cells[kind] += 1
            self.outcomes[outcome] += 1
            self.times[kind].append(seconds)
            return self.cells.total()

    def fail(self, what: str) -> None:
        """Something that must not be."""
        with self.lock:
            self.failures.append(what)

    def report(self, before: Usage, after: Usage, left: list[str]) -> str:
        """The figures in words."""
        seconds = time.monotonic() - self.start
        rows = [
            f"{self.cells.total()} cells in {self.sandboxes} sandboxes, {seconds:.0f} s; "
            + ", ".join(f"{count} {outcome}" for outcome, count in self.outcomes.most_common()),
            f"sandboxes lost by a fault that ends them, and said so: {self.lost_sandboxes}",
            f"the host's process before, with its first sandboxes gone: {before}",
            f"after the last: {after}",
            f"left behind: {', '.join(left) if left else 'nothing'}",
            f"failures: {len(self.failures)}",
            "",
            "| cell | count | median | longest |",
            "|---|--:|--:|--:|",
        ]
        for kind, times in sorted(self.times.items(), key=lambda item: -len(item[1])):
            median, longest = statistics.median(times), max(times)
            rows.append(f"| {kind} | {len(times)} | {median * 1e3:.1f} ms | {longest:.2f} s |")
        return "\n".join(rows + [f"FAILED: {failure}" for failure in self.failures[:20]])
