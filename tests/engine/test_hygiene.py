"""What is left: nothing, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlm_containers import Sandbox
from rlm_containers.errors import SandboxLostError
from rlm_containers.state import workspaces_directory
from tests.conftest import MakeBox
from tests.support import (
    Engine,
    assert_gone,
    eventually,
    execute,
    printed,
    processes,
)

# Ends


@pytest.mark.parametrize(
    "left",
    {
        "odd files and processes": """
            [open(f'{n}' + 'n' * 250, 'w').close() for n in range(100)]
            [open(n, 'w').close() for n in (b'\\xff\\xfe', b'a\\nb', b'-rf', b'*')]
            os.mkfifo('fifo'); os.symlink('/', 'root'); os.symlink('loop', 'loop')
            subprocess.Popen(['sleep', '600'], start_new_session=True)
            deaf = 'trap "" TERM HUP INT; while :; do sleep 1; done'
            subprocess.Popen(['sh', '-c', deaf], start_new_session=True)
            """,
        "locked directories": """
            os.mkdir('d'); open('d/f', 'w').close(); os.chmod('d', 0)
            os.makedirs('a/b'); open('a/b/f', 'w').close()
            os.chmod('a/b', 0o500); os.chmod('a', 0o500)
            """,
        "no access to itself": "os.chmod('.', 0)",
        "deep directories": "for _ in range(3000): os.mkdir('d'); os.chdir('d')",
    }.items(),
    ids=lambda left: left[0],
)
def test_what_cells_leave_behind(make_box: MakeBox, left: tuple[str, str]) -> None:
    box = make_box()
    printed(box, f"import os, subprocess\n{textwrap.dedent(left[1])}")
    box.close()
    assert not list(workspaces_directory().glob(f"{box.name}*"))


def test_the_host_loses_no_descriptors_and_no_threads(engine: Engine) -> None:
    def in_use() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    for turn in range(3):
        with Sandbox(engine.image(), runtime=engine.runtime, lm=str.upper) as box:
            printed(box, "print(llm_query('x'))")
        if turn == 0:
            most = in_use()
    assert eventually(lambda: all(now <= was for now, was in zip(in_use(), most, strict=True)))


def test_several_at_once(engine: Engine) -> None:
    results: list[str] = []

    def run(number: int) -> None:
        with Sandbox(engine.image(), runtime=engine.runtime, lm=str.upper) as box:
            results.append(printed(box, f"print(llm_query('n{number}'))"))

    threads = [threading.Thread(target=run, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [f"N{n}\n" for n in range(6)]


# Losses


def lose(box: Sandbox) -> str:
    """Run cells until one finds the container gone; what the error says."""
    for _ in range(1000):
        try:
            box.execute("pass")
        except SandboxLostError as error:
            return str(error)
    raise AssertionError("the container is still there")


def test_a_client_that_somebody_kills(make_box: MakeBox) -> None:
    box = make_box()
    (client,) = {
        pid
        for pid, arguments in processes(f"--name={box.name}")
        if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1] == str(os.getpid())
        and " run " in arguments
    }
    os.kill(client, signal.SIGKILL)
    lose(box)


def test_a_reaper_that_somebody_kills(make_box: MakeBox) -> None:
    box = make_box()
    for pid, arguments in processes(box.name):
        if "rlm-containers-reaper" in arguments:
            os.kill(pid, signal.SIGKILL)
    assert printed(box, "print('on')") == "on\n"


@pytest.mark.parametrize(
    "harm",
    [
        "os.kill(os.getppid(), 9)",
        "os.kill(os.getppid(), 19)\nos.kill(os.getppid(), 9)",
    ],
    ids=["killed", "stopped and killed"],
)
def test_a_cell_that_harms_its_supervisor(make_box: MakeBox, harm: str) -> None:
    box = make_box()
    with pytest.raises(SandboxLostError):
        execute(box, f"import os\n{harm}")
    lose(box)


# A host that dies

HOST = """
import sys, threading
from rlm_containers import Sandbox

runtime, image, end = sys.argv[1:]
all_cells = ["import time; print('in'); time.sleep(600)", "print('in')\\nwhile True: pass",
         "import subprocess; print('in'); subprocess.run(['sleep', '600'])"]
cells = all_cells if end in ("idle", "busy") else all_cells[:2]
boxes = [Sandbox(image, runtime=runtime, lm=str.upper) for _ in cells]
print(*(box.name for box in boxes), flush=True)
opened = []
def open_one(box):
    box.start().execute("import os; os.mkdir('d'); open('d/f', 'w').close(); os.chmod('d', 0)")
    opened.append(box)
starters = [threading.Thread(target=open_one, args=(box,)) for box in boxes]
for starter in starters:
    starter.start()
for starter in starters:
    starter.join()
assert len(opened) == len(boxes)
if end == "busy":
    inside = threading.Semaphore(0)
    for box, code in zip(boxes, cells):
        threading.Thread(
            target=box.execute, args=(code,),
            kwargs={"on_output": lambda *_: inside.release()}, daemon=True,
        ).start()
    for _ in boxes:
        inside.acquire()
print("ready", flush=True)
if end == "exit":
    sys.exit()
if end == "error":
    raise RuntimeError("an error in the user's program")
if end == "_exit":
    import os
    os._exit(0)
sys.stdin.read()
"""


@pytest.fixture
def host(engine: Engine, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A Python process that opens three sandboxes and then does what the parameter says."""
    with subprocess.Popen(
        (sys.executable, "-c", HOST, engine.runtime, engine.image(), request.param),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()


@pytest.mark.parametrize(
    ("host", "number"),
    [("idle", signal.SIGKILL), ("busy", signal.SIGKILL), ("busy", signal.SIGTERM)],
    indirect=["host"],
)
def test_a_host_that_is_killed(
    engine: Engine, host: subprocess.Popen[str], number: signal.Signals
) -> None:
    assert host.stdout is not None
    names = host.stdout.readline().split()
    assert host.stdout.readline() == "ready\n"
    assert len(engine.containers(*names)) == 3
    host.send_signal(number)
    host.wait(30)
    assert_gone(engine, *names)


FORKING_HOST = """
import os, sys, time
from rlm_containers import Sandbox
box = Sandbox(sys.argv[2], runtime=sys.argv[1]).start()
child = os.fork()
if child == 0:
    os.close(1)
    time.sleep(600)
print(box.name, child, flush=True)
time.sleep(600)
"""


def test_a_killed_host_whose_forked_child_lives(engine: Engine) -> None:
    with subprocess.Popen(
        (sys.executable, "-c", FORKING_HOST, engine.runtime, engine.image()),
        stdout=subprocess.PIPE,
        text=True,
    ) as host:
        assert host.stdout is not None
        name, child = host.stdout.readline().split()
        try:
            assert engine.containers(name)
            host.kill()
            host.wait(30)
            assert_gone(engine, name)
        finally:
            os.kill(int(child), signal.SIGKILL)


@pytest.mark.parametrize("host", ["exit", "error", "_exit"], indirect=True)
def test_a_host_that_ends_without_closing(engine: Engine, host: subprocess.Popen[str]) -> None:
    assert host.stdout is not None
    names = host.stdout.readline().split()
    assert host.stdout.readline() == "ready\n"
    host.wait(30)
    assert_gone(engine, *names)


@pytest.mark.parametrize("host", ["idle"], indirect=True)
@pytest.mark.parametrize("moment", ["a name", "a workspace", "a process", "a container"])
def test_a_host_that_is_killed_while_it_starts(
    engine: Engine, host: subprocess.Popen[str], moment: str
) -> None:
    assert host.stdout is not None
    names = host.stdout.readline().split()
    signs = {
        "a name": lambda: True,
        "a workspace": lambda: list(workspaces_directory().glob(f"{names[0]}*")),
        "a process": lambda: processes(f"--name={names[0]}"),
        "a container": lambda: engine.containers(names[0]),
    }
    assert eventually(signs[moment], 30)
    host.kill()
    host.wait(30)
    # An engine may be in the middle of making the container.
    assert_gone(engine, *names)
