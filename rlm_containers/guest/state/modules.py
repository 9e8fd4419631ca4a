"""Saves modules: by name if an import finds them again, else with all that is in them.

No import finds a module that a cell has made by ``types.ModuleType``, or has loaded from a file by
its path. What such a module defines is saved by value too.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from typing import Any

#: Attributes that a module gets from the import system.
_OWN = frozenset(("__builtins__", "__cached__", "__loader__", "__spec__"))
#: Of these, what a module keeps that was loaded from a file.
_OF_FILES = frozenset(("__loader__", "__spec__"))


class Modules:
    """Knows which modules an import finds again, and whose namespace a dict is."""

    def __init__(self) -> None:
        self._owners: dict[int, types.ModuleType] = {}

    def can_import(self, name: Any) -> bool:
        """Return whether a later process can import the module that has this name here."""
        if type(name) is not str or name not in sys.modules or name == "__main__":
            return bool(name == "__main__")
        module = sys.modules[name]
        path = tuple(sys.path)
        if _found.get("") != path:
            _found.clear()
            _found[""] = path
        known = _found.get(name)
        if known is None or known[0] is not module:
            # An import is not tried: it would run code, and the module is there already.
            known = _found[name] = (module, self._finds(name, module))
        return bool(known[1])

    def _finds(self, name: str, module: types.ModuleType) -> bool:
        spec = getattr(module, "__spec__", None)
        if not isinstance(spec, importlib.machinery.ModuleSpec):
            # Some libraries put another object in their place.
            return type(module) is not types.ModuleType
        if spec.origin in ("built-in", "frozen") or name.startswith("rlm_guest"):
            return True
        parent, _, _ = name.rpartition(".")
        if parent and not self.can_import(parent):
            return False
        path = getattr(sys.modules[parent], "__path__", None) if parent else None
        found = None
        for finder in sys.meta_path:
            if type(finder).__module__.startswith("rlm_guest"):
                continue  # it would change the module
            if getattr(finder, "__module__", None) == "__main__":
                continue  # a later process does not have it
            try:
                found = finder.find_spec(spec.name, path)
            except Exception:
                continue
            if found is not None:
                break
        # A namespace package has no origin.
        return found is not None and found.origin == spec.origin and spec.name == name

    def has(self, module: types.ModuleType) -> bool:
        """Return whether a module was saved with all that is in it."""
        return id(module.__dict__) in self._owners

    def namespace(self, namespace: dict[str, Any]) -> Any:
        """Return what to save for the globals of a function: their module, its name, or they."""
        name: Any = namespace.get("__name__")
        module = self._owners.get(id(namespace))
        if module is None and type(name) is str:
            module = sys.modules.get(name)
        if module is None or getattr(module, "__dict__", None) is not namespace:
            return namespace
        if sys.modules.get(name) is module and self.can_import(name):
            return namespace if name == "__main__" else name
        return module

    def reduce(self, module: types.ModuleType) -> Any:
        """Return how to save a module."""
        name = module.__name__
        is_known = sys.modules.get(name) is module
        if is_known and self.can_import(name):
            return importlib.import_module, (name,)
        if type(module) is not types.ModuleType:
            return NotImplemented
        self._owners[id(module.__dict__)] = module
        loader = getattr(module, "__loader__", None)
        is_file = type(loader) is importlib.machinery.SourceFileLoader
        left_out = _OWN - _OF_FILES if is_file else _OWN
        state = {key: value for key, value in vars(module).items() if key not in left_out}
        return make_module, (name, is_known), state, None, None, fill_module


# By name: the module and whether it is found again; under "", the sys.path that this is true for.
_found: dict[str, Any] = {}


# What state files call


def make_module(name: str, is_known: bool) -> types.ModuleType:
    """Make an empty module, which an import of its name gives if it ``is_known``."""
    module = types.ModuleType(name)
    if is_known:
        sys.modules[name] = module
    return module


def fill_module(module: types.ModuleType, state: dict[str, Any]) -> None:
    """Give a module its contents."""
    vars(module).update(state)
