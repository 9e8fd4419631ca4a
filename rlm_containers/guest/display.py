"""Shows the value of an expression at the end of a cell, as an interactive prompt does."""

from __future__ import annotations

import ast
import contextlib
import sys
from collections.abc import Iterator
from typing import Any

# Bound while the cell runs. Not an identifier, so no cell has it by accident.
_VALUE = "<value>"


def keep_last_value(code: str, filename: str, flags: int) -> ast.Module:
    """Return a cell that binds the value of an expression at its end to a variable.

    The cell stays one piece of code, so that ``from __future__`` holds for all of it. It keeps the
    positions of the source, so that tracebacks show what the user wrote.

    Args:
        code: Python source.
        filename: the name for tracebacks.
        flags: further flags for ``compile()``.
    """
    # ast.parse() would be in the traceback of a syntax error.
    tree: Any = compile(code, filename, "exec", flags | ast.PyCF_ONLY_AST, dont_inherit=True)
    last = tree.body[-1] if tree.body else None
    if isinstance(last, ast.Expr):
        target = ast.copy_location(ast.Name(id=_VALUE, ctx=ast.Store()), last)
        tree.body[-1] = ast.copy_location(ast.Assign(targets=[target], value=last.value), last)
    module: ast.Module = tree
    return module


@contextlib.contextmanager
def displaying_last_value(namespace: dict[str, Any]) -> Iterator[None]:
    """Pass that value to ``sys.displayhook`` once the cell has run."""
    try:
        yield
        if _VALUE in namespace:
            sys.displayhook(namespace.pop(_VALUE))
    finally:
        namespace.pop(_VALUE, None)
