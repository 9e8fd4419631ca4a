"""Docker: the engine behind the ``docker`` command line."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from runtimes.base import ContainerRecord, EngineInfo
from runtimes.build import PROXY_VARIABLES, Builder, serve_files
from runtimes.command import CommandResult
from runtimes.engine import (
    CONTROLLERS,
    REMOVE_TIMEOUT,
    ContainerEngine,
    check_version,
    first_gateway,
    no_disk_limit,
    parse_info,
    parse_version,
    positive_number,
    rootful_ids,
    tmpfs_arg,
    unenforced_limits,
)
from runtimes.errors import (
    ContainersError,
    EngineCommandError,
    EngineUnavailableError,
    UnsupportedByEngineError,
)
from runtimes.spec import (
    BuildSpec,
    ContainerSpec,
    GpuRequest,
    HostRoute,
    InternalNetwork,
    OwnDirectory,
)

# The first version with `run --pull=never` and the other options used here.
MINIMUM = (20, 10)

# The key of `info` for each limit. It is false if the engine would ignore the limit.
_LIMIT_KEYS = {"memory": "MemoryLimit", "cpus": "CpuCfsQuota", "pids": "PidsLimit"}

# Docker's resolver asks the host's name servers even for containers that have no way out, so that
# their look-ups would leak data (CVE-2024-29018). With these options look-ups fail within a second.
_NO_NAMES = ("--dns=127.0.0.1", "--dns-option=timeout:1", "--dns-option=attempts:1")


class PodmanAnswersError(ContainersError):
    """The program ``docker`` is the shim of the package podman-docker."""


class DockerRuntime(ContainerEngine):
    """Containers on a Docker engine, rootful or rootless, local or in Docker Desktop."""

    name = "docker"
    _ps_format = "--format={{json .}}"  # "json" alone is a format from 23.0 on
    _desktop = False
    _context = "default"
    _buildkit: bool | None = None

    def _ask_info(self) -> EngineInfo:
        result = self.command.run("info", "--format={{json .}}", check=False)
        refusal = _refusal(result)
        if refusal:
            raise EngineUnavailableError(
                f"The program `{self.command}` is here, but no Docker engine answers behind it: "
                f"{refusal}",
                remedy="Start the engine (`systemctl start docker`, Docker Desktop, or `dockerd`), "
                "check DOCKER_HOST, or use another runtime.",
            )
        raw = parse_info(result)
        if "host" in raw and "ServerVersion" not in raw:
            raise PodmanAnswersError(
                f"The program `{self.command}` is Podman's.", remedy='Use runtime="podman".'
            )
        version_text = str(raw.get("ServerVersion", ""))
        version = check_version(version_text, minimum=MINIMUM, engine="Docker", other="Podman")
        security = [str(option) for option in raw.get("SecurityOptions") or ()]
        self._desktop = "Docker Desktop" in str(raw.get("OperatingSystem", ""))
        rootless = any("name=rootless" in option for option in security)
        cgroup_version = 2 if str(raw.get("CgroupVersion")) == "2" else 1
        remote = self._endpoint(raw).startswith(("tcp:", "ssh:", "http:", "https:"))
        selinux = any("name=selinux" in option for option in security)
        if remote and selinux:
            # Do not try it: --volume, which sets the label, makes on that machine what is missing.
            self.shares_files = False
        return EngineInfo(
            engine=self.name,
            version=version,
            rootless=rootless,
            cgroup_version=cgroup_version,
            selinux=selinux,
            remote=remote,
            has_init=bool(raw.get("InitBinary")),
            memory=positive_number(raw.get("MemTotal")),
            cpus=positive_number(raw.get("NCPU")),
            unenforced=unenforced_limits(
                [CONTROLLERS[limit] for limit, key in _LIMIT_KEYS.items() if raw.get(key, True)],
                rootless=rootless,
                cgroup_version=cgroup_version,
            ),
            no_disk_limit=no_disk_limit(str(raw.get("Driver") or ""), _backing(raw)),
            store=str(raw.get("ID") or ""),
        )

    def _endpoint(self, raw: dict[str, Any]) -> str:
        self._context = str((raw.get("ClientInfo") or {}).get("Context") or "default")
        if self._context == "default":  # also where an argument or the variable names an endpoint
            return _named_host(self.command.argv[1:]) or os.environ.get("DOCKER_HOST", "")
        found = self.command.run(
            "context", "inspect", self._context, "--format={{.Endpoints.docker.Host}}", check=False
        )
        return found.stdout.strip()

    def _find_host_route(self) -> HostRoute | None:
        info = self.info()
        if self._desktop:
            # Desktop's resolver knows host.docker.internal, which leads to the host's loopback.
            return HostRoute(bind="127.0.0.1", address=None)
        if info.remote or info.rootless:
            # Rootless: the network's helper process blocks the way to the host by default
            # (--disable-host-loopback), https://docs.docker.com/engine/security/rootless/.
            return None
        # docker0 has its address as long as dockerd runs, with or without containers.
        return self._bridge_route("bridge")

    def _bridge_route(self, network: str) -> HostRoute | None:
        """Return the route to this host's address on a bridge."""
        pools = self._inspect_network(network, "--format={{json .IPAM.Config}}")
        # A daemon does not name the gateway of a bridge that it has made itself before its first
        # restart. It is the subnet's first address.
        gateway = first_gateway(pools, "Gateway") or _first_address(pools)
        return HostRoute(bind=gateway, address=gateway) if gateway else None

    def _engine_args(self, spec: ContainerSpec) -> list[str]:
        args = [f"--user={self._user(spec)}"]
        if isinstance(spec.network, InternalNetwork):
            args += _NO_NAMES
        if spec.gpus is not None:
            args.append(f"--gpus={_gpu_value(spec.gpus)}")
        return args

    def _user(self, spec: ContainerSpec) -> str:
        return spec.user or ":".join(map(str, self.workspace_user()))

    def volume_instructions(self, target: str) -> str:
        # A new volume has the owner and the mode of the image's directory there, else root's.
        return f"USER root\nRUN mkdir -p {target} && chmod 1777 {target}\n"

    def _directory_arg(self, directory: OwnDirectory, spec: ContainerSpec) -> str:
        if directory.kind == "volume":
            return f"--mount=type=volume,target={directory.target}"
        uid, _, gid = self._user(spec).partition(":")
        return tmpfs_arg(directory, "mode=0700", f"uid={uid}", f"gid={gid}")

    def workspace_user(self, user: tuple[int, int] | None = None) -> tuple[int, int]:
        if not self.info().rootless:
            return rootful_ids(self.name, user)
        if user is not None and user[0] != 0:
            raise UnsupportedByEngineError(
                f"On rootless Docker the user {user[0]} cannot write to the workspace: only root "
                "inside is this process's user outside.",
                remedy="Leave the user to this library, or use rootless Podman 4.3 or later.",
            )
        return 0, 0  # root in the user namespace is the caller outside

    def check_internal_network(self) -> None:
        info = self.info()
        if self._desktop or info.remote or info.rootless:
            where = "without root" if info.rootless else "on another machine"
            raise UnsupportedByEngineError(
                f"No network of this Docker engine leads to this host: it runs {where}.",
                remedy='Use network="none": llm_query() goes over the container\'s pipe then.',
            )

    def make_internal_network(self, name: str, labels: Mapping[str, str]) -> InternalNetwork:
        self.check_internal_network()
        self.command.run(
            "network",
            "create",
            "--driver=bridge",
            "--internal",
            # Sandboxes must not reach each other.
            "--opt=com.docker.network.bridge.enable_icc=false",
            *(f"--label={key}={value}" for key, value in labels.items()),
            name,
        )
        # The bridge of an internal network has an address like others; only the way on is closed.
        route = self._bridge_route(name)
        if route is None:
            raise EngineCommandError(f"{self.name} gave the network {name} no IPv4 address.")
        return InternalNetwork(name=name, route=route)

    def ran_out_of_memory(self, name: str, since: float, directory: Path | None) -> bool | None:
        # The engine keeps its last events, even of containers that are gone.
        found = self.command.run(
            "events",
            f"--since={since:.9f}",
            f"--until={time.time():.9f}",
            f"--filter=container={name}",
            "--filter=event=oom",
            "--format={{.ID}}",
            timeout=REMOVE_TIMEOUT,  # somebody waits to be told how it ended
            check=False,
        )
        return bool(found.stdout.strip()) if found.exit_code == 0 else None

    def _past_exits(self) -> tuple[str, ...]:
        until = f"--until={time.time():.9f}"
        return until, "--filter=event=die", "--format={{.Actor.Attributes.exitCode}}"

    def _qualify(self, image: str) -> str:
        return image

    def build(self, spec: BuildSpec, on_line: Callable[[str], None] | None = None) -> None:
        # Given a name alone, the client takes the value from its environment. The engine keeps
        # these variables, and only these, out of the image and its history.
        proxies = [f"--build-arg={name}" for name in PROXY_VARIABLES if os.environ.get(name)]
        if self._has_buildkit():
            environment = {
                "DOCKER_BUILDKIT": "1",
                # The builder of this engine, which has its images, and not the last one chosen.
                "BUILDX_BUILDER": "default" if os.environ.get("DOCKER_HOST") else self._context,
                "BUILDX_NO_DEFAULT_ATTESTATIONS": "1",
            }
            args = ("--progress=plain", *proxies)
            self._build(spec, on_line, Builder(args=args, environment=environment))
            return
        builder = Builder(
            args=("--force-rm", *proxies), environment={"DOCKER_BUILDKIT": "0"}, mounts=False
        )
        if not spec.script:
            self._build(spec, on_line, builder)
            return
        with serve_files(self, spec, builder) as serving:
            self._build(spec, on_line, serving)

    def _has_buildkit(self) -> bool:
        """Tell whether the client can build with BuildKit, which knows secrets and mounts."""
        if self._buildkit is None:
            plugin = self.command.run("buildx", "version", check=False)
            if plugin.exit_code == 0:
                self._buildkit = True
            else:
                # Before 23.0 the client had it built in; since then it needs the plugin.
                found = self.command.run("version", "--format={{.Client.Version}}", check=False)
                version = parse_version(found.stdout.strip())
                self._buildkit = (18, 9) <= version < (23,)
        return self._buildkit

    def _container_record(self, raw: Mapping[str, Any]) -> ContainerRecord:
        pairs = (label.partition("=") for label in raw["Labels"].split(",") if label)
        return ContainerRecord(
            id=str(raw["ID"]),
            name=str(raw["Names"]),
            image=str(raw["Image"]),
            running=raw["State"] == "running",
            labels={key: value for key, _, value in pairs},
        )


def _named_host(arguments: Sequence[str]) -> str:
    """Return the endpoint that the arguments of the command line name, or nothing."""
    for argument, following in itertools.pairwise((*arguments, "")):
        if argument in ("-H", "--host"):
            return following
        if argument.startswith(("--host=", "-H")):
            return argument.removeprefix("--host=").removeprefix("-H").removeprefix("=")
    return ""


def _first_address(pools: list[dict[str, Any]]) -> str | None:
    """Return the first address of the first IPv4 subnet, which Docker gives to its bridges."""
    for pool in pools:
        try:
            return str(IPv4Network(str(pool.get("Subnet")))[1])
        except (ValueError, IndexError):
            continue
    return None


def _backing(raw: Mapping[str, Any]) -> str:
    """Return the file system below the storage driver, from ``info``'s list of pairs."""
    for pair in raw.get("DriverStatus") or ():
        if isinstance(pair, list) and len(pair) == 2 and pair[0] == "Backing Filesystem":
            return str(pair[1])
    return ""


def _gpu_value(gpus: GpuRequest) -> str:
    if gpus.ids:
        # The value is a list of fields separated by commas; the quotes make this one field.
        return '"device=' + ",".join(gpus.ids) + '"'
    return "all" if gpus.count is None else str(gpus.count)


def _refusal(result: CommandResult) -> str | None:
    """Say why there is no engine behind ``docker info``; ``None`` if there is one."""
    try:
        # Some versions of the client print JSON with these errors, and end with status 0.
        errors = parse_info(result).get("ServerErrors")
    except ContainersError:
        errors = None
    if errors:
        return str(errors[0])
    if result.exit_code != 0:
        return result.stderr.strip() or "it said nothing"
    return None
