"""Commands of the supervisor, by the frames that the host gets."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlm_containers.guest import wire
from tests.support import eventually
from tests.unit.guests import Guest, await_end


def requested(*argv: str, **more: Any) -> bytes:
    """What tells the guest to start a command."""
    request = {
        "argv": argv,
        "cwd": None,
        "env": {},
        "file_limit": None,
        "core_files": False,
        "input": False,
        **more,
    }
    return json.dumps(request).encode()


def start(guest: Guest, number: int, *argv: str, **more: Any) -> None:
    """Start a command."""
    tell(guest, wire.RUN, number, requested(*argv, **more))


def tell(guest: Guest, kind: int, number: int, payload: bytes = b"") -> None:
    """Send a frame about a command."""
    guest.send(kind, number.to_bytes(4, "big") + payload)


def frames(guest: Guest, number: int) -> Iterator[tuple[int, bytes]]:
    """The frames about a command, up to its end."""
    while True:
        kind, payload = guest.frame()
        assert int.from_bytes(payload[:4], "big") == number, (kind, payload)
        yield kind, payload[4:]
        if kind == wire.ENDED:
            return


def finished(guest: Guest, number: int) -> tuple[dict[str, Any], bytes, bytes]:
    """How a command ended, and what it wrote."""
    found = list(frames(guest, number))
    out = b"".join(payload for kind, payload in found if kind == wire.RUN_OUT)
    err = b"".join(payload for kind, payload in found if kind == wire.RUN_ERR)
    return json.loads(found[-1][1]), out, err


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def test_the_end_comes_after_the_output(ready: Guest) -> None:
    start(ready, 5, "sh", "-c", "head -c 200000 /dev/zero; echo x >&2; exit 3")
    ended, out, err = finished(ready, 5)
    assert (ended, out, err) == ({"exit": 3}, bytes(200_000), b"x\n")


def test_it_inherits_no_descriptor(ready: Guest) -> None:
    start(ready, 1, "sh", "-c", "ls /proc/$$/fd")
    assert finished(ready, 1)[1].split() == [b"0", b"1", b"2"]


def test_no_worker_inherits_a_commands_descriptors(ready: Guest) -> None:
    listed = "import os; print(sorted(map(int, os.listdir('/proc/self/fd'))))"
    before = ready.run(listed)[1]
    for number in range(40):
        start(ready, number, "cat", input=True)
    ready.send(wire.RESTART)
    ready.event("died")
    ready.start()
    assert ready.run(listed)[1] == before
    for number in range(40):
        tell(ready, wire.INPUT, number)


def test_no_more_output_than_the_host_takes(ready: Guest) -> None:
    start(ready, 7, "head", "-c", "3000000", "/dev/zero")
    got = counted = 0
    while counted < wire.WINDOW:
        kind, payload = ready.frame()
        assert kind == wire.RUN_OUT
        got += len(payload) - 4
        counted += len(payload) - 4 + wire.FRAME_COST
    # The next frame is the answer of a cell.
    assert ready.run("print('cells go on')")[1] == "cells go on\n"
    tell(ready, wire.TAKEN, 7, counted.to_bytes(4, "big"))
    while got < 3_000_000:
        kind, payload = ready.frame()
        assert kind == wire.RUN_OUT, payload
        got += len(payload) - 4
        tell(ready, wire.TAKEN, 7, (len(payload) - 4 + wire.FRAME_COST).to_bytes(4, "big"))
    assert finished(ready, 7)[0] == {"exit": 0}


def test_input_is_taken_as_it_is_read(ready: Guest) -> None:
    start(ready, 2, "sh", "-c", "read line; cat | wc -c", input=True)
    tell(ready, wire.INPUT, 2, b"line\n" + b"x" * 500_000)
    tell(ready, wire.INPUT, 2)
    found = list(frames(ready, 2))
    taken = sum(int.from_bytes(payload, "big") for kind, payload in found if kind == wire.TAKEN)
    assert taken == 500_005
    assert [payload.strip() for kind, payload in found if kind == wire.RUN_OUT] == [b"500000"]


def test_a_kill_is_always_answered(ready: Guest) -> None:
    tell(ready, wire.KILL, 99)
    assert finished(ready, 99)[0] == {"signal": 9}
    start(ready, 3, "sh", "-c", "trap '' TERM INT; echo x; sleep 1000")
    assert ready.frame() == (wire.RUN_OUT, b"\0\0\0\3x\n")
    tell(ready, wire.KILL, 3)
    assert finished(ready, 3)[0] == {"signal": 9}
    for kind in (wire.KILL, wire.TAKEN, wire.INPUT):
        tell(ready, kind, 3, b"\0\0\0\1")
    assert finished(ready, 3)[0] == {"signal": 9}


def test_a_kill_that_comes_before_the_command_has_begun(ready: Guest) -> None:
    # All these variables take its keeper longer than the supervisor takes to look for it.
    env = {f"V{number}": "" for number in range(10_000)}
    request = requested("sleep", "1000", env=env)
    number = (8).to_bytes(4, "big")
    ready.write(wire.encode(wire.RUN, number + request) + wire.encode(wire.KILL, number))
    assert finished(ready, 8)[0] == {"signal": 9}
    assert eventually(lambda: len(children(ready.pid)) == 1)  # the worker


def test_a_kill_of_one_whose_first_thread_has_ended(ready: Guest) -> None:
    code = (
        "import ctypes, os, threading, time\n"
        "def go_on():\n"
        "    while open('/proc/self/stat').read().rpartition(')')[2].split()[0] != 'Z': pass\n"
        "    os.write(1, b'%d' % os.getpid())\n"
        "    time.sleep(1000)\n"
        "threading.Thread(target=go_on).start()\n"
        "ctypes.CDLL(None).pthread_exit(None)"
    )
    start(ready, 9, sys.executable, "-c", code)
    running = int(ready.frame()[1][4:])
    tell(ready, wire.KILL, 9)
    assert finished(ready, 9)[0] == {"signal": 9}
    assert await_end(running)


def test_a_keeper_that_is_killed(ready: Guest) -> None:
    start(ready, 4, "sh", "-c", "echo $PPID; exec cat", input=True)
    _, payload = ready.frame()
    os.kill(int(payload[4:]), signal.SIGKILL)
    assert finished(ready, 4)[0] == {"signal": 9}
    assert ready.run("print('on')")[1] == "on\n"


def test_nothing_is_left_of_commands_that_ended(ready: Guest) -> None:
    before = len(os.listdir(f"/proc/{ready.pid}/fd"))
    for number in range(100):
        start(ready, number, "true")
        finished(ready, number)
    assert eventually(lambda: len(children(ready.pid)) == 1)  # the worker
    assert eventually(lambda: len(os.listdir(f"/proc/{ready.pid}/fd")) <= before + 1)


def test_all_end_with_the_guest(ready: Guest) -> None:
    start(ready, 1, "sh", "-c", "echo $$; exec sleep 1000")
    running = int(ready.frame()[1][4:])
    start(ready, 2, "sh", "-c", "setsid sleep 1000 & echo $!")
    left = int(finished(ready, 2)[1])
    assert ready.hang_up() == (0, b"")
    assert await_end(running)
    assert await_end(left)


def test_no_room_for_a_process(ready: Guest) -> None:
    # What the host starts in vain tells why, and the supervisor lives on.
    soft, hard = resource.prlimit(ready.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(ready.pid, resource.RLIMIT_NOFILE, (12, hard))
    start(ready, 1, "true")
    ended, _, err = finished(ready, 1)
    assert ended == {"exit": 126}
    assert err == b"rlm-containers: no process can be started: Too many open files\n"
    resource.prlimit(ready.pid, resource.RLIMIT_NOFILE, (soft, hard))
    start(ready, 2, "true")
    assert finished(ready, 2)[0] == {"exit": 0}


def test_the_limit_of_a_file(ready: Guest) -> None:
    start(ready, 1, "head", "-c", "5000", "/dev/zero", file_limit=1000)
    assert finished(ready, 1)[0] == {"exit": 0}  # a pipe is no file
    start(ready, 2, "sh", "-c", "head -c 5000 /dev/zero > file", file_limit=1000)
    assert finished(ready, 2)[0] != {"exit": 0}
    assert (ready.directory / "file").stat().st_size == 1000


@pytest.mark.parametrize("name", ["LOGNAME", "HOME", "PATH"])
def test_its_environment_is_the_supervisors(ready: Guest, name: str) -> None:
    start(ready, 1, "sh", "-c", f'printf %s "${name}"')
    assert finished(ready, 1)[1].decode() == os.environ.get(name, "")
