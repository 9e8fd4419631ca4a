"""Podman: containers without a daemon, rootful or rootless."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from runtimes.base import ContainerRecord, EngineInfo
from runtimes.builder import FILES, Builder
from runtimes.docker import rootful_owner
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
from runtimes.images import parse_list
from runtimes.limits import CONTROLLERS, no_disk_limit, unenforced_limits, whole_number
from runtimes.network import HostRoute, InternalNetwork
from runtimes.spec import BuildSpec, ContainerSpec, GpuRequest

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

# The first version whose `--userns=keep-id` takes ids.
_KEEP_ID = (4, 3)

#: How many subnets are tried for a network: another may use them.
_SUBNET_TRIES = 5


class PodmanRuntime(ContainerEngine):
    """Containers through Podman 4.0 and later."""

    name = "podman"
    _slirp = True
    _netavark = True
    # Else the image's directory is copied into it, by way of the host's /tmp, which not every
    # user may write to: then no container starts.
    _tmpfs_extra = ",notmpcopyup"

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
        self._netavark = str(host.get("networkBackend") or "netavark") == "netavark"
        remote = bool(host.get("serviceIsRemote"))
        rootless = bool(security.get("rootless"))
        cgroup_version = 2 if str(host.get("cgroupVersion")) == "v2" else 1
        controllers = host.get("cgroupControllers")
        store: Mapping[str, Any] = raw.get("store") or {}
        backing = str((store.get("graphStatus") or {}).get("Backing Filesystem") or "")
        return EngineInfo(
            engine=self.name,
            version=version,
            rootless=rootless,
            cgroup_version=cgroup_version,
            selinux=bool(security.get("selinuxEnabled")),
            remote=remote,
            has_init=remote or any(Path(path).exists() for path in _INIT_PATHS),
            memory=whole_number(host.get("memTotal")),
            cpus=whole_number(host.get("cpus")),
            unenforced=unenforced_limits(
                CONTROLLERS.values() if controllers is None else map(str, controllers),
                rootless=rootless,
                cgroup_version=cgroup_version,
            ),
            no_disk_limit=(
                "it runs without root"
                if rootless
                else no_disk_limit(str(store.get("graphDriverName") or ""), backing)
            ),
            store=str((raw.get("store") or {}).get("graphRoot") or ""),
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
        if spec.read_only:
            # Else podman adds directories in memory that have no bound.
            args.append("--read-only-tmpfs=false")
        if not info.rootless:
            args.append(f"--user={spec.user or ':'.join(map(str, self.workspace_user()))}")
        elif info.version >= _KEEP_ID:
            # An unprivileged user inside that is the caller outside, so that files in the
            # workspace are the caller's. Before 4.3 only root inside can be that.
            uid, _, gid = (spec.user or "65534:65534").partition(":")
            if uid != "0":
                args.append(f"--userns=keep-id:uid={uid},gid={gid}")
            args.append(f"--user={uid}:{gid}")
        elif spec.user:
            args.append(f"--user={spec.user}")
        if spec.gpus is not None:
            args += [f"--device=nvidia.com/gpu={name}" for name in _gpu_names(spec.gpus)]
        if (
            spec.network != "none"
            and spec.host_alias
            and info.rootless
            and not info.remote
            # Podman takes one network of this kind only.
            and not any(arg.startswith(("--network", "--net")) for arg in spec.extra_args)
        ):
            args.append(
                "--network=slirp4netns:allow_host_loopback=true"
                if self._slirp
                else f"--network=pasta:--map-host-loopback={PASTA_HOST}"
            )
        return args

    def workspace_user(self, user: tuple[int, int] | None = None) -> tuple[int, int]:
        info = self.info()
        if not info.rootless:
            return rootful_owner(self.name, user)
        if user is not None and user[0] != 0 and info.version < _KEEP_ID:
            raise UnsupportedByEngineError(
                f"On rootless Podman {info.version_text} the user {user[0]} cannot write to the "
                "workspace: before 4.3 only root inside is this process's user outside.",
                remedy="Leave the user to this library, or upgrade Podman.",
            )
        return os.getuid(), os.getgid()

    def check_internal_network(self) -> None:
        info = self.info()
        if info.remote:
            why = "it runs on another machine"
        elif info.rootless:
            # Its bridges are in a network namespace of its own; what leads from there to this host,
            # slirp4netns and pasta, leads everywhere.
            why = "without root its networks either lead everywhere or do not reach this host"
        elif not self._netavark:
            why = "with CNI an internal bridge has no address; it takes netavark"
        else:
            return
        raise UnsupportedByEngineError(
            f"Podman has no network here that leads to this host and nowhere else: {why}.",
            remedy='Use network="none": llm_query() goes over the container\'s pipe then.',
        )

    def make_internal_network(self, name: str, labels: Mapping[str, str]) -> InternalNetwork:
        self.check_internal_network()
        arguments = (
            "network",
            "create",
            "--driver=bridge",
            "--internal",
            "--disable-dns",
            *(f"--label={key}={value}" for key, value in labels.items()),
        )
        for attempt in range(_SUBNET_TRIES):
            # Podman gives the bridge of an internal network no address unless it is told which.
            prefix = f"10.{128 + secrets.randbelow(128)}.{secrets.randbelow(256)}"
            made = self.command.run(
                *arguments,
                f"--subnet={prefix}.0/24",
                f"--gateway={prefix}.1",
                name,
                check=attempt == _SUBNET_TRIES - 1,
            )
            if made.exit_code == 0:
                break
            if "already" not in made.stderr:
                raise EngineCommandError(
                    f"{self.name} could not make a network: {made.stderr.strip()}",
                    remedy='Use network="none": llm_query() goes over the container\'s pipe then.',
                    exit_code=made.exit_code,
                    stderr=made.stderr,
                )
        route = HostRoute(bind=f"{prefix}.1", address=f"{prefix}.1", needs_container=True)
        return InternalNetwork(name=name, route=route)

    def ran_out_of_memory(self, name: str, since: float, directory: Path | None) -> bool | None:
        # Podman's monitor makes this file where its client was called, and leaves it alone the next
        # time. The container can make one, too: nothing but the wording of an error is up to it.
        if directory is None:
            return None
        try:
            found = os.stat(directory / "oom", follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError:
            return None
        return True if found.st_mtime >= since else None

    def remove_command(self, name: str) -> tuple[str, ...]:
        # --time 0: else a PID 1 that ignores SIGTERM is waited for, ten seconds.
        return (*self.command.argv, "rm", "--force", "--time=0", "--volumes", name)

    # In Podman's own form; the OCI's is unknown to docker before 25.
    _save_args = ("--format=docker-archive",)

    def build(self, spec: BuildSpec, on_line: Callable[[str], None] | None = None) -> None:
        # It passes the proxies on by itself, and keeps them out of the image. One layer: without
        # --layers=false every step's image would stay in the store.
        builder = Builder(args=("--layers=false", "--pull=missing"))
        if spec.script and self.info().selinux:
            # A mount of RUN's gets no label, and the step could not read it.
            volume = f"--volume={spec.context}:{FILES}:ro,z"
            builder = replace(builder, args=(*builder.args, volume), bind="")
        if not spec.base:
            self._build(spec, on_line, builder)
            return
        # A build that is interrupted leaves its container, which has no label and is named after
        # the image that it stands on. So that image gets a name for this build alone.
        base = f"localhost/rlm-build-{secrets.token_hex(6)}"
        self.command.run("tag", self._names.get(spec.base, spec.base), base)
        try:
            self._build(spec, on_line, replace(builder, base=base))
        except BaseException:
            self._remove_build(base.rpartition("/")[2])
            raise
        finally:
            self.command.run("untag", base, base, check=False)

    def _remove_build(self, name: str) -> None:
        listed = self.command.run(
            "ps",
            "--all",
            "--external",
            "--quiet",
            "--no-trunc",
            f"--filter=name={name}",
            check=False,
        )
        for container in listed.stdout.split():
            self.command.run("rm", "--force", container, check=False)

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


def _gpu_names(gpus: GpuRequest) -> tuple[str, ...]:
    """The names of devices in the specification that NVIDIA's toolkit makes (CDI)."""
    if gpus.ids:
        return gpus.ids
    return ("all",) if gpus.count is None else tuple(map(str, range(gpus.count)))


def _pools(networks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The address pools of ``podman network inspect``, in netavark's form or in CNI's."""
    pools: list[dict[str, Any]] = []
    for network in networks:
        pools += network.get("subnets") or ()
        for plugin in network.get("plugins") or ():
            for group in (plugin.get("ipam") or {}).get("ranges") or ():
                pools += group
    return pools
