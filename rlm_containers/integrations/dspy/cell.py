"""A cell as dspy wants it run: until ``SUBMIT``, or for the value of its last expression.

What does that runs in the container, on Python 3.9 and up, and is sent with each cell.
"""

from __future__ import annotations

import inspect
import json
from typing import Any

#: The tool by which a cell tells the host what came of it.
REPORT = "__rlm_report__"


def _run(scope: dict[str, Any], told: dict[str, Any]) -> None:
    import ast
    import json
    import linecache
    import marshal
    import os
    import sys
    import traceback
    import zlib
    from inspect import Parameter, Signature

    code, names, pid = told["code"], told["fields"] or ["output"], os.getpid()
    report = scope["__rlm_report__"]

    class Submission(BaseException):
        pass

    def plain(value: Any) -> Any:
        if isinstance(value, (set, frozenset)):
            return list(value)
        if hasattr(value, "tolist"):  # numpy's
            return value.tolist()
        raise TypeError(f"{type(value).__name__} is not JSON serializable")

    def submit(*args: Any, **kwargs: Any) -> None:
        parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        try:
            fields = Signature(parameters).bind(*args, **kwargs).arguments
            raise Submission(json.loads(json.dumps(dict(fields), default=plain)))
        except (TypeError, ValueError, RecursionError) as error:
            message = f"SUBMIT({', '.join(names)}): {error}"
        raise TypeError(message)

    def digest(value: Any) -> Any:
        try:
            return zlib.crc32(marshal.dumps(value, 2)) if not isinstance(value, str) else None
        except (ValueError, TypeError):
            return object()  # it has something in it that the host has not sent

    def attempt() -> dict[str, Any]:
        try:
            tree = ast.parse(code, filename)
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            body = compile(tree, filename, "exec", dont_inherit=True)
            if last:
                tail = compile(ast.Expression(last.value), filename, "eval", dont_inherit=True)
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            return {"syntax": "".join(traceback.format_exception_only(type(error), error)).rstrip()}
        try:
            exec(body, scope)  # noqa: S102  # here no harm is done
            value = eval(tail, scope) if last else None  # noqa: S307
            try:
                json.dumps(value)
            except (TypeError, ValueError, RecursionError):
                value = repr(value)
            return {"value": value}
        except Submission as submission:
            return {"final": submission.args[0]}
        except BaseException as error:
            inner = error.__traceback__ and error.__traceback__.tb_next  # without this function
            return {
                "error": "".join(traceback.format_exception(type(error), error, inner)).rstrip()
            }

    scope.update(told["small"], SUBMIT=submit)
    large = {name: (scope.get(name), digest(scope.get(name))) for name in told["large"]}
    # Tracebacks and inspect.getsource() look for the cell that the host sees run.
    filename = sys._getframe(2).f_code.co_filename
    linecache.cache[filename] = (len(code), None, code.splitlines(True), filename)
    outcome = attempt()
    if os.getpid() != pid:
        return  # a child that the cell has forked; there is one report only
    scope.pop("SUBMIT", None)
    outcome["changed"] = [
        name
        for name, (value, before) in large.items()
        if scope.get(name) is not value or digest(value) != before
    ]
    try:
        report(json.dumps(outcome))
    except Exception as error:
        kind = next(iter(outcome))
        outcome = {"error": f"The {kind} cannot be sent: {error}", "changed": list(large)}
        report(json.dumps(outcome))


_SOURCE = f"from __future__ import annotations\n{inspect.getsource(_run)}\n_run(scope, told)\n"


def cell_source(told: dict[str, Any]) -> str:
    """A cell that runs another, which it is told, and leaves no names of its own.

    Args:
        told: ``code``, Python source; ``small``, variables to bind before it runs; ``large``, the
            names of those that are there already; ``fields``, the parameters of ``SUBMIT``.

    Returns:
        Python source. It calls :data:`REPORT` with JSON: an object that has ``final``, ``value``,
        ``error`` or ``syntax``, and in ``changed`` those of ``large`` that have other values now.
    """
    text = json.dumps(told)
    return f"exec({_SOURCE!r}, {{'scope': globals(), 'told': __import__('json').loads({text!r})}})"
