"""Options that contradict each other, or what ``run_args`` says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rlm_containers.errors import OptionError
from rlm_containers.options.sizes import AUTO

#: The engine's options that set the same as an option of ours.
_FLAGS = {
    "--memory": "memory",
    "-m": "memory",
    "--memory-swap": "memory",
    "--cpus": "cpus",
    "--cpu-quota": "cpus",
    "--cpu-period": "cpus",
    "--pids-limit": "pids",
    "--storage-opt": "disk",
    "--network": "network",
    "--net": "network",
    "--user": "user",
    "-u": "user",
    "--gpus": "gpus",
}

#: The engine's options that undo ``isolation="strict"``, with the values that do.
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
    """The options of a sandbox that ``run_args`` sets, each with the argument that does."""
    return {_FLAGS[name]: name for name, _ in _flags(run_args) if name in _FLAGS}


def check_conflicts(options: Mapping[str, Any]) -> None:
    """Do nothing if the options can all be had at once.

    Args:
        options: the values of :class:`~rlm_containers.SandboxOptions`, checked each.

    Raises:
        OptionError: they contradict each other. The message names both.
    """
    for name, flag in set_by_arguments(options["run_args"]).items():
        value = options[name]
        if value is not None and value != AUTO:
            raise _conflict(f"{name}={value!r}", f"{flag} in run_args", "Say it once.")
    if options["isolation"] == "strict":
        _check_strict(options)


def _check_strict(options: Mapping[str, Any]) -> None:
    network, user = options["network"], options["user"]
    if network not in (None, "none"):
        raise _conflict(
            _STRICT,
            f'network="{network}"',
            "It has no network. llm_query() works all the same, over the container's pipe.",
        )
    if user is not None and user.partition(":")[0] == "0":
        raise _conflict(_STRICT, f'user="{user}"', "It never runs as root.")
    if any(mount.target == "/tmp" for mount in options["mounts"]):  # noqa: S108
        raise _conflict(_STRICT, "a mount at /tmp", "It makes a /tmp of its own.")
    for name, value in _flags(options["run_args"]):
        if name in _UNDOING and re.fullmatch(_UNDOING[name], value, re.DOTALL):
            remedy = 'Use isolation="default" if it must be.'
            raise _conflict(_STRICT, f"{name} in run_args", remedy)


_STRICT = 'isolation="strict"'


def _conflict(one: str, other: str, remedy: str) -> OptionError:
    return OptionError(f"{one} and {other} contradict each other.", remedy=remedy)


def _flags(run_args: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each option with its value, which may be joined to it or be the next argument."""
    arguments = list(run_args)
    for index, argument in enumerate(arguments):
        following = arguments[index + 1] if index + 1 < len(arguments) else ""
        if argument.startswith("--"):
            name, joined, value = argument.partition("=")
            yield name, value if joined or following.startswith("-") else following
        elif argument.startswith("-"):
            yield argument[:2], argument[2:].removeprefix("=") or following
