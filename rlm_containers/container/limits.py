"""How much a sandbox may use: the limits in its options that its engine can enforce."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from rlm_containers.options import AUTO, SandboxOptions, set_by_arguments
from runtimes import EngineInfo
from runtimes.errors import UnsupportedByEngineError
from runtimes.text import get_logger

logger = get_logger("rlm_containers")

#: The share of the machine's memory that a sandbox gets by default. A context of gigabytes fits,
#: and a cell that takes without end is stopped while the machine still has as much for everything
#: else. If several such cells run at once, the kernel kills the workers before anything else.
_MEMORY_SHARE = 0.5

#: Processes and threads by default: enough for pools of both, and a fork bomb ends in a second.
_PIDS = 1024

#: Bytes for /tmp where it is kept in memory, unless ``disk`` says otherwise.
_TMP = 256 * 1024**2

#: The share of the memory that files in a workspace in memory may take by default. They outlive a
#: killed worker.
_WORKSPACE_SHARE = 0.5

#: The most bytes that the files in a volume may take by default.
_LARGEST_VOLUME = 16 * 1024**3

_DELEGATE = " Or have systemd delegate the controllers: Delegate=cpu memory pids in user@.service."


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits that a container is started with; ``None`` where there is none.

    Attributes:
        memory: bytes, for all processes together, files in ``/tmp`` and ``/dev/shm`` included
            where these are kept in memory.
        cpus: processors; 0.5 is half the time of one.
        pids: processes and threads.
        disk: bytes that may be written to the image's file system.
        file: bytes of any single file.
        tmp: bytes of ``/tmp``, where it is kept in memory.
        workspace: bytes of the workspace, where it is kept in memory.
        replica: bytes of the files that this host fetches from a workspace that is not its own.
    """

    memory: int | None
    cpus: float | None
    pids: int | None
    disk: int | None
    file: int | None
    tmp: int | None
    workspace: int | None
    replica: int | None

    @classmethod
    def on(cls, info: EngineInfo, options: SandboxOptions, container: str) -> Self:
        """Find the limits in ``options`` that an engine can enforce.

        A limit that it cannot enforce is left out, with a warning if a user asked for it. With
        ``isolation="strict"`` it is an error, even if it is only a default.

        Args:
            info: the engine.
            options: the sandbox's options.
            container: the container's name, for messages.

        Raises:
            UnsupportedByEngineError: see above; or the engine cannot limit the disk.
        """
        strict = options.isolation == "strict"
        wanted = {
            name: value
            for name in ("memory", "cpus", "pids")
            if (value := getattr(options, name)) is not None
        }
        ignored = {name: info.unenforced[name] for name in wanted if name in info.unenforced}
        if ignored and strict:
            raise _refusal(info, ignored, container)
        _log(info, ignored, wanted, container)
        if options.disk is not None and not strict and info.no_disk_limit:
            raise UnsupportedByEngineError(
                f"{info.engine} cannot limit what a container writes to disk: "
                f"{info.no_disk_limit}.",
                remedy='With isolation="strict" it can: only /tmp, which is kept in memory, and '
                "/workspace can be written to then.",
                container=container,
            )
        by_arguments = set_by_arguments(options.run_args)
        held: dict[str, Any] = {
            name: value
            for name, value in wanted.items()
            if name not in ignored and (value != AUTO or name not in by_arguments)
        }
        if held.get("memory") == AUTO:
            share = int(info.memory * _MEMORY_SHARE) if info.memory else None
            held["memory"] = info.default_memory or share
        if held.get("pids") == AUTO:
            held["pids"] = _PIDS
        if info.cpus and held.get("cpus", 0) >= info.cpus:
            del held["cpus"]  # it limits nothing, and docker would refuse it
        memory, disk = held.get("memory"), options.disk
        workspace = options.workspace_size
        if workspace == AUTO:
            available = memory or info.memory
            workspace = int(available * _WORKSPACE_SHARE) if available else None
        assert not isinstance(workspace, str)
        replica = workspace
        if options.workspace == "volume" and workspace is not None:
            # Besides there are the saved variables, and a file may grow until it is noticed.
            replica = 2 * max(workspace, _LARGEST_VOLUME) + 3 * (memory or info.memory or 0)
        assert not isinstance(disk, str)
        tmp = None
        if strict:
            # Files in /tmp outlive a killed worker, so they must leave memory for the next one.
            tmp = min(disk or _TMP, memory // 2 if memory else disk or _TMP)
        return cls(
            memory=memory,
            cpus=held.get("cpus"),
            pids=held.get("pids"),
            disk=None if strict else disk,
            file=disk,
            tmp=tmp,
            workspace=workspace,
            replica=replica,
        )


def _refusal(
    info: EngineInfo, ignored: Mapping[str, str], container: str
) -> UnsupportedByEngineError:
    waiver = ", ".join(f"{name}=None" for name in ignored)
    return UnsupportedByEngineError(
        f'isolation="strict" wants limits that hold, and {info.engine} does not enforce '
        f"{_listed(list(ignored))}: {'; '.join(dict.fromkeys(ignored.values()))}.",
        remedy=f"Use another engine, or go without: {waiver}."
        + (_DELEGATE if info.rootless and info.cgroup_version == 2 else ""),
        container=container,
    )


def _log(
    info: EngineInfo,
    ignored: Mapping[str, str],
    wanted: Mapping[str, object],
    container: str,
) -> None:
    """Log the limits that are not enforced: a warning for those that the user asked for."""
    for level, names in (
        (logging.WARNING, [name for name in ignored if wanted[name] != AUTO]),
        (logging.INFO, [name for name in ignored if wanted[name] == AUTO]),
    ):
        if names:
            reasons = "; ".join(dict.fromkeys(ignored[name] for name in names))
            logger.log(
                level,
                "%s: %s will not be enforced by %s: %s",
                container,
                _listed(names),
                info.engine,
                reasons,
            )


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
