"""When SIGINT may interrupt: while code of the cell's own runs, and at no other time."""

from __future__ import annotations

__all__ = ["Interrupts"]


class Interrupts:
    """Whether the signal handler may raise KeyboardInterrupt right now.

    Code of the cell's own runs in the cell, but also in the ``__repr__`` and ``__reduce__`` of what
    it has left behind. Those who call it allow interrupts and expect them. Used as a context
    manager, inside of a ``try`` that catches KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.allowed = False

    def __enter__(self) -> Interrupts:
        self.allowed = True
        return self

    def __exit__(self, *exc: object) -> None:
        self.allowed = False
