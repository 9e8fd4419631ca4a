"""What the tests on real engines share: the engines, and looking for what was left behind.

Nothing here uses the code under test to look at an engine: a test that asks the tested code whether
it was right learns nothing.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from rlm_containers import CellResult, Sandbox
from rlm_containers.interpreter import Interpreter
from rlm_containers.state import LABEL, passing_snapshots_directory, workspaces_directory

#: What ``--engine`` takes. The last is podman too, run by an ordinary user.
ENGINES = ("docker", "podman", "podman-rootless")

_SCRIPTS = Path(__file__).parent.parent / "scripts"

# Before any fixture changes it: the scripts have a cache of their own.
_ENVIRONMENT = dict(os.environ)

#: Seconds that a test waits for what comes at once on an idle machine. Three engines share two
#: cores while all tests run.
PATIENCE = 30.0

_NO_SUCH_PYTHON = 3  # build-base-image's status for a Python that is nowhere to be had


@dataclass(frozen=True)
class Engine:
    """A container engine that the tests run on.

    Attributes:
        name: one of :data:`ENGINES`.
    """

    name: str

    @property
    def runtime(self) -> str:
        """Its name for ``Sandbox(runtime=…)``, and its command."""
        return self.name.partition("-")[0]

    def run(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Call the engine's command line."""
        done = subprocess.run(
            (self.runtime, *args), capture_output=True, text=True, check=False, timeout=120
        )
        assert not check or done.returncode == 0, f"{self.name} {args}: {done.stderr}"
        return done

    def image(self, python: str = "3.11", *packages: str) -> str:
        """An image with that version of Python, and with packages of PyPI installed in it.

        The one that nearly every test starts has byte code for the standard library in it, which
        takes a third off the tests' time; the others are as official images are.
        """
        suffix = "".join(f"-{package}" for package in packages)
        options = ["--python", python]
        for package in packages:
            options += ["--with", package]
        if python == "3.11" and not packages:
            suffix = "-compiled"
            options.append("--compiled")
        return _image(self, f"python:{python}-slim{suffix}", tuple(options))

    def image_without_python(self) -> str:
        """An image with nothing but a busybox."""
        return _image(self, "no-python:latest", ("--variant", "no-python"))

    def containers(self, *needles: str) -> list[dict[str, Any]]:
        """What ``inspect`` says of this project's containers that have one of ``needles`` in it.

        Others may be at work on the same engine; a workspace's path, or a name, tells whose a
        container is.
        """
        ids = self.run("ps", "--all", "--quiet", f"--filter=label={LABEL}").stdout.split()
        if not ids:
            return []
        # Some may be gone by now: their absence is an error to `inspect`, which goes on.
        found = json.loads(self.run("inspect", *ids, check=False).stdout or "[]")
        return [c for c in found if any(needle in json.dumps(c) for needle in needles)]


@cache
def _image(engine: Engine, name: str, options: tuple[str, ...]) -> str:
    prefix = os.environ.get("RLM_CONTAINERS_TEST_IMAGES", "localhost/rlm-containers")
    image = f"{prefix}/{name}"
    if engine.run("image", "inspect", image, check=False).returncode == 0:
        return image
    script = subprocess.run(
        (_SCRIPTS / "build-base-image", *options, "--runtime", engine.runtime, "--tag", image),
        env=_ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if script.returncode == _NO_SUCH_PYTHON and not on_ci():
        pytest.skip(f"{image} cannot be made here: {script.stderr.strip()}")
    if script.returncode != 0:
        pytest.fail(f"{image} could not be made: {script.stderr}", pytrace=False)
    return image


def on_ci() -> bool:
    """Whether what is missing is a failure."""
    return os.environ.get("CI") == "true"


@cache
def missing(name: str) -> str | None:
    """Why an engine cannot be used by this process, or ``None``."""
    if name != "docker" and (name == "podman") != (os.getuid() == 0):
        return f"{name} is for {'root' if name == 'podman' else 'an ordinary user'}"
    command = (name.partition("-")[0], "info")
    try:
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except FileNotFoundError:
        return f"there is no {command[0]} on PATH"
    except subprocess.TimeoutExpired:
        return f"`{' '.join(command)}` does not answer"
    except subprocess.CalledProcessError as error:
        return f"`{' '.join(command)}` fails: {error.stderr.strip()}"
    return None


def usable() -> list[str]:
    """The engines that this process can use."""
    return [name for name in ENGINES if missing(name) is None]


def execute(box: Sandbox, code: str, **options: Any) -> CellResult:
    """Run a cell that is indented as the test is."""
    return box.execute(textwrap.dedent(code).strip("\n"), **options)


def printed(box: Sandbox, code: str) -> str:
    """The output of a cell that must run to its end without a word on stderr."""
    result = execute(box, code)
    assert (result.status, result.stderr) == ("ok", ""), result.stderr
    return result.stdout


def interpreter_of(box: Sandbox) -> Interpreter:
    """The interpreter of a started sandbox, for tests that set its time limits or look inside.

    No option of a sandbox sets the grace time, and patched constants would hold for all sandboxes.
    """
    return box._life.running.interpreter


def set_grace(box: Sandbox, grace: float, kill_timeout: float = 20.0) -> None:
    """Set how many seconds a sandbox waits after an interrupt, and after a kill."""
    deadlines = interpreter_of(box).deadlines
    deadlines.grace, deadlines.kill_timeout = grace, kill_timeout


def eventually(true: Callable[[], object], seconds: float = PATIENCE) -> bool:
    """Whether something becomes true in time."""
    deadline = time.monotonic() + seconds
    pause = 0.02
    while not true():
        if time.monotonic() > deadline:
            return bool(true())
        time.sleep(pause)
        pause = min(2 * pause, 0.5)  # asking may cost the engine more than what is waited for
    return True


def processes(needle: str) -> list[tuple[int, str]]:
    """The processes of this machine that have ``needle`` in their arguments."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = entry.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:  # it ended, or is somebody else's
            continue
        if needle in arguments:
            found.append((int(entry.parent.name), arguments))
    return found


def leftovers(engine: Engine, *needles: str) -> list[str]:
    """Containers, processes and workspaces with one of ``needles`` in their names or arguments."""
    if not needles:
        return []
    left = [f"container {container['Name']}" for container in engine.containers(*needles)]
    left += [f"process {process}" for needle in needles for process in processes(needle)]
    for directory in (workspaces_directory(), passing_snapshots_directory()):
        paths = [str(path) for path in directory.iterdir()] if directory.is_dir() else []
        left += [f"directory {path}" for path in paths if any(n in path for n in needles)]
    return left


def assert_gone(engine: Engine, *needles: str) -> None:
    """Fail unless everything of that name goes by itself.

    It may take a moment: podman's monitor outlives the container by a little.
    """
    left: list[str] = []

    def gone() -> bool:
        left[:] = leftovers(engine, *needles)
        return not left

    assert eventually(gone), left


def workspace(box: Sandbox) -> Path:
    """The directory of this host behind a sandbox's ``/workspace``."""
    (found,) = workspaces_directory().glob(f"{box.name}*")
    return found


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What this project has warned of."""
    return [
        record
        for record in caplog.records
        if record.levelno >= logging.WARNING
        and record.name.partition(".")[0] in ("rlm_containers", "runtimes")
    ]
