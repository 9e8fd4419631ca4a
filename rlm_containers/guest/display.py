"""Runs cells of an interactive prompt, which print the value of an expression at the end."""

from __future__ import annotations

import ast
import sys
from typing import Any

# Bound while the cell runs. Not an identifier, so no cell has it by accident.
_VALUE = "<value>"


def run_displaying(code: str, filename: str, namespace: dict[str, Any]) -> None:
    """Run a cell, and pass the value of an expression at its end to ``sys.displayhook``.

    The cell stays one piece of code, so that ``from __future__`` holds for all of it. It keeps the
    positions of the source, so that tracebacks show what the user wrote.

    Args:
        code: Python source.
        filename: the name for tracebacks.
        namespace: the globals.
    """
    # ast.parse() would be in the traceback of a syntax error.
    tree: Any = compile(code, filename, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
    last = tree.body[-1] if tree.body else None
    if isinstance(last, ast.Expr):
        target = ast.copy_location(ast.Name(id=_VALUE, ctx=ast.Store()), last)
        tree.body[-1] = ast.copy_location(ast.Assign(targets=[target], value=last.value), last)
    compiled = compile(tree, filename, "exec", dont_inherit=True)
    try:
        exec(compiled, namespace)
        if _VALUE in namespace:
            sys.displayhook(namespace.pop(_VALUE))
    finally:
        namespace.pop(_VALUE, None)
