"""Compiles and runs cells, and keeps what they set for themselves away from this package's code."""

from __future__ import annotations

import os
import sys
from os import getpid
from typing import TYPE_CHECKING, Any

from . import sources
from .hooks import CellHooks
from .interrupts import ANSWERING, PHASE, Interrupts
from .namespace import Namespace
from .paths import SearchPath
from .streams import StandardStreams, print_exception, print_exit_code
from .succession import TakenOver
from .trivial import ONLY_AST

if TYPE_CHECKING:
    from .saving import Saving

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

    def tracers(self) -> list[str]:
        """Return the names of the tracers and profilers that cells have set."""
        if self._of_cells is None:
            return []
        _, trace, profile = self._of_cells
        return ["sys.settrace()"] * (trace is not None) + ["sys.setprofile()"] * (
            profile is not None
        )

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


class CellRunner:
    """Runs cells, one after another.

    Args:
        namespace: their globals.
        search_path: where they find modules.
        streams: restored after an error, so that it is seen.
        hooks: let their signal handlers and finalizers run while a cell does, and not after it.
        own_code: begins with the end of a cell that has failed.
        interrupts: allowed while a cell runs.
        saving: knows whether it is worth it to look for a trivial cell; is told what that binds.

    Attributes:
        exit_code: the exit status of the last cell that has called ``exit()``.
    """

    def __init__(
        self,
        namespace: Namespace,
        search_path: SearchPath,
        streams: StandardStreams,
        hooks: CellHooks,
        own_code: OwnCode,
        interrupts: Interrupts,
        saving: Saving,
    ) -> None:
        self._namespace = namespace
        self._search_path = search_path
        self._streams = streams
        self._hooks = hooks
        self._own_code = own_code
        self._interrupts = interrupts
        self._saving = saving
        self.exit_code = 0

    def run(self, name: str, code: str, *, display: bool) -> str:
        """Run a cell. Return its status: ``"ok"``, ``"error"``, ``"exit"`` or ``"interrupted"``.

        Args:
            name: its name, for tracebacks.
            code: its source.
            display: whether to print the value of an expression at its end.
        """
        pid = getpid()
        filename = sources.add(name, code)
        # Python shows a warning once for each text and line, and cells have the same lines.
        self._namespace.values.pop("__warningregistry__", None)
        status = "ok"
        try:
            self._run(code, filename, display)
        except TakenOver:
            raise
        except BaseException as error:
            self._own_code.begin()
            self._hooks.hold()
            if getpid() == pid:  # not in a child: the cell goes on
                self._interrupts.progress[PHASE] = ANSWERING
                # So that a traceback is seen whatever the cell did.
                self._streams.restore()
            status = self._print(error)
        if getpid() != pid:
            # This is a child that the cell forked, and that returned from the cell.
            self._streams.restore()
            os._exit(0)
        return status

    def _run(self, code: str, filename: str, display: bool) -> None:
        with self._interrupts:
            self._interrupts.check()
            looks = not display and self._saving.may_journal(code)
            cell = Cell(code, filename, display=display, keep_tree=looks)
        bound = self._namespace.names_bound_by(cell.tree) if looks else None
        if bound is not None:
            self._run_trivial(cell, bound)
            return
        self._saving.give_to_heir()
        with self._search_path.of_cells(), self._interrupts:
            self._interrupts.check()
            self._namespace.patches.note(code, _ALLOW_AWAIT, cell.tree)
            self._hooks.release()
            cell.run(self._namespace.values)
            self._hooks.hold()

    def _run_trivial(self, cell: Cell, bound: set[str]) -> None:
        """Run a cell that changes nothing but what it binds."""
        self._hooks.hold()  # again: a thread that has ended may have kept garbage from being held
        with self._search_path.of_cells(), self._interrupts:
            cell.run(self._namespace.values)
        self._saving.bound = bound

    def _print(self, error: BaseException) -> str:
        """Print how a cell has failed. Return its status."""
        if isinstance(error, SystemExit):
            self.exit_code = print_exit_code(error, self._interrupts)
            return "exit"
        print_exception(error, error.__traceback__, self._interrupts)
        return "interrupted" if isinstance(error, KeyboardInterrupt) else "error"
