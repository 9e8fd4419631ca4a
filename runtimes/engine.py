"""What Docker and Podman have in common, which is nearly everything."""

from __future__ import annotations

import json
import re
import threading
import time
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from runtimes.base import ContainerRecord, EngineInfo, NetworkRecord
from runtimes.command import EngineCommand
from runtimes.errors import (
    ContainersError,
    ContainerStartError,
    EngineCommandError,
    EngineUnavailableError,
    ImageNotFoundError,
    UnsupportedByEngineError,
)
from runtimes.images import NO_IMAGE, EngineImages, last_lines, parse_list
from runtimes.limits import limit_args
from runtimes.network import HostRoute, InternalNetwork
from runtimes.process import ContainerProcess
from runtimes.spec import ContainerSpec, Mount

# How docker and podman say that their storage cannot limit a container's file system.
_NO_DISK_LIMIT = re.compile(r"storage.opt(ion)?\b", re.IGNORECASE)

# How they say that there is no GPU, or that nothing here can give it to a container.
_NO_GPU = re.compile(
    r"could not select device driver|nvidia\.com/gpu|unresolvable CDI|nvidia-container",
    re.IGNORECASE,
)

#: How often, and after how many seconds again, a network that seems to be in use is removed: an
#: engine may take a moment to notice that its last container is gone.
_NETWORK_TRIES = 10
_NETWORK_PAUSE = 0.2


# What a busy engine says that has nothing to do with the container: seen with docker 20.10 and runc
# 1.1 under load, and known of podman, whose processes share one database.
_TRANSIENT = re.compile(
    r"runc did not terminate success|failed to create shim task: context deadline|"
    r"database is locked|database table is locked|resource temporarily unavailable",
    re.IGNORECASE,
)


# And that there is nobody to ask, at the other end of their socket.
_NO_ENGINE = re.compile(
    r"cannot connect to the docker daemon|error during connect|unable to connect to podman",
    re.IGNORECASE,
)


class ContainerEngine(EngineImages):
    """A Docker-compatible command line.

    Args:
        command: how to call it.
    """

    #: The argument with which ``ps`` prints JSON.
    _ps_format = "--format=json"
    #: What ``--tmpfs`` is told beside what every engine knows.
    _tmpfs_extra = ""

    def __init__(self, command: EngineCommand) -> None:
        super().__init__(command)
        self._info: EngineInfo | None = None
        self._route: HostRoute | None = None
        self._route_known = False
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.command}>"

    # What the engines do not have in common.

    @abstractmethod
    def _ask_info(self) -> EngineInfo: ...

    @abstractmethod
    def _find_host_route(self) -> HostRoute | None: ...

    @abstractmethod
    def _engine_args(self, spec: ContainerSpec) -> list[str]:
        """Arguments of ``run`` that only this engine has or needs."""

    @abstractmethod
    def _parse_records(self, output: str) -> list[ContainerRecord]: ...

    # Runtime

    def info(self) -> EngineInfo:
        with self._lock:
            if self._info is None:
                self._info = self._ask_info()
            return self._info

    def host_route(self) -> HostRoute | None:
        with self._lock:
            if not self._route_known:
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
                remedy="Install the NVIDIA Container Toolkit, and make its configuration for "
                f"{self.name}.",
                container=spec.name,
            )
        if _NO_ENGINE.search(stderr):
            return EngineUnavailableError(
                f"The engine behind `{self.command}` does not answer any more: {said}",
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
        error.transient = bool(_TRANSIENT.search(stderr))
        return error

    def remove(self, name: str) -> None:
        result = self.command.run(*self.remove_command(name)[len(self.command.argv) :], check=False)
        if result.exit_code != 0 and "no such container" not in result.stderr.lower():
            # Being removed by --rm at this very moment is what was wanted, too.
            if "already in progress" in result.stderr or "no container with" in result.stderr:
                return
            raise EngineCommandError(
                f"{self.name} could not remove the container: {last_lines(result.stderr)}",
                remedy=f"Remove it by hand: `{self.command} rm -f {name}`.",
                container=name,
                exit_code=result.exit_code,
                stderr=result.stderr,
            )

    def remove_command(self, name: str) -> tuple[str, ...]:
        return (*self.command.argv, "rm", "--force", "--volumes", name)

    def find_networks(self, labels: Mapping[str, str]) -> list[NetworkRecord]:
        names = self.command.run("network", "ls", "--quiet", *_label_filters(labels)).stdout.split()
        if not names:
            return []
        # One that has gone meanwhile is an error for the command, which tells of the others.
        told = self.command.run("network", "inspect", *names, check=False).stdout
        return [
            NetworkRecord(
                # docker's keys, and podman's.
                name=str(raw.get("Name") or raw.get("name")),
                labels=dict(raw.get("Labels") or raw.get("labels") or {}),
            )
            for raw in parse_list(told)
        ]

    def remove_network(self, name: str) -> None:
        for attempt in range(_NETWORK_TRIES):
            result = self.command.run("network", "rm", name, check=False)
            said = result.stderr.lower()
            if result.exit_code == 0 or "not found" in said or "no such network" in said:
                return
            if "active endpoints" not in said and "associated containers" not in said:
                break
            if attempt < _NETWORK_TRIES - 1:
                time.sleep(_NETWORK_PAUSE)
        raise EngineCommandError(
            f"{self.name} could not remove the network {name}: {last_lines(result.stderr)}",
            remedy=f"Remove it by hand: `{self.command} network rm {name}`.",
            exit_code=result.exit_code,
            stderr=result.stderr,
        )

    def remove_network_command(self, name: str) -> tuple[str, ...]:
        return (*self.command.argv, "network", "rm", name)

    def find(self, labels: Mapping[str, str]) -> list[ContainerRecord]:
        filters = _label_filters(labels)
        output = self.command.run("ps", "--all", "--no-trunc", *filters, self._ps_format).stdout
        return self._parse_records(output)

    # Arguments

    def _run_args(self, spec: ContainerSpec) -> list[str]:
        info = self.info()
        args = [
            "run",
            "--interactive",
            "--rm",
            # Without this a missing image is pulled here, silently and for as long as it takes.
            "--pull=never",
            f"--name={spec.name}",
            f"--workdir={spec.workdir}",
            f"--entrypoint={spec.command[0]}",
            # Model-written code needs no privilege whatever; what a container gets by default
            # (raw sockets, chown, setuid, …) is what escapes are made of.
            "--cap-drop=ALL",
            "--security-opt=no-new-privileges",
            # What goes over the pipe is nobody else's: engines write it to a file, all of it, which
            # holds what may be secret and which a container fills as it likes.
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
        args += limit_args(spec)
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


def _label_filters(labels: Mapping[str, str]) -> list[str]:
    return [
        f"--filter=label={key}" + (f"={value}" if value else "") for key, value in labels.items()
    ]


def parse_version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: ``"20.10.24+dfsg1"`` is ``(20, 10, 24)``."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in match.group().split(".")) if match else (0,)


def parse_info(output: str, engine: str) -> dict[str, Any]:
    """The JSON that ``info --format=json`` printed.

    Raises:
        ContainersError: it is not JSON.
    """
    try:
        parsed = json.loads(output)
        if isinstance(parsed, dict):
            return parsed
    except ValueError:
        pass
    raise ContainersError(
        f"{engine} answered `info` with something that is not JSON: {output[:80]!r}",
        remedy="Is the program really a Docker-compatible command line?",
    )


def first_gateway(pools: list[dict[str, Any]], key: str) -> str | None:
    """The first IPv4 gateway of some address pools."""
    for pool in pools:
        gateway = str(pool.get(key) or "")
        if gateway and ":" not in gateway:
            return gateway
    return None


def _mount_arg(mount: Mount, *, selinux: bool) -> str:
    if selinux:
        # docker's --mount has no way to ask for a label.
        access, label = "ro" if mount.read_only else "rw", "z" if mount.shared else "Z"
        return f"--volume={mount.source}:{mount.target}:{access},{label}"
    # Unlike --volume this refuses a source that does not exist. docker would make the directory,
    # also one that has just been cleaned up after a host that died.
    access = ",readonly" if mount.read_only else ""
    return f"--mount=type=bind,source={mount.source},target={mount.target}{access}"
