"""The interface between this project and whatever runs containers, and the records it returns."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from runtimes.errors import UnsupportedByEngineError
from runtimes.process import ContainerProcess
from runtimes.spec import BuildSpec, ContainerSpec, HostRoute, InternalNetwork


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """What an engine says of itself.

    Attributes:
        engine: ``"docker"``, ``"podman"``, ``"kubernetes"``, or a third party's name.
        version: the engine's (not the client's) version, as comparable numbers.
        rootless: whether the engine runs without root, in a user namespace.
        cgroup_version: 1 or 2; limits are enforced differently.
        selinux: whether bind mounts need an SELinux label.
        remote: whether the engine runs on another machine or in a virtual one, so that it
            cannot see this machine's files and addresses.
        has_init: whether the engine has an init to run as PID 1.
        memory: the memory of the engine's machine in bytes; ``None`` if the engine does not say.
        cpus: the number of that machine's processors; ``None`` if the engine does not say.
        unenforced: maps each limit (``"memory"``, ``"cpus"``, ``"pids"``) that this engine cannot
            enforce to the reason. Asked for such a limit, engines ignore it with at most a
            warning, or fail with an error about cgroups.
        no_disk_limit: why the engine cannot limit what a container writes to its image's file
            system; empty if it can, or may be able to.
        store: identifies the engine's store of images among engines of the same name; empty if
            unknown.
        default_memory: the bytes of memory of a container for which the caller chooses none;
            ``None`` for a share of ``memory``.
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
    default_memory: int | None = None

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
        id: the engine's own id of it. Other engines have other ids for the same image.
        tags: its names.
        size: bytes, including what it shares with other images.
        architecture: for instance ``"amd64"``.
        labels: its labels.
        user: the user of its containers by default; empty for root.
        content: a digest of its layers and of that part of its configuration that a build on top
            of it depends on. The same on every engine. Empty if the engine does not say.
        workdir: the working directory of its containers by default.
    """

    id: str
    tags: Sequence[str]
    size: int
    architecture: str
    labels: Mapping[str, str]
    user: str = ""
    content: str = ""
    workdir: str = ""


class Runtime(ABC):
    """Containers on one engine.

    A runtime must define the six abstract methods; a sandbox cannot do without them. The others
    belong to optional abilities, and by default say that the engine lacks them:

    * commands from the command line: ``exec_command``;
    * the host: ``host_route`` to ``missing_permissions``;
    * networks: ``check_internal_network`` to ``remove_network_command``;
    * images: ``image_exists`` to ``load_image``. A sandbox needs ``inspect_image`` and ``pull``
      unless its image comes from elsewhere; derived images need ``build``.

    Every method raises :class:`~runtimes.errors.ContainersError` or one of its subclasses,
    and nothing else, when the engine is at fault.
    """

    # The abilities are flat methods and not objects (`runtime.images.pull()`), because third
    # parties' runtimes, found by their entry points, define them like this.

    #: The name of the engine, as in ``get_runtime(name)``.
    name: str

    shares_files: bool | None = None
    """Whether its containers can see this machine's files; ``None`` until one was started that
    should. What an engine says of itself does not tell."""

    outlives_client: bool = False
    """Whether a container lives on, and is removed at its end, when its client is killed."""

    pulls_at_start: bool = False
    """Whether a missing image is fetched as a container starts, by whatever runs that. Then there
    is no store to look into before."""

    @abstractmethod
    def info(self) -> EngineInfo:
        """Ask the engine what it is. The answer is kept for the life of this object.

        Raises:
            EngineNotFoundError: the command-line program is not installed.
            EngineUnavailableError: no engine answers.
        """

    @abstractmethod
    def open(self, spec: ContainerSpec) -> ContainerProcess:
        """Start a container and hold its standard streams.

        The engine removes the container when its program ends. This method returns as soon as the
        client runs. If the engine then refuses the container, the client ends, and
        :meth:`start_error` turns what it printed into an error.

        The image must be in the engine's store already.
        """

    @abstractmethod
    def start_error(self, spec: ContainerSpec, exit_code: int | None, stderr: str) -> Exception:
        """Return the error that says why a container did not start.

        Args:
            spec: what the container was opened with.
            exit_code: the client's exit status; ``None`` if it had to be killed.
            stderr: what was on its standard error.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a container at once, running or not. A missing one is no error."""

    @abstractmethod
    def remove_command(self, name: str) -> tuple[str, ...]:
        """Return a command line that removes a container, for a process that outlives this one."""

    @abstractmethod
    def find(self, labels: Mapping[str, str]) -> list[ContainerRecord]:
        """Find the containers, running or not, that carry all of ``labels``.

        An empty value matches a label with any value.
        """

    def exec_command(
        self, name: str, command: Sequence[str], *, tty: bool = False
    ) -> tuple[str, ...]:
        """Return a command line that runs a program in a running container, beside its own.

        It has the container's user, working directory and environment, and this process's standard
        streams. The client ends with the program's exit status.

        Args:
            name: the container's name.
            command: the program and its arguments.
            tty: whether it gets a terminal.

        Raises:
            UnsupportedByEngineError: this engine has no such command.
        """
        self._unsupported("run a command in a running container")

    # The host

    def host_route(self) -> HostRoute | None:
        """Tell how a container on the default network reaches this host; ``None`` if it cannot."""
        return None

    def workspace_user(self, user: tuple[int, int] | None = None) -> tuple[int, int]:
        """Tell which UID and GID on the host must own a directory that the container writes to.

        Args:
            user: the UID and GID inside, as in ``ContainerSpec.user``; ``None`` for the runtime's
                own choice.

        Raises:
            UnsupportedByEngineError: this process cannot make a directory that this user could
                write to.
        """
        return os.getuid(), os.getgid()

    def volume_instructions(self, target: str) -> str:
        """Return what a Dockerfile must add to an image so that containers can have a volume there.

        Args:
            target: as in :class:`~runtimes.OwnDirectory`.

        Returns:
            The instructions; empty if every image will do.
        """
        return ""

    def ran_out_of_memory(self, name: str, since: float, directory: Path | None) -> bool | None:
        """Tell whether the kernel killed something in a container because its memory was used up.

        The container may have been removed.

        Args:
            name: the container's name.
            since: seconds since 1970; earlier kills do not count.
            directory: its ``ContainerSpec.directory``.

        Returns:
            ``None`` if the engine does not know whether or when it happened.
        """
        return None

    def exit_status(self, name: str, since: float) -> int | None:
        """Return the exit status of a container that has ended and may have been removed.

        Args:
            name: the container's name.
            since: seconds since 1970, before its end.

        Returns:
            ``None`` if the engine does not know, or does not say so soon.
        """
        return None

    def missing_permissions(self) -> list[str] | None:
        """Say what the caller may not do that sandboxes need, each in a few words.

        Returns:
            ``None`` if the engine has no permissions of its own.
        """
        return None

    # Networks

    def check_internal_network(self) -> None:
        """Raise an error if :meth:`make_internal_network` cannot work on this engine.

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
            name: the network's name, which must be unused.
            labels: labels to find it by later.

        Raises:
            UnsupportedByEngineError: see :meth:`check_internal_network`.
        """
        self._unsupported("make networks")

    def find_networks(self, labels: Mapping[str, str]) -> list[NetworkRecord]:
        """Find the networks that carry all of ``labels``; an empty value matches any."""
        return []

    def remove_network(self, name: str) -> None:
        """Remove a network that no container uses. A missing one is no error."""
        self._unsupported("remove networks")

    def remove_network_command(self, name: str) -> tuple[str, ...]:
        """Return a command line that removes a network, for a process that outlives this one."""
        self._unsupported("remove networks")

    # Images

    def image_exists(self, image: str) -> bool:
        """Tell whether the image is in the engine's store, under this name or a qualified one."""
        self._unsupported("look up images")

    def inspect_image(self, image: str) -> ImageRecord:
        """Describe an image in the engine's store.

        Raises:
            ImageNotFoundError: it is not in the store.
        """
        self._unsupported("look up images")

    def pull(self, image: str, on_line: Callable[[str], None] | None = None) -> None:
        """Fetch an image from its registry.

        Args:
            image: its name.
            on_line: called in this thread with each line of the engine's output as it comes.

        Raises:
            ImageNotFoundError: the registry does not have it or cannot be reached.
        """
        self._unsupported("pull images")

    def build(self, spec: BuildSpec, on_line: Callable[[str], None] | None = None) -> None:
        """Build an image.

        Args:
            spec: what to build.
            on_line: called in this thread with each line of the build's log as it comes.

        Raises:
            ImageBuildError: the build failed, or took too long.
        """
        self._unsupported("build images")

    def find_images(self, labels: Mapping[str, str]) -> list[ImageRecord]:
        """Find the images that carry all of ``labels``; an empty value matches any."""
        self._unsupported("list images")

    def remove_image(self, image: str) -> None:
        """Remove a name from an image; the image goes with its last name.

        A missing image is no error.

        Raises:
            EngineCommandError: a container or another image needs it.
        """
        self._unsupported("remove images")

    def save_image(self, image: str, path: Path) -> None:
        """Write an image, with its name, to a file that ``docker load`` can read.

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
