"""Podman: containers without a daemon, rootful or rootless."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from runtimes.base import ContainerRecord, EngineInfo
from runtimes.build import MOUNTED_FILES, Builder
from runtimes.engine import (
    CONTROLLERS,
    ContainerEngine,
    check_version,
    first_gateway,
    no_disk_limit,
    parse_info,
    positive_number,
    rootful_ids,
    tmpfs_arg,
    unenforced_limits,
)
from runtimes.errors import (
    ContainerStartError,
    EngineUnavailableError,
    UnsupportedByEngineError,
)
from runtimes.images import read_labels
from runtimes.spec import (
    BuildSpec,
    ContainerSpec,
    GpuRequest,
    HostRoute,
    InternalNetwork,
    OwnDirectory,
)

# The first version with `rm --time`, and with the rootless network that the host route relies on.
MINIMUM = (4, 0)

#: The address by which a slirp4netns network reaches the host's loopback (slirp4netns(1)).
SLIRP_HOST = "10.0.2.2"
#: The address that pasta is told to map to the host's loopback; podman's own is 169.254.1.2.
PASTA_HOST = "169.254.1.3"

# Where distributions put podman's init, and where podman looks for it. It fails if there is none.
_INIT_PATHS = (
    "/usr/libexec/podman/catatonit",
    "/usr/local/libexec/podman/catatonit",
    "/usr/lib/podman/catatonit",
    "/usr/bin/catatonit",
)

# How it says that it has none.
_NO_INIT = "container-init binary not found"

# The first version whose `--userns=keep-id` accepts a UID and GID.
_KEEP_ID = (4, 3)

#: How many subnets to try for a network: each may be in use.
_SUBNET_TRIES = 5


class PodmanRuntime(ContainerEngine):
    """Containers through Podman 4.0 and later."""

    name = "podman"
    _slirp = True
    _netavark = True
    # Else podman copies the image's directory into it by way of the host's /tmp. If this user may
    # not write there, no container starts.
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
        raw = parse_info(result)
        host: Mapping[str, Any] = raw.get("host") or {}
        security: Mapping[str, Any] = host.get("security") or {}
        version_text = str((raw.get("version") or {}).get("Version", ""))
        version = check_version(version_text, minimum=MINIMUM, engine="Podman", other="Docker")
        # Before 5.0 a rootless network is slirp4netns unless configured otherwise; 6.0 has no
        # slirp4netns. In between podman says which one it is.
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
            memory=positive_number(host.get("memTotal")),
            cpus=positive_number(host.get("cpus")),
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
            store=str(store.get("graphRoot") or ""),
        )

    def _find_host_route(self) -> HostRoute | None:
        info = self.info()
        if info.remote:
            return None
        if info.rootless:
            return HostRoute(bind="127.0.0.1", address=SLIRP_HOST if self._slirp else PASTA_HOST)
        # The bridge has this address only while a container is on it.
        gateway = first_gateway(_pools(self._inspect_network("podman")), "gateway")
        return HostRoute(bind=gateway, address=gateway) if gateway else None

    def _engine_args(self, spec: ContainerSpec) -> list[str]:
        info = self.info()
        args = []
        if spec.read_only:
            # Else podman adds unbounded directories in memory.
            args.append("--read-only-tmpfs=false")
        if not info.rootless:
            args.append(f"--user={spec.user or ':'.join(map(str, self.workspace_user()))}")
        elif info.version >= _KEEP_ID:
            # Map an unprivileged user inside to the caller outside, so that files in the workspace
            # are the caller's. Before 4.3 only root inside can be mapped to the caller.
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
            # Podman accepts only one network of this kind.
            and not any(arg.startswith(("--network", "--net")) for arg in spec.extra_args)
        ):
            args.append(
                "--network=slirp4netns:allow_host_loopback=true"
                if self._slirp
                else f"--network=pasta:--map-host-loopback={PASTA_HOST}"
            )
        return args

    def _directory_arg(self, directory: OwnDirectory, spec: ContainerSpec) -> str:
        if directory.kind == "volume":
            return f"--mount=type=volume,target={directory.target},U=true"
        # It knows no uid= for a tmpfs. Nobody else is in the container.
        return tmpfs_arg(directory, "mode=0777", "notmpcopyup")

    def start_error(self, spec: ContainerSpec, exit_code: int | None, stderr: str) -> Exception:
        error = super().start_error(spec, exit_code, stderr)
        info = self.info()
        if info.remote and info.has_init and _NO_INIT in stderr:
            # It is not known of another machine before it has said so. The guest does without.
            self._info = replace(info, has_init=False)
            if isinstance(error, ContainerStartError):
                error.transient = True
        return error

    def workspace_user(self, user: tuple[int, int] | None = None) -> tuple[int, int]:
        info = self.info()
        if not info.rootless:
            return rootful_ids(self.name, user)
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
            # Its bridges are in a network namespace of their own. Only slirp4netns and pasta lead
            # from there to this host, and they lead everywhere.
            why = "without root its networks either lead everywhere or do not reach this host"
        elif not self._netavark:
            why = "with CNI an internal bridge has no address; netavark gives it one"
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
            # Podman gives the bridge of an internal network an address only if it is told which.
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
                raise self._failure(
                    "make a network",
                    made,
                    remedy='Use network="none": llm_query() goes over the container\'s pipe then.',
                )
        route = HostRoute(bind=f"{prefix}.1", address=f"{prefix}.1")
        return InternalNetwork(name=name, route=route)

    def ran_out_of_memory(self, name: str, since: float, directory: Path | None) -> bool | None:
        # Podman's monitor makes this file in its client's working directory, and does not touch one
        # that is there already. The container can make one, too, but this decides nothing but the
        # wording of an error.
        if directory is None:
            return None
        try:
            found = os.stat(directory / "oom", follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError:
            return None
        return True if found.st_mtime >= since else None

    def _past_exits(self) -> tuple[str, ...]:
        # Podman 4.3 prints nothing if --until is in the past.
        return "--stream=false", "--filter=event=died", "--format={{.ContainerExitCode}}"

    def remove_command(self, name: str) -> tuple[str, ...]:
        # --time=0: else podman waits ten seconds for a PID 1 that ignores SIGTERM.
        return (*self.command.argv, "rm", "--force", "--time=0", "--volumes", name)

    # Docker before 25 cannot read OCI archives.
    _save_args = ("--format=docker-archive",)

    def build(self, spec: BuildSpec, on_line: Callable[[str], None] | None = None) -> None:
        # Podman passes the proxy variables on by itself, and keeps them out of the image. With
        # --layers=false it makes one layer; else every step's image would stay in the store.
        builder = Builder(args=("--layers=false", "--pull=missing"))
        if spec.script and self.info().selinux:
            # A mount of RUN's gets no SELinux label, so that the step could not read it.
            volume = f"--volume={spec.context}:{MOUNTED_FILES}:ro,z"
            builder = replace(builder, args=(*builder.args, volume), bind="")
        if not spec.base:
            self._build(spec, on_line, builder)
            return
        # An interrupted build leaves its container, which has no label and is named after its base
        # image. So give the base image a name of this build alone, to find the container by.
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
        """Complete a short name as docker does; podman would ask a terminal."""
        first, slash, _ = image.partition("/")
        if not slash:
            return f"docker.io/library/{image}"
        if re.search(r"[.:]", first) or first == "localhost":
            return image
        return f"docker.io/{image}"

    def _container_record(self, raw: Mapping[str, Any]) -> ContainerRecord:
        return ContainerRecord(
            id=str(raw["Id"]),
            name=str(raw["Names"][0]),
            image=str(raw["Image"]),
            running=raw["State"] == "running",
            labels=read_labels(raw.get("Labels")),
        )


def _gpu_names(gpus: GpuRequest) -> tuple[str, ...]:
    """Return the names of the devices in the CDI specification of NVIDIA's toolkit."""
    if gpus.ids:
        return gpus.ids
    return ("all",) if gpus.count is None else tuple(map(str, range(gpus.count)))


def _pools(networks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the address pools of ``podman network inspect``, in netavark's form or CNI's."""
    pools: list[dict[str, Any]] = []
    for network in networks:
        pools += network.get("subnets") or ()
        for plugin in network.get("plugins") or ():
            for group in (plugin.get("ipam") or {}).get("ranges") or ():
                pools += group
    return pools
