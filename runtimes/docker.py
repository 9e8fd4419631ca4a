"""Docker: the engine behind the ``docker`` command line."""

from __future__ import annotations

import json
import os
from ipaddress import IPv4Network
from typing import Any

from runtimes.base import ContainerRecord, EngineInfo, HostRoute
from runtimes.engine import (
    ContainerEngine,
    first_gateway,
    parse_info,
    parse_list,
    parse_version,
)
from runtimes.errors import EngineUnavailableError, UnsupportedByEngineError
from runtimes.spec import ContainerSpec

__all__ = ["DockerRuntime"]

# `run --pull=never` and the options used here are there from this version on.
MINIMUM = (20, 10)


class DockerRuntime(ContainerEngine):
    """Containers on a Docker engine, rootful or rootless, local or in Docker Desktop."""

    name = "docker"
    _ps_format = "--format={{json .}}"  # "json" alone is a format from 23.0 on
    _desktop = False

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
        return EngineInfo(
            engine=self.name,
            version=version,
            rootless=any("name=rootless" in option for option in security),
            cgroup_version=2 if str(raw.get("CgroupVersion")) == "2" else 1,
            selinux=any("name=selinux" in option for option in security),
            remote=self._endpoint(raw).startswith(("tcp:", "ssh:", "http:", "https:")),
            has_init=bool(raw.get("InitBinary")),
        )

    def _endpoint(self, raw: dict[str, Any]) -> str:
        host = os.environ.get("DOCKER_HOST", "")
        context = str((raw.get("ClientInfo") or {}).get("Context") or "default")
        if host or context == "default":
            return host
        found = self.command.run(
            "context", "inspect", context, "--format={{.Endpoints.docker.Host}}", check=False
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
        return [f"--user={spec.user or ':'.join(map(str, self.workspace_user()))}"]

    def workspace_user(self) -> tuple[int, int]:
        if self.info().rootless:
            return 0, 0  # uid 0 in its user namespace is the caller outside
        return unprivileged_user()

    def _qualify(self, image: str) -> str:
        return image

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
