"""Figures of matplotlib: which files they were saved to, and what ``plt.show()`` does.

Nothing is imported for it, and nothing done, until a cell imports matplotlib: a finder at the head
of ``sys.meta_path`` waits for two of its modules. Not by an environment variable: processes that a
cell starts would have it, too, but not this package.
"""

from __future__ import annotations

import os
import sys
from typing import Any

#: Where those go that are shown, in the workspace.
FOLDER = "figures"

#: Files that one cell is said to have saved at most.
_TAKEN = 500

_BACKEND = "module://rlm_guest.figure_backend"


class Figures:
    """Takes note of the figures that cells save.

    Args:
        directory: the workspace. What is saved elsewhere cannot be seen from the host.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._saved: list[str] = []
        self._shown = 0

    def watch(self) -> None:
        """Have matplotlib report here, once it is imported."""
        sys.meta_path.insert(0, _Finder(self))
        _current.append(self)

    def take(self) -> list[str]:
        """The files since the last time, relative to the workspace, each once."""
        if not self._saved:
            return []
        saved, self._saved = self._saved, []
        return [name for name in dict.fromkeys(saved) if self._is_file(name)][:_TAKEN]

    def note(self, target: Any) -> None:
        """A figure was saved.

        Args:
            target: what ``savefig`` was given: a path, or an open file, which is no concern here.
        """
        if not isinstance(target, (str, os.PathLike)):
            return
        top = os.path.realpath(self.directory) + os.sep
        path = os.path.realpath(os.fsdecode(target))
        if not os.path.lexists(path):  # matplotlib adds what is missing
            path = "{}.{}".format(path.rstrip("."), _default_format())
        if path.startswith(top):
            self._saved.append(path[len(top) :])

    def next_path(self) -> str:
        """A new path for a figure that is shown. Its directory is there."""
        folder = os.path.join(self.directory, FOLDER)
        os.makedirs(folder, exist_ok=True)
        while True:
            self._shown += 1
            path = os.path.join(folder, "figure-{}.png".format(self._shown))
            if not os.path.lexists(path):
                return path

    def _is_file(self, name: str) -> bool:
        return os.path.isfile(os.path.join(self.directory, name))


#: The backend is a module that matplotlib imports by name, so it must find the one that there is.
_current: list[Figures] = []


def current() -> Figures:
    """The figures of this interpreter."""
    return _current[-1]


def _default_format() -> str:
    return str(sys.modules["matplotlib"].rcParams["savefig.format"])


class _Finder:
    """Finds two modules of matplotlib as others would, and changes them once they are loaded."""

    def __init__(self, figures: Figures) -> None:
        self.changes = {
            "matplotlib": _choose_backend,
            "matplotlib.backend_bases": lambda module: _note_saving(module, figures),
        }

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        change = self.changes.get(name)
        if change is None:
            return None
        for finder in sys.meta_path:
            find: Any = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if finder is not self and find else None
            if spec is not None:
                _then(spec.loader, change)
                return spec
        return None


def _then(loader: Any, change: Any) -> None:
    """Have a loader do something more with the module that it is about to load."""
    load = loader.exec_module

    def load_and_change(module: Any) -> None:
        del loader.exec_module
        load(module)
        try:
            change(module)
        except Exception:
            pass  # a version of matplotlib that is built otherwise does without

    loader.exec_module = load_and_change


def _choose_backend(matplotlib: Any) -> None:
    # What is no name is matplotlib's mark for a backend that it chooses itself.
    if not isinstance(dict.__getitem__(matplotlib.rcParams, "backend"), str):
        matplotlib.rcParams["backend"] = _BACKEND


def _note_saving(backend_bases: Any, figures: Figures) -> None:
    canvas = backend_bases.FigureCanvasBase
    original = canvas.print_figure

    def print_figure(self: Any, filename: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, filename, *args, **kwargs)
        figures.note(filename)
        return result

    print_figure.__doc__ = original.__doc__
    print_figure.__wrapped__ = original  # type: ignore[attr-defined]
    canvas.print_figure = print_figure
