"""What a sandbox's image is made of, on top of another image."""

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

# Part of every hash: raise it when a build makes something else of the same recipe.
_VERSION = 1

_SYSTEM_PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._:=~-]*")

# Lines that begin with "rlm-containers:" are for failure.py.

# With the names of the packages in "$@". Proxies are known in small letters here. apt-get reads the
# certificates, for mirrors behind HTTPS, as a user of its own, who may not read a secret.
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

# The image's Python is the container's to break. Neither the cache nor the byte code of pip itself,
# larger than many a package, is wanted in the image; that of the packages pip writes all the same.
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


class Layer:
    """A build of its own, on top of another image."""

    def parts(self) -> list[object]:
        """What a hash must cover, besides the images that it stands on."""
        raise NotImplementedError

    def bases(self, image: str) -> list[str]:
        """The images that it stands on, if ``image`` is the one below."""
        return [image]

    def digest(self, bases: Sequence[str]) -> str:
        """The hash that the built image is found by, on every engine.

        Args:
            bases: the contents of the images that it stands on, see ``ImageRecord.content``; the
                platform is a part of them.
        """
        covered = json.dumps([_VERSION, type(self).__name__, *bases, *self.parts()])
        return hashlib.sha256(covered.encode()).hexdigest()[:20]


@dataclass(frozen=True, kw_only=True)
class PackageLayer(Layer):
    """Packages of the image's distribution and of Python.

    Attributes:
        system: for apt-get, apk, dnf, microdnf or zypper.
        requirements: for pip.
    """

    system: tuple[str, ...]
    requirements: Requirements | None

    def __str__(self) -> str:
        lines = self.requirements.text.split("\n") if self.requirements else []
        return ", ".join(filter(None, (*lines, *self.system)))

    def parts(self) -> list[object]:
        return [self.system, self.requirements.parts() if self.requirements else []]

    def script(self) -> str:
        """What the build runs: the file that :meth:`write` made.

        What is installed must not be said here, since this becomes a part of the image's history,
        and an address among the requirements may have a password in it. A hash of it must: a step
        that says the same as an earlier one is not run again.
        """
        return f'. "$FILES/install.sh"  # {self.digest(())}'

    def write(self, directory: Path) -> None:
        """Write the files of the build to a directory, for ``$FILES``."""
        script = ""
        if self.system:
            script += f"set -- {' '.join(self.system)}\n{_SYSTEM_SCRIPT}"
        if self.requirements:
            script += _PIP_SCRIPT
            self.requirements.write(directory)
        (directory / "install.sh").write_text(script)


@dataclass(frozen=True, kw_only=True)
class DockerfileLayer(Layer):
    """What the user's Dockerfile makes."""

    dockerfile: Dockerfile

    def __str__(self) -> str:
        context = self.dockerfile.context
        return f"a Dockerfile in {context}" if context else "a Dockerfile"

    def parts(self) -> list[object]:
        return [self.dockerfile.parts()]

    def bases(self, image: str) -> list[str]:
        return [*([image] if self.dockerfile.on_image else []), *self.dockerfile.bases]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The layers of a derived image, the lowest first. There is at least one."""

    layers: tuple[Layer, ...]

    def __str__(self) -> str:
        return ", ".join(str(layer) for layer in self.layers)

    @cached_property
    def key(self) -> str:
        """Changes with anything that goes in, but the image below."""
        return " ".join(layer.digest(()) for layer in self.layers)


def read_recipe(
    *,
    packages: Sequence[str] = (),
    requirements: str | None = None,
    system_packages: Sequence[str] = (),
    dockerfile: str | None = None,
) -> Recipe | None:
    """The recipe that a sandbox's options make.

    The Dockerfile comes first, then the system's packages, then Python's. See
    :class:`~rlm_containers.SandboxOptions` for the arguments.

    Returns:
        The recipe, or ``None`` if the image is to be used as it is.

    Raises:
        OptionError: something in them is wrong, or a file cannot be read.
    """
    layers: list[Layer] = []
    if dockerfile is not None:
        layers.append(DockerfileLayer(dockerfile=read_dockerfile(dockerfile)))
    for name in system_packages:
        if not _SYSTEM_PACKAGE.fullmatch(name):
            raise OptionError(
                f"system_packages: {name!r} is not the name of a package.",
                remedy='Write one a string, such as "git" or "libgomp1".',
            )
    wanted = read_requirements(packages, Path(requirements) if requirements else None)
    if system_packages or wanted:
        system = tuple(sorted(set(system_packages)))
        layers.append(PackageLayer(system=system, requirements=wanted))
    return Recipe(layers=tuple(layers)) if layers else None


def recipe_of(options: SandboxOptions) -> Recipe | None:
    """The recipe that a sandbox's options make; see :func:`read_recipe`."""
    return read_recipe(
        packages=options.packages,
        requirements=options.requirements,
        system_packages=options.system_packages,
        dockerfile=options.dockerfile,
    )
