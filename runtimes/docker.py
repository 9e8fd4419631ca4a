"""Docker: the engine behind the ``docker`` command line."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from runtimes.base import ContainerRecord, EngineInfo
from runtimes.builder import PROXIES, Builder
from runtimes.engine import (
    ContainerEngine,
    first_gateway,
    parse_info,
    parse_version,
)
from runtimes.errors import (
    EngineCommandError,
    EngineUnavailableError,
    UnsupportedByEngineError,
)
from runtimes.fileserver import serve_files
from runtimes.images import parse_list
from runtimes.limits import CONTROLLERS, no_disk_limit, unenforced_limits, whole_number
from runtimes.network import HostRoute, InternalNetwork
from runtimes.spec import BuildSpec, ContainerSpec, GpuRequest

# `run --pull=never` and the options used here are there from this version on.
MINIMUM = (20, 10)

# What `info` says of each limit. It is false where the engine would ignore it.
_LIMIT_KEYS = {"memory": "MemoryLimit", "cpus": "CpuCfsQuota", "pids": "PidsLimit"}

# Docker's resolver asks the host's name servers even for containers that have no way out: what
# they look up would get out all the same (CVE-2024-29018). These ask nobody, and fail in a second.
_NO_NAMES = ("--dns=127.0.0.1", "--dns-option=timeout:1", "--dns-option=attempts:1")


class DockerRuntime(ContainerEngine):
    """Containers on a Docker engine, rootful or rootless, local or in Docker Desktop."""

    name = "docker"
    _ps_format = "--format={{json .}}"  # "json" alone is a format from 23.0 on
    _desktop = False
    _context = "default"
    _buildkit: bool | None = None

    def _ask_info(self) -> EngineInfo:
        result = self.command.run("info", "--format={{json .}}", check=False)
        # Without an engine some versions of the client still print JSON, and end with status 0.
        refusal = _refusal(result.stdout, result.stderr, result.exit_code)
        if refusal:
            raise EngineUnavailableError(
                f"The program `{self.command}` is here, but no Docker engine answers behind it: "
                f"{refusal}",
                remedy="Start the engine (`systemctl start docker`, Docker Desktop, or `dockerd`), "
                "check DOCKER_HOST, or use another runtime.",
            )
        raw = parse_info(result.stdout, self.name)
        version = parse_version(str(raw.get("ServerVersion", "")))
        if version < MINIMUM:
            raise UnsupportedByEngineError(
                f"The Docker engine is version {raw.get('ServerVersion')}; "
                f"the oldest that works here is {'.'.join(map(str, MINIMUM))}.",
                remedy="Upgrade it, or use Podman.",
            )
        security = [str(option) for option in raw.get("SecurityOptions") or ()]
        self._desktop = "Docker Desktop" in str(raw.get("OperatingSystem", ""))
        rootless = any("name=rootless" in option for option in security)
        cgroup_version = 2 if str(raw.get("CgroupVersion")) == "2" else 1
        return EngineInfo(
            engine=self.name,
            version=version,
            rootless=rootless,
            cgroup_version=cgroup_version,
            selinux=any("name=selinux" in option for option in security),
            remote=self._endpoint(raw).startswith(("tcp:", "ssh:", "http:", "https:")),
            has_init=bool(raw.get("InitBinary")),
            memory=whole_number(raw.get("MemTotal")),
            cpus=whole_number(raw.get("NCPU")),
            unenforced=unenforced_limits(
                [CONTROLLERS[limit] for limit, key in _LIMIT_KEYS.items() if raw.get(key, True)],
                rootless=rootless,
                cgroup_version=cgroup_version,
            ),
            no_disk_limit=no_disk_limit(str(raw.get("Driver") or ""), _backing(raw)),
            store=str(raw.get("ID") or ""),
        )

    def _endpoint(self, raw: dict[str, Any]) -> str:
        host = os.environ.get("DOCKER_HOST", "")
        self._context = str((raw.get("ClientInfo") or {}).get("Context") or "default")
        if host or self._context == "default":
            return host
        found = self.command.run(
            "context", "inspect", self._context, "--format={{.Endpoints.docker.Host}}", check=False
        )
        return found.stdout.strip()

    def _find_host_route(self) -> HostRoute | None:
        info = self.info()
        if self._desktop:
            # Desktop's own resolver knows host.docker.internal and leads to the host's loopback.
            return HostRoute(bind="127.0.0.1", address=None)
        if info.remote or info.rootless:
            # Rootless: the network's helper process blocks the way to the host by default
            # (--disable-host-loopback), https://docs.docker.com/engine/security/rootless/.
            return None
        found = self.command.run(
            "network", "inspect", "bridge", "--format={{json .IPAM.Config}}", check=False
        )
        if found.exit_code != 0:
            return None
        pools = parse_list(found.stdout)
        # docker0 has its address as long as dockerd runs, with or without containers. A daemon that
        # has made it itself does not name it before its first restart: it is the subnet's first.
        gateway = first_gateway(pools, "Gateway") or _first_address(pools)
        return HostRoute(bind=gateway, address=gateway) if gateway else None

    def _engine_args(self, spec: ContainerSpec) -> list[str]:
        args = [f"--user={spec.user or ':'.join(map(str, self.workspace_user()))}"]
        if isinstance(spec.network, InternalNetwork):
            args += _NO_NAMES
        if spec.gpus is not None:
            args.append(f"--gpus={_gpu_value(spec.gpus)}")
        return args

    def workspace_user(self, user: tuple[int, int] | None = None) -> tuple[int, int]:
        if not self.info().rootless:
            return rootful_owner(self.name, user)
        if user is not None and user[0] != 0:
            raise UnsupportedByEngineError(
                f"On rootless Docker the user {user[0]} cannot write to the workspace: only root "
                "inside is this process's user outside.",
                remedy="Leave the user to this library, or use rootless Podman 4.3 or later.",
            )
        return 0, 0  # uid 0 in its user namespace is the caller outside

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
            # Sandboxes have no business with each other.
            "--opt=com.docker.network.bridge.enable_icc=false",
            *(f"--label={key}={value}" for key, value in labels.items()),
            name,
        )
        found = self.command.run("network", "inspect", name, "--format={{json .IPAM.Config}}")
        pools = parse_list(found.stdout)
        # The bridge of an internal network has its address as others have: only what leads on from
        # there is closed.
        gateway = first_gateway(pools, "Gateway") or _first_address(pools)
        if gateway is None:
            raise EngineCommandError(
                f"{self.name} gave the network {name} no address: {found.stdout[:200]}"
            )
        return InternalNetwork(name=name, route=HostRoute(bind=gateway, address=gateway))

    def ran_out_of_memory(self, name: str, since: float, directory: Path | None) -> bool | None:
        # The engine remembers its last events, also of containers that are gone.
        found = self.command.run(
            "events",
            f"--since={since:.9f}",
            f"--until={time.time():.9f}",
            f"--filter=container={name}",
            "--filter=event=oom",
            "--format={{.ID}}",
            check=False,
        )
        return bool(found.stdout.strip()) if found.exit_code == 0 else None

    def _qualify(self, image: str) -> str:
        return image

    def build(self, spec: BuildSpec, on_line: Callable[[str], None] | None = None) -> None:
        # With a name alone the client takes the value from its environment. The engine keeps these
        # variables, and only these, out of the image and its history.
        proxies = [f"--build-arg={name}" for name in PROXIES if os.environ.get(name)]
        if self._has_buildkit():
            environment = {
                "DOCKER_BUILDKIT": "1",
                # The builder that has this engine's images, whichever one was chosen last.
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
        with serve_files(self, spec) as served:
            args = (*builder.args, *served.args)
            builder = replace(builder, args=args, prologue=served.prologue, context=served.context)
            self._build(spec, on_line, builder)

    def _has_buildkit(self) -> bool:
        """Whether the client can build with BuildKit, which knows secrets and mounts."""
        if self._buildkit is None:
            plugin = self.command.run("buildx", "version", check=False)
            if plugin.exit_code == 0:
                self._buildkit = True
            else:
                # Until 23.0 the client had it built in; from then on it needs the plugin.
                found = self.command.run("version", "--format={{.Client.Version}}", check=False)
                version = parse_version(found.stdout.strip())
                self._buildkit = (18, 9) <= version < (23,)
        return self._buildkit

    def _parse_records(self, output: str) -> list[ContainerRecord]:
        records = []
        for line in output.splitlines():
            raw = json.loads(line)
            pairs = (label.partition("=") for label in raw["Labels"].split(",") if label)
            records.append(
                ContainerRecord(
                    id=raw["ID"],
                    name=raw["Names"],
                    image=raw["Image"],
                    running=raw["State"] == "running",
                    labels={key: value for key, _, value in pairs},
                )
            )
        return records


def _first_address(pools: list[dict[str, Any]]) -> str | None:
    """The first address of the first IPv4 subnet: what Docker gives to a bridge of its own."""
    for pool in pools:
        try:
            return str(IPv4Network(str(pool.get("Subnet")))[1])
        except (ValueError, IndexError):
            continue
    return None


def _backing(raw: Mapping[str, Any]) -> str:
    """The file system below the storage driver, from ``info``'s list of pairs."""
    for pair in raw.get("DriverStatus") or ():
        if isinstance(pair, list) and len(pair) == 2 and pair[0] == "Backing Filesystem":
            return str(pair[1])
    return ""


def _gpu_value(gpus: GpuRequest) -> str:
    if gpus.ids:
        # A list of comma-separated fields, in which this is one.
        return '"device=' + ",".join(gpus.ids) + '"'
    return "all" if gpus.count is None else str(gpus.count)


def rootful_owner(engine: str, user: tuple[int, int] | None) -> tuple[int, int]:
    """Who must own a workspace where ids inside are the same outside.

    Raises:
        UnsupportedByEngineError: that is neither this process's user nor one that it can give the
            directory to.
    """
    if user is None:
        return unprivileged_user()
    if os.getuid() not in (0, user[0]):
        raise UnsupportedByEngineError(
            f"On {engine} with root the user {user[0]} cannot write to the workspace, which "
            f"belongs to this process's user, {os.getuid()}.",
            remedy=f'Use user="{os.getuid()}", or rootless Podman 4.3 or later.',
        )
    return user


def unprivileged_user() -> tuple[int, int]:
    """The caller's own ids, so that what the container writes is the caller's; root's never."""
    if os.getuid() == 0:
        return 65534, 65534  # nobody and nogroup, on every Linux
    return os.getuid(), os.getgid()


def _refusal(stdout: str, stderr: str, exit_code: int) -> str | None:
    """Why there is no engine behind ``docker info``, or ``None`` if there is one."""
    try:
        errors = json.loads(stdout).get("ServerErrors")
    except (ValueError, AttributeError):
        errors = None
    if errors:
        return str(errors[0])
    if exit_code != 0:
        return stderr.strip() or "it said nothing"
    return None
