"""Branches of a sandbox, with real guests and no containers."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rlm_containers import Sandbox, SandboxPool
from rlm_containers.errors import (
    BranchError,
    ContainersError,
    OptionError,
    SandboxBusyError,
    SandboxClosedError,
    SandboxError,
    SandboxLostError,
)
from rlm_containers.sandbox import Branch, Branches
from tests.support import GROW, TIMEOUT, eventually, interpreter_of, set_grace
from tests.unit.guests import LocalRuntime, await_end
from tests.unit.sessions import DIE, Boxes, revive, run, settle

REPOSITORY = Path(__file__).parents[3]

PID = "import os; print(os.getpid())"

#: Runs until the supervisor ends, who without a container is all that would end it.
WAIT = "while os.getppid() == parent: time.sleep(0.01)"

#: Starts a process that is nobody's child, and in nobody's session.
DAEMON = """
import subprocess
command = "setsid sleep 100 > /dev/null 2>&1 & echo $!"
print(subprocess.run(command, shell=True, stdout=subprocess.PIPE, text=True).stdout)
"""

#: Variables that no file can have.
LIVE = """
import sqlite3
numbers = (n for n in range(100))
next(numbers)
database = sqlite3.connect(":memory:")
_ = database.execute("create table t (x)")
"""


@pytest.fixture
def box(boxes: Boxes) -> Sandbox:
    return boxes()


def printed(branch: Branch, code: str) -> str:
    result = branch.execute(code)
    assert (result.status, result.stderr) == ("ok", "")
    return result.stdout


def in_all(branches: Branches, code: str) -> list[str]:
    """Run a cell in all branches at once."""
    with ThreadPoolExecutor(len(branches)) as pool:
        return list(pool.map(lambda branch: printed(branch, code), branches))


def pid_of(branch: Branch | Sandbox) -> int:
    return int(branch.execute(PID).stdout)


def in_thread(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Make a call in another thread. Return that, and where the result or the error will be."""
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.append(call())
        except ContainersError as error:
            outcome.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread, outcome


class Busy:
    """A cell that runs in a branch, in another thread."""

    def __init__(self, branch: Branch, code: str = WAIT) -> None:
        begun = threading.Event()
        self.thread, self.outcome = in_thread(
            lambda: branch.execute(
                "import os, time\nparent = os.getppid()\nprint('begun', flush=True)\n" + code,
                on_output=lambda *_: begun.set(),
            )
        )
        assert begun.wait(TIMEOUT)

    def result(self) -> Any:
        self.thread.join(TIMEOUT)
        return self.outcome[0]


# What they are


def test_each_goes_on_by_itself(box: Sandbox) -> None:
    run(box, "x = [1]" + LIVE)
    with box.branch(3) as branches:
        assert len(branches) == 3
        for number, branch in enumerate(branches):
            printed(branch, f"x.append({number}); database.execute('insert into t values (1)')")
        code = "print(x, next(numbers), database.execute('select count(*) from t').fetchone())"
        assert in_all(branches, code) == [f"[1, {number}] 1 (1,)\n" for number in range(3)]
        result = branches[1].execute("y = 2\nx", display=True, name="mine")
        assert (result.stdout, result.locals["y"]) == ("[1, 1]\n", "2")
    assert run(box, "print(x, next(numbers), 'y' in globals())").stdout == "[1] 1 False\n"


def test_they_run_at_the_same_time(boxes: Boxes) -> None:
    meeting = threading.Barrier(4)
    box = boxes(tools={"meet": lambda: meeting.wait(TIMEOUT) >= 0})
    with box.branch(4) as branches:
        assert in_all(branches, "print(meet())") == ["True\n"] * 4


def test_one_is_kept(box: Sandbox) -> None:
    run(box, "x = 1" + LIVE)
    with box.branch(3) as branches:
        pids = [pid_of(branch) for branch in branches]
        for number, branch in enumerate(branches):
            printed(branch, f"x = {number}; new = [x]; place = id(numbers)")
        branches[1].keep()
        assert branches.kept is branches[1]
        for branch in branches:
            with pytest.raises(BranchError, match="The branch has ended: "):
                branch.execute("x")
    assert pid_of(box) == pids[1]
    assert await_end(pids[0])
    assert await_end(pids[2])
    assert run(box, "print(x, new, place == id(numbers), next(numbers))").stdout == (
        "1 [1] True 1\n"
    )
    settle(box)
    result = box.execute("print(os.getpid())\n" + DIE)
    assert result.status == "died"
    assert run(box, "print(x, new)").stdout == "1 [1]\n"


def test_what_is_kept_is_saved_as_after_a_cell(boxes: Boxes) -> None:
    box = boxes(heirs="never")
    run(box, "x = 1; long = 'x' * 1_000_000; rows = [{'n': n} for n in range(100_000)]")
    with box.branch(2) as branches:
        printed(branches[0], "x = 2; longer = long + 'y'; rows[5]['n'] = 0; f = lambda: x")
        branches[0].keep()
    revive(box)
    assert run(box, "print(x, len(long), len(longer), rows[5], f())").stdout == (
        "2 1000000 1000001 {'n': 0} 2\n"
    )
    for number in range(3):  # again, from one that was kept
        with box.branch(2) as branches:
            printed(branches[1], f"x += 1; rows[{number}]['n'] = 'kept'")
            branches[1].keep()
    revive(box)
    assert run(box, "print(x, [r['n'] for r in rows[:4]])").stdout == (
        "5 ['kept', 'kept', 'kept', 3]\n"
    )


def test_a_branch_has_what_cells_need(boxes: Boxes) -> None:
    calls: list[str] = []
    box = boxes(lm=str.upper, tools={"note": calls.append}, env={"NAME": "value"})
    box.load("context", "text " * 100)
    run(box, "import os, random; random.seed(1); os.environ['OTHER'] = '1'; os.mkdir('d')")
    expected = run(box, "print(random.Random(1).random())").stdout
    with box.branch(2) as branches:
        code = "print(llm_query('a'), llm_query_batched(['b', 'c']), note('d'), len(context))"
        results = [branch.execute(code) for branch in branches]
        assert {result.stdout for result in results} == {"A ['B', 'C'] None 500\n"}
        assert [len(result.lm_calls) for result in results] == [3, 3]
        assert calls == ["d", "d"]
        assert in_all(branches, "print(random.random())") == [expected] * 2
        assert (
            in_all(branches, "print(os.environ['NAME'], os.environ['OTHER'])") == ["value 1\n"] * 2
        )
        code = "import subprocess; subprocess.run('echo out; echo err >&2', shell=True)"
        result = branches[0].execute(code)
        assert (result.stdout, result.stderr) == ("out\n", "err\n")
        assert printed(
            branches[0], "print(os.waitpid(os.posix_spawn('/bin/true', ['t'], {}), 0)[1])"
        )
        printed(branches[0], "import threading; threading.Thread(target=print).start()")
        printed(branches[0], "open('file', 'w').write('1')")
        assert box.files.read("file") == b"1"
        assert printed(branches[1], "print(open('file').read())") == "1\n"
        printed(branches[1], "answer['content'] = 'done'; answer['ready'] = True")
        assert branches[1].execute("").final_answer == "done"
        branches[0].keep()
    assert run(box, "print(llm_query('a'), note('e'), len(context))").stdout == "A None 500\n"
    assert box.execute("").final_answer is None


@pytest.mark.usefixtures("route")
def test_the_way_to_the_model(boxes: Boxes) -> None:
    box = boxes(lm=str.upper)
    route = box.lm_route
    run(box, "print(llm_query('a'))")
    with box.branch(2) as branches:
        assert in_all(branches, "print(llm_query('b'))") == ["B\n"] * 2
        branches[1].keep()
    assert run(box, "print(llm_query('c'))").stdout == "C\n"
    assert box.lm_route == route


def test_limits_on_calls(boxes: Boxes) -> None:
    box = boxes(lm=str.upper, max_lm_calls=2, max_session_lm_calls=5)
    code = "print([llm_query('a')[:2] for _ in range(3)])"
    with box.branch(2) as branches:
        assert in_all(branches, code) == ["['A', 'A', 'Er']\n"] * 2
        assert printed(branches[0], code) == "['A', 'Er', 'Er']\n"
        told = printed(branches[1], "print(llm_query('a'))")
        assert told.startswith("Error: this session has used up its 5 language model calls")
    assert run(box, code).stdout == "['Er', 'Er', 'Er']\n"


def test_exceptions_are_those_of_any_cell(box: Sandbox) -> None:
    run(box, "def fail(): 1 / 0")
    with box.branch(1) as branches:
        result = branches[0].execute("fail()")
        assert result.status == "error"
        assert 'File "<cell 2>", line 1' in result.stderr
        assert "def fail(): 1 / 0" in result.stderr
        assert branches[0].execute("import sys; sys.exit(3)").exit_code == 3
        with pytest.raises(OptionError, match="code must be a string"):
            branches[0].execute(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [0, -1, 65, 2.0, True, "2", None])
def test_numbers_of_branches(box: Sandbox, n: Any) -> None:
    with pytest.raises(OptionError, match="from 1 to 64"):
        box.branch(n)


def test_many(box: Sandbox) -> None:
    with box.branch(64) as branches:
        assert [printed(branch, "print(1)") for branch in branches] == ["1\n"] * 64
        branches[63].keep()
    run(box, "print(1)")


# The sandbox meanwhile


def test_the_sandbox_runs_no_cells_meanwhile(box: Sandbox) -> None:
    run(box, "x = 1")
    branches = box.branch(2)
    calls: tuple[Callable[[], Any], ...] = (
        lambda: box.execute("x"),
        lambda: box.load("y", "text"),
        lambda: box.branch(2),
        box.snapshot,
        box.fork,
        lambda: box.unsaved,
        lambda: box.set_tools({}),
    )
    for call in calls:
        with pytest.raises(SandboxBusyError, match="open branches") as caught:
            call()
        assert "Keep one of them, or close them" in caught.value.remedy
    assert box.command("echo 1").stdout == b"1\n"
    box.files.write("file", "1")
    box.interrupt()
    branches[0].discard()
    with pytest.raises(SandboxBusyError):
        box.execute("x")
    branches[1].discard()
    run(box, "assert x == 1")
    branches.close()
    with pytest.raises(BranchError, match="it was discarded"):
        branches[0].execute("x")
    with pytest.raises(BranchError, match="it was discarded"):
        branches[0].keep()


def test_a_branch_takes_turns_with_itself_only(boxes: Boxes) -> None:
    raised: list[BaseException] = []

    def nested(number: int) -> str:
        try:
            return str(branches[number].execute("print(1)").stdout)
        except SandboxBusyError as error:
            raised.append(error)
            return "busy"

    def command() -> str:
        return str(box.command("echo on").stdout.decode())

    box = boxes(tools={"nested": nested, "command": command})
    with box.branch(2) as branches:
        assert printed(branches[0], "print(nested(1), nested(0), command())") == "1\n busy on\n\n"
        assert len(raised) == 1


# What is in the way


@pytest.mark.parametrize(
    ("code", "what"),
    [
        (
            "import threading; e = threading.Event()\n"
            "threading.Thread(target=e.wait, name='mine').start()",
            r"other threads \(mine\)",
        ),
        ("import _thread; lock = _thread.allocate_lock(); lock.acquire()\n"
         "_thread.start_new_thread(lock.acquire, ())", "other threads"),
        (
            "import ctypes; libc = ctypes.CDLL(None); thread = ctypes.c_ulong()\n"
            "libc.pthread_create(ctypes.byref(thread), None, libc.pause, None)",
            "those of a library",
        ),
        ("import os; os.register_at_fork(before=print)", "called around a fork"),
        ("file = open('open.txt', 'w')", r"something open \(.*open.txt\)"),
        ("import socket; pair = socket.socketpair()", r"something open \(socket:"),
        ("import subprocess; p = subprocess.Popen(['sleep', '60'])", "started a process"),
    ],
)  # fmt: skip
def test_what_is_in_the_way(box: Sandbox, code: str, what: str) -> None:
    run(box, "x = 1\n" + code)
    with pytest.raises(BranchError, match=what) as caught:
        box.branch(2)
    assert caught.value.container == box.name
    assert caught.value.remedy
    run(box, "assert x == 1")


def test_no_room(box: Sandbox) -> None:
    run(
        box,
        """
        import resource
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (130, before[1]))
        """,
    )
    with pytest.raises(BranchError, match="no room for more processes: Too many open files"):
        box.branch(32)
    with box.branch(2) as branches:
        assert in_all(branches, "print(1)") == ["1\n"] * 2


def test_cells_with_await_are_not_in_the_way(box: Sandbox) -> None:
    run(box, "import asyncio; await asyncio.sleep(0)")
    with box.branch(2) as branches:
        assert in_all(branches, "await asyncio.sleep(0); print(1)") == ["1\n"] * 2
    run(box, "await asyncio.sleep(0)")


def test_no_sandbox(local: LocalRuntime) -> None:
    box = Sandbox(runtime=local)
    with pytest.raises(SandboxClosedError):
        box.branch(2)


# Limits


def test_a_cell_reaches_its_limit(boxes: Boxes) -> None:
    box = boxes(cell_timeout=0.5)
    with box.branch(2) as branches:
        busy = Busy(branches[0], "while True: pass")
        assert printed(branches[1], "print(1)") == "1\n"
        result = busy.result()
        assert result.status == "timeout"
        assert "reached its limit of 0.5 s" in result.stderr
        assert printed(branches[0], "print(1)") == "1\n"


def test_a_cell_that_ignores_interrupts_is_killed(boxes: Boxes) -> None:
    box = boxes(cell_timeout=0.3)
    set_grace(box, 0.2)
    code = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(60)"
    with box.branch(2) as branches:
        result = branches[0].execute(code)
        assert result.status == "killed"
        assert "The branch has ended, the others go on." in result.stderr
        with pytest.raises(BranchError, match="killed by SIGKILL"):
            branches[0].execute("x")
        assert printed(branches[1], "print(1)") == "1\n"


def test_a_repr_that_does_not_end_is_interrupted(box: Sandbox) -> None:
    code = "class Slow:\n def __repr__(self):\n  while True: pass\nslow = Slow()"
    with box.branch(1) as branches:
        assert branches[0].execute(code).status == "ok"
        assert printed(branches[0], "print(1)") == "1\n"


def test_it_is_interrupted(box: Sandbox) -> None:
    with box.branch(2) as branches:
        busy = [Busy(branch) for branch in branches]
        branches[0].interrupt()
        assert busy[0].result().status == "interrupted"
        assert not busy[1].outcome
        assert printed(branches[0], "print(1)") == "1\n"
        branches[1].interrupt()
        assert busy[1].result().status == "interrupted"


def test_a_callback_that_fails_ends_its_cell(box: Sandbox) -> None:
    def fail(stream: str, text: str) -> None:
        raise LookupError(text)

    with box.branch(2) as branches:
        with pytest.raises(LookupError, match="out"):
            branches[0].execute("print('out')\nimport time\ntime.sleep(60)", on_output=fail)
        assert in_all(branches, "print(1)") == ["1\n"] * 2


def test_output_is_bounded_and_holds_up_nobody(boxes: Boxes) -> None:
    box = boxes(max_output=1000)
    flood = "import os\nwhile True: os.write(1, b'x' * 65536)"
    with box.branch(2) as branches:
        result = branches[0].execute("print('x' * 10_000_000)")
        assert len(result.stdout) < 1100
        assert "characters cut" in result.stdout
        # One that prints while nobody listens, and one whose listener does not get on.
        code = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {flood!r}])"
        printed(branches[0], code)
        assert printed(branches[1], "print(1)") == "1\n"
        printed(branches[0], "p.kill(); _ = p.wait()")
        held = threading.Event()

        def hold(stream: str, text: str) -> None:
            held.wait(TIMEOUT)

        thread, outcome = in_thread(
            lambda: branches[0].execute("print('x' * 10_000_000)", on_output=hold)
        )
        assert [printed(branches[1], "print(1)") for _ in range(3)] == ["1\n"] * 3
        held.set()
        thread.join(TIMEOUT)
        assert outcome[0].status == "ok"


def test_files_that_grow_too_much(boxes: Boxes) -> None:
    box = boxes(workspace_size="32m")
    run(box, GROW)
    with box.branch(2) as branches:
        result = branches[0].execute("grow('file')")
        assert result.status == "full"
        assert "workspace_size" in result.stderr
        assert branches[1].execute("print(1)").stdout == "1\n"
    assert box.execute("print(1)").stdout == "1\n"


# Deaths


@pytest.mark.parametrize(
    ("code", "how"),
    [
        (DIE, "ended itself with status 1"),
        ("import os; os.abort()", "was killed by SIGABRT"),
        ("import os; os.kill(os.getpid(), 9)", "was killed by SIGKILL"),
        ("import os; os.close(3)\nwhile True: pass", "was killed by SIGKILL"),
        ("import os; os.write(3, b'\\xff' * 100)\nwhile True: pass", "was killed by SIGKILL"),
    ],
)
def test_a_death_costs_one_branch(box: Sandbox, code: str, how: str) -> None:
    run(box, "x = 1")
    with box.branch(2) as branches:
        result = branches[0].execute("print('before', flush=True)\n" + code)
        assert (result.status, result.stdout) == ("died", "before\n")
        assert f"The Python process of this branch {how}" in result.stderr
        assert how in branches[0].state
        for call in (lambda: branches[0].execute("x"), branches[0].keep):
            with pytest.raises(BranchError, match=how):
                call()
        assert printed(branches[1], "print(x)") == "1\n"
        branches[1].keep()
    run(box, "assert x == 1")


def test_a_death_between_cells(box: Sandbox) -> None:
    with box.branch(3) as branches:
        os.kill(pid_of(branches[0]), signal.SIGKILL)
        os.kill(pid_of(branches[1]), signal.SIGKILL)
        assert eventually(lambda: branches[0].state != "running")
        with pytest.raises(BranchError, match="killed by SIGKILL"):
            branches[0].execute("x")
        with pytest.raises(BranchError, match="killed by SIGKILL"):
            branches[1].keep()
        branches[2].keep()
    run(box, "print(1)")


@pytest.mark.parametrize("keeps", [False, True])
def test_the_worker_dies_meanwhile(box: Sandbox, keeps: bool) -> None:
    run(box, "x = [1]")
    pid = pid_of(box)
    with box.branch(2) as branches:
        os.kill(pid, signal.SIGKILL)
        assert await_end(pid)
        code = "import subprocess; print(subprocess.run(['echo', 'on'], stdout=-1).stdout, x)"
        assert in_all(branches, code) == ["b'on\\n' [1]\n"] * 2
        if keeps:
            printed(branches[1], "x.append(2)")
            branches[1].keep()
    result = box.execute("print(x)")
    assert (result.status, result.stdout) == ("ok", "[1, 2]\n" if keeps else "[1]\n")
    assert ("was killed by SIGKILL" in result.stderr) is not keeps


@pytest.mark.parametrize("calls", [1, 2, 3], ids=["before", "when it begins", "when it is saved"])
def test_a_branch_that_dies_while_it_is_kept(box: Sandbox, calls: int) -> None:
    run(box, "x = 1; y = [1]")
    code = """
    x = 2
    class Deadly:
        calls = 0
        def __repr__(self):
            Deadly.calls += 1
            if Deadly.calls > {}:
                import os
                os._exit(1)
            return "deadly"
    y = Deadly()
    """
    with box.branch(2) as branches:
        printed(branches[0], textwrap.dedent(code).format(calls))
        if calls == 1:
            with pytest.raises(BranchError, match="ended itself with status 1"):
                branches[0].keep()
            assert printed(branches[1], "print(x)") == "1\n"
            return
        with pytest.raises(BranchError, match="its process died meanwhile") as caught:
            branches[0].keep()
        assert "goes on as it was before the branches" in caught.value.remedy
        with pytest.raises(BranchError, match="another one was kept"):
            branches[1].execute("x")
    run(box, "assert x == 1 and y == [1]")


# Ends


def test_closing_ends_what_runs(box: Sandbox) -> None:
    run(box, "x = 1")
    pid = pid_of(box)
    with box.branch(3) as branches:
        pids = [pid_of(branch) for branch in branches]
        child = "import subprocess; c = subprocess.Popen(['sleep', '100'], start_new_session=True)"
        pids.append(int(printed(branches[0], child + "; print(c.pid)")))
        pids.append(int(printed(branches[1], DAEMON)))
        busy = Busy(branches[2])
    result = busy.result()
    assert isinstance(result, BranchError)
    assert "The branch has ended: it was closed" in str(result)
    assert all(await_end(pid) for pid in pids)
    assert pid_of(box) == pid


def test_keeping_ends_what_the_others_have_started(box: Sandbox) -> None:
    start = "import subprocess; c = subprocess.Popen(['sleep', '100'], start_new_session=True)"
    with box.branch(2) as branches:
        ended, kept = (int(printed(branch, start + "; print(c.pid)")) for branch in branches)
        busy = Busy(branches[0])
        branches[1].keep()
        assert isinstance(busy.result(), BranchError)
        assert "another one was kept" in str(busy.result())
    assert await_end(ended)
    assert run(box, "print(c.poll(), c.pid)").stdout == f"None {kept}\n"
    run(box, "c.kill(); _ = c.wait()")


def test_what_the_sandbox_has_left_running_goes_on(box: Sandbox) -> None:
    pid = int(run(box, DAEMON).stdout)
    time.sleep(0.02)  # start times are in hundredths of a second
    with box.branch(2) as branches:
        assert in_all(branches, "print(1)") == ["1\n"] * 2
    os.kill(pid, signal.SIGKILL)  # without a container, nobody else would


def test_the_sandbox_is_closed_meanwhile(boxes: Boxes) -> None:
    box = boxes()
    branches = box.branch(2)
    pids = [pid_of(branch) for branch in branches]
    busy = Busy(branches[0])
    box.close()
    assert isinstance(busy.result(), SandboxLostError | SandboxClosedError)
    assert all(await_end(pid) for pid in pids)
    with pytest.raises(SandboxClosedError):
        branches[1].execute("x")
    branches.close()


def test_closing_from_inside(box: Sandbox) -> None:
    with box.branch(2) as branches:
        with pytest.raises(BranchError, match="it was discarded"):
            branches[0].execute(
                "print(1, flush=True)\nimport time\ntime.sleep(60)",
                on_output=lambda *_: branches[0].discard(),
            )
        with pytest.raises((SandboxLostError, SandboxClosedError)):
            branches[1].execute(
                "print(1, flush=True)\nimport time\ntime.sleep(60)",
                on_output=lambda *_: box.close(),
            )


def test_the_container_ends_meanwhile(boxes: Boxes) -> None:
    box = boxes(restarts=1)
    run(box, "x = 1")
    settle(box)
    with box.branch(2) as branches:
        busy = Busy(branches[0])
        box._life.running.interpreter.pipe.process.kill()
        assert isinstance(busy.result(), SandboxLostError)
        for call in (lambda: branches[1].execute("x"), branches[1].keep):
            with pytest.raises(SandboxLostError):
                call()
    assert box.execute("print(x)").stdout == "1\n"
    with box.branch(2) as branches:
        assert in_all(branches, "print(x)") == ["1\n"] * 2
        branches[0].keep()
    run(box, "assert x == 1")


HOST = """
import sys
from rlm_containers import Sandbox
from tests.unit.guests import LocalRuntime
box = Sandbox(runtime=LocalRuntime()).start()
branches = box.branch(3)
pids = [branch.execute("import os; print(os.getpid())").stdout.strip() for branch in branches]
pids.append(branches[0].execute(
    "import subprocess; print(subprocess.Popen(['sleep', '100'], start_new_session=True).pid)"
).stdout.strip())
branches[1].execute(
    "import time\\nprint(1, flush=True)\\nwhile True: pass",
    on_output=lambda *_: (print(*pids, flush=True), sys.stdin.read()),
)
"""


def test_a_host_that_is_killed_leaves_nothing(private_cache: Path) -> None:
    host = subprocess.Popen(
        (sys.executable, "-c", HOST),
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with host:
        assert host.stdout is not None
        pids = [int(pid) for pid in host.stdout.readline().split()]
        assert len(pids) == 4
        host.kill()
    assert all(await_end(pid) for pid in pids)


# Kinds of sandboxes


@pytest.mark.usefixtures("own_sessions")
def test_a_session(boxes: Boxes) -> None:
    box = boxes(session="one", durability="sync")
    run(box, "x = 1")
    with box.branch(2) as branches:
        printed(branches[0], "x = 2")
        branches[0].keep()
    id_ = box.snapshot()
    run(box, "x = 3")
    box.restore(id_)
    run(box, "assert x == 2")
    branches = box.branch(2)
    printed(branches[0], "x = 4")
    box.close()
    assert run(boxes(session="one"), "print(x)").stdout == "2\n"


def test_a_workspace_that_is_piped(boxes: Boxes, local: LocalRuntime) -> None:
    local.is_remote = True
    box = boxes()
    run(box, "x = 1")
    with box.branch(2) as branches:
        printed(branches[0], "open('file', 'w').write('1'); x = 2")
        assert box.files.read("file") == b"1"
        branches[0].keep()
    revive(box)
    run(box, "assert x == 2")


def test_a_pool(local: LocalRuntime, private_cache: Path) -> None:
    with SandboxPool(runtime=local, size=1) as pool, pool.sandbox(lm=str.upper) as box:
        with box.branch(2) as branches:
            assert in_all(branches, "print(llm_query('a'))") == ["A\n"] * 2
            branches[0].keep()
        run(box, "print(1)")


def test_a_fork_of_what_was_kept(box: Sandbox) -> None:
    with box.branch(2) as branches:
        printed(branches[0], "x = 2")
        branches[0].keep()
    with box.fork() as other:
        run(other, "assert x == 2")
        with other.branch(1) as more:
            assert printed(more[0], "print(x)") == "2\n"


def test_large_states(boxes: Boxes) -> None:
    """Their checkpoints are written by heirs, while branches run."""
    box = boxes()
    run(box, "rows = [{'n': n, 'text': str(n)} for n in range(30_000)]")
    for number in range(3):
        run(box, f"rows[{number}]['n'] = 'changed'")
        with box.branch(3) as branches:
            in_all(branches, "rows[29_999]['n'] = len(rows)")
            printed(branches[number], f"rows.append({number})")
            branches[number].keep()
        run(box, f"last = {number}")
    revive(box)
    code = "print(len(rows), [r['n'] for r in rows[:4]], rows[-3:], last, rows[29_999]['n'])"
    assert run(box, code).stdout == (
        "30003 ['changed', 'changed', 'changed', 3] [0, 1, 2] 2 30002\n"
    )


def test_neither_is_sent_elsewhere(box: Sandbox) -> None:
    import copy
    import pickle

    with box.branch(1) as branches:
        for act in (pickle.dumps, copy.copy):
            with pytest.raises(SandboxError, match="cannot be pickled"):
                act(branches[0])
        assert repr(branches[0]) == f"<Branch 1 of {box.name}, running>"
        assert repr(branches) == f"<1 branches of {box.name}>"
        assert branches[:1] == (branches[0],)


# In an event loop


def test_branches_are_awaited(boxes: Boxes) -> None:
    meeting: list[str] = []

    async def ask(prompt: str) -> str:
        meeting.append(prompt)
        while len(meeting) < 3:
            await asyncio.sleep(0.01)
        return prompt.upper()

    box = boxes(lm=ask, tools={"ask": ask})

    async def test() -> None:
        async with await box.abranch(3) as branches:
            code = "x = {0}\nprint(llm_query('{0}'), ask('a'))"
            results = await asyncio.gather(
                *(branch.aexecute(code.format(n)) for n, branch in enumerate(branches))
            )
            assert [result.stdout for result in results] == [f"{n} A\n" for n in range(3)]
            await branches[0].adiscard()
            await branches[1].akeep()
        assert (await box.aexecute("print(x)")).stdout == "1\n"
        branches = await box.abranch(2)
        cell = asyncio.create_task(branches[0].aexecute("import time; time.sleep(60)"))
        await asyncio.sleep(0)
        cell.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cell
        assert (await branches[0].aexecute("print(x)")).stdout == "1\n"
        await branches.aclose()
        assert interpreter_of(box).is_busy is False

    asyncio.run(asyncio.wait_for(test(), TIMEOUT))
