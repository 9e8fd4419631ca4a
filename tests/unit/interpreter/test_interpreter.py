"""Containers that end before a send, and restarts that are cut off."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator

import pytest

from rlm_containers import Sandbox
from rlm_containers.errors import SandboxLostError
from rlm_containers.interpreter import (
    CellClock,
    Deadlines,
    Event,
    Interpreter,
    Pipe,
    WorkerSetup,
)
from rlm_containers.interpreter.pipe import Item
from runtimes.command import EngineCommand
from tests.support import eventually, interpreter_of
from tests.unit.guests import PATIENCE
from tests.unit.hostile import CELL, GREETING, PRELUDE, READY, result
from tests.unit.sessions import run, settle

Open = Callable[..., Interpreter]


@pytest.fixture
def open_() -> Iterator[Open]:
    """Opens interpreters in programs, and closes them."""
    made: list[Interpreter] = []

    def make(code: str, **limits: float) -> Interpreter:
        python = EngineCommand((sys.executable, "-E"))
        pipe = Pipe(python.hold("rlm-test", "-c", PRELUDE + code), lambda number, payload: None)
        assert isinstance(pipe.receive(PATIENCE), Event)  # the greeting
        made.append(
            Interpreter(
                pipe,
                WorkerSetup(),
                1000,
                deadlines=Deadlines(CellClock(1.0), None, PATIENCE, **limits),
                abandon=pipe.process.kill,
            )
        )
        return made[-1]

    yield make
    for interpreter in made:
        interpreter.pipe.close(PATIENCE)


# A send fails because the container has ended: the error says how, as it does for a read


def await_end(interpreter: Interpreter) -> None:
    """Wait until the reader has closed the pipe, so that every send fails."""
    assert eventually(lambda: interpreter.pipe.process.stdin < 0)


def test_before_the_start(open_: Open) -> None:
    interpreter = open_(GREETING + "sys.stderr.write('the last words')\nsys.exit(5)")
    await_end(interpreter)
    with pytest.raises(SandboxLostError, match=r"ended with status 5.*the last words"):
        interpreter.start()


def test_before_a_request(open_: Open) -> None:
    interpreter = open_(READY + "sys.exit(5)")
    interpreter.start()
    await_end(interpreter)
    for _ in range(2):
        with pytest.raises(SandboxLostError, match="ended with status 5"):
            interpreter.request("cell", None, code="x = 1")


def test_before_a_restart(open_: Open) -> None:
    interpreter = open_(READY + "sys.exit(5)")
    interpreter.start()
    await_end(interpreter)
    with pytest.raises(SandboxLostError, match="ended with status 5"):
        interpreter.restart(lambda: pytest.fail("there is a worker"), restores=True)


def test_before_the_start_of_a_second_worker(open_: Open, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_an_interrupt_after_the_end(open_: Open) -> None:
    interpreter = open_(CELL + "put(b'o', b'printed')\nsys.exit(5)")
    interpreter.start()

    def interrupt(stream: str, text: str) -> None:
        await_end(interpreter)
        interpreter.interrupt()

    with pytest.raises(SandboxLostError, match="ended with status 5"):
        interpreter.request("cell", interrupt, code="x = 1")


def test_an_answer_before_the_end_counts(open_: Open) -> None:
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
