"""The engine that both sides are measured on."""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
from pathlib import Path
from typing import Any

from bench_rlm.series import seconds_of
from rlm_containers.state import LABEL
from runtimes import Runtime, get_runtime

__all__ = ["Engine", "EngineError"]

# 100 bytes there and back: nothing that travels over a container's pipe can be faster.
_ECHO = "import os\nwhile data := os.read(0, 65536): os.write(1, data)"
_TRIPS = 500


class EngineError(Exception):
    """The engine does not do what the benchmark needs."""


class Engine:
    """One docker-compatible command line.

    Args:
        name: what ``get_runtime`` takes: ``docker``, ``podman``, a path, ``podman --remote``.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.argv = tuple(shlex.split(name))
        self.runtime: Runtime = get_runtime(name)

    def __str__(self) -> str:
        info = self.runtime.info()
        rootless = "rootless, " if info.rootless else ""
        version = ".".join(map(str, info.version))
        return f"{info.engine} {version} ({rootless}cgroup v{info.cgroup_version})"

    def call(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Call the command line and collect what it says."""
        return subprocess.run(
            [*self.argv, *args],
            check=False,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C must not end what cleans up after it
            capture_output=True,
            text=True,
        )

    def ask(self, *args: str) -> str:
        """What a call prints.

        Raises:
            EngineError: it failed.
        """
        done = self.call(*args)
        if done.returncode != 0:
            raise EngineError(f"`{self.name} {shlex.join(args[:2])}` failed: {done.stderr.strip()}")
        return done.stdout.strip()

    def bare_run(self, image: str) -> None:
        """The least that any start of Python in a container can be."""
        self.ask("run", "--rm", image, "python", "-c", "pass")

    def python_version(self, image: str) -> str:
        """The version of the Python in an image."""
        code = "import platform; print(platform.python_version())"
        return self.ask("run", "--rm", image, "python", "-c", code)

    def round_trip(self, image: str) -> float:
        """Seconds for 100 bytes through ``run -i`` and back, the median of many."""
        command = [*self.argv, "run", "-i", "--rm", image, "python", "-c", _ECHO]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as echo:
            assert echo.stdin is not None
            assert echo.stdout is not None
            there, back = echo.stdin.fileno(), echo.stdout.fileno()

            def trip() -> None:
                os.write(there, b"x" * 100)
                left = 100
                while left:
                    left -= len(os.read(back, left)) or left

            trip()
            return statistics.median(seconds_of(trip) for _ in range(_TRIPS))

    # What is left

    def remove_mounting(self, directory: Path) -> int:
        """Remove every container that has mounted something below a directory; how many."""
        found = 0
        for container in self._containers():
            sources = (str(mount.get("Source", "")) for mount in container.get("Mounts") or ())
            if any(Path(source).is_relative_to(directory) for source in sources if source):
                identity = str(container["Id"])
                # First, because podman's rm waits ten seconds for a PID 1 that ignores SIGTERM.
                self.call("kill", identity)
                self.call("rm", "--force", identity)
                found += 1
        return found

    def ours_left(self) -> int:
        """How many containers of this process and of our side are still there."""
        label = f"--filter=label={LABEL}={os.getpid()}"
        return len(self.call("ps", "--all", "--quiet", label).stdout.split())

    def _containers(self) -> list[dict[str, Any]]:
        ids = self.call("ps", "--all", "--quiet", "--no-trunc").stdout.split()
        containers = []
        # One by one: others come and go, and one that is gone fails a call for all.
        for identity in ids:
            done = self.call("container", "inspect", identity)
            if done.returncode == 0:
                containers += json.loads(done.stdout)
        return containers
