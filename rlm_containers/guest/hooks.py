"""Keeps code of cells that runs whenever something happens out of this package's own code.

A cell may leave signal handlers, finalizers that the garbage collector calls, and functions that
are called around a fork. Between cells nobody would stop one that waits, or expect its exception.
"""

from __future__ import annotations

import functools
import gc
import os
import sys
from _signal import (  # type: ignore[import-not-found]
    SIG_DFL,
    SIG_IGN,
    SIGCHLD,
    SIGURG,
    getsignal,
    raise_signal,
)
from _signal import signal as set_handler
from _thread import _count as count_threads
from types import FrameType
from typing import Any

#: Their numbers, but SIGINT's.
_SIGNALS = (1, *range(3, 32))


class CellHooks:
    """What cells have hooked into the interpreter.

    What was set when this object was made is none of theirs.

    Attributes:
        runs_at_fork: whether a fork calls functions of cells.
        collects: whether garbage is collected while cells run.
    """

    def __init__(self) -> None:
        self.runs_at_fork = False
        self._first = _handlers()
        self._all = list(map(getsignal, _SIGNALS))
        self._held: dict[int, Any] = {}
        self._late: dict[int, None] = {}  # in the order in which they came
        self._collects = False
        self.collects = True
        self._stops_collecting = False
        self._watch_forks()

    def handlers(self) -> dict[int, Any]:
        """Return the signal handlers that cells have set, by signal."""
        if list(map(getsignal, _SIGNALS)) == self._all:
            return {}  # nor are any held: in place of these there is another
        found = {n: h for n, h in _handlers().items() if h != self._first.get(n)}
        found.update(self._held)
        return found

    def hold(self) -> None:
        """From the end of a cell on, let no handler run, and no finalizer of garbage."""
        if self._stops_collecting:
            self._stops_collecting = False
            gc.disable()
        self.collects = self._collects or gc.isenabled()
        # With threads of cells this would keep their garbage, and they run code at any time.
        if gc.isenabled() and count_threads() == 0:
            gc.disable()
            self._collects = True
        for number, handler in self.handlers().items():
            if number not in self._held:
                self._held[number] = handler
                set_handler(number, self._note)

    def release(self) -> None:
        """At the beginning of a cell, let them run again, and handle the signals that have come."""
        if self._collects:
            gc.enable()
            self._collects = False
        if not self._held:
            return
        for number, handler in self._held.items():
            set_handler(number, handler)
        self._held.clear()
        late = [n for n in self._late if n != SIGCHLD or _has_ended_child()]
        self._late.clear()
        for number in late:
            raise_signal(number)

    def dispositions(self) -> dict[int, int]:
        """Return the signals that cells have ignored, or let do what they usually do.

        Heirs change those of SIGCHLD and SIGURG.
        """
        found = zip(_SIGNALS, map(getsignal, _SIGNALS), self._all)  # noqa: B905 - not in 3.9
        return {
            number: int(now)
            for number, now, first in found
            if now in (SIG_DFL, SIG_IGN) and now != first and number not in (SIGCHLD, SIGURG)
        }

    def set_dispositions(self, found: dict[int, int]) -> None:
        """Ignore signals, or let them do what they usually do."""
        for number, value in found.items():
            set_handler(number, value)

    def stop_collecting(self) -> None:
        """Collect no garbage from the next :meth:`hold` on, until a cell wants it."""
        self._stops_collecting = True

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._late[number] = None

    def _watch_forks(self) -> None:
        """Notice if cells have functions called around a fork."""
        shared: Any = sys.modules["os"]  # not this module's copy, see rlm_guest.bundle
        original = shared.register_at_fork

        @functools.wraps(original)
        def register_at_fork(**functions: Any) -> None:
            if sys._getframe(1).f_globals.get("__name__") == "__main__":
                self.runs_at_fork = True
            original(**functions)

        shared.register_at_fork = register_at_fork


def _handlers() -> dict[int, Any]:
    """Return the handlers in Python, by signal; but SIGINT's, which is ours between cells."""
    found = {number: getsignal(number) for number in _SIGNALS}
    return {n: h for n, h in found.items() if h is not None and h not in (SIG_DFL, SIG_IGN)}


def _has_ended_child() -> bool:
    """Return whether a child has ended that nobody has waited for. Heirs are none of the cells'."""
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False
