"""What is left of a host that was killed together with its reapers, and who takes it away."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from rlm_containers import Sandbox
from rlm_containers.container import prune
from rlm_containers.state import workspaces_directory
from runtimes import get_runtime
from tests.support import Engine, assert_gone, eventually, printed, processes

# Opens two sandboxes. The guest of the second one is stopped: it does not see that its pipe is
# closed, so that its container stays.
HOST = """
import sys, threading
from rlm_containers import Sandbox

runtime, image = sys.argv[1:]
boxes = [Sandbox(image, runtime=runtime).start() for _ in range(2)]
for box in boxes:
    box.execute("import os; os.mkdir('d'); open('d/file', 'w').write('x'); os.chmod('d', 0)")
stop = "import os, signal; os.kill(os.getppid(), signal.SIGSTOP); open('stopped', 'w').close()"
threading.Thread(target=boxes[1].execute, args=(stop,), daemon=True).start()
print(*(box.name for box in boxes), flush=True)
sys.stdin.read()
"""

# The next start of somebody else.
NEXT = """
import sys
from rlm_containers import Sandbox
runtime, image = sys.argv[1:]
with Sandbox(image, runtime=runtime):
    print("started", flush=True)
    sys.stdin.read()
"""

Start = Callable[[str], subprocess.Popen[str]]


@pytest.fixture(autouse=True)
def alone(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep other workers' tests of this module from removing what this one has left."""
    path = tmp_path_factory.getbasetemp().parent / f"prune-{engine.name}.lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture
def start(engine: Engine) -> Iterator[Start]:
    """Starts a Python program on the engine."""
    started: list[subprocess.Popen[str]] = []

    def make(program: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            (sys.executable, "-c", program, engine.runtime, engine.image()),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield make
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def left(engine: Engine, start: Start) -> Iterator[list[str]]:
    """The names of two sandboxes of a host that was killed together with their reapers."""
    host = start(HOST)
    assert host.stdout is not None
    names = host.stdout.readline().split()
    assert len(names) == 2
    # Whoever is not stopped yet sees the end of its pipe, and ends its container.
    assert eventually((workspaces_directory() / names[1] / "stopped").exists, 30)
    # As when the power fails: nobody has the time to see anybody else die.
    reapers = [
        pid
        for name in names
        for pid, arguments in processes(name)
        if "rlm-containers-reaper" in arguments
    ]
    assert len(reapers) == 2
    host.send_signal(signal.SIGSTOP)
    for pid in reapers:
        os.kill(pid, signal.SIGKILL)
    host.kill()
    host.wait(30)
    # The one container ends with its pipe, the other stays; so do both workspaces.
    assert eventually(lambda: not engine.containers(names[0]), 30)
    yield names
    engine.run("rm", "--force", names[1], check=False)  # where the test has failed


def workspaces(names: list[str]) -> list[str]:
    return [name for name in names if (workspaces_directory() / name).is_dir()]


def test_prune_removes_it_and_nothing_of_the_living(
    engine: Engine, box: Sandbox, left: list[str]
) -> None:
    assert len(engine.containers(left[1])) == 1
    assert workspaces(left) == left
    printed(box, "x = 1")
    pruned = prune([get_runtime(engine.runtime)])
    # Beside these are the containers of other tests, some of whose hosts were just killed.
    assert left[1] in pruned.containers
    assert box.name not in pruned.containers
    assert sorted(pruned.workspaces) == sorted(left)
    assert pruned.errors == []
    assert_gone(engine, *left)
    assert printed(box, "print(x)") == "1\n"
    again = prune([get_runtime(engine.runtime)])
    assert again.workspaces == []
    assert not {*left, box.name}.intersection(again.containers)


def test_the_next_start_removes_it(
    engine: Engine, box: Sandbox, left: list[str], start: Start
) -> None:
    printed(box, "x = 2")
    following = start(NEXT)
    assert following.stdout is not None
    assert following.stdout.readline() == "started\n"
    assert eventually(lambda: not workspaces(left) and not engine.containers(left[1]), 30)
    assert_gone(engine, *left)
    assert printed(box, "print(x)") == "2\n"


def test_networks_of_the_dead_go_too(engine: Engine, box: Sandbox) -> None:
    labels = engine.containers(box.name)[0]["Config"]["Labels"]
    mine = [f"--label={k}={v}" for k, v in labels.items() if "rlm-containers" in k]
    dead = [label if ".boot=" not in label else f"{label}-before" for label in mine]
    assert dead != mine
    names = [f"rlm-test-{os.getpid()}-{whose}" for whose in ("mine", "dead")]
    try:
        for name, its in zip(names, (mine, dead), strict=True):
            engine.run("network", "create", "--internal", *its, name)
        pruned = prune([get_runtime(engine.runtime)])
        assert names[1] in pruned.networks
        assert pruned.errors == []
        listed = engine.run("network", "ls", "--format={{.Name}}").stdout.split()
        assert names[0] in listed
        assert names[1] not in listed
    finally:
        engine.run("network", "rm", *names, check=False)
