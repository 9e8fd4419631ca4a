"""What docstrings have of Sphinx's language, as Markdown, so that the site can show it.

Roles, ``:meth:`start``` and the like, become links; what the reference does not have becomes code.
Examples at a prompt and blocks after ``::`` become code, too. Griffe reads the docstrings, and
mkdocstrings has it load this, see ``extensions`` in mkdocs.yml.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import griffe

_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`(~?)([\w.]+)`")
_PROMPT = re.compile(r"^>>> (?:.+\n?)+", re.MULTILINE)
_SKIP = re.compile(r" *# doctest: \+SKIP$", re.MULTILINE)
_LITERAL = re.compile(r"(?<=\w)::(?=\n\n +)")


class Docstrings(griffe.Extension):
    """Rewrites every docstring of a package."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Take the docstrings of a package that is read as a whole, so that its names are known."""
        _visit(pkg)


def _visit(scope: griffe.Object) -> None:
    if scope.docstring is not None:
        text = _ROLE.sub(lambda role: _link(*role.groups(), scope), scope.docstring.value)
        text = _LITERAL.sub(":", text)
        scope.docstring.value = _PROMPT.sub(_fenced, text)
    for member in scope.members.values():
        if isinstance(member, griffe.Object):  # an alias is another's
            _visit(member)


def _fenced(example: re.Match[str]) -> str:
    return f"```pycon\n{_SKIP.sub('', example[0]).rstrip()}\n```\n"


def _link(short: str, name: str, scope: griffe.Object) -> str:
    shown = name.rpartition(".")[2] if short else name
    return f'<autoref identifier="{_path(name, scope)}" optional><code>{shown}</code></autoref>'


def _path(name: str, scope: griffe.Object) -> str:
    """The full name of what a docstring calls by a name that it has there."""
    first, dot, rest = name.partition(".")
    owner: griffe.Object | None = scope
    while owner is not None:
        members: Mapping[str, griffe.Object | griffe.Alias] = owner.members
        if isinstance(owner, griffe.Class):
            members = {**owner.inherited_members, **members}
        found = members.get(first)
        if found is not None:
            path = found.target_path if isinstance(found, griffe.Alias) else found.path
            return f"{path}{dot}{rest}"
        owner = owner.parent
    return name
