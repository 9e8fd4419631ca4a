"""Shell scripts that answer like docker and podman, without an engine.

Their answers are those of docker 20.10.24 and 28.2.2, podman 3.4.4, 4.3.1, 4.9.4, 5.2.3 and 5.4.0.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtimes.command import EngineCommand
from runtimes.docker import DockerRuntime
from runtimes.podman import PodmanRuntime

_SCRIPT = """\
#!/bin/sh
home={home}
{{ [ $# -eq 0 ] || printf '%s\\0' "$@"; printf '\\036\\0'; }} >>"$home/calls"
if [ -e "$home/hang" ] && [ "$(tr -cd '\\036' <"$home/calls" | wc -c)" -eq "$(cat "$home/hang")" ]; then
    echo $$ >"$home/hanging"
    sleep 1000
fi
for word in "$1 $2" "$1"; do
    if [ -e "$home/answers/$word" ]; then
        . "$home/answers/$word"
    fi
done
echo "unknown command: $*" >&2
exit 125
"""


class FakeCli:
    """A command-line program with prepared answers.

    Args:
        directory: where to put the program.
        name: its name.

    Attributes:
        path: the program's path.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._home = directory / f".{name}"
        (self._home / "answers").mkdir(parents=True)
        self.path = directory / name
        self.path.write_text(_SCRIPT.format(home=shlex.quote(str(self._home))))
        self.path.chmod(0o755)

    def script(self, command: str, script: str) -> None:
        """Set the shell script that answers a command, which its first one or two words name."""
        (self._home / "answers" / command).write_text(script + "\n")

    def answer(
        self, command: str, stdout: object = "", *, stderr: str = "", exit_code: int = 0
    ) -> None:
        """Set a command's output, as JSON unless it is a string, and its exit code."""
        text = stdout if isinstance(stdout, str) else json.dumps(stdout)
        said = f"printf '%s' {shlex.quote(text)}\nprintf '%s' {shlex.quote(stderr)} >&2\n"
        self.script(command, f"{said}exit {exit_code}")

    def hang(self, number: int) -> None:
        """Let one call never end, counted from 1. A child of it keeps its pipes open, too."""
        (self._home / "hang").write_text(str(number))

    @property
    def hanging(self) -> int | None:
        """The process id of the call that hangs; ``None`` if none does."""
        path = self._home / "hanging"
        return int(path.read_text()) if path.exists() else None

    @property
    def calls(self) -> list[list[str]]:
        """Return the arguments of every call so far."""
        try:
            raw = (self._home / "calls").read_text()
        except FileNotFoundError:
            return []
        return [call.split("\0")[:-1] for call in raw.split("\036\0")[:-1]]

    def called(self, *words: str) -> list[list[str]]:
        """Return the arguments of the calls that begin with these words."""
        return [call for call in self.calls if call[: len(words)] == list(words)]


def docker_info(**more: Any) -> dict[str, Any]:
    """Return what ``docker info --format '{{json .}}'`` prints for an ordinary engine."""
    return {
        "ServerVersion": "20.10.24+dfsg1",
        "OperatingSystem": "Debian GNU/Linux 12 (bookworm)",
        "CgroupVersion": "2",
        "MemoryLimit": True,
        "CpuCfsQuota": True,
        "PidsLimit": True,
        "MemTotal": 16 * 1024**3,
        "NCPU": 8,
        "Driver": "overlay2",
        "DriverStatus": [["Backing Filesystem", "extfs"], ["Supports d_type", "true"]],
        "InitBinary": "docker-init",
        "SecurityOptions": ["name=seccomp,profile=default", "name=cgroupns"],
        "ClientInfo": {"Debug": False, "Context": "default", "Plugins": [], "Warnings": None},
        **more,
    }


def podman_info(version: str = "4.3.1", **host: Any) -> dict[str, Any]:
    """Return what ``podman info --format json`` prints for an ordinary rootful podman."""
    return {
        "host": {
            "cgroupVersion": "v2",
            "cgroupControllers": ["cpuset", "cpu", "io", "memory", "pids"],
            "memTotal": 16 * 1024**3,
            "cpus": 8,
            "networkBackend": "netavark",
            "ociRuntime": {"name": "crun"},
            "security": {"rootless": False, "selinuxEnabled": False, "seccompEnabled": True},
            "serviceIsRemote": False,
            **host,
        },
        "store": {
            "graphDriverName": "overlay",
            "graphStatus": {"Backing Filesystem": "extfs"},
        },
        "version": {"APIVersion": version, "Version": version, "OsArch": "linux/amd64"},
    }


def docker(cli: FakeCli) -> DockerRuntime:
    """Return the runtime that calls the program."""
    return DockerRuntime(EngineCommand((str(cli.path),)))


def podman(cli: FakeCli) -> PodmanRuntime:
    """Return the runtime that calls the program."""
    return PodmanRuntime(EngineCommand((str(cli.path),)))


def rootless(**host: Any) -> dict[str, Any]:
    """Return the part of podman's info that says it runs without root."""
    security = {"rootless": True, "selinuxEnabled": False, "seccompEnabled": True}
    return {"security": security, **host}


def fake_docker(directory: Path, info: Mapping[str, Any] | None = None) -> FakeCli:
    """Make a docker whose engine answers."""
    cli = FakeCli(directory, "docker")
    cli.answer("info", dict(info or docker_info()))
    pool = [{"Subnet": "172.17.0.0/16", "Gateway": "172.17.0.1"}]
    cli.answer("network inspect", pool)
    cli.answer("rm", exit_code=1, stderr="Error: No such container: x")
    return cli


def fake_podman(directory: Path, info: Mapping[str, Any] | None = None) -> FakeCli:
    """Make a podman that works."""
    cli = FakeCli(directory, "podman")
    cli.answer("info", dict(info or podman_info()))
    network = {"name": "podman", "subnets": [{"subnet": "10.88.0.0/16", "gateway": "10.88.0.1"}]}
    cli.answer("network inspect", [network])
    cli.answer("rm", exit_code=1, stderr='Error: no container with name or ID "x" found')
    return cli
