"""Compiles and runs cells, and keeps what they set for themselves away from this package's code."""

from __future__ import annotations

import sys
from typing import Any

from .trivial import ONLY_AST

#: Let compile() accept ``await`` outside of a function: ``ast.PyCF_ALLOW_TOP_LEVEL_AWAIT``.
_ALLOW_AWAIT = 0x2000
#: The flag of code that has used it: ``inspect.CO_COROUTINE``.
_COROUTINE = 0x80

#: The recursion limit while the objects of cells are shown and saved. Cells may set one that lets
#: a ``__repr__`` or a pickler overflow the stack, which kills the process.
_RECURSION_LIMIT = 5_000


class Cell:
    """A compiled cell.

    Args:
        code: Python source. It may use ``await`` outside of functions.
        filename: the name for tracebacks.
        display: whether to pass the value of an expression at its end to ``sys.displayhook``.
        keep_tree: whether to keep its syntax tree.

    Attributes:
        tree: its syntax tree, if it was kept.

    Raises:
        SyntaxError: it is not Python.
    """

    def __init__(self, code: str, filename: str, *, display: bool, keep_tree: bool = False) -> None:
        source: Any = code
        self.tree: Any = None
        if display:
            from .display import keep_last_value

            source = keep_last_value(code, filename, _ALLOW_AWAIT)
        elif keep_tree:
            flags = _ALLOW_AWAIT | ONLY_AST
            source = self.tree = compile(code, filename, "exec", flags, dont_inherit=True)
        self._display = display
        self._code = compile(source, filename, "exec", _ALLOW_AWAIT, dont_inherit=True)
        self._awaits = bool(self._code.co_flags & _COROUTINE)
        if self._awaits:
            from . import awaiting  # noqa: F401  # not later: a cell may have an asyncio.py

    def run(self, namespace: dict[str, Any]) -> None:
        """Run the cell with these globals."""
        run = self._run_awaiting if self._awaits else self._run
        if not self._display:
            run(namespace)
            return
        from .display import displaying_last_value

        with displaying_last_value(namespace):
            run(namespace)

    def _run(self, namespace: dict[str, Any]) -> None:
        exec(self._code, namespace)

    def _run_awaiting(self, namespace: dict[str, Any]) -> None:
        from .awaiting import cell_loop

        cell_loop.run(eval(self._code, namespace))  # noqa: S307 - code of a cell, as in _run()


class OwnCode:
    """Sets aside what a cell has set for itself, while this package's code runs after it."""

    def __init__(self) -> None:
        self._of_cells: tuple[int, Any, Any] | None = None

    def recursion_limit(self) -> int:
        """Return the recursion limit of the cells."""
        return sys.getrecursionlimit() if self._of_cells is None else self._of_cells[0]

    def set_recursion_limit(self, limit: int) -> None:
        """Set the recursion limit of the cells, while this package's code runs."""
        assert self._of_cells is not None
        self._of_cells = (limit, *self._of_cells[1:])

    def begin(self) -> None:
        """Set the recursion limit of this package; stop tracers and profilers."""
        if self._of_cells is None:
            self._of_cells = sys.getrecursionlimit(), sys.gettrace(), sys.getprofile()
            sys.settrace(None)
            sys.setprofile(None)
            sys.setrecursionlimit(_RECURSION_LIMIT)

    def end(self) -> None:
        """Give the next cell back what the last one had set."""
        if self._of_cells is not None:
            limit, trace, profile = self._of_cells
            self._of_cells = None
            try:
                sys.setrecursionlimit(limit)
            except (RecursionError, ValueError):
                pass  # this is deeper than that already
            sys.setprofile(profile)
            sys.settrace(trace)
