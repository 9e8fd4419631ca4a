"""Attributes that cells have set in modules and classes of libraries, such as ``json.dumps``.

They are saved like variables, and set again after a restore. What a cell sets by its place is
found: ``json.JSONEncoder.default = f``, ``setattr(json, "dumps", f)``, ``vars(json)["dumps"] = f``,
``mock.patch("json.dumps", f)``. What is set through another name, such as a parameter, is not.
"""

from __future__ import annotations

import _ast
import importlib
import re
import sys
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

from .state.classes import get_dict, get_module
from .trivial import ONLY_AST, children

#: What the name of such an attribute begins with, among those of the variables.
PREFIX = "attribute "

#: What a cell has that may set an attribute. To parse all cells would take as long as to compile.
_SIGNS = re.compile(
    r"\.\s*\w+\s*(:[^=\n]{1,200})?([-+*/%&|^@]|//|\*\*|<<|>>)?=(?!=)|\b(setattr|patch|vars)\b|__dict__"
)

#: The most attributes whose modules or classes are looked for.
_MOST = 1000

#: What is saved or named elsewhere, or restored after each cell.
_ELSEWHERE = frozenset(
    (
        *("linecache.cache", "os.environ", "random._inst", "sys.argv", "sys.meta_path"),
        *("sys.modules", "sys.path", "sys.path_hooks", "sys.path_importer_cache", "sys.stderr"),
        *("sys.stdin", "sys.stdout", "threading.excepthook", "warnings.filters"),
        *("sys.breakpointhook", "sys.displayhook", "sys.excepthook", "sys.unraisablehook"),
    )
)

_MISSING = object()
_UNKNOWN = object()

#: The names that lead to something, such as ``("json", "JSONEncoder")``.
Chain = tuple[str, ...]


class _Place(NamedTuple):
    """An attribute of a library that a cell may have set.

    Attributes:
        holder: the module or class.
        module: the name of the module.
        path: the name of the attribute there: ``"dumps"``, ``"JSONEncoder.default"``.
        before: its value before that; ``_MISSING`` if there was none, ``_UNKNOWN`` if the same cell
            has imported the module.
    """

    holder: Any
    module: str
    path: str
    before: Any

    @property
    def attribute(self) -> str:
        return self.path.rpartition(".")[2]


class Patches:
    """The attributes of libraries that cells have set.

    Args:
        values: the variables.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values
        # Those whose modules or classes are not there yet.
        self._waiting: dict[tuple[Chain, str], None] = {}
        self._places: dict[str, _Place] = {}

    def note(self, code: str, flags: int, tree: Any = None) -> None:
        """Look for what a cell sets, before it runs.

        Args:
            code: its source, which can be compiled.
            flags: those to compile it with.
            tree: its syntax tree, if that was made.
        """
        if not _SIGNS.search(code):
            return
        try:
            tree = tree or compile(code, "<cell>", "exec", flags | ONLY_AST, dont_inherit=True)
        except (MemoryError, RecursionError):
            return  # a tree may be deeper than what is compiled
        for chain, attribute in _targets(tree):
            if chain[0] not in ("self", "cls") and len(self._waiting) < _MOST:
                self._waiting[chain, attribute] = None
        self._find(has_run=False)

    def items(self) -> list[tuple[str, Any]]:
        """Return what is set, as for variables: names, which begin with ``PREFIX``, and values."""
        return [(PREFIX + name, value) for name, _, value in self._changed()]

    def originals(self) -> list[tuple[Any, tuple[str, str, str]]]:
        """Return what was there before, with the references by which a later process finds it.

        It has the names of what is there now.
        """
        return [
            (place.before, ("attribute", place.module, place.path))
            for _, place, _ in self._changed()
            if type(place.before) in _NAMED
        ]

    def _changed(self) -> Iterator[tuple[str, _Place, Any]]:
        """Yield what is set now: the name, the place and the value."""
        self._find(has_run=True)
        for name, place in self._places.items():
            value = _own(place.holder).get(place.attribute, _MISSING)
            if value is not _MISSING and not _is_as_before(place, value):
                yield name, place, value

    def set(self, name: str, value: Any) -> None:
        """Set an attribute again.

        Args:
            name: as in :meth:`items`.
            value: what it was set to.

        Raises:
            Exception: the module cannot be imported, or has no such class.
        """
        *parts, attribute = name[len(PREFIX) :].split(".")
        holder: Any = importlib.import_module(parts[0])
        for number, part in enumerate(parts[1:], 2):
            found = _own(holder).get(part, _MISSING)
            holder = (
                importlib.import_module(".".join(parts[:number])) if found is _MISSING else found
            )
        place = _place(holder, attribute, has_run=False)
        if place is None:
            raise AttributeError("it is not where it was")
        setattr(holder, attribute, value)
        self._places[name[len(PREFIX) :]] = place

    def _find(self, *, has_run: bool) -> None:
        """Find the modules and classes, as far as they are there by now."""
        for chain, attribute in list(self._waiting):
            holder = self._follow(chain)
            if holder is _MISSING:
                continue
            del self._waiting[chain, attribute]
            place = _place(holder, attribute, has_run=has_run)
            if place is not None:
                self._places.setdefault("{}.{}".format(place.module, place.path), place)

    def _follow(self, chain: Chain) -> Any:
        """Return what names lead to: a module, a class, ``None`` for another thing."""
        first, *rest = chain
        found = self._values.get(first, sys.modules.get(first, _MISSING))
        for name in rest:
            if not _holds(found):
                break
            found = _own(found).get(name, _MISSING)
        return found if found is _MISSING or _holds(found) else None


def _place(holder: Any, attribute: str, *, has_run: bool) -> _Place | None:
    """Return the place of an attribute, unless it is saved elsewhere or cannot be found by name."""
    from .state.modules import Modules  # late: most cells set nothing

    if issubclass(type(holder), type):
        module, path = get_module(holder), _get_qualname(holder)
    else:
        module, path = _own(holder).get("__name__"), ""
    if type(module) is not str or module.partition(".")[0] in ("__main__", "rlm_guest"):
        return None
    if not Modules().can_import(module):
        return None  # it is saved with all that is in it
    found: Any = sys.modules[module]
    for part in path.split(".") if path else ():
        found = _own(found).get(part)
    path = "{}.{}".format(path, attribute) if path else attribute
    if found is not holder or "{}.{}".format(module, path) in _ELSEWHERE:
        return None
    before = _UNKNOWN if has_run else _own(holder).get(attribute, _MISSING)
    return _Place(holder, module, path, before)


def _is_as_before(place: _Place, value: Any) -> bool:
    """Return whether a value is the library's own. The code that sets another may not have run."""
    if place.before is not _UNKNOWN:
        return value is place.before
    if type(value) is types.FunctionType:
        is_of_module = value.__globals__ is vars(sys.modules[place.module])
        return is_of_module and value.__qualname__ == place.path
    if not issubclass(type(value), type):
        return False
    return (get_module(value), _get_qualname(value)) == (place.module, place.path)


def _holds(obj: Any) -> bool:
    return issubclass(type(obj), (type, types.ModuleType))


def _own(holder: Any) -> Any:
    """Return the attributes of a module or class, without any code of its own; else none."""
    if issubclass(type(holder), type):
        return get_dict(holder)
    if issubclass(type(holder), types.ModuleType):
        return object.__getattribute__(holder, "__dict__")
    return {}


_get_qualname = type.__dict__["__qualname__"].__get__

#: Types whose objects pickle saves by their names.
_NAMED = (types.FunctionType, types.BuiltinFunctionType, type)


def _targets(tree: Any) -> Iterator[tuple[Chain, str]]:
    """Yield what the code in a syntax tree sets: the names that lead to it, and the attribute."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        waiting += children(node)
        chain: Chain = ()
        attribute: str | None = None
        if type(node) is _ast.Attribute and type(node.ctx) is _ast.Store:
            chain, attribute = _chain(node.value), node.attr
        elif type(node) is _ast.Subscript and type(node.ctx) is _ast.Store:
            chain, attribute = _chain(_of_mapping(node.value)), _text(node.slice)
        elif type(node) is _ast.Call:
            chain, attribute = _set_by_call(node)
        if chain and attribute:
            yield chain, attribute


def _set_by_call(node: Any) -> tuple[Chain, str | None]:
    """Return what ``setattr()``, ``mock.patch()`` or ``mock.patch.object()`` sets."""
    function = _chain(node.func)
    if function == ("setattr",) or function[-2:] == ("patch", "object"):
        return (_chain(node.args[0]), _text(node.args[1])) if len(node.args) > 1 else ((), None)
    if function[-1:] == ("patch",) and node.args:
        *holder, attribute = (_text(node.args[0]) or "").split(".")
        return tuple(holder), attribute
    return (), None


def _of_mapping(node: Any) -> Any:
    """Return the node of what ``vars(x)`` or ``x.__dict__`` is of."""
    if type(node) is _ast.Attribute and node.attr == "__dict__":
        return node.value
    if type(node) is _ast.Call and _chain(node.func) == ("vars",) and node.args:
        return node.args[0]
    return None


def _chain(node: Any) -> Chain:
    """Return the names of ``a.b.c``; none for anything else."""
    names = []
    while type(node) is _ast.Attribute:
        names.append(node.attr)
        node = node.value
    return (node.id, *reversed(names)) if type(node) is _ast.Name else ()


def _text(node: Any) -> str | None:
    return node.value if type(node) is _ast.Constant and type(node.value) is str else None
