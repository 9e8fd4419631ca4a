"""What to run and what to build: plain data, the same for every engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from runtimes.errors import MountError


@dataclass(frozen=True, kw_only=True)
class GpuRequest:
    """Which of the machine's GPUs a container may use.

    Attributes:
        count: how many; ``None`` for all, or where ``ids`` names them.
        ids: indices or UUIDs, as the engine's driver numbers them.
    """

    count: int | None = None
    ids: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Mount:
    """One directory or file of the host, visible in the container.

    Attributes:
        source: an absolute path on the host. It must exist: some engines would create it.
        target: an absolute POSIX path in the container.
        read_only: whether the container may only read it.
        shared: whether several containers mount the same source. Decides the SELinux label
            (``z`` or ``Z``) where the engine has SELinux switched on.
    """

    source: Path
    target: str
    read_only: bool = True
    shared: bool = False

    def __post_init__(self) -> None:
        if not self.source.is_absolute():
            raise MountError(f"The source of a mount must be an absolute path, not {self.source}.")
        if not self.target.startswith("/"):
            raise MountError(f"The target of a mount must be an absolute path, not {self.target}.")
        if any(mark in f"{self.source}{self.target}" for mark in ":,"):
            # --volume SOURCE:TARGET:OPTIONS cannot quote a colon, nor --mount a comma.
            raise MountError(
                f"A path with a colon or comma in it cannot be mounted: {self.source}.",
                remedy="XDG_CACHE_HOME can move a user's cache to another place.",
            )


@dataclass(frozen=True, kw_only=True)
class OwnDirectory:
    """A directory that a container has to itself, and that ends with it.

    Attributes:
        target: an absolute POSIX path in the container, whose user can write to it.
        kind: where it is: in memory, or on the engine's disk.
        size: the most bytes that it may hold in memory; ``None`` for half of the machine's. No
            engine limits a volume.
    """

    target: str
    kind: Literal["memory", "volume"] = "memory"
    size: int | None = None


@dataclass(frozen=True, kw_only=True)
class HostRoute:
    """How a container reaches a TCP port of this host.

    Attributes:
        bind: the narrowest local address to listen on that the container can reach. It may exist
            only while a container runs.
        address: the address by which the container reaches the host, for ``--add-host``;
            ``None`` where the engine resolves the alias by itself.
    """

    bind: str
    address: str | None


@dataclass(frozen=True, kw_only=True)
class InternalNetwork:
    """A network of the engine's that leads to this host and nowhere else.

    Attributes:
        name: its name on the engine.
        route: how a container on it reaches this host.
    """

    name: str
    route: HostRoute


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where in a cluster the pods of sandboxes run, and as whose.

    Attributes:
        node_selector: the labels that their nodes must have.
        tolerations: the taints that they tolerate, as a pod's specification has them.
        runtime_class: the RuntimeClass, such as one for gVisor or Kata; empty for the default.
        service_account: the ServiceAccount; empty for ``default``. No token of it is mounted.
        pull_secrets: the names of Secrets with the credentials of registries.
        priority_class: the PriorityClass; empty for the default.
        deadline: seconds until the cluster ends a pod, even one in use.
    """

    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    runtime_class: str = ""
    service_account: str = ""
    pull_secrets: tuple[str, ...] = ()
    priority_class: str = ""
    deadline: int = 24 * 3600


@dataclass(frozen=True, kw_only=True)
class ContainerSpec:
    """One container, to be started once with its standard streams held by the caller.

    Attributes:
        image: the image reference, as the user wrote it.
        command: the program and its arguments. Replaces both the image's entrypoint and its
            command: an image made to start a service must not start it here.
        name: the container's name; unique per engine.
        labels: labels to find it by later.
        mounts: the host's directories and files that are visible inside.
        own_directory: a directory that it has to itself, or ``None``.
        env: environment variables. No secrets: they are arguments of the command line, which any
            local user can read. (``--env NAME`` would take the value from the environment of the
            client, which reads HOME, PATH and many more for itself.)
        workdir: the working directory inside.
        user: ``UID:GID`` inside the container; ``None`` leaves it to the runtime, which picks
            an unprivileged user that can write to the caller's directories.
        network: ``"bridge"`` for the engine's default network, ``"none"``, or a network that
            the runtime's ``make_internal_network`` made.
        host_alias: the name under which the container finds this host, or ``None``.
        init: run the engine's own init as PID 1, so that orphans are reaped.
        read_only: whether the image's file system may only be read.
        tmpfs: maps directories that are kept in memory to the most bytes that each may hold.
        pids: the most processes and threads that it may have, or ``None``.
        memory: the most memory that it may use, in bytes, without any swap, or ``None``.
        cpus: how many processors' time it may use, for instance ``0.5``, or ``None``.
        disk: the most that it may write to the image's file system, in bytes, or ``None``. Few
            storage drivers can limit that, see ``EngineInfo.no_disk_limit``.
        shm_size: the bytes of ``/dev/shm``, or ``None`` for the engine's default.
        gpus: the GPUs that it may use, or ``None``.
        directory: where the command-line client runs, or ``None`` if it does not matter: podman's
            monitor leaves a file ``oom`` in its working directory when a container runs out of
            memory.
        extra_args: further arguments for ``run``, as the user wrote them.
        placement: where in a cluster it runs, or ``None``.
    """

    image: str
    command: tuple[str, ...]
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    own_directory: OwnDirectory | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str | None = None
    network: Literal["bridge", "none"] | InternalNetwork = "bridge"
    host_alias: str | None = None
    init: bool = True
    read_only: bool = False
    tmpfs: Mapping[str, int] = field(default_factory=dict)
    pids: int | None = None
    memory: int | None = None
    cpus: float | None = None
    disk: int | None = None
    shm_size: int | None = None
    gpus: GpuRequest | None = None
    directory: Path | None = None
    extra_args: tuple[str, ...] = ()
    placement: Placement | None = None


@dataclass(frozen=True, kw_only=True)
class BuildSpec:
    """One image, to be made by the engine's own ``build``.

    Attributes:
        tag: the image's name, fully qualified.
        base: the image to build on, which must be in the engine's store. ``dockerfile`` gets it
            as the argument ``BASE_IMAGE``. Empty if it does not need that.
        dockerfile: the text of a Dockerfile.
        context: the directory whose files the build sees.
        directory: a private directory for the files that the engine's command line needs.
        script: a shell script, run as root after the instructions of ``dockerfile``. It finds the
            context in the directory ``$FILES`` and the secrets in ``$SECRETS``; neither becomes a
            part of the image.
        user: the image's user before and after the script; empty for root.
        secrets: secrets by their names, which no layer and no history may hold. Instructions of
            ``dockerfile`` get them with ``RUN --mount=type=secret,id=NAME``, where the engine
            knows that.
        labels: the image's labels.
        container_labels: labels of the container that serves files to the build, where one is
            needed.
        timeout: seconds until the build is given up.
    """

    tag: str
    base: str
    dockerfile: str
    context: Path
    directory: Path
    script: str = ""
    user: str = ""
    secrets: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    labels: Mapping[str, str] = field(default_factory=dict)
    container_labels: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 3600.0
