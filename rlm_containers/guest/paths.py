"""Where cells find modules, and where this package does.

The interpreter is started with ``-I -S``, so it knows its standard library and nothing else. All
that this package needs comes from there and from the bundle. What an image adds would otherwise get
in between: an ``app/token.py`` on PYTHONPATH, an old dill, a ``sitecustomize.py``.

Before the first cell, the worker adds what Python itself would have added. Cells then find modules
where they would in a plain interpreter. While no cell runs, the standard library comes first.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


class SearchPath:
    """The two orders of ``sys.path``. Make it before anything is added to that."""

    def __init__(self) -> None:
        self._own = [entry for entry in sys.path if not entry.endswith("/requests")]
        self._last = [entry for entry in sys.path if entry.endswith("/requests")]
        self._of_cells: list[str] = []
        self._of_guest: list[str] = []  # what sys.path is while no cell runs

    def add_image(self) -> None:
        """Add the image's site-packages, PYTHONPATH, and the homes of its users.

        Run ``sitecustomize.py`` and ``.pth`` files as Python does at its start.
        """
        import site

        named = os.environ.get("PYTHONPATH")
        paths = [os.path.abspath(entry) for entry in named.split(os.pathsep)] if named else []
        # A sitecustomize.py is found there too, but nothing in place of the standard library.
        sys.path[:] = self._own + paths
        try:
            site.main()
        except BaseException as error:  # a sitecustomize.py may even exit
            sys.stderr.write("rlm-containers: sitecustomize failed: {!r}\n".format(error))
        packages = [entry for entry in sys.path if entry not in self._own and entry not in paths]
        users = [site.getusersitepackages(), *_packages_of_users()]
        _watch(users[0])
        if os.environ.get("PYTHONNOUSERSITE"):
            users = []
        # "" is the working directory, where cells write modules of their own.
        found = ["", *paths, *self._own, *users, *packages, *self._last]
        self._end(list(dict.fromkeys(found)))
        _apply_settings()

    def path_of_cells(self) -> list[str]:
        """Return ``sys.path`` as cells have it."""
        now = self._read()
        entries = self._of_cells
        if now == self._of_guest:
            return entries
        # Threads of the cells have added or removed something.
        added = [entry for entry in now if entry not in entries]
        return added + [entry for entry in entries if entry in now]

    def _guarded(self, entries: list[str]) -> list[str]:
        return self._own + [entry for entry in entries if entry not in self._own]

    @contextlib.contextmanager
    def of_cells(self) -> Iterator[None]:
        """Use the order of the cells."""
        sys.path[:] = self.path_of_cells()
        try:
            yield
        finally:
            self._end(self._read())

    def _end(self, entries: list[str]) -> None:
        """Use the order of the guest; ``entries`` is that of the cells."""
        if entries != self._of_cells:
            self._of_cells = entries
            self._of_guest = self._guarded(entries)
        sys.path[:] = self._of_guest

    def _read(self) -> list[str]:
        """Return ``sys.path``, whatever a cell has made of it."""
        if type(sys.path) is not list:
            sys.path = list(self._of_cells)
        return [entry for entry in sys.path if type(entry) is str]


def forget_compiled() -> None:
    """Find modules as any Python does from now on, see ``CompiledFinder`` in ``bundle.py``."""
    sys.meta_path[:] = [
        finder for finder in sys.meta_path if not getattr(finder, "is_of_guest", False)
    ]


def _packages_of_users() -> Iterator[str]:
    """Yield where the users of the image have packages: HOME is not theirs here."""
    import pwd

    version = "lib/python{}.{}/site-packages".format(*sys.version_info[:2])
    for user in pwd.getpwall():
        packages = os.path.join(user.pw_dir, ".local", version)
        if os.path.isdir(packages):
            yield packages


def _watch(directory: str) -> None:
    """Let imports notice a directory that is made later, by pip for one."""
    from importlib import machinery

    sys.path_importer_cache[directory] = machinery.FileFinder(
        directory,
        (machinery.ExtensionFileLoader, machinery.EXTENSION_SUFFIXES),
        (machinery.SourceFileLoader, machinery.SOURCE_SUFFIXES),
        (machinery.SourcelessFileLoader, machinery.BYTECODE_SUFFIXES),
    )


def _apply_settings() -> None:
    """Apply what ``-I`` has ignored of the environment."""
    if os.environ.get("PYTHONDONTWRITEBYTECODE"):
        sys.dont_write_bytecode = True
    options = [option for option in os.environ.get("PYTHONWARNINGS", "").split(",") if option]
    if options:
        import warnings

        sys.warnoptions.extend(options)
        warnings._processoptions(options)  # type: ignore[attr-defined]
