"""Commands: how they start and end, what they see, and what is left of them."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from rlm_containers import CommandResult, Sandbox
from rlm_containers.errors import (
    OptionError,
    SandboxBusyError,
    SandboxClosedError,
    SandboxForkedError,
    SandboxLostError,
)
from tests.conftest import MakeBox
from tests.support import LOCAL, TIMEOUT, Engine, eventually, printed
from tests.unit.guests import await_end

#: Leaves a daemon: a process with a session of its own, whose parent is gone. It writes its process
#: id to the file that is named, and lives until it is killed.
DAEMON = """
import os, sys, time
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
with open(sys.argv[1] + '.new', 'w') as file:
    file.write(str(os.getpid()))
os.rename(sys.argv[1] + '.new', sys.argv[1])
while True:
    time.sleep(60)
"""

#: Waits until a file is there.
AWAIT = "until [ -e {0} ]; do sleep 0.02; done"


def ran(box: Sandbox, command: str | list[str], **options: Any) -> CommandResult:
    """The result of a command that must end well and write nothing to stderr."""
    result = box.command(command, **options)
    assert (result.status, result.exit_code, result.stderr.text) == ("ok", 0, ""), result
    return result


def lives(box: Sandbox, pid: bytes | str) -> bool:
    return (
        box.command(["kill", "-0", pid.decode() if isinstance(pid, bytes) else pid]).status == "ok"
    )


def ends(box: Sandbox, pid: bytes) -> bool:
    """Whether a killed process is gone, or will be: until somebody waits for it, it is a zombie."""
    return eventually(lambda: not lives(box, pid))


def has(box: Sandbox, name: str) -> Callable[[], bool]:
    return lambda: any(file.name == name for file in box.list_files())


def in_thread(call: Callable[[], Any]) -> Future[Any]:
    """Make a call in a thread."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(call)
    pool.shutdown(wait=False)
    return future


# What it is given


def test_a_string_is_run_by_the_shell(box: Sandbox) -> None:
    result = box.command("echo out; echo err >&2; exit 3")
    assert (result.stdout, result.stderr) == (b"out\n", b"err\n")
    assert (result.stdout.text, result.stderr.text) == ("out\n", "err\n")
    assert (result.status, result.exit_code, result.notices) == ("error", 3, ())
    assert result.execution_time > 0


def test_a_sequence_is_run_as_it_is(box: Sandbox) -> None:
    argument = " a  $HOME `x` 'y' \"z\"; && \n ü\udc80"
    program = "import os, sys; os.write(1, os.fsencode(sys.argv[1]))"
    result = ran(box, ["python3", "-c", program, argument])
    assert result.stdout == argument.encode("utf-8", "surrogateescape")


def test_it_is_in_the_place_of_the_cells(make_box: MakeBox) -> None:
    box = make_box(env={"OF_THE_SANDBOX": "its own", "BOTH": "box"})
    seen = "import os; print(os.getuid(), os.getgid(), os.getcwd(), os.environ['HOME'])"
    assert ran(box, ["python3", "-c", seen]).stdout.text == printed(box, seen)
    shown = ran(box, 'echo "$OF_THE_SANDBOX $BOTH $MINE"', env={"MINE": "x y", "BOTH": "command"})
    assert shown.stdout == b"its own command x y\n"


def test_the_directory_it_starts_in(box: Sandbox) -> None:
    box.put_file(b"", "sub/dir/file")
    assert ran(box, ["ls"], cwd="sub/dir").stdout == b"file\n"
    assert ran(box, ["pwd"], cwd="/").stdout == b"/\n"
    missing = box.command(["true"], cwd="missing")
    assert (missing.status, missing.exit_code) == ("error", 126)
    assert "'missing' cannot be entered: No such file or directory" in missing.stderr.text


def test_its_input(box: Sandbox) -> None:
    every = bytes(range(256))
    assert ran(box, ["cat"], input=every).stdout == every
    assert ran(box, ["cat"], input="ä\udc80").stdout == b"\xc3\xa4\x80"
    assert ran(box, ["cat"], input=b"").stdout == b""
    assert ran(box, ["cat"]).stdout == b""
    assert ran(box, ["wc", "-c"], input=bytes(20_000_001)).stdout.strip() == b"20000001"
    # One that does not read it.
    assert ran(box, ["true"], input=bytes(20_000_000)).stdout == b""
    assert ran(box, "exec <&-; echo closed", input=bytes(5_000_000)).stdout == b"closed\n"


def test_much_in_and_much_out(make_box: MakeBox) -> None:
    box = make_box(max_output=30_000_000)
    content = bytes(range(256)) * 40_000
    assert ran(box, ["cat"], input=content).stdout == content


def test_a_large_command(box: Sandbox) -> None:
    arguments = ["x" * 65536] * 12
    result = ran(
        box, ["python3", "-c", "import sys; print(len(''.join(sys.argv[1:])))", *arguments]
    )
    assert result.stdout == b"786432\n"
    too_long = box.command(["true", "x" * 1_000_000])
    assert (too_long.exit_code, too_long.stderr.text.count("too long")) == (126, 1)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ([], {}),
        ("a\0b", {}),
        ([b"ls"], {}),
        (b"ls", {}),
        (None, {}),
        (["\ud800"], {}),
        ("x", {"cwd": 3}),
        ("x", {"env": {"A=B": "x"}}),
        ("x", {"env": {"": "x"}}),
        ("x", {"env": {"A": 1}}),
        ("x", {"env": {"A": "\0"}}),
        ("x", {"input": 3}),
        ("x", {"timeout": 0}),
        ("x", {"timeout": float("nan")}),
        ("x", {"timeout": True}),
    ],
)
def test_wrong_arguments(box: Sandbox, command: Any, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        box.command(command, **options)


# How it ends


def test_programs_that_cannot_be_started(box: Sandbox) -> None:
    missing = box.command(["no-such-program"])
    assert (missing.status, missing.exit_code) == ("error", 127)
    assert "'no-such-program' cannot be executed: No such file" in missing.stderr.text
    refused = box.command(["/etc/passwd"])
    assert (refused.status, refused.exit_code) == ("error", 126)
    assert "Permission denied" in refused.stderr.text
    assert box.command("no-such-program").exit_code == 127


def test_one_that_a_signal_ends(box: Sandbox) -> None:
    result = box.command("echo before; kill -TERM $$")
    assert (result.status, result.exit_code, result.stdout) == ("killed", 143, b"before\n")


def test_signals_are_as_in_a_new_shell(box: Sandbox) -> None:
    # Python ignores SIGPIPE, and its children would.
    assert box.command("yes | head -n 1").stdout == b"y\n"
    assert box.command("kill -INT $$").exit_code == 130


def test_a_time_limit_kills_daemons_too(box: Sandbox) -> None:
    printed(box, "import subprocess\nof_a_cell = subprocess.Popen(['sleep', '1000'])")
    own = printed(box, "print(of_a_cell.pid)").strip()
    box.put_file(DAEMON.encode(), "daemon.py")
    result = box.command(
        f"echo begun; python3 daemon.py late; {AWAIT.format('late')}; sleep 1000", timeout=3
    )
    assert (result.status, result.exit_code, result.stdout) == ("timeout", 124, b"begun\n")
    assert result.notices == ("The command reached its limit of 3 s (timeout) and was killed.",)
    assert ends(box, box.get_file("late"))
    assert lives(box, own)
    printed(box, "of_a_cell.kill()\n_ = of_a_cell.wait()\ndel of_a_cell")


def test_what_it_leaves_runs_on(make_box: MakeBox) -> None:
    box = make_box()
    box.put_file(DAEMON.encode(), "daemon.py")
    # The child has the command's streams, and goes on to write to them.
    box.put_file(
        f"{AWAIT.format('go')}; echo noise; echo noise >&2; echo x > done".encode(), "child"
    )
    result = ran(box, f"sh child & python3 daemon.py pid; {AWAIT.format('pid')}; echo ended")
    assert result.stdout == b"ended\n"
    # Neither the end of a worker nor that of another command reaches it.
    assert box.execute("import os; os._exit(1)").status == "died"
    assert box.command("sleep 1000", timeout=0.1).status == "timeout"
    daemon = box.get_file("pid")
    assert lives(box, daemon)
    assert not has(box, "done")()
    box.put_file(b"", "go")
    assert eventually(has(box, "done"))


def test_closing_kills_what_is_left(engine: Engine, make_box: MakeBox) -> None:
    if engine.name != LOCAL:
        pytest.skip("that everything ends with its container is the kernel's doing")
    box = make_box()
    box.put_file(DAEMON.encode(), "daemon.py")
    ran(box, f"python3 daemon.py pid; {AWAIT.format('pid')}")
    daemon = int(box.get_file("pid"))
    box.close()
    assert await_end(daemon)


# Output


def test_output_is_passed_on_while_it_runs(box: Sandbox) -> None:
    heard: list[tuple[str, bytes]] = []

    def listen(stream: str, data: bytes) -> None:
        heard.append((stream, data))
        if data == b"first\n":
            box.put_file(b"", "heard")

    command = f"echo first; {AWAIT.format('heard')}; printf '\\377' >&2"
    result = box.command(command, on_output=listen, timeout=TIMEOUT)
    assert heard == [("stdout", b"first\n"), ("stderr", b"\xff")]
    assert (result.status, result.stderr, result.stderr.text) == ("ok", b"\xff", "\ufffd")


def test_output_is_bounded(make_box: MakeBox) -> None:
    box = make_box(max_output=1000)
    heard = 0

    def count(stream: str, data: bytes) -> None:
        nonlocal heard
        heard += len(data)

    program = "import sys; sys.stdout.write('a' * 5_000_000 + 'z' * 5_000_000); print('err', file=sys.stderr)"
    result = box.command(["python3", "-c", program], on_output=count)
    assert result.stdout == b"a" * 500 + b"\n[... 9999000 bytes cut ...]\n" + b"z" * 500
    assert (result.stdout.cut, result.stderr.cut, result.stderr) == (9_999_000, 0, b"err\n")
    assert heard == 10_000_004


def test_a_child_that_never_stops_printing(make_box: MakeBox) -> None:
    box = make_box(max_output=1000)
    result = box.command("yes & echo $! > pid")
    assert result.status == "ok"
    assert printed(box, "print('cells go on')") == "cells go on\n"
    ran(box, "kill $(cat pid)")


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), ValueError(), SandboxLostError("x")])
def test_a_callback_that_fails_ends_it(box: Sandbox, failure: BaseException) -> None:
    def fail(stream: str, data: bytes) -> None:
        raise failure

    with pytest.raises(type(failure)):
        box.command("echo $$ > own-pid; echo x; sleep 1000", on_output=fail)
    assert ends(box, box.get_file("own-pid").strip())


# Beside cells and each other


def test_it_runs_beside_a_cell(box: Sandbox) -> None:
    cell = in_thread(
        lambda: printed(
            box,
            """
            import os, time
            open('begun', 'w').close()
            while not os.path.exists('from-a-command'):
                time.sleep(0.01)
            print(open('from-a-command').read())
            """,
        )
    )
    result = ran(
        box, f"{AWAIT.format('begun')}; echo hello > x; mv x from-a-command", timeout=TIMEOUT
    )
    assert (result.stdout, cell.result(TIMEOUT)) == (b"", "hello\n\n")


def test_the_end_of_a_cell_spares_it(make_box: MakeBox) -> None:
    box = make_box(cell_timeout=1)
    command = in_thread(lambda: box.command(f"echo > begun; {AWAIT.format('go-on')}; echo ended"))
    assert eventually(has(box, "begun"))
    result = box.execute("import subprocess\nsubprocess.run(['sleep', '1000'])")
    assert result.status == "timeout"
    assert box.execute("import os; os._exit(1)").status == "died"
    box.put_file(b"", "go-on")
    assert command.result(TIMEOUT).stdout == b"ended\n"


def test_many_at_once(box: Sandbox) -> None:
    with ThreadPoolExecutor(100) as pool:
        found = list(
            pool.map(lambda n: box.command(["sh", "-c", f"cat; echo {n}"], input=b"x"), range(100))
        )
    assert [result.stdout for result in found] == [f"x{n}\n".encode() for n in range(100)]


def test_calls_inside_of_calls(make_box: MakeBox) -> None:
    made: list[Any] = []

    def tool() -> str:
        return box.command("echo from a tool").stdout.text

    box = make_box(tools={"tool": tool})
    # For a tool the cell waits, but the thread of the call does not run it.
    assert printed(box, "print(tool())") == "from a tool\n\n"

    def call(act: Callable[[], Any]) -> Callable[[str, Any], None]:
        def listen(stream: str, data: object) -> None:
            with pytest.raises(SandboxBusyError) as caught:
                act()
            made.append(caught.value)

        return listen

    ran(box, "echo x", on_output=call(lambda: box.execute("1")))
    ran(box, "echo x", on_output=call(lambda: box.command("true")))
    box.execute("print('x')", on_output=call(lambda: box.command("true")))
    assert len(made) == 3
    assert "a tool or lm command()" in str(made[0])


@pytest.mark.parametrize("act", ["command", "execute", "close"])
def test_a_signal_handler(make_box: MakeBox, act: str) -> None:
    box = make_box()
    raised: list[BaseException] = []
    acts: dict[str, Callable[[], Any]] = {
        "command": lambda: box.command("true"),
        "execute": lambda: box.execute("1"),
        "close": box.close,
    }

    def handle(number: int, frame: object) -> None:
        try:
            acts[act]()
        except SandboxBusyError as error:
            raised.append(error)
            box.files.write("go-on", b"")

    def kick() -> None:
        assert eventually(has(box, "begun"))
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handle)
    kicker = in_thread(kick)
    try:
        command = f"echo > begun; {AWAIT.format('go-on')}"
        if act == "close":
            with pytest.raises(SandboxLostError):
                box.command(command)
            with pytest.raises(SandboxClosedError):
                box.command("true")
        else:
            assert box.command(command).status == "ok"
            assert len(raised) == 1
        kicker.result(TIMEOUT)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_closing_ends_it(make_box: MakeBox) -> None:
    box = make_box()
    command = in_thread(lambda: box.command("echo > begun; sleep 1000"))
    assert eventually(has(box, "begun"))
    box.close()
    with pytest.raises(SandboxLostError):
        command.result(TIMEOUT)
    with pytest.raises(SandboxClosedError):
        box.command("true")


def test_closing_in_its_callback(make_box: MakeBox) -> None:
    box = make_box()
    with pytest.raises(SandboxLostError):
        box.command("echo x; sleep 1000", on_output=lambda stream, data: box.close())
    with pytest.raises(SandboxClosedError):
        box.command("true")


def test_the_end_of_the_container(make_box: MakeBox) -> None:
    box = make_box()
    supervisor = printed(box, "import os; print(os.getppid())").strip()
    if supervisor == "1":
        pytest.skip("a container's first process cannot be killed from inside")
    with pytest.raises(SandboxLostError, match="container is gone") as caught:
        box.command(f"kill -KILL {supervisor}; while kill -0 {supervisor}; do sleep 0.02; done")
    assert box.name in str(caught.value)
    with pytest.raises(SandboxLostError):
        box.command("true")


def test_a_sandbox_that_was_never_started(engine: Engine) -> None:
    with pytest.raises(SandboxClosedError, match="not been started"):
        Sandbox(engine.image(), runtime=engine.runtime).command("true")


def test_a_fork_of_the_process(box: Sandbox) -> None:
    child = os.fork()
    if child == 0:
        try:
            box.command("true")
        except SandboxForkedError:
            os._exit(7)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


# In a program with an event loop


def test_awaiting(box: Sandbox) -> None:
    threads: set[threading.Thread] = set()

    def listen(stream: str, data: bytes) -> None:
        threads.add(threading.current_thread())

    async def main() -> list[CommandResult]:
        return await asyncio.gather(
            *(box.acommand(["cat"], input=f"{n}", on_output=listen) for n in range(5))
        )

    assert [result.stdout for result in asyncio.run(main())] == [b"0", b"1", b"2", b"3", b"4"]
    assert threads == {threading.current_thread()}


def test_cancelling_kills_it(box: Sandbox) -> None:
    async def main() -> None:
        started = asyncio.Event()
        task = asyncio.create_task(
            box.acommand(
                "echo $$ > cancelled; echo x; sleep 1000", on_output=lambda *_: started.set()
            )
        )
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert ends(box, box.get_file("cancelled").strip())


def test_an_awaited_callback_that_fails(box: Sandbox) -> None:
    def fail(stream: str, data: bytes) -> None:
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        asyncio.run(box.acommand("echo x; sleep 1000", on_output=fail))
