"""Heirs that go on in the place of a dead worker, with everything as it was."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from rlm_containers import CellResult, Sandbox
from tests.support import eventually
from tests.unit.sessions import DIE, Boxes, run, settle, workspace_of

#: Variables that no file can have.
LIVE = """
import os, sqlite3, types
numbers = (n for n in range(100))
next(numbers)
database = sqlite3.connect(":memory:")
_ = database.execute("create table t (x)")
module = types.ModuleType("made")
module.lock = __import__("threading").Lock()
"""
CHECK = "print(next(numbers), database.execute('select count(*) from t').fetchone()[0])"


@pytest.fixture
def box(boxes: Boxes) -> Sandbox:
    return live_box(boxes)


def live_box(boxes: Boxes, **options: object) -> Sandbox:
    """Return a sandbox whose worker has an heir that may go on."""
    box = boxes(**options)
    run(box, LIVE)
    await_heir(box)
    return box


def await_heir(box: Sandbox) -> int:
    """Run cells until there is an heir that may go on. Return its process id."""
    worker, supervisor = map(int, run(box, "print(os.getpid(), os.getppid())").stdout.split())
    found: list[int] = []

    def look() -> bool:
        run(box, "[None for _ in ()]")  # not trivial: it gets an heir
        eventually(lambda: heirs(worker), 1)
        found[:] = [pid for pid, parent in heirs(worker).items() if parent == supervisor]
        return bool(found)

    assert eventually(look)
    return found[0]


def heirs(worker: int) -> dict[int, int]:
    """Return the heirs of a worker, with their parents: they are in its session."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == worker and int(fields[2]) != worker and fields[0] != "Z":
                found[int(entry.name)] = int(fields[1])
    return found


def die(box: Sandbox) -> CellResult:
    result = box.execute(DIE)
    assert result.status == "died"
    return result


def test_everything_is_as_it_was(box: Sandbox) -> None:
    run(box, "place = id(numbers), id(module)")
    await_heir(box)
    result = die(box)
    assert (result.lost, result.older) == ((), ())
    assert "ended itself with status 1. A new one goes on" in result.stderr
    check = "print(place == (id(numbers), id(module)), module.lock.locked(), os.getpid() > 0)"
    assert run(box, check).stdout == "True False True\n"
    assert run(box, CHECK).stdout == "1 0\n"


def test_many_deaths(box: Sandbox) -> None:
    for number in range(1, 6):
        run(box, "_ = database.execute('insert into t values (1)')")
        await_heir(box)
        result = die(box)
        assert (result.lost, result.older) == ((), ()), number
        assert run(box, CHECK).stdout == f"{number} {number}\n"


def test_a_death_at_once_after_another(box: Sandbox) -> None:
    die(box)
    result = die(box)
    # The second heir may not be there yet. Then the file has the rest, and this is named.
    assert set(result.lost) <= {"numbers", "database", "_", "module"}
    run(box, "print(os.getpid())")


def test_what_trivial_cells_have_bound_since(box: Sandbox) -> None:
    run(box, "x = 1")
    run(box, "y = 'text'")
    assert die(box).lost == ()
    assert run(box, "print(x, y, next(numbers))").stdout == "1 text 1\n"


def test_the_cell_that_dies_has_no_effect(box: Sandbox) -> None:
    box.execute("next(numbers); module.x = 1; x = 5\n" + DIE)
    assert run(box, "print(next(numbers), hasattr(module, 'x'), 'x' in globals())").stdout == (
        "1 False False\n"
    )


def test_what_cells_need_works(boxes: Boxes) -> None:
    box = live_box(boxes, lm=str.upper, tools={"double": lambda n: 2 * n})
    run(box, "import random; random.seed(1); expected = random.Random(1).random()")
    await_heir(box)
    die(box)
    code = """
    import subprocess, sys
    print(llm_query("question"), double(4))
    print(random.random() == expected)
    subprocess.run(["sh", "-c", "echo child; echo error >&2"])
    print(os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)[1])
    """
    result = box.execute("if 1:" + code)
    assert result.stdout == "QUESTION 8\nTrue\nchild\n0\n"
    assert result.stderr == "error\n"
    settle(box)
    assert run(box, "print(next(numbers))").stdout == "1\n"


def test_it_can_be_interrupted(box: Sandbox) -> None:
    die(box)
    code = "print('begun', flush=True)\nwhile True: pass"
    for _ in range(2):
        result = box.execute(code, on_output=lambda *_: box.interrupt())
        assert result.status == "interrupted"
        assert run(box, "print('next')").stdout == "next\n"


def test_an_interrupt_of_the_dead_does_not_reach_the_heir(box: Sandbox) -> None:
    code = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
print("begun", flush=True)
signal.sigwait([signal.SIGINT])
os.kill(os.getpid(), signal.SIGKILL)
"""
    result = box.execute(code, on_output=lambda *_: box.interrupt())
    assert result.status == "died"
    for _ in range(3):
        assert run(box, "print('next')").stdout == "next\n"
    assert run(box, CHECK).stdout == "1 0\n"


def test_a_worker_that_does_not_end_is_replaced(boxes: Boxes) -> None:
    box = live_box(boxes, cell_timeout=2)
    box._life.running.interpreter.deadlines.grace = 0.3
    code = (
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])\nsignal.pause()"
    )
    result = box.execute(code)
    assert (result.status, result.lost) == ("killed", ())
    assert run(box, CHECK).stdout == "1 0\n"


@pytest.mark.parametrize(
    ("code", "lost"),
    [
        ("file = open('file.txt', 'w')", {"file"}),
        ("import socket; server = socket.create_server(('127.0.0.1', 0))", {"server"}),
        ("pipe = os.pipe()", set()),
        ("import subprocess; child = subprocess.Popen(['sleep', '1000'])", set()),
        (
            "import threading; stop = threading.Event()\n"
            "thread = threading.Thread(target=stop.wait, daemon=True); thread.start()",
            {"thread"},
        ),
        ("import signal; _ = signal.signal(signal.SIGUSR1, print)", {"signal handler 10"}),
    ],
)
def test_where_it_is_not_safe_the_file_is_read(box: Sandbox, code: str, lost: set[str]) -> None:
    run(box, code + "\nplain = [1]")
    run(box, "pass")
    settle(box)
    result = die(box)
    assert set(result.lost) >= lost | {"numbers", "database"}, result
    assert "plain" not in result.lost
    assert run(box, "print(plain)").stdout == "[1]\n"


def test_a_process_that_joins_an_heirs_group_ends_with_its_cell(box: Sandbox) -> None:
    worker = int(run(box, "print(os.getpid())").stdout)
    await_heir(box)
    settle(box)
    assert eventually(lambda: len(heirs(worker)) == 1)
    group = os.getpgid(*heirs(worker))
    code = f"""
import subprocess
child = subprocess.Popen(["sleep", "1000"], preexec_fn=lambda: os.setpgid(0, {group}))
print(child.pid, flush=True)
os._exit(1)
"""
    result = box.execute(code)
    assert (result.status, result.lost) == ("died", ())
    assert not is_running(int(result.stdout))
    assert run(box, CHECK).stdout == "1 0\n"


def is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_a_killed_heir_costs_what_no_file_has(box: Sandbox) -> None:
    worker = int(run(box, "print(os.getpid())").stdout)
    settle(box)
    for heir in heirs(worker):
        os.kill(heir, signal.SIGKILL)
    assert eventually(lambda: not heirs(worker))
    result = die(box)
    assert set(result.lost) >= {"numbers", "database", "_"}
    assert run(box, "print(module.__name__)").stdout == "made\n"


def test_a_damaged_file_is_written_again(box: Sandbox) -> None:
    run(box, "plain = [1]")
    await_heir(box)
    settle(box)
    result = box.execute("os.truncate('state.dill', 10); os._exit(1)")
    assert (result.status, result.lost) == ("died", ())
    settle(box)
    state = workspace_of(box) / "state.dill"
    assert eventually(lambda: state.stat().st_size > 10)


def test_a_restore_does_not_take_over(box: Sandbox) -> None:
    run(box, "x = [1]")
    snapshot = box.snapshot()
    run(box, "x = [2]")
    await_heir(box)
    lost = {variable.name for variable in box.restore(snapshot)}
    assert lost >= {"numbers", "database"}
    assert run(box, "print(x)").stdout == "[1]\n"


def test_an_idle_heir_keeps_nothing_open(box: Sandbox) -> None:
    run(box, "read, write = os.pipe()")
    run(box, "os.close(write)")
    assert run(box, "print(os.read(read, 1))").stdout == "b''\n"
    run(box, "os.close(read)")
    await_heir(box)
    assert die(box).lost == ()


def test_close_ends_the_heir(box: Sandbox) -> None:
    heir = await_heir(box)
    box.close()
    assert eventually(lambda: not Path(f"/proc/{heir}").exists())


def test_the_supervisors_death_ends_the_heir(boxes: Boxes) -> None:
    box = live_box(boxes)
    heir = await_heir(box)
    os.kill(int(run(box, "print(os.getppid())").stdout), signal.SIGKILL)
    assert eventually(lambda: not Path(f"/proc/{heir}").exists())


def test_heirs_never(boxes: Boxes) -> None:
    box = boxes(heirs="never")
    run(box, LIVE)
    settle(box)
    assert set(die(box).lost) >= {"numbers", "database"}
