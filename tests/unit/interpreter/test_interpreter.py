"""Guests that end, hang or send no frames, and restarts that are cut off: the host never hangs."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator

import pytest

from rlm_containers import Sandbox
from rlm_containers.errors import SandboxLostError, SandboxStartError
from rlm_containers.guest import wire
from rlm_containers.interpreter import (
    CellClock,
    Conversation,
    Deadlines,
    Event,
    Interpreter,
    Pipe,
    WorkerSetup,
)
from rlm_containers.interpreter.items import Item
from runtimes.command import EngineCommand
from tests.support import TIMEOUT, eventually, interpreter_of
from tests.unit.hostile import CELL, GREETING, LINGER, PRELUDE, READY, execute, result, script
from tests.unit.sessions import Boxes, run, settle


@pytest.mark.parametrize(
    "said",
    [
        "raw(b'hello world, this is no frame')",
        "raw(b'\\xff' * 100)",
        "raw(b'\\0\\0\\0\\0Z')",
        "raw((2**31).to_bytes(4, 'big') + b'm')",
        "put(b'm', b'not json')",
        "put(b'm', b'[]')",
        "put(b'm', b'5')",
        "put(b'm', b'null')",
        "put(b'm', b'\\xff\\xfe')",
        "put(b'm', b'')",
        "put(b'e', b'[1]')",
        "put(b'm', b'[' * 200_000)",
        "put(b'm', b'{\"a\": ' + b'1' * 10_000 + b'}')",
    ],
)
def test_a_stream_without_frames_ends_the_sandbox(boxes: Boxes, said: str) -> None:
    with pytest.raises(SandboxLostError, match=r"no frame|no JSON object") as caught:
        execute(boxes, f"{said}\n")
    assert caught.value.container == boxes.made[-1].name
    with pytest.raises(SandboxLostError):
        boxes.made[-1].execute("x = 1")


@pytest.mark.parametrize("status", [0, 1, 137])
def test_a_guest_that_exits(boxes: Boxes, status: int) -> None:
    with pytest.raises(SandboxLostError, match=f"status {status}") as caught:
        execute(boxes, f"sys.stderr.write('the last words')\nsys.exit({status})")
    assert "the last words" in str(caught.value)
    assert "Make a new Sandbox" in caught.value.remedy


@pytest.mark.parametrize(
    ("known", "said", "asked"),
    [
        (True, "it was killed for its memory: it may use no more than 64 MiB", False),
        (False, "its program ended with status 137.", True),
        (None, "its program ended with status 137, perhaps killed for its memory.", True),
    ],
)
def test_a_container_that_the_kernel_kills(
    boxes: Boxes, known: bool | None, said: str, asked: bool
) -> None:
    boxes.local.out_of_memory = known
    script(boxes.local, CELL + "sys.exit(137)")
    box = boxes(memory="64m")
    with pytest.raises(SandboxLostError) as caught:
        box.execute("x = 1")
    assert said in caught.value.what
    assert ("removed by someone" in caught.value.remedy) is asked


def test_output_before_the_end_is_passed_on(boxes: Boxes) -> None:
    heard: list[str] = []
    script(boxes.local, CELL + "put(b'o', b'working')\nsys.exit(3)")
    with pytest.raises(SandboxLostError):
        boxes().execute("x", on_output=lambda name, text: heard.append(text))
    assert heard == ["working"]


def test_half_a_frame_at_the_end(boxes: Boxes) -> None:
    with pytest.raises(SandboxLostError):
        execute(boxes, "raw(b'\\0\\0\\1\\0m{')\nsys.exit(0)")


def test_long_stderr_is_cut(boxes: Boxes) -> None:
    code = "for _ in range(3000): os.write(2, b'x' * 1000)\nos.write(2, b'the end')\nsys.exit(1)"
    with pytest.raises(SandboxLostError, match="the end") as caught:
        execute(boxes, code)
    assert len(str(caught.value)) < 50_000


def test_forged_output_is_bounded(boxes: Boxes) -> None:
    code = "for _ in range(500): put(b'o', b'x' * 10_000); put(b'r', b'\\xff' * 10_000)\n"
    found = execute(boxes, code + result())
    assert len(found.stdout) < 1100
    assert len(found.stderr) < 1100


def test_a_guest_that_does_not_read(boxes: Boxes) -> None:
    # More than the pipe holds: neither the cell nor the end of the sandbox may block.
    script(boxes.local, CELL + "sys.exit(0)")
    with pytest.raises(SandboxLostError):
        boxes().execute("x = 1 #" + "x" * 10_000_000)


# Guests that are never ready


@pytest.mark.parametrize(
    ("code", "match"),
    [
        ("raw(b'Welcome to this image!\\n')" + LINGER, "no frame"),
        ("sys.exit(3)", "status 3"),
        ("put(b'm', b'nonsense')" + LINGER, "no JSON object"),
        (GREETING + "raw(b'garbage')" + LINGER, "no frame"),
        (GREETING + "sys.exit(5)", "status 5"),
    ],
)
def test_a_guest_that_never_gets_ready(boxes: Boxes, code: str, match: str) -> None:
    script(boxes.local, code)
    with pytest.raises(Exception, match=match):
        boxes()


def test_a_guest_that_never_greets(boxes: Boxes) -> None:
    script(boxes.local, "frame()" + LINGER)
    with pytest.raises(SandboxStartError, match=r"not up within 0\.3 s") as caught:
        boxes(start_timeout=0.3)
    assert "start_timeout" in caught.value.remedy
    assert set(boxes.local.removed) == {boxes.made[-1].name}


def test_a_long_python_version_is_cut(boxes: Boxes) -> None:
    code = READY.replace("'3.11.0'", "'9' * 10_000") + LINGER
    script(boxes.local, code)
    assert len(boxes().python_version or "") < 100


# Calls


Open = Callable[..., Interpreter]


@pytest.fixture
def open_() -> Iterator[Open]:
    """Opens interpreters whose containers are programs, and closes them."""
    made: list[Interpreter] = []

    def make(code: str, **limits: float) -> Interpreter:
        python = EngineCommand((sys.executable, "-E"))
        pipe = Pipe(python.hold("rlm-test", "-c", PRELUDE + code), lambda number, payload: None)
        for _ in range(2):  # modules, and byte code
            pipe.send(wire.MODULES)
        assert isinstance(pipe.receive(TIMEOUT), Event)  # the greeting
        made.append(
            Interpreter(
                Conversation(
                    pipe,
                    WorkerSetup(),
                    1000,
                    deadlines=Deadlines(CellClock(1.0), None, TIMEOUT, **limits),
                    abandon=pipe.process.kill,
                )
            )
        )
        return made[-1]

    yield make
    for interpreter in made:
        interpreter.pipe.close(TIMEOUT)


# Sends to a container that has ended: the error says how it ended


def await_end(interpreter: Interpreter) -> None:
    """Wait until the reader has closed the pipe, so that every send fails."""
    assert eventually(lambda: interpreter.pipe.process.stdin < 0)


def test_a_container_that_ended_before_the_start(open_: Open) -> None:
    interpreter = open_(GREETING + "sys.stderr.write('the last words')\nsys.exit(5)")
    await_end(interpreter)
    with pytest.raises(SandboxLostError, match=r"ended with status 5.*the last words"):
        interpreter.start()


def test_a_container_that_ended_before_a_request_or_a_restart(open_: Open) -> None:
    interpreter = open_(READY + "sys.exit(5)")
    interpreter.start()
    await_end(interpreter)
    for _ in range(2):
        with pytest.raises(SandboxLostError, match="ended with status 5"):
            interpreter.request("cell", None, code="x = 1")
    with pytest.raises(SandboxLostError, match="ended with status 5"):
        interpreter.restart(lambda: pytest.fail("there is a worker"), restores=True)


def test_a_container_that_ended_before_its_second_worker_was_started(
    open_: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    interpreter = open_(
        CELL + "event(event='died', exit=1, begun=1)\nput(b'o', b'printed')\nsys.exit(5)"
    )
    interpreter.start()

    receive = interpreter.pipe.receive

    def receive_late(timeout: float | None = None) -> Item:
        """Receive the news of the death only when the pipe has closed."""
        await_end(interpreter)
        return receive(timeout)

    monkeypatch.setattr(interpreter.pipe, "receive", receive_late)
    with pytest.raises(SandboxLostError, match="ended with status 5"):
        interpreter.request("cell", lambda stream, text: heard.append(text), code="x = 1")
    assert heard == ["printed"]  # received after the send that failed


def test_a_container_that_ended_before_an_interrupt(open_: Open) -> None:
    interpreter = open_(CELL + "put(b'o', b'printed')\nsys.exit(5)")
    interpreter.start()

    def interrupt(stream: str, text: str) -> None:
        await_end(interpreter)
        interpreter.interrupt()

    with pytest.raises(SandboxLostError, match="ended with status 5"):
        interpreter.request("cell", interrupt, code="x = 1")


def test_an_answer_before_the_end_of_the_container_counts(open_: Open) -> None:
    # An interrupted cell is followed by one more frame to the guest, which fails here.
    interpreter = open_(CELL + "put(b'o', b'printed')\n" + result() + "sys.exit(5)")
    interpreter.start()

    def interrupt(stream: str, text: str) -> None:
        interpreter.interrupt()
        await_end(interpreter)

    assert interpreter.request("cell", interrupt, code="x = 1").status == "ok"
    with pytest.raises(SandboxLostError, match="ended with status 5"):
        interpreter.request("cell", None, code="x = 1")


def test_a_container_that_closes_its_input_and_ends_later(open_: Open) -> None:
    interpreter = open_(
        READY + "os.close(0)\nput(b'o', b'')\nimport time\ntime.sleep(0.5)\nsys.exit(5)"
    )
    interpreter.start()
    assert eventually(interpreter.pipe.pending)
    with pytest.raises(SandboxLostError, match="ended with status 5"):
        interpreter.request("cell", None, code="x = 1")


def test_a_container_that_closes_its_input_and_goes_on_is_given_up(open_: Open) -> None:
    code = READY + "os.close(0)\nput(b'o', b'')\nimport time\nwhile True: time.sleep(1)"
    interpreter = open_(code, kill_timeout=0.2)
    interpreter.start()
    assert eventually(interpreter.pipe.pending)
    with pytest.raises(SandboxLostError, match="cannot be reached: its pipe is broken"):
        interpreter.request("cell", None, code="x = 1")
    with pytest.raises(SandboxLostError, match="did not answer any more"):
        interpreter.request("cell", None, code="x = 1")


# Restarts


@pytest.mark.parametrize("received", [0, 1])  # while one worker is killed, while another starts
def test_a_cell_after_a_restart_that_was_cut_off(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch, received: int
) -> None:
    run(box, "kept = 1")
    settle(box)
    interpreter = interpreter_of(box)
    receive, calls = interpreter.pipe.receive, itertools.count()

    def ctrl_c(timeout: float | None = None) -> Item:
        if next(calls) == received:
            raise KeyboardInterrupt
        return receive(timeout)

    with monkeypatch.context() as patch:
        patch.setattr(interpreter.pipe, "receive", ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            interpreter.restart(lambda: None, restores=True)
    result = box.execute("kept += 1\nprint(kept)")
    assert (result.status, result.stdout, result.lost) == ("ok", "2\n", ())
    assert run(box, "print(kept)").stdout == "2\n"
