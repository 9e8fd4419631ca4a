"""Commands of guests that break the protocol, or do not answer. See also :mod:`tests.fuzz`."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from rlm_containers.errors import OptionError, SandboxLostError
from rlm_containers.guest import wire
from rlm_containers.interpreter import Command, CommandRequest
from tests.support import TIMEOUT, eventually
from tests.unit.hostile import READY, script
from tests.unit.sessions import Boxes

#: Reads the frame that starts the command, and answers frames about it.
STARTED = (
    READY
    + """
kind, payload = frame()
assert kind == b"x", kind
number = payload[:4]
def tell(kind, payload):
    put(kind, number + payload)
"""
)
LINGER = "\nwhile True: frame()\n"


def test_a_guest_that_does_not_answer_a_kill(boxes: Boxes) -> None:
    script(boxes.local, STARTED + LINGER)
    box = boxes()
    box._life.running.commands.kill_timeout = 0.2
    with pytest.raises(SandboxLostError, match="not even to the kill of a command"):
        box.command("x", timeout=0.1)
    assert boxes.local.removed == [box.name]
    with pytest.raises(SandboxLostError):
        box.command("x")


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({"exit": 7}, ("error", 7)),
        ({"exit": -1}, ("error", 1)),
        ({"exit": 10**30}, ("error", 1)),
        ({"exit": "x"}, ("error", 1)),
        ({}, ("error", 1)),
        ({"signal": 9}, ("killed", 137)),
        ({"signal": 0, "exit": 0}, ("ok", 0)),
        ({"signal": 10**30}, ("error", 1)),
        ({"signal": None, "exit": 0}, ("ok", 0)),
    ],
)
def test_what_a_guest_says_of_the_end(boxes: Boxes, said: object, found: tuple[str, int]) -> None:
    script(boxes.local, STARTED + f"tell(b'z', json.dumps({said!r}).encode())" + LINGER)
    result = boxes().command("x")
    assert (result.status, result.exit_code) == found


def test_a_kill_for_memory_is_told(boxes: Boxes) -> None:
    said = {"signal": 9, "memory": {"limit": 1 << 20}}
    script(boxes.local, STARTED + f"tell(b'z', json.dumps({said!r}).encode())" + LINGER)
    result = boxes().command("x")
    assert (result.status, result.exit_code) == ("killed", 137)
    assert "was killed for its memory" in result.notices[0]
    assert "1 MiB" in result.notices[0]


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ("tell(b'z', b'[]')", "no object"),
        ("tell(b'z', b'{')", "no JSON object"),
        ("tell(b'z', b'{' + b' ' * 5000 + b'}')", "no frame"),
        ("tell(b'p', b'x' * 200_000)", "no frame"),
        ("for _ in range(100): tell(b'p', b'x' * 60_000)", "more of a command's output"),
        ("for _ in range(20_000): tell(b'P', b'x')", "more of a command's output"),
    ],
)
def test_frames_that_end_the_sandbox(boxes: Boxes, frames: str, reason: str) -> None:
    script(boxes.local, STARTED + frames + LINGER)
    box = boxes()
    pipe = box._life.running.interpreter.pipe

    def take_nothing(stream: str, data: bytes) -> None:
        assert eventually(lambda: pipe.closed)

    with pytest.raises(SandboxLostError, match=re.escape(reason)):
        box.command("x", on_output=take_nothing)


def test_frames_for_unknown_commands_are_ignored(boxes: Boxes) -> None:
    frames = """
for other in (b"", b"\\0", b"\\0\\0\\0\\x63"):
    for kind in (b"p", b"P", b"t", b"z"):
        put(kind, other + b"{}")
tell(b"z", b'{"exit": 0}')
for _ in range(3):
    tell(b"z", b'{"exit": 1}')
    tell(b"p", b"late")
"""
    script(boxes.local, STARTED + frames + LINGER)
    result = boxes().command("x")
    assert (result.status, result.stdout) == ("ok", b"")


def test_no_more_input_than_the_guest_takes(boxes: Boxes) -> None:
    frames = """
got = 0
while got < 1024 * 1024:
    kind, payload = frame()
    assert kind == b"n", kind
    got += len(payload) - 4
tell(b"z", b'{"exit": 0}')
kind, payload = frame()  # what comes next is a cell
assert kind == b"m", kind
say(op="result", id=json.loads(payload)["id"], status="ok", locals={"got": str(got)})
"""
    script(boxes.local, STARTED + frames + LINGER)
    box = boxes()
    assert box.command("x", input=bytes(5_000_001)).status == "ok"
    assert box.execute("1").locals == {"got": str(wire.WINDOW)}


def test_a_command_that_is_too_large(boxes: Boxes) -> None:
    box = boxes()
    with pytest.raises(OptionError, match="too large to be sent"):
        box.command(["true"], env={"X": "x" * (wire.MAX_FRAME + 1)})
    assert box.command("echo on").stdout == b"on\n"


def test_no_more_than_a_number_at_once(boxes: Boxes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlm_containers.interpreter.commands.AT_ONCE", 2)
    box = boxes()
    with ThreadPoolExecutor(3) as pool:
        first = [
            pool.submit(box.command, f"echo > begun{n}; until [ -e end{n} ]; do sleep 0.02; done")
            for n in range(2)
        ]
        assert eventually(lambda: len(box.list_files()) == 2)
        third = pool.submit(box.command, "ls begun0 begun1 end0")
        # It has not been sent, so the next cell's answer comes before it begins.
        box.execute("1")
        assert not third.done()
        box.put_file(b"", "end0")
        assert third.result(TIMEOUT).stdout == b"begun0\nbegun1\nend0\n"
        box.put_file(b"", "end1")
        assert [future.result(TIMEOUT).status for future in first] == ["ok", "ok"]


def test_one_that_was_killed_before_it_began(boxes: Boxes) -> None:
    box = boxes()
    handle = Command()
    handle.kill()
    request = CommandRequest(arguments=("sh", "-c", "echo > begun"), env={})
    result = box._run_command(handle, request, None)
    assert (result.status, result.exit_code, box.list_files()) == ("killed", 137, ())
