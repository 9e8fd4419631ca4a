"""Which cells change nothing but names of plain values.

What such a cell binds can be noted by itself, and all else need not be saved again. It has only
constants, names of plain values, what is made of these by operators and displays, and calls of
functions that are known to change nothing. In doubt, a cell is not trivial.
"""

from __future__ import annotations

import _ast
import builtins
from collections.abc import Callable, Container, Mapping
from typing import Any

#: The flag with which ``compile()`` returns a syntax tree, ``ast.PyCF_ONLY_AST``. Importing ``ast``
#: would take memory.
ONLY_AST = 0x400

#: The most characters of a cell that is looked at.
LONGEST = 2000

#: Types of values that run no code of a cell's, whatever is done with them or to them.
_ATOMS = frozenset((int, float, complex, bool, str, bytes, type(None)))
_CONTAINERS = frozenset((list, tuple, dict, set, frozenset))

#: The most values that a cell may bind, with those in displays.
_MOST = 500

#: Built-in functions that call nothing of their arguments', if these are plain.
_PURE: dict[str, Any] = {
    name: getattr(builtins, name)
    for name in (
        "abs", "all", "any", "bin", "bool", "chr", "dict", "divmod", "enumerate", "float", "hex",
        "int", "len", "list", "max", "min", "oct", "ord", "pow", "print", "range", "repr",
        "reversed", "round", "set", "sorted", "str", "sum", "tuple", "zip",
    )
}  # fmt: skip

#: How names begin that Python or the host may bind, too.
_HOST = ("__", "context_", "history_")

#: Syntax that does nothing but what its parts do.
_NODES = (
    _ast.Module, _ast.Expr, _ast.BinOp, _ast.UnaryOp, _ast.BoolOp, _ast.Compare, _ast.IfExp,
    _ast.JoinedStr, _ast.FormattedValue, _ast.Tuple, _ast.List, _ast.Dict, _ast.Set, _ast.If,
    _ast.While, _ast.Pass, _ast.Break, _ast.Continue, _ast.operator, _ast.unaryop, _ast.boolop,
    _ast.cmpop, _ast.expr_context,
)  # fmt: skip


def bound_names(
    tree: Any, values: Mapping[str, Any], known: Mapping[str, Any], protected: Container[str]
) -> set[str] | None:
    """Return the names that a cell binds, if it is trivial, else ``None``.

    Args:
        tree: its syntax tree.
        values: its globals.
        known: functions, by their names, which change nothing besides the built-in ones.
        protected: names that must not be bound.
    """
    look = _Look(values, known)
    if not all(map(look.at, tree.body)):
        return None
    bound = look.bound
    if any(name in protected or name.startswith(_HOST) for name in bound):
        return None
    if any(name not in values and name not in bound for name in look.loaded):
        return None  # it is a built-in name, or an error
    names = bound | look.loaded
    if any(name in values and type(values[name]) not in _ATOMS for name in names):
        return None
    return None if look.called & bound else bound


class _Look:
    """What was found in a cell."""

    def __init__(self, values: Mapping[str, Any], known: Mapping[str, Any]) -> None:
        self._values = values
        self._known = known
        self.bound: set[str] = set()
        self.loaded: set[str] = set()
        self.called: set[str] = set()

    def at(self, node: Any) -> bool:
        """Look at a node of the tree and at all below it. Return whether it may be there."""
        special = _SPECIAL.get(type(node))
        if special is not None:
            return special(self, node)
        return isinstance(node, _NODES) and all(map(self.at, children(node)))

    def _name(self, node: Any) -> bool:
        if type(node.ctx) is _ast.Del:
            return False
        (self.loaded if type(node.ctx) is _ast.Load else self.bound).add(node.id)
        return True

    def _assignment(self, node: Any) -> bool:
        return all(map(self._target, node.targets)) and self.at(node.value)

    def _augmented(self, node: Any) -> bool:
        if type(node.target) is not _ast.Name:
            return False
        self.loaded.add(node.target.id)
        return self._target(node.target) and self.at(node.value)

    def _loop(self, node: Any) -> bool:
        parts = (node.iter, *node.body, *node.orelse)
        return self._target(node.target) and all(map(self.at, parts))

    def _target(self, node: Any) -> bool:
        if type(node) is _ast.Name:
            return self._name(node)
        return type(node) in (_ast.Tuple, _ast.List) and all(map(self._target, node.elts))

    def _call(self, node: Any) -> bool:
        if type(node.func) is not _ast.Name:
            return False
        name = node.func.id
        self.called.add(name)
        if name in self._known:
            if self._values.get(name) is not self._known[name]:
                return False
        elif (
            name not in _PURE
            or name in self._values
            or builtins.__dict__.get(name) is not _PURE[name]
        ):
            return False
        if any(keyword.arg in ("key", "file", None) for keyword in node.keywords):
            return False
        if name == "len" and len(node.args) == 1 and self._is_container(node.args[0]):
            return not node.keywords
        return all(map(self.at, (*node.args, *(keyword.value for keyword in node.keywords))))

    def _is_container(self, node: Any) -> bool:
        """Return whether a node is a name of something whose length is known without its code."""
        return type(node) is _ast.Name and type(self._values.get(node.id)) in _CONTAINERS


_SPECIAL: dict[type, Callable[[_Look, Any], bool]] = {
    _ast.Constant: lambda look, node: True,
    _ast.Name: _Look._name,
    _ast.Assign: _Look._assignment,
    _ast.AugAssign: _Look._augmented,
    _ast.For: _Look._loop,
    _ast.Call: _Look._call,
}


def children(node: Any) -> list[Any]:
    found = []
    for field in node._fields:
        value = getattr(node, field, None)
        if type(value) is list:
            found += [part for part in value if isinstance(part, _ast.AST)]
        elif isinstance(value, _ast.AST):
            found.append(value)
    return found


def is_plain(values: Mapping[str, Any]) -> bool:
    """Return whether all values are plain, and not too many."""
    waiting, count = list(values.values()), 0
    while waiting:
        value = waiting.pop()
        count += 1
        kind = type(value)
        if count > _MOST:
            return False
        if kind in _ATOMS or kind is range:
            continue
        if kind not in _CONTAINERS or len(value) > _MOST:
            return False
        waiting += value
        if kind is dict:
            waiting += value.values()
    return True
