"""Wraps a cell as dspy wants it run: until ``SUBMIT``, or for the value of its last expression.

The wrapper is sent with each cell and runs in the container, on Python 3.9 and later.
"""

from __future__ import annotations

import inspect
import json
from typing import Any

#: The tool that a cell reports its outcome with.
REPORT = "__rlm_report__"


def _run(scope: dict[str, Any], request: dict[str, Any]) -> None:
    import ast
    import json
    import linecache
    import marshal
    import os
    import sys
    import traceback
    import zlib
    from inspect import Parameter, Signature

    code, names, pid = request["code"], request["fields"] or ["output"], os.getpid()
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
            return object()  # it holds something that the host did not send

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
            exec(body, scope)  # noqa: S102  # in the container
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

    scope.update(request["small"], SUBMIT=submit)
    large = {name: (scope.get(name), digest(scope.get(name))) for name in request["large"]}
    # Let tracebacks and inspect.getsource() find this code: to Python, the wrapper is the cell.
    filename = sys._getframe(2).f_code.co_filename
    linecache.cache[filename] = (len(code), None, code.splitlines(True), filename)
    result = attempt()
    if os.getpid() != pid:
        return  # a child that the cell forked; only one process reports
    scope.pop("SUBMIT", None)
    result["changed"] = [
        name
        for name, (value, before) in large.items()
        if scope.get(name) is not value or digest(value) != before
    ]
    try:
        report(json.dumps(result))
    except Exception as error:
        kind = next(iter(result))
        result = {"error": f"The {kind} cannot be sent: {error}", "changed": list(large)}
        report(json.dumps(result))


_SOURCE = f"from __future__ import annotations\n{inspect.getsource(_run)}\n_run(scope, request)\n"


def cell_source(request: dict[str, Any]) -> str:
    """Return a cell that runs another one, and leaves no names of its own.

    Args:
        request: ``code``, Python source; ``small``, variables to bind before it runs; ``large``,
            the names of variables that are loaded already; ``fields``, the parameters of
            ``SUBMIT``.

    Returns:
        Python source. It calls :data:`REPORT` with JSON: an object that has ``final``, ``value``,
        ``error`` or ``syntax``, and in ``changed`` those of ``large`` that have other values now.
    """
    text = json.dumps(request)
    namespace = f"{{'scope': globals(), 'request': __import__('json').loads({text!r})}}"
    return f"exec({_SOURCE!r}, {namespace})"
