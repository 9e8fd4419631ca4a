"""The limits that an engine holds a container to, and those that it cannot."""

from __future__ import annotations

from collections.abc import Iterable

from runtimes.spec import ContainerSpec

#: The cgroup controller behind each limit.
CONTROLLERS = {"memory": "memory", "cpus": "cpu", "pids": "pids"}


def limit_args(spec: ContainerSpec) -> list[str]:
    """The arguments of ``run`` that ask for a container's limits."""
    args = []
    if spec.pids is not None:
        args.append(f"--pids-limit={spec.pids}")
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
    """The limits that an engine cannot hold a container to, see :class:`EngineInfo`.

    Args:
        controllers: the cgroup controllers that it can use.
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
    """Why a storage driver cannot limit a container's file system; empty if it may be able to.

    Args:
        driver: the driver's name, as ``info`` gives it.
        backing: the file system below it, likewise; may be empty.
    """
    if driver in ("btrfs", "zfs", "devicemapper"):
        return ""
    if driver in ("overlay", "overlay2"):
        if backing == "xfs":
            return ""  # mounted with pquota, that is: the engine says so if it is not
        return f"its storage driver {driver} can only on xfs, and is on {backing or 'another'}"
    return f"its storage driver {driver or 'is unknown and'} cannot"


def whole_number(value: object) -> int | None:
    """A positive integer that an engine gave, or ``None`` for anything else."""
    return value if isinstance(value, int) and value > 0 else None
