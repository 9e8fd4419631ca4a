"""What a soak has found wrong."""

from __future__ import annotations

import threading


class Failures:
    """What should not have happened. Any thread may add to it."""

    def __init__(self) -> None:
        self._count = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._count

    def add(self, what: str) -> None:
        """Count a failure, and print it: a run takes long, and may not come to its end."""
        with self._lock:
            self._count += 1
            print(f"FAILED: {what}", flush=True)
