"""Changes modules once a cell imports them. Nothing is imported or changed before that."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any


def change_once_imported(changes: Mapping[str, Callable[[Any], None]]) -> None:
    """Call a function with each of these modules after it has been loaded.

    Args:
        changes: the functions, by the names of the modules. What they raise is ignored: another
            version of a module may be built otherwise.
    """
    sys.meta_path.insert(0, _Finder(changes))


class _Finder:
    """Finds some modules by the other finders, and changes how they are loaded."""

    def __init__(self, changes: Mapping[str, Callable[[Any], None]]) -> None:
        self._changes = changes

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        change = self._changes.get(name)
        if change is None:
            return None
        for finder in sys.meta_path:
            find: Any = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if finder is not self and find else None
            if spec is not None:
                _after_loading(spec.loader, change)
                return spec
        return None


def _after_loading(loader: Any, change: Callable[[Any], None]) -> None:
    """Make a loader call ``change`` with the module that it is about to load."""
    load = loader.exec_module

    def load_and_change(module: Any) -> None:
        del loader.exec_module
        load(module)
        try:
            change(module)
        except Exception:
            pass

    loader.exec_module = load_and_change
