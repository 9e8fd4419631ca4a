"""Recipes: what a derived image adds to another image."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rlm_containers.errors import OptionError
from rlm_containers.images.dockerfile import Dockerfile, read_dockerfile
from rlm_containers.images.requirements import Requirements, read_requirements
from rlm_containers.options import SandboxOptions
from runtimes.text import brief

# A part of every hash. Raise it when builds make something else from the same recipe.
_VERSION = 1

_SYSTEM_PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._:=~-]*")

# build.py reads lines of the log that begin with "rlm-containers:".

# "$@" has the names of the packages. Package managers read proxies from variables in small letters.
# apt-get reads certificates, for mirrors behind HTTPS, as another user, who may not read a secret.
_SYSTEM_SCRIPT = """\
[ -z "${HTTP_PROXY:-}" ] || export http_proxy="${http_proxy:-$HTTP_PROXY}"
[ -z "${HTTPS_PROXY:-}" ] || export https_proxy="${https_proxy:-$HTTPS_PROXY}"
if command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    if [ -e "$SECRETS/ca.pem" ]; then
        cat "$SECRETS/ca.pem" >/tmp/rlm-ca.pem
        echo 'Acquire::https::CAInfo "/tmp/rlm-ca.pem";' >/tmp/rlm-apt.conf
        export APT_CONFIG=/tmp/rlm-apt.conf
    fi
    apt-get update
    apt-get install --yes --no-install-recommends -- "$@"
    rm -rf /var/lib/apt/lists/* /tmp/rlm-apt.conf /tmp/rlm-ca.pem
elif command -v apk >/dev/null; then
    [ ! -e "$SECRETS/ca.pem" ] || export SSL_CERT_FILE="$SECRETS/ca.pem"
    apk add --no-cache -- "$@"
elif command -v dnf >/dev/null; then
    dnf install --assumeyes --setopt=install_weak_deps=False -- "$@"
    dnf clean all
elif command -v microdnf >/dev/null; then
    microdnf install --assumeyes --setopt=install_weak_deps=0 -- "$@"
    microdnf clean all
elif command -v zypper >/dev/null; then
    zypper --non-interactive install --no-recommends -- "$@"
    zypper clean --all
else
    echo "rlm-containers: this image has no package manager" >&2
    exit 1
fi
"""

# PIP_BREAK_SYSTEM_PACKAGES: in a container nothing else depends on the system's Python. The image
# needs neither pip's cache nor byte code for pip itself, which is larger than many packages. pip
# writes the byte code of the installed packages all the same.
_PIP_SCRIPT = """\
no_python="rlm-containers: this image has no Python"
no_pip="rlm-containers: this image has neither pip nor ensurepip"
python=$(command -v python3 || command -v python) || { echo "$no_python" >&2; exit 1; }
"$python" -c "import pip" 2>/dev/null \\
    || "$python" -m ensurepip --default-pip >/dev/null 2>&1 \\
    || { echo "$no_pip" >&2; exit 1; }
export PIP_CONFIG_FILE="$SECRETS/pip.conf" PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1 PIP_PROGRESS_BAR=off
export PYTHONDONTWRITEBYTECODE=1 PIP_ROOT_USER_ACTION=ignore PIP_BREAK_SYSTEM_PACKAGES=1
export PIP_DISABLE_PIP_VERSION_CHECK=1
[ ! -e "$SECRETS/ca.pem" ] || export PIP_CERT="$SECRETS/ca.pem"
[ ! -e "$SECRETS/client.pem" ] || export PIP_CLIENT_CERT="$SECRETS/client.pem"
cd "$FILES"
"$python" -m pip install --requirement requirements.txt
"""


class _Layer:
    """One build on top of another image."""

    def parts(self) -> list[object]:
        """List what the hash must cover besides the images below."""
        raise NotImplementedError

    def bases(self, image: str) -> list[str]:
        """List the images that this layer needs, where ``image`` is the one below."""
        return [image]

    def digest(self, bases: Sequence[str]) -> str:
        """Hash the layer. The built image is found by the hash, on every engine.

        Args:
            bases: ``ImageRecord.content`` of each image in :meth:`bases`. It includes the platform.
        """
        covered = json.dumps([_VERSION, type(self).__name__, *bases, *self.parts()])
        return hashlib.sha256(covered.encode()).hexdigest()[:20]


@dataclass(frozen=True, kw_only=True)
class PackageLayer(_Layer):
    """Packages of the image's distribution and of Python.

    Attributes:
        system: the packages for apt-get, apk, dnf, microdnf or zypper.
        requirements: the requirements for pip.
    """

    system: tuple[str, ...]
    requirements: Requirements | None

    def __str__(self) -> str:
        lines = self.requirements.text.split("\n") if self.requirements else []
        return ", ".join(filter(None, (*lines, *self.system)))

    def parts(self) -> list[object]:
        return [self.system, self.requirements.parts() if self.requirements else []]

    def script(self) -> str:
        """Make the command that the build runs: the file that :meth:`write` makes.

        The command becomes a part of the image's history. So it does not name what is installed:
        a URL among the requirements may contain a password. It has a hash instead, because
        builders do not run a command again that they have run before.
        """
        return f'. "$FILES/install.sh"  # {self.digest(())}'

    def write(self, directory: Path) -> None:
        """Write the build's files to the directory that it sees as ``$FILES``."""
        script = ""
        if self.system:
            script += f"set -- {' '.join(self.system)}\n{_SYSTEM_SCRIPT}"
        if self.requirements:
            script += _PIP_SCRIPT
            self.requirements.write(directory)
        (directory / "install.sh").write_text(script)


@dataclass(frozen=True, kw_only=True)
class DockerfileLayer(_Layer):
    """A user's Dockerfile."""

    dockerfile: Dockerfile

    def __str__(self) -> str:
        context = self.dockerfile.context
        return f"a Dockerfile in {context}" if context else "a Dockerfile"

    def parts(self) -> list[object]:
        return [self.dockerfile.parts()]

    def bases(self, image: str) -> list[str]:
        return [*([image] if self.dockerfile.on_image else []), *self.dockerfile.bases]


Layer = PackageLayer | DockerfileLayer


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The layers of a derived image: one or two, the lowest first."""

    layers: tuple[Layer, ...]

    def __str__(self) -> str:
        return ", ".join(str(layer) for layer in self.layers)

    @cached_property
    def key(self) -> str:
        """A hash of everything that goes into the image, except for the image below."""
        return " ".join(layer.digest(()) for layer in self.layers)


def read_recipe(
    *,
    packages: Sequence[str] = (),
    requirements: str | None = None,
    system_packages: Sequence[str] = (),
    dockerfile: str | None = None,
) -> Recipe | None:
    """Make a recipe: the Dockerfile first, then the system's packages, then Python's.

    Args:
        packages: see :class:`~rlm_containers.SandboxOptions`; likewise the others.
        requirements: the path of a file.
        system_packages: names of packages.
        dockerfile: a path or a text.

    Returns:
        The recipe, or ``None`` if nothing is to be added to the image.

    Raises:
        OptionError: an argument is wrong, or a file cannot be read.
    """
    layers: list[Layer] = []
    if dockerfile is not None:
        layers.append(DockerfileLayer(dockerfile=read_dockerfile(dockerfile)))
    for name in system_packages:
        if not _SYSTEM_PACKAGE.fullmatch(name):
            raise OptionError(
                f"system_packages: {brief(name)} is not the name of a package.",
                remedy='Write each name as a string of its own, such as "git" or "libgomp1".',
            )
    wanted = read_requirements(packages, Path(requirements) if requirements else None)
    if system_packages or wanted:
        system = tuple(sorted(set(system_packages)))
        layers.append(PackageLayer(system=system, requirements=wanted))
    return Recipe(layers=tuple(layers)) if layers else None


def with_instructions(recipe: Recipe | None, text: str) -> Recipe:
    """Return a recipe that ends with the instructions of a Dockerfile.

    Args:
        recipe: the recipe; ``None`` for none.
        text: the instructions, one or more lines.
    """
    layer = DockerfileLayer(dockerfile=read_dockerfile(text))
    return Recipe(layers=(*(recipe.layers if recipe else ()), layer))


def recipe_of(options: SandboxOptions) -> Recipe | None:
    """Make the recipe of a sandbox's options; see :func:`read_recipe`."""
    return read_recipe(
        packages=options.packages,
        requirements=options.requirements,
        system_packages=options.system_packages,
        dockerfile=options.dockerfile,
    )
