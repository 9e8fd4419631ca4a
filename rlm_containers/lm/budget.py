"""How many calls of language models a cell, and a whole session, may make."""

from __future__ import annotations

import threading


class CallBudget:
    """Counts prompts before they are asked, whether they are answered or not.

    Args:
        per_cell: the most of one cell; ``None`` for no limit.
        per_session: the most of all cells together.
    """

    def __init__(self, per_cell: int | None = None, per_session: int | None = None) -> None:
        self.per_cell = per_cell
        self.per_session = per_session
        self._in_cell = 0
        self._in_session = 0
        self._lock = threading.Lock()

    def begin_cell(self) -> None:
        """Another cell begins. What an earlier one's threads ask from here on counts for it."""
        with self._lock:
            self._in_cell = 0

    def take(self, wanted: int) -> int:
        """How many of so many prompts may be asked; they are counted."""
        with self._lock:
            granted = wanted
            if self.per_cell is not None:
                granted = min(granted, self.per_cell - self._in_cell)
            if self.per_session is not None:
                granted = min(granted, self.per_session - self._in_session)
            self._in_cell += granted
            self._in_session += granted
        return granted

    def refusal(self) -> str:
        """What is said of a prompt that may not be asked."""
        with self._lock:
            if self.per_session is not None and self._in_session >= self.per_session:
                return _text(self.per_session, "session", "max_session_lm_calls")
            return _text(self.per_cell or 0, "cell", "max_lm_calls")


def _text(limit: int, what: str, option: str) -> str:
    calls = "call" if limit == 1 else "calls"
    return f"this {what} has made the {limit} {calls} of a language model it may make ({option})"
