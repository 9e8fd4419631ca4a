"""Checkpoints that heirs write, while the next cells run."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from rlm_containers import Sandbox
from tests.support import eventually
from tests.unit.sessions import DIE, Boxes, run, settle, workspace_of

#: A variable that takes so long to save that heirs do it from then on.
SLOW = """
import os, time
class Slow:
    seconds = 0.05
    def __reduce__(self):
        time.sleep(self.seconds)
        return Slow, ()
slow = Slow()
"""


@pytest.fixture
def box(boxes: Boxes) -> Sandbox:
    return slow_box(boxes)


def slow_box(boxes: Boxes, **options: object) -> Sandbox:
    """Return a sandbox whose variables heirs save."""
    box = boxes(**options)
    run(box, SLOW)
    settle(box)
    return box


def worker(box: Sandbox) -> int:
    return int(run(box, "print(os.getpid())").stdout)


def state(box: Sandbox) -> Path:
    return workspace_of(box) / "state.dill"


def test_the_next_cell_does_not_wait_for_the_checkpoint(box: Sandbox) -> None:
    run(box, "Slow.seconds = 1000")
    result = run(box, "x = 1")  # else this one would wait
    assert result.unwritten >= 1
    run(box, "Slow.seconds = 0")
    settle(box)
    assert run(box, "pass").unwritten == 0


def test_what_an_heir_holds_survives_the_worker(box: Sandbox) -> None:
    pid = worker(box)
    run(box, "Slow.seconds = 0.3")
    for number in range(5):
        run(box, f"x = {number}; items = [slow, {number}]")
    run(box, "pass")  # the heir of the cell before is there
    os.kill(pid, signal.SIGKILL)
    result = box.execute("print(x, items[1], items[0] is slow)")
    assert (result.status, result.stdout) == ("ok", "4 4 True\n")
    assert result.lost == result.older == ()
    assert "killed by SIGKILL" in result.stderr


def test_a_cell_that_dies_costs_only_itself(box: Sandbox) -> None:
    run(box, "x = 1")
    run(box, "x = 2")
    result = box.execute("x = 3\n" + DIE)
    assert (result.status, result.lost, result.older) == ("died", (), ())
    assert run(box, "print(x)").stdout == "2\n"


@pytest.mark.parametrize("moment", range(12))
def test_a_kill_around_the_fork(box: Sandbox, moment: int) -> None:
    pid = worker(box)
    run(box, "x = 1; y = [1]")
    settle(box)
    run(box, "x = 2; y.append(2)")
    time.sleep(moment * moment * 0.0004)
    os.kill(pid, signal.SIGKILL)
    result = box.execute("print(x, y)")
    named = {*result.lost, *result.older}
    assert result.stdout == "2 [1, 2]\n" or (result.stdout == "1 [1]\n" and named >= {"x", "y"}), (
        result
    )


def test_what_variables_share_stays_shared(box: Sandbox) -> None:
    run(box, "a = [1]; text = 'x' * 400_000; deep = {'deeper': [{'text': text}]}")
    run(box, "b = {'a': a}; other = text")
    run(box, "c = (b, a)")
    pid = worker(box)
    run(box, "pass")
    os.kill(pid, signal.SIGKILL)
    check = "print(b['a'] is a is c[1], c[0] is b, other is text is deep['deeper'][0]['text'])"
    assert box.execute(check).stdout == "True True True\n"


def test_inline_and_heir_take_turns(box: Sandbox) -> None:
    texts = "first = 'a' * 300_000; second = ['b' * 300_000]"
    run(box, texts)
    for seconds in (0, 0.05, 0, 0.05, 0):
        run(box, f"Slow.seconds = {seconds}; third = 'c' * (300_000 + int(100 * {seconds}))")
        settle(box)
        run(box, "first = first + 'd'")
        settle(box)
    files = sorted(path.name for path in (workspace_of(box) / ".blobs").iterdir())
    # Those of the last checkpoint and of the one before it.
    assert len(files) <= 5, files
    assert box.execute(DIE).lost == ()
    assert (
        run(box, "print(len(first), len(second[0]), len(third))").stdout == "300005 300000 300000\n"
    )


def test_a_long_string_is_written_once(box: Sandbox) -> None:
    run(box, "big = 'x' * 1_000_000")
    settle(box)
    (before,) = (workspace_of(box) / ".blobs").iterdir()
    for number in range(3):
        run(box, f"x = {number}")
        settle(box)
    (after,) = (workspace_of(box) / ".blobs").iterdir()
    assert (before.name, before.stat().st_ino) == (after.name, after.stat().st_ino)


def test_a_long_string_is_worth_a_fork(boxes: Boxes) -> None:
    box = boxes()
    run(box, "text = 'a' * 30_000_000")
    settle(box)

    def is_unwritten() -> bool:
        # As long, so that no more memory is in use.
        run(box, "text = text[1:] + 'b'")
        return run(box, "print(text[-1])").unwritten >= 1

    assert eventually(is_unwritten)  # a slow machine may come when all is written
    settle(box)
    assert box.execute(DIE).lost == ()
    assert run(box, "print(len(text), text[-1])").stdout == "30000000 b\n"


def test_an_id_that_is_used_again_is_not_the_same_string(box: Sandbox) -> None:
    run(box, "text = 'a' * 300_000; Slow.seconds = 0.1")
    for letter in "bcdefg":
        run(box, f"del text\ntext = '{letter}' * 300_000")
    settle(box)
    assert box.execute(DIE).lost == ()
    assert run(box, "print(text[0], len(set(text)))").stdout == "g 1\n"


# Writers that end, hang, or find no room


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("os._exit(7)", "status 7"),
        ("os._exit(0)", "status 0"),
        ("os.abort()", "status -6"),
        ("os.kill(os.getpid(), 9)", "SIGKILL"),
    ],
)
def test_a_writer_that_ends_costs_one_variable(box: Sandbox, how: str, reason: str) -> None:
    run(box, f"class Fatal:\n    def __reduce__(self): {how}")
    run(box, "good = [1]; fatal = Fatal(); pid = os.getpid()")
    (unsaved,) = box.unsaved
    assert (unsaved.name, unsaved.type) == ("fatal", "Fatal")
    assert reason in unsaved.reason
    # It is not tried again at once, not in the worker either.
    for _ in range(6):
        run(box, "good.append(2)")
    assert run(box, "print(os.getpid() == pid, len(good))").stdout == "True 7\n"
    run(box, "fatal = 'no more'")
    assert box.unsaved == ()
    assert box.execute(DIE).lost == ()


def test_a_writer_that_waits_for_ever_is_interrupted_by_who_waits_for_it(box: Sandbox) -> None:
    run(box, "class Waits:\n    def __reduce__(self):\n        time.sleep(1000)")
    run(box, "good = 1; waits = Waits()")
    result = box._life.running.interpreter.settle(1.0)  # the limit of close() is longer
    assert result
    assert [variable.name for variable in box.unsaved] == ["waits"]
    assert run(box, "print(good)").stdout == "1\n"


def test_an_interrupt_of_a_cell_does_not_reach_the_writer(box: Sandbox) -> None:
    run(box, "Slow.seconds = 1")
    code = "import signal\nprint('begun', flush=True)\nsignal.pause()"
    result = box.execute(code, on_output=lambda *_: box.interrupt())
    assert result.status == "interrupted"
    assert box.unsaved == ()


def test_killed_heirs_are_replaced(box: Sandbox) -> None:
    run(box, "Slow.seconds = 1000")
    run(box, "x = 5; Slow.seconds = 0.05; parent = os.getpid()")
    run(box, "x = 6")
    before = groups_of(int(run(box, "print(parent)").stdout))
    assert before
    for group in before:
        os.killpg(group, signal.SIGKILL)
    assert box.unsaved == ()
    assert box.execute(DIE).lost == ()
    assert run(box, "print(x)").stdout == "6\n"


def groups_of(worker: int) -> set[int]:
    """Return the process groups of heirs: they are in the worker's session."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == worker and int(fields[2]) != worker and fields[0] != "Z":
                found.add(int(fields[2]))
    return found


def test_no_heir_where_a_thread_may_hold_a_lock(box: Sandbox) -> None:
    code = """
    import threading
    lock = threading.Lock()
    stop = threading.Event()
    def hold():
        with lock: stop.wait()
    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    class Locked:
        def __reduce__(self):
            with lock: pass
    """
    run(box, code)
    run(box, "pid = os.getpid()")
    assert groups_of(int(run(box, "print(pid)").stdout)) == set()
    run(box, "stop.set(); thread.join()")


# What cells see


def test_cells_do_not_wait_for_heirs(box: Sandbox) -> None:
    code = """
    try:
        print(os.waitpid(-1, os.WNOHANG))
    except ChildProcessError:
        print("none")
    """
    for _ in range(5):
        assert run(box, code).stdout == "none\n"


def test_pipes_ports_and_locks_are_free_when_a_cell_closes_them(box: Sandbox) -> None:
    run(box, "Slow.seconds = 0.5")
    run(
        box,
        """
        import fcntl, socket
        read, write = os.pipe()
        locked = open("locked", "w")
        fcntl.flock(locked, fcntl.LOCK_EX)
        server = socket.create_server(("127.0.0.1", 0))
        port = server.getsockname()[1]
        """,
    )
    run(box, "os.close(write); print(os.read(read, 1)); os.close(read)")
    run(box, "server.close(); locked.close()")
    run(
        box,
        """
        server = socket.create_server(("127.0.0.1", port), reuse_port=False)
        fcntl.flock(open("locked"), fcntl.LOCK_EX | fcntl.LOCK_NB)
        """,
    )


def test_a_random_sequence_goes_on(box: Sandbox) -> None:
    run(box, "import random; random.seed(1); first = random.random()")
    pid = worker(box)
    run(box, "pass")
    os.kill(pid, signal.SIGKILL)
    expected = "random.seed(1); random.random(); print(random.random())"
    found = box.execute("print(random.random())").stdout
    assert found == run(box, expected).stdout


def test_no_room_for_another_process(box: Sandbox) -> None:
    code = """
    import resource
    before = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, before[1]))
    x = 'saved in the worker, or by whoever has the right to more'
    """
    run(box, code)
    settle(box)
    # A process that takes over has the limit, another has not.
    assert set(box.execute(DIE).lost) <= {"resource.RLIMIT_NPROC"}
    assert run(box, "print(len(x) > 5)").stdout == "True\n"


# The end


@pytest.mark.usefixtures("own_sessions")
def test_close_waits_for_the_checkpoint(boxes: Boxes) -> None:
    box = slow_box(boxes, session="one")
    run(box, "Slow.seconds = 0.3; x = 'last'")
    run(box, "x = 'very last'")
    box.close()
    assert run(boxes(session="one"), "print(x)").stdout == "very last\n"


@pytest.mark.usefixtures("own_sessions")
def test_a_snapshot_waits_for_the_checkpoint(boxes: Boxes) -> None:
    box = slow_box(boxes, session="one")
    run(box, "Slow.seconds = 0.2; x = 1")
    run(box, "x = 2")
    snapshot = box.snapshot()
    run(box, "x = 3")
    box.restore(snapshot)
    assert run(box, "print(x)").stdout == "2\n"


def test_close_does_not_wait_for_a_writer_that_hangs(box: Sandbox) -> None:
    pid = worker(box)
    run(box, "Slow.seconds = 1000")
    run(box, "pass")
    assert eventually(lambda: groups_of(pid))
    groups = groups_of(pid)
    box.close()
    assert eventually(lambda: not any(map(_exists, groups)))


def _exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("code", ["x = 1", "x = [x for x in [1]]"], ids=["trivial", "others"])
def test_a_burst_does_not_keep_a_checkpoint_away(box: Sandbox, code: str) -> None:
    before = state(box).stat().st_ino
    deadline = time.monotonic() + 60
    while state(box).stat().st_ino == before:
        assert time.monotonic() < deadline
        run(box, code)


def test_heirs_never(boxes: Boxes) -> None:
    box = boxes(heirs="never")
    run(box, SLOW)
    run(box, "x = 1; pid = os.getpid()")
    assert run(box, "pass").unwritten == 0
    assert groups_of(int(run(box, "print(pid)").stdout)) == set()


def test_a_writer_that_ends_after_another_heir_has_written(box: Sandbox) -> None:
    run(box, "class Fatal:\n    def __reduce__(self): os._exit(7)")
    settle(box)
    before = state(box).stat().st_ino
    run(box, "Slow.seconds = 0.5")
    run(box, "time.sleep(0.1); fatal = Fatal()")  # its heir is forked while the other one writes
    assert eventually(lambda: state(box).stat().st_ino != before)
    assert [variable.name for variable in box.unsaved] == ["fatal"]


def test_the_heir_stays_until_the_worker_has_written(box: Sandbox) -> None:
    """The worker writes the second cell itself, since there is a thread, and dies of it."""
    run(box, "x = [1]")
    settle(box)
    run(box, "x = [2]")
    thread = (
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()"
    )
    box.execute(f"{thread}\nx = [3]\nSlow.__reduce__ = lambda self: os._exit(1)")
    result = box.execute("print(x)")
    assert result.stdout == "[2]\n", result
    assert "x" in result.older


def test_no_heir_goes_on_once_the_worker_has_written(box: Sandbox) -> None:
    run(box, "x = [1]")
    settle(box)
    run(box, "x = [2]")
    code = """
        import os, rlm_guest.worker, threading
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        def watch(real=os.replace):
            def replace(source, target):
                real(source, target)
                if target.endswith('/state.dill'):
                    os.kill(os.getpid(), 9)
            rlm_guest.worker.os.replace = replace
        watch()
        x = [3]
        """
    assert run(box, code).status == "ok"
    result = box.execute("print(x)")
    if result.status == "died":  # it was killed while this cell waited for it
        result = box.execute("print(x)")
    assert (result.stdout, result.lost, result.older) == ("[3]\n", (), ())


@pytest.mark.parametrize("event", ["open", "os.rename", "os.fork", "os.unlink"])
def test_the_heir_stays_if_the_worker_cannot_write(box: Sandbox, event: str) -> None:
    run(box, "x = [1]")
    settle(box)
    run(box, "x = [2]")
    hook = f"def hook(event, _):\n    if event == {event!r}: raise OSError\n"
    box.execute(hook + "import sys\nsys.addaudithook(hook)\nx = [3]")
    box.execute(DIE)
    assert run(box, "print(x[0] >= 2)").stdout == "True\n"


def test_a_cell_that_stops_the_clock(box: Sandbox) -> None:
    before = state(box).stat().st_ino
    run(box, "time.monotonic = lambda: 5.0\nx = [1]")
    assert eventually(lambda: state(box).stat().st_ino != before)
