"""How many prompts the cells of a sandbox may ask, and those of the sandboxes below it.

A recursive call makes another RLM, which has a sandbox of its own. Each such child counts its
prompts in the budget of its parent too, and so on up to the root. Otherwise a limit would be
multiplied at each level.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# The budget of the sandbox whose call is being answered here.
_answering: ContextVar[CallBudget | None] = ContextVar("rlm_containers_budget", default=None)


class CallBudget:
    """Counts prompts before they are asked, whether they are answered or not.

    Args:
        per_cell: the most prompts of one cell; ``None`` for no limit. Those of sandboxes below
            count for their own cells only.
        per_session: the most prompts of all cells together, and of all sandboxes below; ``None``
            for no limit.
        parent: the budget of the sandbox whose call made this one; ``None`` for a root.
    """

    def __init__(
        self,
        per_cell: int | None = None,
        per_session: int | None = None,
        parent: CallBudget | None = None,
    ) -> None:
        self.per_cell = per_cell
        self.per_session = per_session
        self._in_cell = 0
        self._in_session = 0
        self._own: CallBudget = self  # that of its session
        # This one first, the root last.
        self._line: tuple[CallBudget, ...] = (self, *(parent._line if parent else ()))
        # One lock for the whole tree, so that a prompt counts in all of its line or in none.
        self._lock: threading.Lock = parent._lock if parent else threading.Lock()

    def branch(self) -> CallBudget:
        """Return the budget of a branch: for cells of its own, in the same session."""
        made = CallBudget(self.per_cell, parent=self)
        made._own = self._own
        return made

    @staticmethod
    def of_caller() -> CallBudget | None:
        """Return the budget of the sandbox whose call this thread answers, if it does."""
        return _answering.get()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Make this the :meth:`of_caller` of all that is done in the ``with`` block."""
        token = _answering.set(self)
        try:
            yield
        finally:
            _answering.reset(token)

    def begin_cell(self) -> None:
        """Begin another cell. Prompts count for it, even if a thread of an earlier cell asks."""
        with self._lock:
            self._in_cell = 0

    def allow(self, wanted: int) -> int:
        """Count prompts, and return how many of them may be asked."""
        with self._lock:
            allowed = wanted
            if self.per_cell is not None:
                allowed = min(allowed, self.per_cell - self._in_cell)
            for budget in self._line:
                allowed = min(allowed, budget._left(wanted))
            self._in_cell += allowed
            for budget in self._line:
                budget._in_session += allowed
        return allowed

    def refusal(self) -> str:
        """Return the error of a prompt that may not be asked."""
        with self._lock:
            for budget in self._line:
                if budget._left(1) == 0:
                    return budget._refusal(below=budget is not self._own)
            return _used_up("this cell has", self.per_cell or 0, "max_lm_calls")

    def _left(self, wanted: int) -> int:
        """Return how many of some prompts the session has left."""
        return wanted if self.per_session is None else self.per_session - self._in_session

    def _refusal(self, *, below: bool) -> str:
        who = "this session has"
        if below:
            who = "the session that this recursive call belongs to has, with all calls below it,"
        return _used_up(who, self.per_session or 0, "max_session_lm_calls")


def _used_up(who: str, limit: int, option: str) -> str:
    calls = "call" if limit == 1 else "calls"
    return f"{who} used up its {limit} language model {calls} ({option})"
