"""The guest without a container: the same program, as a process of this machine.

It uses the host's path of the directory that a container sees as ``/workspace``. Cells run with this
user's rights, so tests must only run harmless ones.
"""

from __future__ import annotations

import json
import marshal
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
import weakref
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rlm_containers.container.bundle import PYTHON_OPTIONS, Bundle
from rlm_containers.guest import wire
from runtimes import (
    ContainerProcess,
    ContainerRecord,
    ContainerSpec,
    EngineInfo,
    HostRoute,
    ImageRecord,
    Runtime,
)
from runtimes.command import EngineCommand
from runtimes.errors import ContainerStartError
from tests.support import TIMEOUT


def bundled_files(made: Bundle) -> dict[str, bytes]:
    """Return the files of a bundle by their paths in it."""
    _, files = marshal.loads(made.modules[wire.HEADER :])
    return {path: zlib.decompress(content) for path, (content, _) in files.items()}


def unpack(made: Bundle, directory: Path) -> list[str]:
    """Unpack a bundle. Return the directories in which Python finds ``rlm_guest`` and dill."""
    for path, content in bundled_files(made).items():
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return [str(directory / "guest"), str(directory / "dill")]


def boot_program(boot: str, directory: Path) -> str:
    """Return the boot program for a guest that uses the host's directory as its workspace."""
    place = "import rlm_guest.commands, rlm_guest.worker\n"
    place += f"rlm_guest.commands.WORKSPACE = rlm_guest.worker.WORKSPACE = {str(directory)!r}\n"
    moved = boot.replace("from rlm_guest.boot import", place + "from rlm_guest.boot import")
    assert moved != boot
    return moved


def run_python(
    program: str,
    *arguments: str,
    path: Sequence[str],
    python: str = sys.executable,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program in a Python of its own and wait for it."""
    return subprocess.run(
        (python, "-c", program, *arguments),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def await_end(pid: int) -> bool:
    """Return whether a process that is not a child of this one ends in time."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select((descriptor,), (), (), TIMEOUT)[0])
    finally:
        os.close(descriptor)


class Guest:
    """A guest and the pipes to it, for tests of the protocol.

    Args:
        made: the bundle to run.
        directory: its workspace.
        python: the Python that runs it.
    """

    def __init__(self, made: Bundle, directory: Path, python: str = sys.executable) -> None:
        self.directory = directory
        self._process = subprocess.Popen(
            (python, *PYTHON_OPTIONS, "-c", boot_program(made.boot, directory)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=directory,
        )
        self._decoder = wire.FrameDecoder()
        self._frames: list[tuple[int, bytes]] = []
        self._ended: tuple[int, bytes] | None = None
        self.number = 0
        self.write(made.modules + wire.encode(wire.MODULES))  # and no byte code

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.hang_up()

    def hang_up(self) -> tuple[int, bytes]:
        """Close the pipe. Return the guest's exit status and standard error."""
        if self._ended is None:
            try:
                _, stderr = self._process.communicate(timeout=TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.communicate()
                raise
            self._ended = self._process.returncode, stderr
        return self._ended

    def write(self, raw: bytes) -> None:
        """Send raw bytes."""
        assert self._process.stdin is not None
        self._process.stdin.write(raw)
        self._process.stdin.flush()

    def send(self, kind: int, payload: bytes = b"") -> None:
        """Send a frame."""
        self.write(wire.encode(kind, payload))

    def request(self, op: str, **content: Any) -> int:
        """Send a request. Return its number."""
        self.number += 1
        message = {"op": op, "id": self.number, **content}
        self.send(wire.MESSAGE, json.dumps(message).encode())
        return self.number

    def start(self, **content: Any) -> dict[str, Any]:
        """Start a new worker. Return its answer."""
        setup = {"lm": False, "proxy": None, "env": {}, "expected": False, "kept": [], **content}
        self.send(wire.MESSAGE, json.dumps({"op": "start", **setup}).encode())
        return self.message("ready")

    def cell(self, code: str) -> int:
        """Send a cell. Return its number."""
        return self.request("cell", code=code, name=f"cell {self.number + 1}")

    def frame(self) -> tuple[int, bytes]:
        """Return the next frame."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + TIMEOUT
        while not self._frames:
            readable, _, _ = select.select((self._process.stdout,), (), (), TIMEOUT)
            if not readable or time.monotonic() > deadline:
                raise TimeoutError("the guest says nothing")
            data = os.read(self._process.stdout.fileno(), 1 << 20)
            if not data:
                raise EOFError("the guest is gone")
            self._frames += self._decoder.feed(data)
        return self._frames.pop(0)

    def until(self, kind: int, **wanted: Any) -> tuple[dict[str, Any], list[tuple[int, bytes]]]:
        """Return the next JSON frame of a kind with this content, and the frames before it."""
        before: list[tuple[int, bytes]] = []
        while True:
            found, payload = self.frame()
            if found == kind:
                content = json.loads(payload)
                if content.items() >= wanted.items():
                    return content, before
            elif found == wire.EVENT and kind != wire.EVENT:
                said = b"".join(p for k, p in before if k == wire.STDERR).decode()
                raise AssertionError(f"instead of {wanted}: {payload!r} {said}")
            before.append((found, payload))

    def message(self, op: str, **wanted: Any) -> dict[str, Any]:
        """Return the next message of the worker with this content."""
        return self.until(wire.MESSAGE, op=op, **wanted)[0]

    def event(self, event: str) -> dict[str, Any]:
        """Return the supervisor's next event of this name."""
        return self.until(wire.EVENT, event=event)[0]

    def run(self, code: str) -> tuple[dict[str, Any], str, str]:
        """Run a cell. Return its result, stdout and stderr."""
        result, before = self.until(wire.MESSAGE, op="result", id=self.cell(code))
        texts = [
            b"".join(payload for kind, payload in before if kind == stream).decode()
            for stream in (wire.STDOUT, wire.STDERR)
        ]
        return result, texts[0], texts[1]


class LocalRuntime(Runtime):
    """A runtime that starts a process and no container. A third party could write one like it.

    Attributes:
        specs: the specs of the started containers.
        removed: the names that were removed.
        programs: programs to run in place of the next guests.
        route: what :meth:`host_route` returns.
        out_of_memory: what :meth:`ran_out_of_memory` returns.
        is_remote: whether its guests see no directory of the host.
    """

    name = "local"

    def __init__(self, route: HostRoute | None = None) -> None:
        self.specs: list[ContainerSpec] = []
        self.processes: list[ContainerProcess] = []
        self.removed: list[str] = []
        self.pulled: list[str] = []
        self.programs: list[tuple[str, ...]] = []
        self.route = route
        self.out_of_memory: bool | None = None
        self.is_remote = False
        self._own: Path | None = None

    def info(self) -> EngineInfo:
        return EngineInfo(
            engine=self.name,
            version=(1, 0),
            rootless=True,
            cgroup_version=2,
            selinux=False,
            remote=False,
            has_init=False,
        )

    def open(self, spec: ContainerSpec) -> ContainerProcess:
        self.specs.append(spec)
        sources = {mount.target: mount.source for mount in spec.mounts}
        if spec.own_directory is not None or self.is_remote:
            sources[wire.WORKSPACE] = self._own_directory(f"{spec.name}-{len(self.specs)}")
        boot = boot_program(spec.command[-1], sources[wire.WORKSPACE])
        program: tuple[str, ...] = (sys.executable, *spec.command[1:-1], boot)
        if self.programs:
            program = self.programs.pop(0)
        command = EngineCommand(program[:1])
        process = command.hold(spec.name, *program[1:], directory=sources[wire.WORKSPACE])
        self.processes.append(process)
        return process

    def _own_directory(self, name: str) -> Path:
        """Make a directory that stays until this object goes."""
        if self._own is None:
            self._own = Path(tempfile.mkdtemp(prefix="rlm-own-"))
            weakref.finalize(self, shutil.rmtree, self._own, ignore_errors=True)
        path = self._own / name
        path.mkdir()
        return path

    def start_error(self, spec: ContainerSpec, exit_code: int | None, stderr: str) -> Exception:
        what = f"It ended with status {exit_code}: {stderr}"
        return ContainerStartError(what, container=spec.name, exit_code=exit_code, stderr=stderr)

    def remove(self, name: str) -> None:
        self.removed.append(name)
        for process in self.processes:
            if process.name == name:
                process.kill()

    def remove_command(self, name: str) -> tuple[str, ...]:
        return ("true", name)

    def find(self, labels: Mapping[str, str]) -> list[ContainerRecord]:
        return []

    def image_exists(self, image: str) -> bool:
        return not image.startswith("missing")

    def inspect_image(self, image: str) -> ImageRecord:
        return ImageRecord(id=image, tags=(image,), size=0, architecture="any", labels={})

    def pull(self, image: str, on_line: Callable[[str], None] | None = None) -> None:
        self.pulled.append(image)

    def host_route(self) -> HostRoute | None:
        return self.route

    def workspace_user(self, user: tuple[int, int] | None = None) -> tuple[int, int]:
        return os.getuid(), os.getgid()

    def ran_out_of_memory(self, name: str, since: float, directory: Path | None) -> bool | None:
        return self.out_of_memory
