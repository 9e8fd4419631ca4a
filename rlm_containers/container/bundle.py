"""The directory that is mounted into every container: the guest, dill and requests.

The packages are copies of this process's own, all pure Python. So a start installs nothing, and
needs neither pip nor a network in the container. The bundle is made once, in the user's cache, and
named by a hash of its content.
"""

from __future__ import annotations

import compileall
import hashlib
import os
import py_compile
import re
import secrets
import shutil
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath

from rlm_containers.errors import SandboxError
from rlm_containers.guest import wire
from rlm_containers.state import cache_directory

#: The oldest Python that the guest's own modules run on.
GUEST_PYTHON = (3, 9)

#: requests and everything that it imports.
_REQUESTS = ("requests", "urllib3", "idna", "certifi", "charset-normalizer")

_GUEST = Path(__file__).parents[1] / "guest"

# Every Python must be able to parse this, so that one that is too old can say so. sys.path begins
# with the working directory here. It is taken off: a cell may have left a json.py there.
_BOOT = """\
import sys
if sys.version_info < {dill_python}:
    sys.stderr.write("rlm-containers: this Python is too old: %d.%d\\n" % sys.version_info[:2])
    sys.exit({too_old})
sys.path[:] = [entry for entry in sys.path if entry] + ["{target}/guest", "{target}/dill"]
if sys.version_info >= {requests_python}:
    sys.path.append("{target}/requests")
from rlm_guest.boot import main
main()
"""

#: The exit status of a guest whose Python is too old.
TOO_OLD = 78


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle on this host.

    Attributes:
        path: the directory.
        boot: the program for ``python -c`` that starts the guest in a container.
        python: the oldest Python that the guest runs on.
    """

    path: Path
    boot: str
    python: tuple[int, int]


def guest_bundle() -> Bundle:
    """Make the bundle of this version of the project and its packages, unless it is there.

    Raises:
        SandboxError: the bundle cannot be written, or a package is not installed.
    """
    bundle, dill, requests = _plan(cache_directory() / "guest")
    try:
        if not bundle.path.is_dir():  # each time: somebody may clear the cache
            _build(bundle.path, dill, requests)
    except OSError as error:
        raise SandboxError(
            f"The guest's files could not be written to {bundle.path}: {error.strerror}.",
            remedy="Make room, or set XDG_CACHE_HOME to a directory that is writable.",
        ) from error
    return bundle


@cache
def _plan(folder: Path) -> tuple[Bundle, list[Distribution], list[Distribution]]:
    """Plan the bundle, and find the packages for its folders ``dill`` and ``requests``."""
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
        target=wire.BUNDLE,
        too_old=TOO_OLD,
        dill_python=dill_python,
        requests_python=max(dill_python, *(_oldest_python(package) for package in requests)),
    )
    path = folder / _digest(dill + requests)
    return Bundle(path=path, boot=boot, python=dill_python), dill, requests


def _digest(packages: list[Distribution]) -> str:
    """Hash everything that a bundle consists of."""
    digest = hashlib.sha256()
    for source in _guest_sources():
        digest.update(source.as_posix().encode() + b"\0" + (_GUEST / source).read_bytes())
    for package in packages:
        digest.update(f"{package.metadata['Name']} {package.version}\0".encode())
    digest.update(sys.implementation.cache_tag.encode())  # the version of compiled files
    return digest.hexdigest()[:16]


def _guest_sources() -> list[Path]:
    """List the guest's modules, those of its sub-packages too, by their paths within it."""
    return sorted(source.relative_to(_GUEST) for source in _GUEST.rglob("*.py"))


def _build(path: Path, dill: list[Distribution], requests: list[Distribution]) -> None:
    """Make the bundle under another name, then rename it: two processes may do so at once."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        for source in _guest_sources():
            target = temporary / "guest" / "rlm_guest" / source
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(_GUEST / source, target)
        for folder, packages in (("dill", dill), ("requests", requests)):
            for package in packages:
                _copy_package(package, temporary / folder)
        # A container with the same Python uses these compiled files; it cannot write its own. They
        # are unchecked because the sources have other times there.
        compileall.compile_dir(
            temporary, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
        )
        _make_readable(temporary)
        path.parent.chmod(0o755)
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():  # else another process was first, with the same content
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _copy_package(package: Distribution, target: Path) -> None:
    """Copy a package's Python files and data, without those compiled for this machine."""
    for file in package.files or ():
        relative = PurePosixPath(file)
        if relative.is_absolute() or ".." in relative.parts or "__pycache__" in relative.parts:
            continue
        if relative.parts[0].endswith(".dist-info") or relative.suffix in (".so", ".pyd", ".pyc"):
            continue
        destination = target / relative
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(str(package.locate_file(file)), destination)


def _make_readable(top: Path) -> None:
    """Let any user in the container read the files, whatever this user's umask is."""
    for folder, _, names in os.walk(top):
        os.chmod(folder, 0o755)  # noqa: S103
        for name in names:
            os.chmod(Path(folder, name), 0o644)


def _oldest_python(package: Distribution) -> tuple[int, int]:
    """Read a package's ``Requires-Python``, which is ``>=3.N`` in all of these packages."""
    requirement = package.metadata["Requires-Python"] or ""
    match = re.search(r">=\s*(\d+)\.(\d+)", requirement)
    return (int(match[1]), int(match[2])) if match else GUEST_PYTHON
