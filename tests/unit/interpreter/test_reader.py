"""The one thread that reads all pipes: no container holds up another, and its death ends all."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from rlm_containers import Sandbox
from rlm_containers.container.bundle import Bundle
from rlm_containers.errors import SandboxBusyError, SandboxClosedError
from rlm_containers.guest import wire
from rlm_containers.interpreter import pipe as pipes
from rlm_containers.interpreter.items import Closed, Message, Output
from rlm_containers.interpreter.pipe import Pipe
from runtimes.command import EngineCommand
from tests.support import TIMEOUT, eventually
from tests.unit.guests import LocalRuntime
from tests.unit.hostile import PRELUDE

Open = Callable[[str], Pipe]

ECHO = "while True: put(*frame())"

#: Ends when the host hangs up.
WHILE_WANTED = "import select\npoll = select.poll()\npoll.register(0, 0)\nwhile not poll.poll(0): "


@pytest.fixture
def open_() -> Iterator[Open]:
    """Opens pipes to programs, and closes them."""
    made: list[Pipe] = []

    def make(code: str) -> Pipe:
        python = EngineCommand((sys.executable, "-E"))
        made.append(Pipe(python.hold(f"rlm-test-{len(made)}", "-c", PRELUDE + code)))
        return made[-1]

    yield make
    for pipe in made:
        pipe.close(TIMEOUT)


def answers(pipe: Pipe, times: int = 20) -> bool:
    """Whether a program that echoes does so."""
    for number in range(times):
        pipe.send_message(number=number)
        assert pipe.receive(TIMEOUT) == Message({"number": number})
    return True


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "rlm-reader"]


def test_one_thread_reads_all(open_: Open) -> None:
    made = [open_(ECHO) for _ in range(5)]
    assert all(answers(pipe, 1) for pipe in made)
    assert len(readers()) == 1
    for pipe in made:
        pipe.close(TIMEOUT)
    assert eventually(lambda: not readers())
    assert answers(open_(ECHO), 1)  # another one reads


@pytest.mark.parametrize(
    "flood",
    [
        "raw(b'\\0\\0\\0\\2cxx' * 10_000)",  # calls without a number
        "raw(b'\\0\\0\\0\\2m{}' * 10_000)",
        "put(b'o', bytes(1_000_000))",
        "os.write(2, bytes(1_000_000))",
    ],
)
def test_a_flood_does_not_keep_others_waiting(open_: Open, flood: str) -> None:
    flooding = open_(WHILE_WANTED + flood)
    ended = threading.Event()

    def receive() -> None:
        while not isinstance(flooding.receive(), Closed):
            pass
        ended.set()

    receiving = threading.Thread(target=receive)
    receiving.start()
    assert answers(open_(ECHO))
    assert not ended.is_set()
    flooding.close(TIMEOUT)
    receiving.join()


def test_one_that_nobody_listens_to_does_not_keep_others_waiting(
    open_: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipes, "_MAX_WAITING", 100_000)
    slow = open_("for number in range(1000): put(b'o', b'x' * 1000)\nput(b'm', b'{}')")
    echo = open_(ECHO)
    assert eventually(lambda: slow.pending() > 50)
    assert answers(echo)
    assert slow.pending() < 200  # the rest is not read
    assert [slow.receive(TIMEOUT) for _ in range(1000)] == 1000 * [Output(wire.STDOUT, b"x" * 1000)]
    assert slow.receive(TIMEOUT) == Message({})
    assert isinstance(slow.receive(TIMEOUT), Closed)


def test_one_that_makes_no_sense_does_not_end_others(open_: Open) -> None:
    echo = open_(ECHO)
    for _ in range(3):
        item = open_("raw(b'garbage')\nframe()").receive(TIMEOUT)
        assert isinstance(item, Closed)
        assert "no frame" in item.reason
    assert answers(echo)


def test_a_reader_that_dies_ends_every_wait(open_: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    failed: list[object] = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    made = [open_(ECHO) for _ in range(3)]
    os.close(made[0]._reader._selector.fileno())
    made[0].send_message(op="x")  # whose echo wakes it
    for pipe in made:
        while not isinstance(item := pipe.receive(TIMEOUT), Closed):
            pass
        assert item.reason == "its reader died"
    assert len(failed) == 1
    assert answers(open_(ECHO))  # read by another


def test_its_own_thread_can_neither_wait_for_a_sandbox_nor_hang_in_close(
    made_bundle: Bundle, local: LocalRuntime
) -> None:
    """The garbage collector may call a ``__del__`` there."""
    done: list[int] = []
    tools = {"tool": lambda: 1}
    with Sandbox(runtime=LocalRuntime(), tools=tools) as box, Sandbox(runtime=local) as other:
        closed = Sandbox(runtime=local).start()
        pipe = box._life.running.interpreter.pipe
        answer = pipe.on_call

        def act(number: int, payload: bytes | bytearray) -> None:
            for call in (lambda: other.execute("1"), lambda: other.command("true")):
                with pytest.raises(SandboxBusyError, match="thread that reads"):
                    call()
            closed.close()
            done.append(number)
            answer(number, payload)

        pipe.on_call = act
        assert box.execute("print(tool())").stdout == "1\n"
        assert len(done) == 1
        assert other.execute("print(1)").stdout == "1\n"
        with pytest.raises(SandboxClosedError):
            closed.execute("1")


def test_many_sandboxes_take_few_threads_and_descriptors(made_bundle: Bundle) -> None:
    def used() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    with contextlib.ExitStack() as stack:
        start = lambda: stack.enter_context(Sandbox(runtime=LocalRuntime()))  # noqa: E731
        start().execute("x = 1")
        threads, descriptors = used()
        boxes = [start() for _ in range(5)]
        for box in boxes:
            box.execute("x = 1")
        # The one that watches its workspace. Threads of sh end on their own.
        assert eventually(lambda: used()[0] <= threads + 5), threading.enumerate()
        assert used()[1] <= descriptors + 5 * 7
