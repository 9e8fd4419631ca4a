"""The one narrow interface between this project and whatever runs containers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from runtimes.errors import UnsupportedByEngineError
from runtimes.network import HostRoute, InternalNetwork
from runtimes.process import ContainerProcess
from runtimes.spec import BuildSpec, ContainerSpec


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
        memory: bytes of memory of the machine that the engine runs on, where it says so.
        cpus: the processors of that machine, likewise.
        unenforced: the limits (``"memory"``, ``"cpus"``, ``"pids"``) that this engine cannot hold a
            container to, each with the reason. Asked for one, engines ignore it with at most a
            warning, or fail with a word on cgroups.
        no_disk_limit: why the engine cannot limit what a container writes to its image's file
            system; empty if it can, or may be able to.
        store: which store of images it has, among the engines of that name; empty if unknown.
    """

    engine: str
    version: tuple[int, ...]
    rootless: bool
    cgroup_version: int
    selinux: bool
    remote: bool
    has_init: bool
    memory: int | None = None
    cpus: int | None = None
    unenforced: Mapping[str, str] = field(default_factory=dict)
    no_disk_limit: str = ""
    store: str = ""

    @property
    def version_text(self) -> str:
        """The version as people write it, for instance ``"20.10.24"``."""
        return ".".join(str(part) for part in self.version)


@dataclass(frozen=True, kw_only=True)
class ContainerRecord:
    """A container that the engine knows, running or not."""

    id: str
    name: str
    image: str
    running: bool
    labels: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class NetworkRecord:
    """A network that the engine knows."""

    name: str
    labels: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """An image in an engine's store.

    Attributes:
        id: what the engine calls it; another engine calls the same image otherwise.
        tags: its names.
        size: bytes, what it shares with other images included.
        architecture: for instance ``"amd64"``.
        labels: its labels.
        user: whom its containers run as by default; empty for root.
        content: a digest of its layers and of what of its configuration a build on top of it
            depends on. The same on every engine. Empty if the engine does not say.
    """

    id: str
    tags: Sequence[str]
    size: int
    architecture: str
    labels: Mapping[str, str]
    user: str = ""
    content: str = ""


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
    def pull(self, image: str, on_line: Callable[[str], None] | None = None) -> None:
        """Fetch an image from its registry.

        Args:
            image: its name.
            on_line: called with each line that the engine says meanwhile, in this thread.

        Raises:
            ImageNotFoundError: the registry does not have it or cannot be reached.
        """

    @abstractmethod
    def host_route(self) -> HostRoute | None:
        """How a container on the default network reaches this host; ``None`` if it cannot."""

    @abstractmethod
    def workspace_user(self, user: tuple[int, int] | None = None) -> tuple[int, int]:
        """The host's UID and GID that must own a directory for the container to write to it.

        Args:
            user: the UID and GID inside, as in ``ContainerSpec.user``; ``None`` for the runtime's
                own choice.

        Raises:
            UnsupportedByEngineError: no directory that this process can make would be writable
                for that user.
        """

    # What not every runtime can do.

    def check_internal_network(self) -> None:
        """Do nothing if :meth:`make_internal_network` can be tried.

        Raises:
            UnsupportedByEngineError: this engine has no such networks; the message says why.
        """
        raise UnsupportedByEngineError(
            f"{self.name} has no networks that lead to this host and nowhere else.",
            remedy='Use network="none".',
        )

    def make_internal_network(self, name: str, labels: Mapping[str, str]) -> InternalNetwork:
        """Make a network that leads to this host and nowhere else.

        Containers on it may reach each other where the engine cannot prevent it.

        Args:
            name: the network's name; there must be none of it yet.
            labels: labels to find it by later.

        Raises:
            UnsupportedByEngineError: see :meth:`check_internal_network`.
        """
        raise NotImplementedError

    def find_networks(self, labels: Mapping[str, str]) -> list[NetworkRecord]:
        """The networks that carry all of ``labels``; an empty value as for :meth:`find`."""
        return []

    def remove_network(self, name: str) -> None:
        """Remove a network that no container uses. One that is not there is no error."""
        raise NotImplementedError

    def remove_network_command(self, name: str) -> tuple[str, ...]:
        """The command line that does the same, for a process that outlives this one."""
        raise NotImplementedError

    def ran_out_of_memory(self, name: str, since: float, directory: Path | None) -> bool | None:
        """Whether the kernel killed something in a container for its memory; it may be gone.

        Args:
            name: the container's name.
            since: the time, in seconds of the epoch, before which it does not count.
            directory: its ``ContainerSpec.directory``.

        Returns:
            ``None`` if the engine cannot say, or not when it was.
        """
        return None

    def build(self, spec: BuildSpec, on_line: Callable[[str], None] | None = None) -> None:
        """Build an image.

        Args:
            spec: what it is to be.
            on_line: called with each line of the build's log, in this thread.

        Raises:
            ImageBuildError: the build failed, or took too long.
        """
        self._unsupported("build images")

    def find_images(self, labels: Mapping[str, str]) -> list[ImageRecord]:
        """The images that carry all of ``labels``, as :meth:`find` does it for containers."""
        self._unsupported("list images")

    def remove_image(self, image: str) -> None:
        """Take a name from an image; the image goes with its last name.

        One that is not there is no error.

        Raises:
            EngineCommandError: a container or another image needs it.
        """
        self._unsupported("remove images")

    def save_image(self, image: str, path: Path) -> None:
        """Write an image, with its name, to a file in the form that ``docker load`` reads.

        Raises:
            ImageNotFoundError: it is not in the store.
        """
        self._unsupported("save images")

    def load_image(self, path: Path) -> list[str]:
        """Read the images in a file into the store, under the names that they have in it.

        Returns:
            These names.
        """
        self._unsupported("load images")

    def _unsupported(self, what: str) -> NoReturn:
        raise UnsupportedByEngineError(
            f"The runtime {self.name} cannot {what}.", remedy="Use docker or podman for that."
        )
