"""Programs that fork while sandboxes are open: a child can do nothing to its parent's."""

from __future__ import annotations

import contextlib
import copy
import fcntl
import multiprocessing
import os
import pickle
import pty
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rlm_containers import Sandbox
from rlm_containers.errors import SandboxError, SandboxForkedError
from rlm_containers.state import SessionStore
from tests.support import TIMEOUT
from tests.unit.guests import LocalRuntime, await_end

USES: dict[str, Callable[[Sandbox], object]] = {
    "execute": lambda box: box.execute("1"),
    "load": lambda box: box.load("name", "text"),
    "put_file": lambda box: box.put_file(__file__),
    "list_files": lambda box: box.list_files(),
    "snapshot": lambda box: box.snapshot(),
    "fork": lambda box: box.fork(),
    "start": lambda box: box.start(),
    "unsaved": lambda box: box.unsaved,
    "set_tools": lambda box: box.set_tools({}),
    "reset_answer": lambda box: box.reset_answer(),
}


def in_child(work: Callable[[], object], fork: Callable[[], int] = os.fork) -> None:
    """Run something in a forked child. It must succeed there in time."""
    child = fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(int(TIMEOUT))
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


@pytest.fixture
def box(local: LocalRuntime) -> Iterator[Sandbox]:
    with Sandbox(runtime=local, lm=lambda prompt: "answer") as box:
        box.execute("x = 1")
        yield box


def refuses(box: Sandbox) -> None:
    with pytest.raises(SandboxForkedError):
        box.execute("1")


def still_works(box: Sandbox) -> None:
    assert box.execute("x += 1; print(x, llm_query('?'))").stdout == "2 answer\n"


def test_every_use_in_a_child_is_one_error(box: Sandbox) -> None:
    def use() -> None:
        for name, call in USES.items():
            with pytest.raises(SandboxForkedError) as caught:
                call(box)
            assert f"belongs to the process {os.getppid()}" in str(caught.value), name
            assert caught.value.container == box.name
        box.interrupt()
        box.close()
        assert "of another process" in repr(box)

    in_child(use)
    still_works(box)


def test_a_child_of_a_child(box: Sandbox) -> None:
    def use() -> None:
        in_child(lambda: refuses(box))

    in_child(use)
    still_works(box)


@pytest.mark.parametrize("end", ["sys.exit()", "1 / 0", "os._exit(0)", "box.close()", "del box"])
def test_however_a_child_ends_the_sandbox_goes_on(end: str) -> None:
    # A process of its own, whose exit functions run in the child.
    program = f"""
import os, sys
from rlm_containers import Sandbox
from tests.unit.guests import LocalRuntime
local = LocalRuntime()
box = Sandbox(runtime=local, lm=lambda prompt: "answer").start()
box.execute("x = 1")
child = os.fork()
if child == 0:
    sys.stderr = open(os.devnull, "w")
    {end}
    sys.exit()
os.waitpid(child, 0)
print(box.execute("x += 1; print(x, llm_query('?'))").stdout)
"""
    done = subprocess.run(
        (sys.executable, "-c", program), capture_output=True, text=True, timeout=TIMEOUT, check=True
    )
    assert (done.stdout, done.stderr) == ("2 answer\n\n", "")


def test_a_child_has_none_of_its_descriptors(local: LocalRuntime, box: Sandbox) -> None:
    def pipes() -> set[str]:
        found = set()
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                found.add(os.readlink(f"/proc/self/fd/{name}"))
        return {target for target in found if target.startswith(("pipe:", "socket:"))}

    process = local.processes[-1]
    ends = {os.readlink(f"/proc/self/fd/{fd}") for fd in (process.stdin, process.stdout)}
    assert ends <= pipes()

    def look() -> None:
        assert not ends & pipes()
        assert process.stdin == -1

    in_child(look)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{descriptor}") in ends:
                assert fcntl.fcntl(descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


@pytest.mark.usefixtures("own_sessions")
def test_a_living_child_holds_nothing_up(local: LocalRuntime) -> None:
    held, release = os.pipe()
    runs, says = os.pipe()
    box = Sandbox(runtime=local, session="one").start()
    child = os.fork()
    if child == 0:
        os.close(release)
        os.close(says)
        os.read(held, 1)
        os._exit(0)
    os.close(says)
    assert os.read(runs, 1) == b""  # before it has run, it has all that it is born with
    os.close(runs)
    pid = local.processes[-1].pid
    box.close()
    assert await_end(pid)
    assert SessionStore().inspect("one").pid is None
    with Sandbox(runtime=local, session="one"):
        pass
    os.close(release)
    assert os.waitpid(child, 0)[1] == 0
    os.close(held)


def test_a_guest_ends_with_its_host_although_a_child_of_that_lives() -> None:
    program = """
import os, sys, time
from rlm_containers import Sandbox
from tests.unit.guests import LocalRuntime
local = LocalRuntime()
box = Sandbox(runtime=local).start()
child = os.fork()
if child == 0:
    os.close(1)
    time.sleep(600)
print(local.processes[0].pid, child, flush=True)
time.sleep(600)
"""
    with subprocess.Popen((sys.executable, "-c", program), stdout=subprocess.PIPE) as host:
        assert host.stdout is not None
        pid, child = map(int, host.stdout.readline().split())
        try:
            host.kill()
            assert await_end(pid)
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_child_may_have_sandboxes_of_its_own(box: Sandbox) -> None:
    def use() -> None:
        with Sandbox(runtime=LocalRuntime(), lm=lambda prompt: "mine") as own:
            assert own.execute("print(llm_query('?'))").stdout == "mine\n"

    in_child(use)
    still_works(box)


def test_forks_of_another_thread(local: LocalRuntime) -> None:
    """Sandboxes start, run and close while another thread forks all the time."""
    ended = threading.Event()
    failures: list[object] = []

    def fork() -> None:
        while not ended.is_set():
            child = os.fork()
            if child == 0:
                os._exit(0)
            if os.waitpid(child, 0)[1]:
                failures.append(child)

    thread = threading.Thread(target=fork)
    thread.start()
    try:
        for _ in range(5):
            with Sandbox(runtime=local, lm=lambda prompt: "answer") as box:
                assert box.execute("print(llm_query('?'))").stdout == "answer\n"
    finally:
        ended.set()
        thread.join()
    assert not failures


def test_a_fork_while_another_thread_runs_a_cell(box: Sandbox) -> None:
    running = threading.Event()

    def execute() -> None:
        box.execute("print('on'); import time; time.sleep(60)", on_output=lambda *_: running.set())

    thread = threading.Thread(target=execute)
    thread.start()
    assert running.wait(TIMEOUT)
    in_child(lambda: refuses(box))
    in_child(box.close)
    box.interrupt()
    thread.join()
    still_works(box)


def pty_fork() -> int:
    return pty.fork()[0]


def test_a_child_with_a_terminal(box: Sandbox) -> None:
    in_child(lambda: refuses(box), pty_fork)
    still_works(box)


@pytest.mark.parametrize("options", [{"close_fds": False}, {"preexec_fn": int}])
def test_programs_that_are_executed(box: Sandbox, options: dict[str, object]) -> None:
    subprocess.run(("true",), check=True, **options)  # type: ignore[call-overload]
    still_works(box)


def work(box: Sandbox) -> str:
    try:
        box.execute("1")
    except SandboxForkedError:
        return "refused"
    return "worked"


def test_multiprocessing_with_fork(box: Sandbox) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put(work(box)))
    child.start()
    assert queue.get() == "refused"
    child.join()
    assert child.exitcode == 0
    still_works(box)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_sandbox_cannot_be_sent_to_another_process(box: Sandbox, method: str) -> None:
    child = multiprocessing.get_context(method).Process(target=work, args=(box,))
    with pytest.raises(SandboxError, match="cannot be pickled"):
        child.start()
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(SandboxError, match="cannot be pickled"):
            attempt(box)
    still_works(box)


# What else a host may do to its children


def run_host(program: str, shell: str = 'exec "$@"') -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ("sh", "-c", shell, "sh", sys.executable, "-c", program),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


HOST = """
import os, signal, sys, threading, time
from rlm_containers import Sandbox
from tests.unit.guests import LocalRuntime
{before}
with Sandbox(runtime=LocalRuntime(), lm=lambda prompt: "answer") as box:
    said = box.execute("print(llm_query('?'))").stdout
    assert box.execute("import os; os._exit(1)").status == "died"
    assert box.execute("print(1)").stdout == "1\\n"
assert said == "answer\\n", said
with open({out!r}, "w") as file: file.write(said)
"""


@pytest.mark.parametrize(
    ("before", "shell"),
    [
        ("", "trap '' CHLD; exec \"$@\""),
        ("signal.signal(signal.SIGCHLD, signal.SIG_IGN)", 'exec "$@"'),
        ("", 'exec "$@" <&- >&- 2>&-'),
        ("", 'exec "$@" <&-'),
        ("", 'exec "$@" 2>&-'),
        ("os.closerange(0, 3)", 'exec "$@"'),
        ("", 'exec setsid "$@"'),
        (
            "def reap(*_):\\n"
            "    try:\\n        while os.waitpid(-1, os.WNOHANG)[0]: pass\\n"
            "    except ChildProcessError: pass\\n"
            "signal.signal(signal.SIGCHLD, reap)",
            'exec "$@"',
        ),
        ("signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))", 'exec "$@"'),
        (
            "import socket, warnings\\nsignal.signal(signal.SIGPIPE, signal.SIG_DFL)\\n"
            "socket.setdefaulttimeout(0.1); warnings.simplefilter('error'); os.umask(0o777)\\n"
            "threading.stack_size(32768); sys.setrecursionlimit(150)",
            'exec "$@"',
        ),
    ],
    ids=[
        *("ignored", "ignores", "all closed", "stdin", "stderr", "closes", "no terminal", "reaps"),
        *("blocks", "many"),
    ],
)
def test_hosts_with_habits(tmp_path: Path, before: str, shell: str) -> None:
    out = tmp_path / "out"
    before = before.replace("\\n", "\n")
    done = run_host(HOST.format(before=before, out=str(out)), shell)
    assert out.exists(), done.stderr
    assert "Traceback" not in done.stderr
