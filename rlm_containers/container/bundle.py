"""What is sent to every container before the first frame: the guest, dill and requests.

The packages are copies of this process's own, all pure Python. So a start installs nothing, needs
neither pip nor a network in the container, and no file of the host there. The bundle is made once,
as a file in the user's cache that is named by a hash of its content.
"""

from __future__ import annotations

import hashlib
import importlib.util
import marshal
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath

from rlm_containers.errors import SandboxError, remedy_for
from rlm_containers.guest import wire
from rlm_containers.state import cache_directory, make_private, replace_file

#: The oldest Python that the guest's own modules run on.
GUEST_PYTHON = (3, 9)

#: requests and everything that it imports.
_REQUESTS = ("requests", "urllib3", "idna", "certifi", "charset-normalizer")

_GUEST = Path(__file__).parents[1] / "guest"

# Every Python must be able to parse this, so that one that is too old can say so. sys.path has the
# standard library only, see rlm_guest.paths.
_BOOT = """\
import sys
if sys.version_info < {dill_python}:
    sys.stderr.write("rlm-containers: this Python is too old: %d.%d\\n" % sys.version_info[:2])
    sys.exit({too_old})
import marshal, os, zlib
def receive(length):
    data = bytearray()
    while len(data) < length:
        piece = os.read(0, min(length - len(data), 65536))
        if not piece:
            sys.exit()
        data += piece
    return bytes(data)
def frame():
    return receive(int.from_bytes(receive({header})[:4], "big"))
magic, files = marshal.loads(frame())
scope = {{"__name__": "rlm_guest.bundle"}}
exec(zlib.decompress(files["guest/rlm_guest/bundle.py"][0]), scope)
compiled = scope["compiled"](frame())
scope["Bundle"]("{root}", magic, files, compiled).install()
if compiled:
    sys.meta_path.insert(0, scope["CompiledFinder"](compiled))
sys.path[:0] = ["{root}/guest", "{root}/dill"]
if sys.version_info >= {requests_python}:
    sys.path.append("{root}/requests")
del receive, frame, magic, files, scope, compiled
from rlm_guest.boot import main
main()
"""

#: The options of Python for that program: the standard library only, see rlm_guest.paths.
PYTHON_OPTIONS = ("-I", "-S")

#: The exit status of a guest whose Python is too old.
TOO_OLD = 78


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What starts a guest in a container that has a Python and nothing else.

    Attributes:
        boot: the program for ``python -c``. It reads the modules, then runs the guest.
        modules: the first frame to the container (``MODULES`` in :mod:`guest.wire`).
        python: the oldest Python that the guest runs on.
        digest: a hash of what the modules consist of.
    """

    boot: str
    modules: bytes = field(repr=False)
    python: tuple[int, int]
    digest: str


@cache
def guest_bundle() -> Bundle:
    """Return the bundle of this version of the project and its packages. Make it if need be.

    Raises:
        SandboxError: the bundle cannot be written, or a package is not installed.
    """
    try:
        dill = [distribution("dill")]
        requests = [distribution(name) for name in _REQUESTS]
    except PackageNotFoundError as error:
        raise SandboxError(
            f"The package {error.name} is not installed beside rlm-containers.",
            remedy=f"Install it: `pip install {error.name}`.",
        ) from error
    dill_python = max(GUEST_PYTHON, *(_oldest_python(package) for package in dill))
    boot = _BOOT.format(
        root=wire.BUNDLE,
        header=wire.HEADER,
        too_old=TOO_OLD,
        dill_python=dill_python,
        requests_python=max(dill_python, *(_oldest_python(package) for package in requests)),
    )
    digest = _digest(dill + requests)
    path = cache_directory() / "guest" / digest
    try:
        make_private(path.parent)  # before: others could have put something there
        modules = _read(path)
        if modules is None:
            modules = wire.encode(wire.MODULES, _pack(dill, requests))
            with replace_file(path) as file:
                file.write(modules)
    except OSError as error:
        raise SandboxError(
            f"The guest's modules could not be written to {path}: {error.strerror}.",
            remedy=f"{remedy_for(error)} XDG_CACHE_HOME can name another directory.",
        ) from error
    return Bundle(boot=boot, modules=modules, python=dill_python, digest=digest)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _digest(packages: list[Distribution]) -> str:
    """Hash everything that a bundle consists of."""
    digest = hashlib.sha256()
    for source in _guest_sources():
        digest.update(source.as_posix().encode() + b"\0" + (_GUEST / source).read_bytes())
    for package in packages:
        digest.update(f"{package.metadata['Name']} {package.version}\0".encode())
    digest.update(importlib.util.MAGIC_NUMBER)
    return digest.hexdigest()[:16]


def _guest_sources() -> list[Path]:
    """List the guest's modules, those of its sub-packages too, by their paths within it."""
    return sorted(source.relative_to(_GUEST) for source in _GUEST.rglob("*.py"))


def _pack(dill: list[Distribution], requests: list[Distribution]) -> bytes:
    """Pack the modules, as :class:`rlm_guest.bundle.Bundle` takes them."""
    files = {}
    for source in _guest_sources():
        path = f"guest/rlm_guest/{source.as_posix()}"
        files[path] = _compressed(path, (_GUEST / source).read_bytes())
    for folder, packages in (("dill", dill), ("requests", requests)):
        for package in packages:
            for name, content in _contents(package):
                path = f"{folder}/{name}"
                files[path] = _compressed(path, content)
    # Python 3.9 reads version 4, and later ones do.
    return marshal.dumps((importlib.util.MAGIC_NUMBER, files), 4)


def _compressed(path: str, content: bytes) -> tuple[bytes, bytes | None]:
    """Return a file, and for a module its byte code, which the same Python need not make again."""
    code = None
    if path.endswith(".py"):
        compiled = compile(content, f"{wire.BUNDLE}/{path}", "exec", dont_inherit=True)
        code = zlib.compress(marshal.dumps(compiled), 9)
    return zlib.compress(content, 9), code


def _contents(package: Distribution) -> Iterator[tuple[str, bytes]]:
    """Yield a package's Python files and data, without those compiled for this machine."""
    for file in package.files or ():
        relative = PurePosixPath(file)
        if relative.is_absolute() or {"..", "__pycache__", "tests"} & set(relative.parts):
            continue
        if relative.parts[0].endswith(".dist-info") or relative.suffix in (".so", ".pyd", ".pyc"):
            continue
        yield str(relative), Path(str(package.locate_file(file))).read_bytes()


def _oldest_python(package: Distribution) -> tuple[int, int]:
    """Read a package's ``Requires-Python``, which is ``>=3.N`` in all of these packages."""
    requirement = package.metadata["Requires-Python"] or ""
    match = re.search(r">=\s*(\d+)\.(\d+)", requirement)
    return (int(match[1]), int(match[2])) if match else GUEST_PYTHON
