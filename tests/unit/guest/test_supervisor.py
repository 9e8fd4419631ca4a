"""The supervisor between host and worker: deaths, frames, calls, and its own end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlm_containers.container.bundle import Bundle
from rlm_containers.guest import wire
from tests.support import TIMEOUT
from tests.unit.guests import Guest, await_end, boot_program


def test_it_greets_before_it_is_asked(guest: Guest) -> None:
    hello = guest.event("hello")
    assert hello["python"] == ".".join(map(str, sys.version_info[:3]))
    assert hello["pid"] == guest.pid


def test_it_ends_when_the_host_hangs_up(ready: Guest) -> None:
    worker = int(ready.run("import os; print(os.getpid())")[1])
    assert ready.hang_up() == (0, b"")
    assert await_end(worker)


def test_it_ends_in_the_middle_of_a_cell(ready: Guest) -> None:
    code = """
import os, signal, subprocess
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "1000"])
print(os.getpid(), child.pid, flush=True)
while True: pass
"""
    ready.cell(code)
    kind, payload = ready.frame()
    assert kind == wire.STDOUT
    assert ready.hang_up()[0] == 0
    assert all(await_end(int(pid)) for pid in payload.split())


def test_it_ends_before_it_was_told_to_start(guest: Guest) -> None:
    assert guest.hang_up() == (0, b"")


def test_it_ends_when_nobody_reads(made_bundle: Bundle, tmp_path: Path) -> None:
    boot = boot_program(made_bundle.boot, tmp_path)
    process = subprocess.Popen(
        (sys.executable, "-c", boot), stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.close()
    start = {"op": "start", "lm": False, "proxy": None, "env": {}, "expected": False, "kept": []}
    try:
        process.stdin.write(made_bundle.modules + wire.encode(wire.MODULES))
        process.stdin.write(wire.encode(wire.MESSAGE, json.dumps(start).encode()))
        process.stdin.flush()
    except BrokenPipeError:
        pass  # it has ended already: nobody read its hello
    process.wait(TIMEOUT)
    process.stdin.close()


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("import os; os._exit(0)", {"exit": 0}),
        ("import os; os._exit(7)", {"exit": 7}),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", {"signal": signal.SIGKILL}),
        ("import os; os.abort()", {"signal": signal.SIGABRT}),
        ("import ctypes; ctypes.string_at(0)", {"signal": signal.SIGSEGV}),
        ("import os, signal; os.killpg(0, signal.SIGTERM)", {"signal": signal.SIGTERM}),
    ],
)
def test_it_reports_how_a_worker_died_and_starts_another(
    ready: Guest, code: str, how: dict[str, int]
) -> None:
    ready.run("x = 1")
    number = ready.cell(code)
    died = ready.event("died")
    assert died.items() >= how.items()
    assert (died["saved"], died["begun"]) == (number - 1, number)
    assert ready.start(expected=True)["lost"] == []
    assert ready.run("print(x)")[1] == "1\n"


def test_output_before_a_death_arrives_before_its_event(ready: Guest) -> None:
    ready.cell("import os\nprint('a' * 100_000)\nos.write(2, b'oops')\nos.kill(os.getpid(), 9)")
    _, before = ready.until(wire.EVENT, event="died")
    assert b"".join(p for k, p in before if k == wire.STDOUT) == b"a" * 100_000 + b"\n"
    assert b"".join(p for k, p in before if k == wire.STDERR) == b"oops"


def test_a_restart_kills_the_children_of_a_cell(ready: Guest) -> None:
    ready.cell(
        "import subprocess\nchild = subprocess.Popen(['sleep', '1000'])\n"
        "print(child.pid, flush=True)\nchild.wait()"
    )
    _, payload = ready.frame()
    ready.send(wire.RESTART)
    ready.event("died")
    assert await_end(int(payload))


def test_a_request_that_reaches_a_worker_before_its_start_is_ignored(ready: Guest) -> None:
    ready.run("x = 1")
    ready.cell("import os; os._exit(1)")
    late = ready.cell("x = 2")  # the next worker gets it before its start
    died = ready.event("died")
    assert died["begun"] < late
    ready.start(expected=True)
    assert ready.run("print(x)")[1] == "1\n"


@pytest.mark.parametrize(
    "code",
    [
        "import os\nfor fd in range(3, 60):\n    try: os.write(fd, b'garbage')\n    except OSError: pass",
        "import os\nos.closerange(3, 100)",
        "import os\nos.closerange(0, 100)",
        "import os\nfor fd in range(3, 60):\n    try: os.dup2(1, fd)\n    except OSError: pass",
    ],
)
def test_spoiling_the_workers_descriptors_costs_only_the_worker(ready: Guest, code: str) -> None:
    ready.run("x = 1")
    number = ready.cell(code)
    while True:
        kind, payload = ready.frame()
        if kind == wire.EVENT:
            assert json.loads(payload)["event"] == "died"
            ready.start(expected=True)
            break
        if kind == wire.MESSAGE and json.loads(payload).get("id") == number:
            break  # the worker survived
    assert ready.run("print(x)")[1] == "1\n"


def test_the_guest_ends_if_no_worker_becomes_ready(guest: Guest) -> None:
    guest.event("hello")
    for count in range(3):
        guest.send(wire.MESSAGE, b"this is no JSON, and ends the worker")
        assert guest.event("died" if count < 2 else "failed")
    with pytest.raises(EOFError):
        guest.frame()
    assert guest.hang_up()[0] == 71


def test_garbage_from_the_host_ends_it(ready: Guest) -> None:
    worker = int(ready.run("import os; print(os.getpid())")[1])
    ready.write(b"this is not a frame")
    with pytest.raises(EOFError):
        ready.frame()
    assert ready.hang_up()[0] != 0
    assert await_end(worker)


def test_a_long_output_waits_for_a_slow_host(ready: Guest) -> None:
    # Much more than the pipes hold, and nobody reads while the cell runs.
    number = ready.cell("for i in range(200): print('x' * 50_000)")
    sync = ready.request("sync")
    _, before = ready.until(wire.MESSAGE, op="result", id=number)
    assert sum(len(p) for k, p in before if k == wire.STDOUT) == 200 * 50_001
    ready.message("result", id=sync)


def test_output_after_the_answer_still_arrives(ready: Guest) -> None:
    result, stdout, _ = ready.run(
        "import os, subprocess\nr, w = os.pipe()\nos.set_inheritable(r, True)\n"
        "child = subprocess.Popen(f'read line <&{r}; echo later', shell=True, pass_fds=(r,))"
    )
    assert (result["status"], stdout) == ("ok", "")
    _, stdout, _ = ready.run("n = os.write(w, b'go\\n'); n = child.wait()")
    assert stdout == "later\n"


def test_ctrl_c_in_the_terminal_is_left_to_the_host(ready: Guest) -> None:
    ready.run("x = 1")
    os.kill(ready.pid, signal.SIGINT)
    assert ready.run("print(x)")[1] == "1\n"


def test_orphans_are_not_taken_for_the_worker(ready: Guest) -> None:
    code = "import os\nfor _ in range(20): os.system('true & (true &)')\nprint('done')"
    assert ready.run(code)[1] == "done\n"


def test_a_call_is_passed_on_and_its_answer_comes_back(guest: Guest) -> None:
    guest.event("hello")
    assert guest.start(lm=True)["route"] == "pipe"
    number = guest.cell("print(llm_query('x'), llm_query('y'))")
    for prompt in ("x", "y"):
        kind, payload = guest.frame()
        assert kind == wire.CALL
        request = {"prompt": prompt, "model": None}
        assert json.loads(payload[4:]) == {"path": "/llm_query", "request": request}
        guest.send(wire.CALL, payload[:4] + b'{"response": "re: ' + prompt.encode() + b'"}')
    _, before = guest.until(wire.MESSAGE, op="result", id=number)
    assert before == [(wire.STDOUT, b"re: x re: y\n")]


def test_calls_may_be_answered_in_any_order(guest: Guest) -> None:
    guest.event("hello")
    guest.start(lm=True)
    number = guest.cell(
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(8) as pool: print(list(pool.map(llm_query, 'abcdefgh')))"
    )
    calls = [guest.frame()[1] for _ in range(8)]
    assert len({call[:4] for call in calls}) == 8
    guest.send(wire.CALL, b"\xff\xff\xff\xff" + b"{}")  # the answer to no call
    for call in reversed(calls):
        prompt = json.loads(call[4:])["request"]["prompt"]
        guest.send(wire.CALL, call[:4] + json.dumps({"response": prompt.upper()}).encode())
    _, before = guest.until(wire.MESSAGE, op="result", id=number)
    assert before == [(wire.STDOUT, f"{list('ABCDEFGH')}\n".encode())]
