"""The host's end of the pipe: one reader thread, a bounded queue, and an end in every case."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from rlm_containers.errors import SandboxLostError
from rlm_containers.guest import wire
from rlm_containers.interpreter.pipe import (
    BoundedQueue,
    Closed,
    Event,
    Item,
    Message,
    Output,
    Pipe,
)
from runtimes import ContainerProcess
from runtimes.command import EngineCommand
from tests.support import TIMEOUT, eventually
from tests.unit.hostile import PRELUDE

# The program at the other end: `put` writes a frame, `hear` reads one.
PROGRAM = (
    PRELUDE
    + """
def hear():
    head = sys.stdin.buffer.read(5)
    if not head:
        sys.exit(0)
    return head[4:], sys.stdin.buffer.read(int.from_bytes(head[:4], "big"))
"""
)

Open = Callable[[str], Pipe]


class Calls:
    """Records the calls."""

    def __init__(self) -> None:
        self.taken: list[tuple[int, bytes]] = []

    def __call__(self, number: int, payload: bytes) -> None:
        self.taken.append((number, payload))


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def open_(calls: Calls) -> Iterator[Open]:
    """Opens pipes to programs, and closes them."""
    made: list[Pipe] = []

    def make(code: str) -> Pipe:
        python = EngineCommand((sys.executable, "-E"))
        process: ContainerProcess = python.hold("rlm-test", "-c", PROGRAM + code)
        pipe = Pipe(process, calls)
        made.append(pipe)
        return pipe

    yield make
    for pipe in made:
        pipe.close(TIMEOUT)


def everything(pipe: Pipe) -> list[Item]:
    """Receive everything up to and including the end."""
    items: list[Item] = []
    while True:
        items.append(pipe.receive(TIMEOUT))
        if isinstance(items[-1], Closed):
            return items


def test_frames_become_items_in_order(open_: Open, calls: Calls) -> None:
    pipe = open_(
        "put(b'e', b'{\"event\": \"hello\"}')\nput(b'o', b'out')\nput(b'r', b'err')\n"
        "put(b'c', b'\\0\\0\\0\\x05{}')\nput(b'm', b'{\"op\": \"result\"}')\nsys.exit(7)"
    )
    *items, closed = everything(pipe)
    assert items == [
        Event({"event": "hello"}),
        Output(wire.STDOUT, b"out"),
        Output(wire.STDERR, b"err"),
        Message({"op": "result"}),
    ]
    assert closed == Closed(7, "", "")
    assert calls.taken == [(5, b"{}")]


def test_the_end_is_received_again_and_again(open_: Open) -> None:
    pipe = open_("sys.stderr.write('bye'); sys.exit(3)")
    assert everything(pipe) == [Closed(3, "bye", "")]
    assert pipe.closed == Closed(3, "bye", "")
    for _ in range(3):
        assert pipe.receive(0) == Closed(3, "bye", "")


def test_receiving_times_out(open_: Open) -> None:
    pipe = open_("hear()")
    with pytest.raises(TimeoutError):
        pipe.receive(0.05)
    with pytest.raises(TimeoutError):
        pipe.receive(0)
    pipe.close(TIMEOUT)
    assert pipe.receive(0) == Closed(0, "", "")


def test_messages_arrive(open_: Open) -> None:
    pipe = open_("for _ in range(3):\n    kind, payload = hear()\n    put(kind, payload)")
    for text in ("", "ünï\ud800€", "x" * 1_000_000):
        pipe.send_message(op="echo", text=text)
        assert pipe.receive(TIMEOUT) == Message({"op": "echo", "text": text})


def test_large_messages_while_the_other_end_talks(open_: Open) -> None:
    # Both directions are full at once: neither end may block the other.
    pipe = open_(
        "import threading\n"
        "flood = threading.Thread(target=lambda: [put(b'o', b'x' * 50_000) for _ in range(200)])\n"
        "flood.start(); kind, payload = hear(); flood.join()\n"
        "put(b'm', b'{\"length\": %d}' % len(payload))\n"
    )
    sender = threading.Thread(target=lambda: pipe.send_message(text="y" * 5_000_000))
    sender.start()
    *outputs, message, _ = everything(pipe)
    sender.join()
    assert sum(len(o.data) for o in outputs if isinstance(o, Output)) == 200 * 50_000
    assert message == Message({"length": len(json.dumps({"text": "y" * 5_000_000}))})


def test_frames_from_many_threads_do_not_mix(open_: Open) -> None:
    pipe = open_("for _ in range(80):\n    put(*hear())")

    def send(number: int) -> None:
        for _ in range(10):
            pipe.send_message(number=number, text=str(number) * 20_000)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    items = everything(pipe)
    for thread in threads:
        thread.join()
    messages = [item.content for item in items if isinstance(item, Message)]
    assert len(messages) == 80
    assert all(content["text"] == str(content["number"]) * 20_000 for content in messages)


def test_sending_to_a_program_that_has_ended(open_: Open) -> None:
    pipe = open_("sys.stderr.write('out of memory')\nsys.exit(1)")
    everything(pipe)
    with pytest.raises(SandboxLostError, match="out of memory") as caught:
        for _ in range(3):
            pipe.send_message(text="x" * 1_000_000)
    assert caught.value.container == "rlm-test"


def test_sending_to_a_program_that_does_not_read(
    open_: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlm_containers.interpreter.pipe._WRITE_TIMEOUT", 0.1)
    pipe = open_("import time\nwhile True: time.sleep(1000)")
    with pytest.raises(SandboxLostError, match="does not read"):
        pipe.send_message(text="x" * 10_000_000)
    pipe.process.kill()


def test_sending_to_a_program_that_closed_its_input(open_: Open) -> None:
    pipe = open_("os.close(0)\nput(b'o', b'ready')\nimport time\ntime.sleep(1000)")
    assert pipe.receive(TIMEOUT) == Output(wire.STDOUT, b"ready")
    with pytest.raises(SandboxLostError, match="broken"):
        pipe.send_message(text="x")
    pipe.process.kill()


def test_a_payload_that_is_too_large_is_not_sent(open_: Open) -> None:
    pipe = open_("put(*hear())")
    with pytest.raises(wire.FrameError):
        pipe.send(wire.MESSAGE, bytes(wire.MAX_FRAME + 1))
    pipe.send_message(fine=True)  # the stream is still intact
    assert pipe.receive(TIMEOUT) == Message({"fine": True})


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("os.write(1, b'hello world')", "no frame"),
        ("put(b'm', b'nonsense')", "no JSON object"),
    ],
)
def test_nothing_is_believed_after_garbage(open_: Open, said: str, reason: str) -> None:
    pipe = open_(f"put(b'o', b'good')\n{said}\nput(b'o', b'late')\nhear()")
    first, closed = everything(pipe)
    assert first == Output(wire.STDOUT, b"good")
    assert isinstance(closed, Closed)
    assert reason in closed.reason
    assert closed.exit_code == 0  # it ended because the pipe was closed
    with pytest.raises(SandboxLostError, match=reason):
        pipe.send_message(op="x")


def test_nothing_is_dropped_while_nobody_receives(open_: Open) -> None:
    pipe = open_("for number in range(3000): put(b'o', b'x' * 1000)")
    assert isinstance(pipe.receive(TIMEOUT), Output)
    assert len(everything(pipe)) == 3000  # nothing was dropped


def test_closing_ends_the_program(open_: Open) -> None:
    pipe = open_("hear()")
    pipe.close(TIMEOUT)
    assert pipe.closed == Closed(0, "", "")
    pipe.close(TIMEOUT)
    with pytest.raises(SandboxLostError):
        pipe.send_message(op="x")


def test_closing_while_many_items_are_pending(open_: Open) -> None:
    pipe = open_("for number in range(2000): put(b'o', b'x')\nput(b'o', b'end')\nhear()")
    assert isinstance(pipe.receive(TIMEOUT), Output)
    pipe.close(5.0)
    # It ended by itself in time and was not killed.
    assert pipe.closed == Closed(0, "", "")


def test_closing_kills_a_program_that_does_not_end(open_: Open) -> None:
    pipe = open_("import time\nput(b'o', b'ready')\nwhile True: time.sleep(1000)")
    assert pipe.receive(TIMEOUT) == Output(wire.STDOUT, b"ready")
    pipe.close(0.1)
    with pytest.raises(ProcessLookupError):
        os.kill(pipe.process.pid, 0)
    assert pipe.closed is not None


def test_no_descriptor_and_no_thread_is_left(open_: Open) -> None:
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        pipe = open_("hear()")
        pipe.send_message(op="x")
        pipe.close(TIMEOUT)
    assert os.listdir("/proc/self/fd") == before
    assert "rlm-pipe-rlm-test" not in {thread.name for thread in threading.enumerate()}


# The queue between the reader and the thread that receives


def test_items_come_in_order() -> None:
    queue: BoundedQueue[int] = BoundedQueue(100)
    for number in range(5):
        queue.put(number, 1)
    assert len(queue) == 5
    assert [queue.get(0) for _ in range(5)] == list(range(5))


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_an_empty_queue_times_out(timeout: float) -> None:
    queue: BoundedQueue[int] = BoundedQueue(100)
    with pytest.raises(TimeoutError):
        queue.get(timeout)


def test_an_item_that_is_too_large_waits_until_it_fits() -> None:
    queue: BoundedQueue[str] = BoundedQueue(10)
    queue.put("a", 6)
    putting = threading.Thread(target=lambda: [queue.put("b", 6), queue.put("c", 4)])
    putting.start()
    assert not eventually(lambda: len(queue) > 1, 0.1)
    assert queue.get(0) == "a"
    assert queue.get(TIMEOUT) == "b"
    assert queue.get(TIMEOUT) == "c"
    putting.join()


def test_a_single_item_may_be_larger_than_the_limit() -> None:
    queue: BoundedQueue[str] = BoundedQueue(10)
    queue.put("large", 1000)
    assert queue.get(0) == "large"


def test_a_waiting_thread_can_be_woken() -> None:
    queue: BoundedQueue[str] = BoundedQueue(10)
    woken = threading.Event()

    def wait() -> None:
        with pytest.raises(TimeoutError):
            queue.get(None)
        woken.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert eventually(lambda: queue.wake() or woken.is_set())
    waiting.join()
    # The wake-up was used up by the thread that waited, or an item comes before it.
    if not len(queue):
        queue.put("a", 1)
    assert queue.get(0) == "a"


def test_nobody_waits_to_put_into_a_closed_queue() -> None:
    queue: BoundedQueue[str] = BoundedQueue(10)
    queue.put("a", 10)
    putting = threading.Thread(target=lambda: queue.put("b", 10))
    putting.start()
    queue.close()
    putting.join(TIMEOUT)
    assert not putting.is_alive()
    queue.put("c", 1)
    assert queue.get(0) == "a"  # what was there before is still there
    with pytest.raises(TimeoutError):
        queue.get(0)
