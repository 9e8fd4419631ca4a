"""Notes the files that matplotlib saves figures to, and makes ``plt.show()`` save them.

Two of its modules are changed once a cell imports them. The environment variable MPLBACKEND would
not do: processes that a cell starts would inherit it, but do not have this package.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from .imports import change_once_imported
from .library_settings import note_lists

#: The directory in the workspace for figures that are shown.
FOLDER = "figures"

#: The most files that are reported of one cell.
_MAX_FILES = 500

_BACKEND = "module://rlm_guest.figure_backend"


class Figures:
    """Notes the figures that cells save.

    Args:
        directory: the workspace. The host cannot see files elsewhere.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._saved: list[str] = []
        self._shown = 0

    def watch(self) -> None:
        """Change matplotlib so that it reports here, once a cell imports it."""
        change_once_imported(
            {
                "matplotlib": _prepare,
                "matplotlib.backend_bases": lambda module: _note_saving(module, self),
            }
        )
        _current.append(self)

    def saved_files(self) -> list[str]:
        """Return the files saved since the last call, relative to the workspace, each once."""
        if not self._saved:
            return []
        saved, self._saved = self._saved, []
        return [name for name in dict.fromkeys(saved) if self._is_file(name)][:_MAX_FILES]

    def note(self, target: Any) -> None:
        """Note that a figure was saved.

        Args:
            target: what ``savefig`` was given: a path, or an open file, which is ignored.
        """
        if not isinstance(target, (str, os.PathLike)):
            return
        top = os.path.realpath(self.directory) + os.sep
        path = os.path.realpath(os.fsdecode(target))
        if not os.path.lexists(path):  # matplotlib has added the extension
            path = "{}.{}".format(path.rstrip("."), _default_format())
        if path.startswith(top):
            self._saved.append(path[len(top) :])

    def next_path(self) -> str:
        """Return a new path for a figure that is shown. Create its directory."""
        folder = os.path.join(self.directory, FOLDER)
        os.makedirs(folder, exist_ok=True)
        while True:
            self._shown += 1
            path = os.path.join(folder, "figure-{}.png".format(self._shown))
            try:  # not only to look: branches may show figures at the same time
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            except FileExistsError:
                continue
            return path

    def _is_file(self, name: str) -> bool:
        return os.path.isfile(os.path.join(self.directory, name))


# The backend is a module that matplotlib imports by name, so it must find the Figures here.
_current: list[Figures] = []


def current() -> Figures:
    """Return the Figures of this interpreter."""
    return _current[-1]


def _default_format() -> str:
    return str(sys.modules["matplotlib"].rcParams["savefig.format"])


def _prepare(matplotlib: Any) -> None:
    _choose_backend(matplotlib)
    note_lists(matplotlib)


def _choose_backend(matplotlib: Any) -> None:
    # If no backend was set, there is a marker in place of a name: matplotlib chooses.
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
