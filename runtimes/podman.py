"""Podman: containers without a daemon, rootful or rootless."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtimes.base import ContainerRecord, EngineInfo, HostRoute
from runtimes.docker import unprivileged_user
from runtimes.engine import (
    ContainerEngine,
    first_gateway,
    parse_info,
    parse_list,
    parse_version,
)
from runtimes.errors import EngineUnavailableError, UnsupportedByEngineError
from runtimes.spec import ContainerSpec

__all__ = ["PodmanRuntime"]

# `rm --time` came with 4.0, and with it the rootless network that DESIGN's route relies on.
MINIMUM = (4, 0)

#: The address by which a slirp4netns network reaches the host's loopback (slirp4netns(1)).
SLIRP_HOST = "10.0.2.2"
#: The address that pasta is told to map to the host's loopback; podman's own is 169.254.1.2.
PASTA_HOST = "169.254.1.3"

# Where distributions put podman's init. Podman looks there itself and fails when none is there.
_INIT_PATHS = (
    "/usr/libexec/podman/catatonit",
    "/usr/local/libexec/podman/catatonit",
    "/usr/lib/podman/catatonit",
    "/usr/bin/catatonit",
)


class PodmanRuntime(ContainerEngine):
    """Containers through Podman 4.0 and later."""

    name = "podman"
    _slirp = True

    def _ask_info(self) -> EngineInfo:
        result = self.command.run("info", "--format=json", check=False)
        if result.exit_code != 0:
            raise EngineUnavailableError(
                f"The program `{self.command}` is here, but Podman does not work behind it: "
                f"{result.stderr.strip() or 'it said nothing'}",
                remedy="`podman info` should answer: see its message, `podman machine start` "
                "on a Mac, `podman system migrate` after a change of /etc/subuid.",
            )
        raw = parse_info(result.stdout, self.name)
        host: Mapping[str, Any] = raw.get("host") or {}
        security: Mapping[str, Any] = host.get("security") or {}
        version_text = str((raw.get("version") or {}).get("Version", ""))
        version = parse_version(version_text)
        if version < MINIMUM:
            raise UnsupportedByEngineError(
                f"Podman is version {version_text or 'unknown'}; "
                f"the oldest that works here is {'.'.join(map(str, MINIMUM))}.",
                remedy="Upgrade it, or use Docker.",
            )
        # Until 5.0 a rootless network is slirp4netns unless configured otherwise; from 6.0 on
        # slirp4netns is gone. In between podman says which one it is.
        backend = str(host.get("rootlessNetworkCmd") or "")
        self._slirp = backend == "slirp4netns" if backend else version < (5, 0)
        remote = bool(host.get("serviceIsRemote"))
        return EngineInfo(
            engine=self.name,
            version=version,
            rootless=bool(security.get("rootless")),
            cgroup_version=2 if str(host.get("cgroupVersion")) == "v2" else 1,
            selinux=bool(security.get("selinuxEnabled")),
            remote=remote,
            has_init=remote or any(Path(path).exists() for path in _INIT_PATHS),
        )

    def _find_host_route(self) -> HostRoute | None:
        info = self.info()
        if info.remote:
            return None
        if info.rootless:
            return HostRoute(bind="127.0.0.1", address=SLIRP_HOST if self._slirp else PASTA_HOST)
        found = self.command.run("network", "inspect", "podman", check=False)
        if found.exit_code != 0:
            return None
        gateway = first_gateway(_pools(parse_list(found.stdout)), "gateway")
        if gateway is None:
            return None
        # The bridge has this address only while a container is on it.
        return HostRoute(bind=gateway, address=gateway, needs_container=True)

    def _engine_args(self, spec: ContainerSpec) -> list[str]:
        info = self.info()
        args = []
        if spec.user:
            args.append(f"--user={spec.user}")
        elif not info.rootless:
            args.append(f"--user={':'.join(map(str, unprivileged_user()))}")
        elif info.version >= (4, 3):
            # An unprivileged user inside that is the caller outside, so that files in the
            # workspace are the caller's. Before 4.3 only root inside can be that.
            args += ["--userns=keep-id:uid=65534,gid=65534", "--user=65534:65534"]
        if spec.network != "none" and spec.host_alias and info.rootless and not info.remote:
            args.append(
                "--network=slirp4netns:allow_host_loopback=true"
                if self._slirp
                else f"--network=pasta:--map-host-loopback={PASTA_HOST}"
            )
        return args

    def workspace_user(self) -> tuple[int, int]:
        if self.info().rootless:
            return os.getuid(), os.getgid()
        return unprivileged_user()

    def remove_command(self, name: str) -> tuple[str, ...]:
        # --time 0: else a PID 1 that ignores SIGTERM is waited for, ten seconds.
        return (*self.command.argv, "rm", "--force", "--time=0", "--volumes", name)

    def _qualify(self, image: str) -> str:
        """Docker's rule for short names, which podman would ask a terminal about."""
        first, slash, _ = image.partition("/")
        if not slash:
            return f"docker.io/library/{image}"
        if re.search(r"[.:]", first) or first == "localhost":
            return image
        return f"docker.io/{image}"

    def _parse_records(self, output: str) -> list[ContainerRecord]:
        return [
            ContainerRecord(
                id=raw["Id"],
                name=raw["Names"][0],
                image=raw["Image"],
                running=raw["State"] == "running",
                labels=dict(raw.get("Labels") or {}),
            )
            for raw in json.loads(output or "[]") or ()
        ]


def _pools(networks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The address pools of ``podman network inspect``, in netavark's form or in CNI's."""
    pools: list[dict[str, Any]] = []
    for network in networks:
        pools += network.get("subnets") or ()
        for plugin in network.get("plugins") or ():
            for group in (plugin.get("ipam") or {}).get("ranges") or ():
                pools += group
    return pools
