"""Options that contradict each other, or what ``run_args`` says."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rlm_containers.errors import OptionError
from rlm_containers.options.values import AUTO
from runtimes.text import brief

if TYPE_CHECKING:
    from rlm_containers.options.options import SandboxOptions

#: Maps an argument of the engine's ``run`` to the option that sets the same.
_FLAGS = {
    "--memory": "memory",
    "-m": "memory",
    "--memory-swap": "memory",
    "--cpus": "cpus",
    "--cpu-quota": "cpus",
    "--cpu-period": "cpus",
    "--pids-limit": "pids",
    "--storage-opt": "disk",
    "--shm-size": "shm_size",
    "--network": "network",
    "--net": "network",
    "--user": "user",
    "-u": "user",
    "--gpus": "gpus",
}

#: Maps the arguments that undo ``isolation="strict"`` to patterns of the values that do.
_UNDOING = {
    "--privileged": r"(?!false$).*",
    "--cap-add": r".*",
    "--device-cgroup-rule": r".*",
    **dict.fromkeys(("--device", "--mount", "--volume", "-v", "--volumes-from"), r".*"),
    "--network": r".*",
    "--net": r".*",
    "--read-only": r"false",
    "--read-only-tmpfs": r"(?!false$).*",
    "--security-opt": r".*(unconfined|disable|no-new-privileges[:=]false|unmask=).*",
    **dict.fromkeys(("--pid", "--ipc", "--uts", "--cgroupns", "--userns"), r"host"),
    **dict.fromkeys(("--user", "-u"), r"(0|root)(:.*)?"),
}


def set_by_arguments(run_args: Sequence[str]) -> dict[str, str]:
    """Map each option of a sandbox that ``run_args`` sets to the argument that sets it."""
    return {_FLAGS[name]: name for name, _ in _flags(run_args) if name in _FLAGS}


def sets_core_limit(run_args: Sequence[str]) -> bool:
    """Return whether ``run_args`` limits the core files of processes that crash."""
    return any(name == "--ulimit" and value.startswith("core=") for name, value in _flags(run_args))


def check_conflicts(options: SandboxOptions) -> None:
    """Check that the options, each checked already, can all hold at once.

    Raises:
        OptionError: two contradict each other. The message names both.
    """
    for name, flag in set_by_arguments(options.run_args).items():
        value = getattr(options, name)
        if value is not None and value != AUTO:
            raise _conflict(f"{name}={brief(value)}", f"{flag} in run_args", "Say it once.")
    if options.pool is not None and options.session is not None:
        raise _conflict(
            f"pool={options.pool}",
            f"session={brief(options.session)}",
            "A container that waits has a workspace already. Leave one of them out: pool=None.",
        )
    if options.isolation == "strict":
        _check_strict(options)


def _check_strict(options: SandboxOptions) -> None:
    if options.network not in (None, "none"):
        raise _conflict(
            _STRICT,
            f'network="{options.network}"',
            "It has no network. llm_query() works all the same, over the container's pipe.",
        )
    if options.user is not None and options.user.partition(":")[0] == "0":
        raise _conflict(_STRICT, f'user="{options.user}"', "It never runs as root.")
    if any(mount.target == "/tmp" for mount in options.mounts):  # noqa: S108
        raise _conflict(_STRICT, "a mount at /tmp", "It makes a /tmp of its own.")
    for name, value in _flags(options.run_args):
        if name in _UNDOING and re.fullmatch(_UNDOING[name], value, re.DOTALL):
            remedy = 'Use isolation="default" if it must be.'
            raise _conflict(_STRICT, f"{name} in run_args", remedy)


_STRICT = 'isolation="strict"'


def _conflict(one: str, other: str, remedy: str) -> OptionError:
    return OptionError(f"{one} and {other} contradict each other.", remedy=remedy)


def _flags(run_args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each argument with its value, which may be joined to it or be the next argument."""
    for argument, following in itertools.pairwise((*run_args, "")):
        if argument.startswith("--"):
            name, joined, value = argument.partition("=")
            yield name, value if joined or following.startswith("-") else following
        elif argument.startswith("-"):
            yield argument[:2], argument[2:].removeprefix("=") or following
