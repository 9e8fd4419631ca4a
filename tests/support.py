"""Container engines for tests and scripts, and checks that nothing is left behind on them.

Nothing here asks the code under test about an engine, since that would prove nothing.
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
from typing import TYPE_CHECKING, Any

from rlm_containers import CellResult, Sandbox
from rlm_containers.interpreter import Interpreter
from rlm_containers.state import LABEL, passing_snapshots_directory, workspaces_directory
from runtimes import HostRoute

if TYPE_CHECKING:
    import pytest

#: A function for cells that writes 500 MiB, no faster than a slow machine can notice.
GROW = """
import time
def grow(name):
    with open(name, 'wb', 0) as file:
        for _ in range(2000):
            file.write(bytes(1 << 18))
            time.sleep(0.002)
"""

#: The engines to test on. ``podman-rootless`` is podman run by an ordinary user.
ENGINES = ("docker", "podman", "podman-rootless")

#: A cluster, the one that kubectl is at. It is tested on only where it is named.
KUBERNETES = "kubernetes"

#: Stands for no engine: guests are processes of this machine (tests/unit/guests.py).
LOCAL = "local"

_SCRIPTS = Path(__file__).parent.parent / "scripts"

# As it is before any fixture changes it, so that images come from the user's own cache.
_ENVIRONMENT = dict(os.environ)

#: Seconds to wait for something that takes a moment on an idle machine. All engines' tests run at
#: the same time.
TIMEOUT = 30.0

_NO_SUCH_PYTHON = 3  # build-base-image's status for a Python that is nowhere to be had


@dataclass(frozen=True)
class Engine:
    """A container engine that the tests run on.

    Attributes:
        name: one of :data:`ENGINES`.
    """

    name: str

    #: The option ``memory`` of sandboxes for contexts of 500 MB.
    memory = "auto"

    @property
    def runtime(self) -> str:
        """The engine's command, which is also its name for ``Sandbox(runtime=…)``."""
        return self.name.partition("-")[0]

    def run(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of the engine's command line. It fails the test unless ``check`` is off."""
        done = subprocess.run(
            (self.runtime, *args), capture_output=True, text=True, check=False, timeout=120
        )
        assert not check or done.returncode == 0, f"{self.name} {args}: {done.stderr}"
        return done

    def image(self, python: str = "3.11", *packages: str) -> str:
        """An image with that version of Python and with those packages of PyPI.

        The default image has byte code for the standard library, which saves a third of the tests'
        time. The others have none, like official images.
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
        """An image with only a busybox."""
        return _image(self, "no-python:latest", ("--variant", "no-python"))

    def containers(self, *needles: str) -> list[dict[str, Any]]:
        """``inspect``'s output for this project's containers that mention one of ``needles``.

        A workspace's path or a name tells one's own containers from others' on the same engine.
        """
        ids = self.run("ps", "--all", "--quiet", f"--filter=label={LABEL}").stdout.split()
        if not ids:
            return []
        # For a container that is gone by now, `inspect` reports an error and goes on.
        found = json.loads(self.run("inspect", *ids, check=False).stdout or "[]")
        return [c for c in found if any(needle in json.dumps(c) for needle in needles)]


class KubernetesEngine(Engine):
    """Runs guests in pods. Its nodes must have the images already: ``scripts/setup-cluster``."""

    memory = "4g"

    def __init__(self) -> None:
        super().__init__(KUBERNETES)

    def run(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of kubectl."""
        done = subprocess.run(
            ("kubectl", *args), capture_output=True, text=True, check=False, timeout=120
        )
        assert not check or done.returncode == 0, f"kubectl {args}: {done.stderr}"
        return done

    def image(self, python: str = "3.11", *packages: str) -> str:
        """An image that the nodes have."""
        import pytest  # scripts use this module where it is not installed

        if python != "3.11" or packages:
            pytest.skip("the nodes do not have this image")
        return "localhost/rlm-containers/python:3.11-slim-compiled"

    def image_without_python(self) -> str:
        """An image with only a busybox."""
        return "localhost/rlm-containers/no-python:latest"

    def containers(self, *needles: str) -> list[dict[str, Any]]:
        """The jobs and pods that mention one of ``needles``."""
        found = json.loads(self.run("get", "jobs,pods", "--output=json").stdout)["items"]
        return [
            {"Name": one["metadata"]["name"], "Id": one["metadata"]["name"]}
            for one in found
            # A kubelet may keep the object of a pod that has ended for a while.
            if not (
                one["metadata"].get("deletionTimestamp")
                and one["status"].get("phase") in ("Succeeded", "Failed")
            )
            and any(needle in json.dumps(one) for needle in needles)
        ]


class LocalEngine(Engine):
    """Runs guests as processes of this machine, for tests that no engine has a part in."""

    def __init__(self) -> None:
        super().__init__(LOCAL)

    @property
    def runtime(self) -> Any:
        """A new runtime."""
        from tests.unit.guests import LocalRuntime

        return LocalRuntime(HostRoute(bind="127.0.0.1", address=None))

    def image(self, python: str = "3.11", *packages: str) -> str:
        """A name, which no image need have."""
        return "local"

    def containers(self, *needles: str) -> list[dict[str, Any]]:
        """None: there is no container."""
        return []


@cache
def _image(engine: Engine, name: str, options: tuple[str, ...]) -> str:
    import pytest  # scripts use this module where it is not installed

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
    """Whether a missing engine or image is a failure."""
    return os.environ.get("CI") == "true"


@cache
def missing(name: str) -> str | None:
    """Why this process cannot use an engine; ``None`` if it can."""
    if name == KUBERNETES:
        return _missing_cluster()
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


def _missing_cluster() -> str | None:
    try:
        subprocess.run(
            ("kubectl", "get", "jobs"), capture_output=True, text=True, check=True, timeout=60
        )
    except FileNotFoundError:
        return "there is no kubectl on PATH"
    except subprocess.TimeoutExpired:
        return "`kubectl get jobs` does not answer"
    except subprocess.CalledProcessError as error:
        return f"`kubectl get jobs` fails: {error.stderr.strip()}"
    return None


def usable() -> list[str]:
    """The engines that this process can use."""
    return [name for name in ENGINES if missing(name) is None]


def execute(box: Sandbox, code: str, **options: Any) -> CellResult:
    """Run a cell that is indented as the test is."""
    return box.execute(textwrap.dedent(code).strip("\n"), **options)


def printed(box: Sandbox, code: str) -> str:
    """The output of a cell that must end well and write nothing to stderr."""
    result = execute(box, code)
    assert (result.status, result.stderr) == ("ok", ""), result.stderr
    return result.stdout


def die(box: Sandbox, code: str = "") -> tuple[str, ...]:
    """Have the interpreter die; the names that are lost."""
    result = box.execute(f"import os\n{code}\nos._exit(1)")
    assert result.status == "died", result.stderr
    return result.lost


def interpreter_of(box: Sandbox) -> Interpreter:
    """The interpreter of a started sandbox, for tests that set its time limits or look inside.

    No option of a sandbox sets the grace time, and patched constants would hold for all sandboxes.
    """
    return box._life.running.interpreter


def set_grace(box: Sandbox, grace: float, kill_timeout: float = 20.0) -> None:
    """Set how many seconds a sandbox waits after an interrupt, and after a kill."""
    deadlines = interpreter_of(box).deadlines
    deadlines.grace, deadlines.kill_timeout = grace, kill_timeout


def skip_on_cluster(engine: Engine, reason: str) -> None:
    """Skip a test of what pods do not have."""
    import pytest

    if engine.name == KUBERNETES:
        pytest.skip(reason)


def eventually(true: Callable[[], object], seconds: float = TIMEOUT) -> bool:
    """Wait until something is true; whether it was in time."""
    deadline = time.monotonic() + seconds
    pause = 0.02
    while not true():
        if time.monotonic() > deadline:
            return bool(true())
        time.sleep(pause)
        pause = min(2 * pause, 0.5)  # asking may load the engine more than what it waits for
    return True


def processes(needle: str) -> list[tuple[int, str]]:
    """The processes of this machine that have ``needle`` in their arguments."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = entry.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:  # it has ended, or belongs to another user
            continue
        if needle in arguments:
            found.append((int(entry.parent.name), arguments))
    return found


def leftovers(engine: Engine, *needles: str) -> list[str]:
    """Containers, processes and workspaces whose names or arguments have one of ``needles``."""
    if not needles:
        return []
    left = [f"container {container['Name']}" for container in engine.containers(*needles)]
    left += [f"process {process}" for needle in needles for process in processes(needle)]
    for directory in (workspaces_directory(), passing_snapshots_directory()):
        paths = [str(path) for path in directory.iterdir()] if directory.is_dir() else []
        left += [f"directory {path}" for path in paths if any(n in path for n in needles)]
    return left


def assert_gone(engine: Engine, *needles: str) -> None:
    """Fail unless everything with one of ``needles`` goes by itself.

    It may take a moment: podman's monitor outlives its container.
    """
    left: list[str] = []

    def gone() -> bool:
        left[:] = leftovers(engine, *needles)
        return not left

    assert eventually(gone), left


def workspace(box: Sandbox) -> Path:
    """The host's directory that is a sandbox's ``/workspace``."""
    (found,) = workspaces_directory().glob(f"{box.name}*")
    return found


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """This project's own warnings."""
    return [
        record
        for record in caplog.records
        if record.levelno >= logging.WARNING
        and record.name.partition(".")[0] in ("rlm_containers", "runtimes")
    ]
