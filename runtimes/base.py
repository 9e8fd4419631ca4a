"""The one narrow interface between this project and whatever runs containers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runtimes.process import ContainerProcess
from runtimes.spec import ContainerSpec

__all__ = ["ContainerRecord", "EngineInfo", "HostRoute", "ImageRecord", "Runtime"]


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """What an engine says of itself.

    Attributes:
        engine: ``"docker"``, ``"podman"`` or what a third party's runtime calls itself.
        version: the engine's (not the client's) version, as comparable numbers.
        rootless: whether the engine runs without root, in a user namespace.
        cgroup_version: 1 or 2; limits are enforced differently.
        selinux: whether bind mounts need an SELinux label.
        remote: whether the engine runs on another machine or in a virtual one, so that it
            cannot see this machine's files and addresses.
        has_init: whether the engine has an init to run as PID 1.
    """

    engine: str
    version: tuple[int, ...]
    rootless: bool
    cgroup_version: int
    selinux: bool
    remote: bool
    has_init: bool

    @property
    def enforces_limits(self) -> bool:
        """Whether memory and process limits hold; such an engine ignores them without an error."""
        return not (self.rootless and self.cgroup_version == 1)

    @property
    def version_text(self) -> str:
        """The version as people write it, for instance ``"20.10.24"``."""
        return ".".join(str(part) for part in self.version)


@dataclass(frozen=True, kw_only=True)
class HostRoute:
    """How a container reaches a TCP port of this host.

    Attributes:
        bind: the narrowest local address to listen on that the container can reach.
        address: the address by which the container reaches it, to be put behind the alias
            with ``--add-host``; ``None`` where the engine resolves the alias by itself.
        needs_container: whether ``bind`` exists only while a container runs, so that binding
            must wait until one does.
    """

    bind: str
    address: str | None
    needs_container: bool = False


@dataclass(frozen=True, kw_only=True)
class ContainerRecord:
    """A container that the engine knows, running or not."""

    id: str
    name: str
    image: str
    running: bool
    labels: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """An image in the engine's store. ``size`` is in bytes."""

    id: str
    tags: Sequence[str]
    size: int
    architecture: str
    labels: Mapping[str, str]


class Runtime(ABC):
    """Containers on one engine.

    Every method raises :class:`~runtimes.errors.ContainersError` or one of its subclasses,
    and nothing else, when the engine is at fault.
    """

    #: The name of the engine, as in ``get_runtime(name)``.
    name: str

    @abstractmethod
    def info(self) -> EngineInfo:
        """Ask the engine what it is; the answer is kept for the life of this object.

        Raises:
            EngineNotFoundError: the command-line program is not installed.
            EngineUnavailableError: no engine answers.
        """

    @abstractmethod
    def open(self, spec: ContainerSpec) -> ContainerProcess:
        """Start a container and hold its standard streams.

        The container is removed by the engine when its program ends. Returns as soon as the
        client is started: whether the engine accepts the container shows on the streams, and
        :meth:`start_error` turns what they say into an error.

        The image must be in the engine's store already, see :meth:`ensure_image`.
        """

    @abstractmethod
    def start_error(self, spec: ContainerSpec, exit_code: int | None, stderr: str) -> Exception:
        """The error that says why a container opened with ``spec`` never came up."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a container at once, running or not. One that is not there is no error."""

    @abstractmethod
    def remove_command(self, name: str) -> tuple[str, ...]:
        """The command line that does the same, for a process that outlives this one."""

    @abstractmethod
    def find(self, labels: Mapping[str, str]) -> list[ContainerRecord]:
        """The containers, running or not, that carry all of ``labels``.

        An empty value matches a label whatever its value is.
        """

    @abstractmethod
    def image_exists(self, image: str) -> bool:
        """Whether the image is in the engine's store, under this name or a qualified one."""

    @abstractmethod
    def inspect_image(self, image: str) -> ImageRecord:
        """What the engine knows of an image in its store.

        Raises:
            ImageNotFoundError: it is not in the store.
        """

    @abstractmethod
    def pull(self, image: str) -> None:
        """Fetch an image from its registry.

        Raises:
            ImageNotFoundError: the registry does not have it or cannot be reached.
        """

    @abstractmethod
    def host_route(self) -> HostRoute | None:
        """How a container on the default network reaches this host; ``None`` if it cannot."""

    @abstractmethod
    def workspace_user(self) -> tuple[int, int]:
        """The host's UID and GID that must own a directory for the container to write to it."""
