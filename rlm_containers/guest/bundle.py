"""Lets Python import the modules that the host has sent, from memory.

The host sends the bundle through the pipe before the first frame, and the program on the
container's command line runs this module's code from it. So a cell can neither close nor delete nor
change what the guest imports, and an engine needs no access to the host's files.

The files of the bundle have paths below a directory that does not exist. Entries of ``sys.path``
are such paths, so that the order of ``sys.path`` decides as it does with directories (the path
based finder of Python's import system, https://docs.python.org/3/reference/import.html).
"""

from __future__ import annotations

import builtins
import marshal
import os
import sys
import zlib
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import MAGIC_NUMBER, SourceFileLoader, cache_from_source

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing takes a tenth of the time until hello
    from typing import Any, NoReturn

#: A file of the bundle and its byte code, if there is any, both compressed by zlib.
File = tuple[bytes, "bytes | None"]

#: The byte code of a module: the path of its source, the time of the last change in nanoseconds and
#: the bytes of that, and the code, compressed.
Compiled = tuple[str, int, int, bytes]


class Bundle:
    """The files of a bundle, and the path hook that finds modules among them (``sys.path_hooks``).

    Args:
        root: the directory that the files seem to be in.
        magic: the version of the byte code (``importlib.util.MAGIC_NUMBER``).
        files: the files by their paths below the root.
        compiled: the byte code of this image's Python, see :func:`compiled`.
    """

    def __init__(
        self,
        root: str,
        magic: bytes,
        files: dict[str, File],
        compiled: dict[str, Compiled] | None = None,
    ) -> None:
        self.root = root
        self.magic = magic
        # Byte code of another Python is of no use, and takes a megabyte.
        is_same = magic == MAGIC_NUMBER
        self.files = files if is_same else {path: (file[0], None) for path, file in files.items()}
        self.compiled = {entry[0]: entry[3] for entry in (compiled or {}).values()}
        self._folders = set()
        for path in files:
            folder = path.rpartition("/")[0]
            while folder:
                self._folders.add(folder)
                folder = folder.rpartition("/")[0]

    def install(self) -> None:
        """Make what is in the bundle importable from entries of ``sys.path`` below the root."""
        sys.path_hooks.insert(0, self)
        for entry in list(sys.path_importer_cache):
            if entry.startswith(self.root):  # looked up before, in vain
                del sys.path_importer_cache[entry]

    def __call__(self, entry: str) -> _Finder:
        """Return the finder for an entry of a search path.

        Raises:
            ImportError: it is not in the bundle.
        """
        if not entry.startswith(self.root) or self._below(entry) not in self._folders:
            raise ImportError("it is not in the bundle", path=entry)
        return _Finder(self, entry)

    def has_file(self, path: str) -> bool:
        return self._below(path) in self.files

    def names(self, folder: str) -> list[str]:
        """Return the names of the files in a folder."""
        start = self._below(folder) + "/"
        found = {path[len(start) :] for path in self.files if path.startswith(start)}
        return sorted(name for name in found if "/" not in name)

    def read(self, path: str) -> bytes:
        """Return a file.

        Raises:
            OSError: it is not in the bundle.
        """
        try:
            return zlib.decompress(self.files[self._below(path)][0])
        except KeyError:
            raise FileNotFoundError(2, "it is not in the bundle", path) from None

    def code(self, path: str) -> Any:
        """Return the code of a module."""
        compiled = self.files[self._below(path)][1]
        if compiled is not None:
            return marshal.loads(zlib.decompress(compiled))
        if path in self.compiled:
            return marshal.loads(zlib.decompress(self.compiled[path]))
        return compile(self.read(path), path, "exec", dont_inherit=True)

    def _below(self, path: str) -> str:
        return path[len(self.root) + 1 :]


class _Finder:
    """Finds the modules in one folder (``importlib.abc.PathEntryFinder``)."""

    def __init__(self, bundle: Bundle, folder: str) -> None:
        self._bundle = bundle
        self._folder = folder

    def find_spec(self, name: str, target: Any = None) -> Any:
        path = self._folder + "/" + name.rpartition(".")[2]
        for file, locations in ((path + "/__init__.py", [path]), (path + ".py", None)):
            if self._bundle.has_file(file):
                loader: Any = _Loader(self._bundle, file)
                spec = ModuleSpec(name, loader, origin=file, is_package=locations is not None)
                if locations is not None:
                    spec.submodule_search_locations = locations
                spec.has_location = True
                return spec
        return None

    def invalidate_caches(self) -> None:
        """Do nothing: the bundle does not change."""


class _Loader:
    """Loads one module (``importlib.abc.InspectLoader`` and ``ResourceReader``).

    Args:
        bundle: the bundle.
        path: the module's file.
    """

    def __init__(self, bundle: Bundle, path: str) -> None:
        self.bundle = bundle
        self._path = path

    def create_module(self, spec: Any) -> None:
        """Leave it to Python to make the module."""

    def exec_module(self, module: Any) -> None:
        namespace = module.__dict__
        is_ours = module.__name__.partition(".")[0] == "rlm_guest"
        if is_ours:
            namespace["__builtins__"] = _BUILTINS
        exec(self.bundle.code(self._path), namespace)
        if is_ours:
            _take_copies(namespace)

    def is_package(self, name: str) -> bool:
        return self._path.endswith("/__init__.py")

    def get_code(self, name: str) -> Any:
        return self.bundle.code(self._path)

    def get_source(self, name: str) -> str:
        return self.bundle.read(self._path).decode("utf-8")

    def get_filename(self, name: str) -> str:
        return self._path

    def get_data(self, path: str) -> bytes:
        return self.bundle.read(path)

    # certifi has a file beside its module. importlib.resources copies it to where it can be opened.

    def get_resource_reader(self, name: str) -> _Loader:
        return self

    def open_resource(self, resource: str) -> Any:
        import io

        return io.BytesIO(self.bundle.read(self._beside(resource)))

    def resource_path(self, resource: str) -> NoReturn:
        raise FileNotFoundError(2, "it exists in memory only", self._beside(resource))

    def is_resource(self, path: str) -> bool:
        return self.bundle.has_file(self._beside(path))

    def contents(self) -> list[str]:
        return self.bundle.names(self._path.rpartition("/")[0])

    def _beside(self, resource: str) -> str:
        return self._path.rpartition("/")[0] + "/" + resource


#: The built-in functions as the guest's own modules see them.
_BUILTINS = dict(vars(builtins))

#: Modules that the guest's own share with the cells: what one side sets there, the other must see.
_SHARED = frozenset(("builtins", "linecache", "sys"))

_copies: dict[str, Any] = {}


def _take_copies(namespace: dict[str, Any]) -> None:
    """Give a module of the guest copies of the modules that it has imported.

    A cell may set ``json.dumps`` or ``os.replace``, which is meant for its own code. The objects in
    a module are not copied: its functions use what the module itself has.
    """
    for name, value in list(namespace.items()):
        if type(value) is _MODULE and value.__name__.partition(".")[0] != "rlm_guest":
            namespace[name] = _copy(value)


def _copy(module: Any) -> Any:
    name = module.__name__
    if name in _SHARED:
        return module
    copy = _copies.get(name)
    if copy is None:
        copy = _copies[name] = _MODULE(name)
        vars(copy).update(vars(module))
        if name == "os":
            vars(copy)["path"] = _copy(module.path)
    elif len(vars(copy)) < len(vars(module)):  # a submodule was imported since
        vars(copy).update(
            {key: vars(module)[key] for key in vars(module).keys() - vars(copy).keys()}
        )
    return copy


_MODULE = type(sys)


def compiled(payload: bytes) -> dict[str, Compiled]:
    """Return byte code by the names of the modules. An earlier guest has made it of this image.

    Args:
        payload: what :func:`rlm_guest.bytecode.collect` has returned, or nothing.
    """
    if not payload:
        return {}
    magic, entries = marshal.loads(payload)
    return entries if magic == MAGIC_NUMBER else {}


class CompiledFinder:
    """Finds modules of the standard library whose byte code was sent (``MetaPathFinder``).

    As with files of byte code, it is used only if the source is as old and as long as it was.

    Args:
        entries: the byte code by the names of the modules.
    """

    is_of_guest = True

    def __init__(self, entries: dict[str, Compiled]) -> None:
        self._entries = entries

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in self._entries:
            return None
        origin, changed, size, code = self._entries[name]
        try:
            found = os.stat(origin)
        except OSError:  # of the bundle, which has a finder of its own
            return None
        if (found.st_mtime_ns, found.st_size) != (changed, size):
            return None
        is_package = origin.endswith("/__init__.py")
        loader: Any = _CompiledLoader(name, origin, code)
        spec = ModuleSpec(name, loader, origin=origin, is_package=is_package)
        if is_package:
            spec.submodule_search_locations = [origin.rpartition("/")[0]]
        spec.has_location = True
        spec.cached = cache_from_source(origin)
        return spec


class _CompiledLoader:
    """Loads one module, and gives it the loader that it would have had."""

    def __init__(self, name: str, origin: str, code: bytes) -> None:
        self._name = name
        self._origin = origin
        self._code = code

    def create_module(self, spec: Any) -> None:
        """Leave it to Python to make the module."""

    def exec_module(self, module: Any) -> None:
        loader = SourceFileLoader(self._name, self._origin)
        module.__spec__.loader = module.__loader__ = loader
        exec(marshal.loads(zlib.decompress(self._code)), module.__dict__)
