"""The two sides made alike, the engine that they run on, and the model that they ask."""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Protocol, cast

from rlm.clients.base_lm import BaseLM
from rlm.core.types import ModelUsageSummary, UsageSummary
from rlm.environments.docker_repl import DockerREPL

from bench_rlm.series import seconds_of
from rlm_containers import Sandbox
from rlm_containers.integrations.rlms import ContainerEnvironment
from rlm_containers.state import LABEL
from runtimes import Runtime, get_runtime

# Sends 100 bytes back. Nothing else that goes through a container's pipe can be faster.
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
        """Call the command line and collect its output."""
        return subprocess.run(
            [*self.argv, *args],
            check=False,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C must not reach the clean-up
            capture_output=True,
            text=True,
        )

    def ask(self, *args: str) -> str:
        """What a call prints to stdout.

        Raises:
            EngineError: it failed.
        """
        done = self.call(*args)
        if done.returncode != 0:
            raise EngineError(f"`{self.name} {shlex.join(args[:2])}` failed: {done.stderr.strip()}")
        return done.stdout.strip()

    def bare_run(self, image: str) -> None:
        """Start Python in a container and do nothing else: no start can be faster."""
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
        """Remove every container with a mount from below a directory; return how many."""
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
        """The number of our containers of this process that still exist."""
        label = f"--filter=label={LABEL}={os.getpid()}"
        return len(self.call("ps", "--all", "--quiet", label).stdout.split())

    def memory_of(self, name: str) -> float:
        """The bytes of a container's processes and of those that this host has for it (PSS)."""
        return sum(self.memory_by_part(name).values())

    def memory_by_part(self, name: str) -> Mapping[str, int]:
        """The same, by what the processes are for."""
        init, identity = self.ask("inspect", "--format", "{{.State.Pid}} {{.Id}}", name).split()
        processes = dict(_processes())
        found = {
            pid
            for pid, (_, command) in processes.items()
            if pid == int(init) or name in command or identity in command
        } - {os.getpid()}
        while below := {pid for pid, (parent, _) in processes.items() if parent in found} - found:
            found |= below
        parts: Counter[str] = Counter()
        for pid in found:
            parts[_part(processes[pid][1], name)] += _proportional_size(pid)
        return parts

    def _containers(self) -> list[dict[str, Any]]:
        ids = self.call("ps", "--all", "--quiet", "--no-trunc").stdout.split()
        containers = []
        # One by one: a single container that has gone meanwhile fails a call for all of them.
        for identity in ids:
            done = self.call("container", "inspect", identity)
            if done.returncode == 0:
                containers += json.loads(done.stdout)
        return containers


def _part(command: str, name: str) -> str:
    """Tell what a process with this command line is for."""
    words = command.split("\0")
    if "rlm-containers-reaper" in words:
        return "reaper"
    if "run" in words and f"--name={name}" in words:
        return "the engine's client"
    return "interpreter" if "python" in words[0] else "the engine's processes"


def _processes() -> Iterator[tuple[int, tuple[int, str]]]:
    """Yield each process with its parent and its command line."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it has ended
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                yield int(entry.name), (int(parent), (entry / "cmdline").read_text())


def _proportional_size(pid: int) -> int:
    """The bytes of a process's memory, of shared pages its part. See proc(5), smaps."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


#: The number of our short cells that are timed together.
BATCH = 20

Address = tuple[str, int]


class BenchError(Exception):
    """A side did not do what was to be timed."""


class Environment(Protocol):
    """The interface of both sides to rlms. Results are of rlms's own class."""

    def execute_code(self, code: str) -> Any: ...
    def add_context(self, context_payload: Any, context_index: int | None = None) -> int: ...
    def cleanup(self) -> None: ...


@dataclass(frozen=True)
class Live:
    """One running environment. Every result is checked, since an error may be fast."""

    environment: Environment
    finish: Callable[[Environment], None]
    numbers: Iterator[int] = field(default_factory=count)

    def run(self, code: str, *, calls: int = 0) -> None:
        """Run a cell that must succeed and call the language model ``calls`` times.

        ``{n}`` in the code becomes another number each time, since our side saves only changes.
        """
        code = code.replace("{n}", str(next(self.numbers)))
        result = self.environment.execute_code(code)
        made = len(result.rlm_calls)
        if result.stderr.strip() or made != calls:
            raise BenchError(
                f"the cell {code[:60]!r} made {made} of {calls} calls and said: "
                f"{result.stderr.strip()[-500:]}"
            )

    def run_many(self, code: str, times: int, *, calls: int = 0) -> None:
        """Run a cell many times without a pause, and wait for the last checkpoint."""
        for _ in range(times):
            self.run(code, calls=calls)
        self.settle()

    def settle(self) -> None:
        """Wait for the work after an answer: our side answers first and saves then."""
        self.finish(self.environment)


@dataclass(frozen=True)
class Contender:
    """One side.

    Attributes:
        make: starts an environment with an image.
        finish: see :meth:`Live.settle`.
        batch: how many short cells are timed together, because one alone is too short; a sample is
            the time of one of them.
    """

    make: Callable[[str], Environment]
    finish: Callable[[Environment], None]
    batch: int

    def start(self, image: str) -> Live:
        """Start an environment, which the caller must clean up."""
        return Live(self.make(image), self.finish)

    @contextmanager
    def live(self, image: str) -> Iterator[Live]:
        """An environment that ends with the block."""
        live = self.start(image)
        try:
            yield live
        finally:
            live.environment.cleanup()


def theirs(handler: Address) -> Contender:
    """rlms's own DockerREPL."""

    def make(image: str) -> Environment:
        return cast(Environment, DockerREPL(image=image, lm_handler_address=handler))

    return Contender(make, lambda environment: None, 1)


def ours(
    engine: Engine,
    handler: Address,
    *,
    runtime: Callable[[], Runtime] | None = None,
    **options: Any,
) -> Contender:
    """This project's environment, with the defaults except for ``options``."""

    def make(image: str) -> Environment:
        return ContainerEnvironment(
            image=image,
            runtime=runtime() if runtime else engine.name,
            lm_handler_address=handler,
            **options,
        )

    def finish(environment: Environment) -> None:
        # This waits until the last checkpoint is on disk.
        _ = cast(ContainerEnvironment, environment).sandbox.unsaved

    return Contender(make, finish, BATCH)


def sandbox_of(live: Live) -> Sandbox:
    """The sandbox of our side."""
    return cast(ContainerEnvironment, live.environment).sandbox


def route(live: Live) -> str | None:
    """How ``llm_query`` reaches the host on our side."""
    return sandbox_of(live).lm_route


class InstantClient(BaseLM):
    """A client of rlms's that answers ``ping`` with ``re: ping``."""

    def __init__(self) -> None:
        super().__init__(model_name="instant")

    def completion(self, prompt: str | dict[str, Any]) -> str:
        """The answer."""
        return f"re: {prompt}"

    async def acompletion(self, prompt: str | dict[str, Any]) -> str:
        """The answer."""
        return self.completion(prompt)

    def get_last_usage(self) -> ModelUsageSummary:
        """Nothing was used."""
        return ModelUsageSummary(total_calls=1, total_input_tokens=0, total_output_tokens=0)

    def get_usage_summary(self) -> UsageSummary:
        """Nothing was used."""
        return UsageSummary(model_usage_summaries={self.model_name: self.get_last_usage()})


NO_SHIM = "none: rlms calls docker itself"

_GATEWAY = "host.docker.internal:host-gateway"
#: The host's address in containers with slirp4netns, if it is allowed.
_SLIRP_HOST = "10.0.2.2"

# Other commands than `run` pass unchanged. It costs the start of a shell, about 1 ms.
_SCRIPT = """\
#!/bin/sh
[ "$1" = run ] || exec {command} "$@"
for argument do
    shift
    case $argument in {gateway}) argument={route} ;; esac
    set -- "$@" "$argument"
done
shift
exec {command} run {extra} "$@"
"""


def install_shim(engine: Engine, image: str, directory: Path) -> str:
    """Make a program ``docker`` in a directory that calls the engine.

    rlms uses ``--add-host host.docker.internal:host-gateway``, which podman before 4.7 refuses. The
    shim then puts in the address that our own side uses.

    Returns:
        A description of the shim.

    Raises:
        EngineError: there is no address by which a container reaches this host.
    """
    refused = engine.call("run", "--rm", "--add-host", _GATEWAY, image, "true").returncode != 0
    route, extra = _GATEWAY, ""
    if refused:
        found = engine.runtime.host_route()
        if found is None or found.address is None:
            raise EngineError(f"{engine.name} has no route from a container to this host")
        route = f"host.docker.internal:{found.address}"
        if found.address == _SLIRP_HOST:
            extra = "--network=slirp4netns:allow_host_loopback=true"
    directory.mkdir(parents=True, exist_ok=True)
    shim = directory / "docker"
    script = _SCRIPT.format(
        command=shlex.join(engine.argv), gateway=_GATEWAY, route=route, extra=extra
    )
    shim.write_text(script)
    shim.chmod(0o755)
    words = f"a `docker` on PATH that is a shell script and calls `{engine.name}` (about 1 ms)"
    if refused:
        words += (
            f"; it turns `--add-host …:host-gateway`, which this engine refuses, into `{route}`"
        )
    return f"{words}; it adds `{extra}`" if extra else words


@dataclass(frozen=True)
class Bench:
    """One engine's benchmark.

    Attributes:
        engine: the engine.
        image: an image with dill and requests.
        plain_image: the same without them, if there is one.
        frame_image: one with pandas, if there is one.
        handler: the address of rlms's LM Handler.
        runs: samples of each row; fewer where one takes very long.
        megabytes: the size of the contexts, in characters or bytes of JSON.
        many: sandboxes that are there at once.
    """

    engine: Engine
    image: str
    plain_image: str | None
    frame_image: str | None
    handler: Address
    runs: int
    megabytes: int
    many: int

    @property
    def few(self) -> int:
        """The number of samples where each takes many seconds."""
        return min(self.runs, max(3, self.runs // 3))

    def sides(self) -> tuple[Contender, Contender]:
        """rlms's side and ours."""
        return theirs(self.handler), ours(self.engine, self.handler)

    def note(self, what: str) -> None:
        """Show progress on the terminal."""
        if sys.stderr.isatty():
            print(f"\r\033[K{self.engine.name}: {what}", end="", file=sys.stderr, flush=True)
        elif what.endswith("warm-up"):
            print(f"{self.engine.name}: {what.removesuffix(', warm-up')}", file=sys.stderr)
