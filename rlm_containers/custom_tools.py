"""The ``custom_tools`` of an RLM: functions of the host, functions given as code, and data."""

from __future__ import annotations

import ast
import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rlm_containers.errors import OptionError
from rlm_containers.sandbox import ToolFunction, check_names

#: How a string begins that is meant as code, and nothing else.
_CODE = ("def ", "class ", "async def ", "@", "lambda ", "lambda:")


@dataclass(frozen=True)
class CustomTools:
    """Tools by their names, sorted by what is to be done with them.

    Attributes:
        functions: run on the host, see :meth:`Sandbox.set_tools`.
        code: Python source that defines the name, to be run in the container.
        data: variables, of anything that JSON can express.
    """

    functions: dict[str, ToolFunction] = field(default_factory=dict)
    code: dict[str, str] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def sort(cls, entries: Mapping[str, Any] | None) -> CustomTools:
        """Sort the entries of ``custom_tools``.

        Args:
            entries: values, or dicts ``{"tool": value, "description": str}``, by their names. A
                callable is a function of the host. A string is code if it begins like a definition,
                or has several lines and binds the name; what cannot be meant is an error.

        Raises:
            OptionError: a name is reserved or none, the code of a tool is no Python or does not
                define it, or data cannot be expressed as JSON.
        """
        if entries is not None and not isinstance(entries, Mapping):
            raise OptionError(
                f"custom_tools must be a mapping of names, not {type(entries).__name__}."
            )
        made = cls()
        check_names(entries or ())
        for name, entry in (entries or {}).items():
            value = entry["tool"] if isinstance(entry, dict) and "tool" in entry else entry
            if callable(value):
                made.functions[name] = value
            elif isinstance(value, str) and (code := _code(name, value)) is not None:
                made.code[name] = code
            else:
                _check_data(name, value)
                made.data[name] = value
        return made


def _code(name: str, text: str) -> str | None:
    """The source that defines the name, or ``None`` where the text is data."""
    source = textwrap.dedent(text).strip()
    looks = source.startswith(_CODE)
    if not looks and "\n" not in source:
        return None
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if not looks:
            return None
        raise OptionError(
            f"The tool {name!r} looks like code and is no Python: {error}.",
            remedy="Correct it, or put it into a list if it is meant as text.",
        ) from error
    if len(body) == 1 and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Lambda):
        return f"{name} = {source}"
    if name in _bound(body):
        return source
    if not looks:
        return None
    raise OptionError(
        f"The code of the tool {name!r} does not define {name!r}.",
        remedy=f"It defines: {', '.join(sorted(_bound(body))) or 'nothing'}.",
    )


def _bound(body: list[ast.stmt]) -> set[str]:
    """The names that statements bind at their own level."""
    names: set[str] = set()
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(statement.name)
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.alias):
                names.add((node.asname or node.name).partition(".")[0])
    return names


def _check_data(name: str, value: Any) -> None:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise OptionError(
            f"The tool {name!r} ({type(value).__name__}) cannot be expressed as JSON: {error}.",
            remedy="Pass a function that returns it, or code that makes it.",
        ) from error
