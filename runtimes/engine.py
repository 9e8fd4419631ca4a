"""A Docker-compatible engine: what docker and podman have in common, limits included."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import AddressValueError, IPv4Address
from typing import Any

from runtimes.base import ContainerRecord, EngineInfo, NetworkRecord
from runtimes.command import CommandResult, EngineCommand, last_lines, reading
from runtimes.errors import (
    ContainersError,
    ContainerStartError,
    EngineUnavailableError,
    ImageNotFoundError,
    UnsupportedByEngineError,
)
from runtimes.images import NO_IMAGE, EngineImages, label_filters, read_labels
from runtimes.process import ContainerProcess
from runtimes.spec import ContainerSpec, HostRoute, InternalNetwork, Mount, OwnDirectory
from runtimes.text import brief
from runtimes.timelimit import within_limit

#: The cgroup controller that enforces each limit.
CONTROLLERS = {"memory": "memory", "cpus": "cpu", "pids": "pids"}

# How docker and podman say that their storage cannot limit a container's file system.
_NO_DISK_LIMIT = re.compile(r"storage.opt(ion)?\b", re.IGNORECASE)

# How they say that there is no GPU, or that they cannot give it to a container.
_NO_GPU = re.compile(
    r"could not select device driver|nvidia\.com/gpu|unresolvable CDI|nvidia-container",
    re.IGNORECASE,
)

#: Seconds that a removal may take, whoever waits for it: a close, or a start that has failed and
#: whose time is over. The engine goes on with it when its client is killed.
REMOVE_TIMEOUT = 20.0

#: How often, and with how many seconds between, to ask how a container has ended.
_STATUS_TRIES = 10
_STATUS_PAUSE = 0.1

#: What podman says, and removes nothing, if a container ends by itself just before it is killed.
_ENDED_MEANWHILE = "container state improper"

#: How often, and with how many seconds between, to try to remove a network that seems to be in use:
#: an engine may take a moment to notice that the last container is gone.
_NETWORK_TRIES = 10
_NETWORK_PAUSE = 0.2

# Errors of a busy engine, which have nothing to do with the container: seen with docker 20.10 and
# runc 1.1 under load, and known of podman, whose processes share one database.
_TRANSIENT = re.compile(
    r"runc did not terminate success|failed to create shim task: context deadline|"
    r"database is locked|database table is locked|resource temporarily unavailable",
    re.IGNORECASE,
)

# How clients say that no engine listens at their socket.
_NO_ENGINE = re.compile(
    r"cannot connect to the docker daemon|error during connect|unable to connect to podman",
    re.IGNORECASE,
)


class ContainerEngine(EngineImages):
    """A Docker-compatible command line.

    Args:
        command: how to call it.
    """

    outlives_client = True
    #: The argument that makes ``ps`` print JSON.
    _ps_format = "--format=json"
    #: Further options of ``--tmpfs``, which only this engine knows.
    _tmpfs_extra = ""

    def __init__(self, command: EngineCommand) -> None:
        super().__init__(command)
        self._info: EngineInfo | None = None
        self._route: HostRoute | None = None
        self._route_known = False
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.command}>"

    # What the engines do not have in common

    @abstractmethod
    def _ask_info(self) -> EngineInfo: ...

    @abstractmethod
    def _find_host_route(self) -> HostRoute | None: ...

    @abstractmethod
    def _engine_args(self, spec: ContainerSpec) -> list[str]:
        """Arguments of ``run`` that only this engine has or needs."""

    @abstractmethod
    def _directory_arg(self, directory: OwnDirectory, spec: ContainerSpec) -> str:
        """Return the argument of ``run`` for a directory that the container's user can write to."""

    @abstractmethod
    def _past_exits(self) -> tuple[str, ...]:
        """Arguments of ``events`` that make it print with which status containers have ended."""

    @abstractmethod
    def _container_record(self, raw: Mapping[str, Any]) -> ContainerRecord:
        """Read one of the objects that ``ps`` prints."""

    # Runtime

    def info(self) -> EngineInfo:
        with within_limit(self._lock):
            if self._info is None:
                with reading("info"):
                    self._info = self._ask_info()
            return self._info

    def host_route(self) -> HostRoute | None:
        with within_limit(self._lock):
            if not self._route_known:
                with reading("network inspect"):
                    self._route = self._find_host_route()
                self._route_known = True
            return self._route

    def open(self, spec: ContainerSpec) -> ContainerProcess:
        return self.command.hold(spec.name, *self._run_args(spec), directory=spec.directory)

    def start_error(self, spec: ContainerSpec, exit_code: int | None, stderr: str) -> Exception:
        said = last_lines(stderr)
        if NO_IMAGE.search(stderr):
            return ImageNotFoundError(
                f"The image {spec.image!r} is not in the store of {self.name}.",
                remedy=f"Pull or build it: `{self.command} pull {spec.image}`.",
                container=spec.name,
                exit_code=exit_code,
                stderr=stderr,
            )
        if spec.disk is not None and _NO_DISK_LIMIT.search(stderr):
            return UnsupportedByEngineError(
                f"The storage of {self.name} cannot limit what a container writes: {said}",
                remedy="See `--storage-opt` in the engine's documentation for those that can.",
                container=spec.name,
            )
        if spec.gpus is not None and _NO_GPU.search(stderr):
            return UnsupportedByEngineError(
                f"{self.name} has no GPU to give to a container: {said}",
                remedy=f"Install the NVIDIA Container Toolkit, and configure it for {self.name}.",
                container=spec.name,
            )
        if _NO_ENGINE.search(stderr):
            return EngineUnavailableError(
                f"The engine behind `{self.command}` no longer answers: {said}",
                remedy="Start it again (`systemctl start docker`, Docker Desktop, `dockerd`, "
                "`podman machine start`), or use another runtime.",
                container=spec.name,
            )
        error = ContainerStartError(
            f"{self.name} could not start a container from the image {spec.image!r} "
            f"(status {exit_code}): {said or 'it said nothing'}",
            remedy=f"Try it by hand: `{self.command} run --rm {spec.image}`.",
            container=spec.name,
            exit_code=exit_code,
            stderr=stderr,
        )
        # podman 4 sometimes ends without a word on a machine that is very busy.
        error.transient = bool(_TRANSIENT.search(stderr)) or (exit_code == 1 and not said)
        return error

    def remove(self, name: str) -> None:
        arguments = self.remove_command(name)[len(self.command.argv) :]
        result = self.command.run(*arguments, timeout=REMOVE_TIMEOUT, check=False)
        if _ENDED_MEANWHILE in result.stderr:
            result = self.command.run(*arguments, timeout=REMOVE_TIMEOUT, check=False)
        # --rm may be removing it at this very moment.
        gone = ("no such container", "already in progress", "no container with")
        if result.exit_code != 0 and not any(words in result.stderr.lower() for words in gone):
            raise self._failure(
                "remove the container",
                result,
                remedy=f"Remove it by hand: `{self.command} rm -f {name}`.",
                container=name,
            )

    def remove_command(self, name: str) -> tuple[str, ...]:
        return (*self.command.argv, "rm", "--force", "--volumes", name)

    def exit_status(self, name: str, since: float) -> int | None:
        for _ in range(_STATUS_TRIES):  # it may take a moment until the engine has noticed
            found = self.command.run(
                "events",
                f"--since={since:.9f}",
                f"--filter=container={name}",
                *self._past_exits(),
                timeout=REMOVE_TIMEOUT,  # somebody waits to be told how it ended
                check=False,
            )
            said = found.stdout.split()
            if found.exit_code != 0 or said:
                return int(said[-1]) if said and said[-1].isdecimal() else None
            time.sleep(_STATUS_PAUSE)
        return None

    def exec_command(
        self, name: str, command: Sequence[str], *, tty: bool = False
    ) -> tuple[str, ...]:
        terminal = ("--tty",) if tty else ()
        return (*self.command.argv, "exec", "--interactive", *terminal, name, *command)

    def find_networks(self, labels: Mapping[str, str]) -> list[NetworkRecord]:
        names = self.command.run("network", "ls", "--quiet", *label_filters(labels)).stdout.split()
        if not names:
            return []
        # The command fails if one of them is gone by now, and still prints the others.
        found = self.command.run("network", "inspect", *names, check=False)
        with reading("network inspect"):
            return [
                NetworkRecord(
                    # docker's keys, and podman's.
                    name=str(raw.get("Name") or raw["name"]),
                    labels=read_labels(raw.get("Labels") or raw.get("labels")),
                )
                for raw in found.objects()
            ]

    def remove_network(self, name: str) -> None:
        for attempt in range(_NETWORK_TRIES):
            result = self.command.run("network", "rm", name, timeout=REMOVE_TIMEOUT, check=False)
            said = result.stderr.lower()
            if result.exit_code == 0 or "not found" in said or "no such network" in said:
                return
            if "active endpoints" not in said and "associated containers" not in said:
                break
            if attempt < _NETWORK_TRIES - 1:
                time.sleep(_NETWORK_PAUSE)
        raise self._failure(
            f"remove the network {name}",
            result,
            remedy=f"Remove it by hand: `{self.command} network rm {name}`.",
        )

    def remove_network_command(self, name: str) -> tuple[str, ...]:
        return (*self.command.argv, "network", "rm", name)

    def find(self, labels: Mapping[str, str]) -> list[ContainerRecord]:
        filters = label_filters(labels)
        listed = self.command.run("ps", "--all", "--no-trunc", *filters, self._ps_format)
        with reading("ps"):
            return [self._container_record(raw) for raw in listed.objects()]

    def _inspect_network(self, name: str, *args: str) -> list[dict[str, Any]]:
        """Return what the engine says of a network; nothing if there is none, or no JSON."""
        found = self.command.run("network", "inspect", name, *args, check=False)
        try:
            return found.objects() if found.exit_code == 0 else []
        except ContainersError:
            return []

    # Arguments

    def _run_args(self, spec: ContainerSpec) -> list[str]:
        if spec.placement is not None:
            raise UnsupportedByEngineError(
                f"placement=… says where pods run, and {self.name} has none.",
                remedy='Leave it out, or use runtime="kubernetes".',
                container=spec.name,
            )
        info = self.info()
        args = [
            "run",
            "--interactive",
            "--rm",
            # Else the engine would pull a missing image here, silently and without a time limit.
            "--pull=never",
            f"--name={spec.name}",
            f"--workdir={spec.workdir}",
            f"--entrypoint={spec.command[0]}",
            # Model-written code needs no privilege at all, and the default ones (raw sockets,
            # chown, setuid, …) help it to escape.
            "--cap-drop=ALL",
            "--security-opt=no-new-privileges",
            # Else the engine writes all that goes over the pipe to a file, which may then hold
            # secrets and which the container can fill without a bound.
            "--log-driver=none",
        ]
        args += [f"--label={key}={value}" for key, value in spec.labels.items()]
        args += [_mount_arg(mount, selinux=info.selinux) for mount in spec.mounts]
        args += [f"--env={name}={value}" for name, value in spec.env.items()]
        if spec.init and info.has_init:
            args.append("--init")
        if spec.read_only:
            args.append("--read-only")
        args += [
            f"--tmpfs={target}:rw,noexec,nosuid,nodev,mode=1777,size={size}{self._tmpfs_extra}"
            for target, size in spec.tmpfs.items()
        ]
        if spec.own_directory is not None:
            args.append(self._directory_arg(spec.own_directory, spec))
        args += _limit_args(spec)
        args += self._network_args(spec)
        args += self._engine_args(spec)
        args += spec.extra_args
        args.append(self._names.get(spec.image, spec.image))
        args += spec.command[1:]
        return args

    def _network_args(self, spec: ContainerSpec) -> list[str]:
        if spec.network == "none":
            return ["--network=none"]
        if isinstance(spec.network, InternalNetwork):
            args = [f"--network={spec.network.name}"]
            route: HostRoute | None = spec.network.route
        else:
            args = []
            route = self.host_route() if spec.host_alias else None
        if spec.host_alias and route and route.address:
            args.append(f"--add-host={spec.host_alias}:{route.address}")
        return args


def parse_version(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: ``"20.10.24+dfsg1"`` is ``(20, 10, 24)``."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in match.group().split(".")) if match else (0,)


def check_version(
    text: str, *, minimum: tuple[int, ...], engine: str, other: str
) -> tuple[int, ...]:
    """Return an engine's version.

    Raises:
        UnsupportedByEngineError: it is older than ``minimum``; the remedy names the other engine.
    """
    version = parse_version(text)
    if version < minimum:
        raise UnsupportedByEngineError(
            f"{engine} is version {text or 'unknown'}; "
            f"the oldest that works here is {'.'.join(map(str, minimum))}.",
            remedy=f"Upgrade it, or use {other}.",
        )
    return version


def parse_info(result: CommandResult) -> dict[str, Any]:
    """Return the one object that ``info`` printed.

    Raises:
        ContainersError: it did not print a JSON object.
    """
    for found in result.objects():
        return found
    raise ContainersError(
        f"The engine answered `info` with {brief(result.stdout[:80])}.",
        remedy="Is the program really a Docker-compatible command line?",
    )


def first_gateway(pools: list[dict[str, Any]], key: str) -> str | None:
    """Return the first IPv4 gateway of some address pools."""
    for pool in pools:
        with contextlib.suppress(AddressValueError):
            return str(IPv4Address(str(pool.get(key))))
    return None


def tmpfs_arg(directory: OwnDirectory, *options: str) -> str:
    """Return the argument of ``run`` for a directory in memory from which programs can be run."""
    every = ["rw", "exec", "nosuid", "nodev", *options]
    if directory.size is not None:
        every.append(f"size={directory.size}")
    return f"--tmpfs={directory.target}:{','.join(every)}"


def _mount_arg(mount: Mount, *, selinux: bool) -> str:
    if selinux:
        # docker's --mount cannot ask for a label.
        access, label = "ro" if mount.read_only else "rw", "z" if mount.shared else "Z"
        return f"--volume={mount.source}:{mount.target}:{access},{label}"
    # Unlike --volume, --mount refuses a source that does not exist. With --volume docker would make
    # the directory again that has just been cleaned up after a host process that died.
    access = ",readonly" if mount.read_only else ""
    return f"--mount=type=bind,source={mount.source},target={mount.target}{access}"


# Limits


def _limit_args(spec: ContainerSpec) -> list[str]:
    args = []
    if spec.pids is not None:
        args.append(f"--pids-limit={spec.pids}")
    if spec.shm_size is not None:
        args.append(f"--shm-size={spec.shm_size}")
    if spec.memory is not None:
        args += [f"--memory={spec.memory}", f"--memory-swap={spec.memory}"]
    if spec.cpus is not None:
        args.append(f"--cpus={spec.cpus:.3f}")
    if spec.disk is not None:
        args.append(f"--storage-opt=size={spec.disk}")
    return args


def unenforced_limits(
    controllers: Iterable[str], *, rootless: bool, cgroup_version: int
) -> dict[str, str]:
    """Map each limit that an engine cannot enforce to the reason, as ``EngineInfo.unenforced``.

    Args:
        controllers: the cgroup controllers that the engine can use.
        rootless: whether it runs without root.
        cgroup_version: 1 or 2.
    """
    if rootless and cgroup_version == 1:
        return dict.fromkeys(CONTROLLERS, "it runs without root on cgroups v1")
    usable = set(controllers)
    how = "not delegated to its user" if rootless else "missing in its kernel"
    return {
        limit: f"the cgroup controller {controller!r} is {how}"
        for limit, controller in CONTROLLERS.items()
        if controller not in usable
    }


def no_disk_limit(driver: str, backing: str) -> str:
    """Say why a storage driver cannot limit a container's disk; "" if it may be able to.

    Args:
        driver: the driver's name, as ``info`` gives it.
        backing: the name of the file system below it, likewise; may be empty.
    """
    if driver in ("btrfs", "zfs", "devicemapper"):
        return ""
    if driver in ("overlay", "overlay2"):
        if backing == "xfs":
            return ""  # if it is mounted with pquota; else the engine says so at the start
        return f"its storage driver {driver} can only on xfs, and is on {backing or 'another'}"
    return f"its storage driver {driver or 'is unknown and'} cannot"


def positive_number(value: object) -> int | None:
    """Return a positive integer that an engine gave, and ``None`` for anything else."""
    return value if isinstance(value, int) and value > 0 else None


# Users


def rootful_ids(engine: str, user: tuple[int, int] | None) -> tuple[int, int]:
    """Return the UID and GID that must own a workspace where ids inside are the same outside.

    Raises:
        UnsupportedByEngineError: the user is not this process's, and this process is not root, so
            it cannot give the directory to that user.
    """
    if user is not None:
        if os.getuid() in (0, user[0]):
            return user
        raise UnsupportedByEngineError(
            f"On {engine} with root the user {user[0]} cannot write to the workspace, which "
            f"belongs to this process's user, {os.getuid()}.",
            remedy=f'Use user="{os.getuid()}", or rootless Podman 4.3 or later.',
        )
    if os.getuid() == 0:
        return 65534, 65534  # nobody and nogroup on every Linux: cells never run as root
    return os.getuid(), os.getgid()
