"""The end of a cell at its limit of time: what the container's processes and the engine add to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rlm_containers import Sandbox
from rlm_containers.errors import SandboxLostError
from tests.conftest import MakeBox
from tests.support import Engine, eventually, execute, interpreter_of, printed, set_grace

LIMIT = 1.0

#: Starts a process that is no child of the worker's, in a session of its own, and prints its id.
DAEMON = """
def daemon():
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            os.write(write, str(os.getpid()).encode())
            time.sleep(600)
        os._exit(0)
    os.wait()
    return int(os.read(read, 20))
def lives(pid):
    try:
        return open(f'/proc/{pid}/stat').read().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False
"""


@pytest.fixture(scope="module")
def box(engine: Engine) -> Iterator[Sandbox]:
    """A sandbox with a limit."""
    with Sandbox(engine.image(), runtime=engine.runtime, cell_timeout=LIMIT) as box:
        printed(box, "import os, signal, subprocess, time\nkept = 'kept'")
        yield box


@pytest.fixture
def short_grace(box: Sandbox) -> Iterator[None]:
    """Shorten the grace time, for cells that ignore an interrupt."""
    deadlines = interpreter_of(box).deadlines
    before = deadlines.grace
    set_grace(box, 0.5)
    yield
    set_grace(box, before)


def test_a_runaway_cell_is_interrupted(box: Sandbox) -> None:
    result = box.execute("changed = 1\nprint('begun')\nwhile True: pass")
    assert (result.status, result.stdout, result.lost) == ("timeout", "begun\n", ())
    assert printed(box, "print(kept, changed)") == "kept 1\n"


def test_what_a_cell_has_started_dies_at_its_limit(box: Sandbox) -> None:
    # Two ticks of the clock by which the kernel says when a process was started.
    printed(box, f"{DAEMON}\nold = daemon()\ntime.sleep(0.02)")
    result = box.execute("new = [daemon(), subprocess.Popen(['sleep', '600']).pid]\ntime.sleep(60)")
    assert result.status == "timeout"
    assert eventually(lambda: printed(box, "print(*map(lives, new))") == "False False\n")
    # What an earlier cell has started is none of this one's.
    assert printed(box, "print(lives(old))") == "True\n"
    printed(box, "os.kill(old, signal.SIGKILL)")


@pytest.mark.usefixtures("short_grace")
def test_what_cells_have_started_dies_with_their_interpreter(box: Sandbox) -> None:
    pids = printed(box, f"{DAEMON}\nprint(daemon())")
    code = "print(daemon())\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(60)"
    result = box.execute(code)
    assert result.status == "killed"
    numbers = ", ".join((pids + result.stdout).split())
    code = f"print(*map(lives, [{numbers}]))"
    assert eventually(lambda: printed(box, code) == "False False\n")
    assert box.execute("print(daemon())\nos._exit(1)").status == "died"


@pytest.mark.usefixtures("short_grace")
def test_processes_that_multiply_die_too(box: Sandbox) -> None:
    result = execute(
        box,
        """
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        def multiply(depth):
            for _ in range(3):
                if depth and os.fork() == 0:
                    os.setsid()
                    multiply(depth - 1)
            while True:  # for ever new ones
                if os.fork() == 0:
                    time.sleep(0.05)
                    os._exit(0)
                os.wait()
        multiply(3)
        """,
    )
    assert result.status == "killed"
    living = "sum(lives(name) for name in os.listdir('/proc') if name.isdigit())"
    # An init, the supervisor and the worker; the first of them is none of ours.
    assert eventually(lambda: printed(box, f"{DAEMON}\nprint({living} <= 3)") == "True\n")


def test_a_supervisor_that_is_stopped_is_given_up(make_box: MakeBox, engine: Engine) -> None:
    box = make_box(cell_timeout=LIMIT)
    set_grace(box, 0.5, kill_timeout=0.5)
    printed(box, "import os, signal")  # what comes with the first cell belongs to the start
    with pytest.raises(SandboxLostError, match="does not answer any more"):
        box.execute("os.kill(os.getppid(), signal.SIGSTOP)\nsignal.pause()")
    assert engine.containers(box.name) == []
    with pytest.raises(SandboxLostError):
        box.execute("x = 1")
