"""Cross references in docstrings, ``:meth:`start``` and the like, as links of the site.

Griffe, which reads the docstrings for mkdocstrings, takes them for Markdown, which has no roles.
What the reference does not have becomes plain code. mkdocstrings loads this, see ``extensions`` in
mkdocs.yml.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`(~?)([\w.]+)`")


class Roles(griffe.Extension):
    """Turns the roles of every docstring of a package into links."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Take the docstrings of a package that is read as a whole, so that its names are known."""
        _visit(pkg)


def _visit(scope: griffe.Object) -> None:
    if scope.docstring is not None:
        scope.docstring.value = _ROLE.sub(
            lambda role: _link(*role.groups(), scope), scope.docstring.value
        )
    for member in scope.members.values():
        if isinstance(member, griffe.Object):  # an alias is another's
            _visit(member)


def _link(short: str, name: str, scope: griffe.Object) -> str:
    shown = name.rpartition(".")[2] if short else name
    return f'<autoref identifier="{_path(name, scope)}" optional><code>{shown}</code></autoref>'


def _path(name: str, scope: griffe.Object) -> str:
    """The full name of what a docstring calls by a name that it has there."""
    first, dot, rest = name.partition(".")
    owner: griffe.Object | None = scope
    while owner is not None:
        found = owner.members.get(first)
        if found is not None:
            path = found.target_path if isinstance(found, griffe.Alias) else found.path
            return f"{path}{dot}{rest}"
        owner = owner.parent
    return name
