"""The host's end of the pipe: frames, a bounded queue, and an end in every case."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rlm_containers.errors import SandboxBusyError, SandboxLostError
from rlm_containers.guest import wire
from rlm_containers.interpreter.direct import DirectSocket
from rlm_containers.interpreter.items import Closed, Event, Item, Message, Output
from rlm_containers.interpreter.pipe import Pipe
from runtimes import ContainerProcess
from runtimes.command import EngineCommand
from tests.support import TIMEOUT, eventually
from tests.unit.hostile import PRELUDE

Open = Callable[[str], Pipe]


class Calls:
    """Records the calls."""

    def __init__(self) -> None:
        self.taken: list[tuple[int, bytes]] = []

    def __call__(self, number: int, payload: bytes | bytearray) -> None:
        self.taken.append((number, bytes(payload)))


@pytest.fixture
def calls() -> Calls:
    return Calls()


#: Goes on by a direct connection. The streams stay open, as those of a guest do.
CONNECT = """
import socket
stream = os.dup(1)
connection, errors = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
connection.connect({path!r})
errors.connect({path!r})
put(b"e", b'{{"event": "hello", "direct": true}}')
os.dup2(connection.detach(), 0)
os.dup2(0, 1)
os.dup2(errors.detach(), 2)
"""

HELLO = Event({"event": "hello", "direct": True})


@pytest.fixture(params=["streams", "direct"])
def open_(request: pytest.FixtureRequest, calls: Calls, tmp_path: Path) -> Iterator[Open]:
    """Opens pipes to programs, and closes them."""
    made: list[Pipe] = []

    def make(code: str) -> Pipe:
        python = EngineCommand((sys.executable, "-E"))
        direct = None
        if request.param == "direct":
            direct = DirectSocket(tmp_path)
            code = CONNECT.format(path=str(tmp_path / wire.SOCKET)) + code
        process: ContainerProcess = python.hold("rlm-test", "-c", PRELUDE + code)
        pipe = Pipe(process, calls, direct)
        made.append(pipe)
        if direct is not None:
            assert pipe.receive(TIMEOUT) == HELLO
            assert list(tmp_path.iterdir()) == []
        return pipe

    yield make
    for pipe in made:
        pipe.close(TIMEOUT)


def ours() -> list[str]:
    """The names of this project's threads."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("rlm-")]


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
    pipe = open_("frame()")
    with pytest.raises(TimeoutError):
        pipe.receive(0.05)
    with pytest.raises(TimeoutError):
        pipe.receive(0)
    pipe.close(TIMEOUT)
    assert pipe.receive(0) == Closed(0, "", "")


def test_messages_arrive(open_: Open) -> None:
    pipe = open_("for _ in range(3):\n    kind, payload = frame()\n    put(kind, payload)")
    for text in ("", "ünï\ud800€", "x" * 1_000_000):
        pipe.send_message(op="echo", text=text)
        assert pipe.receive(TIMEOUT) == Message({"op": "echo", "text": text})


def test_large_messages_while_the_other_end_talks(open_: Open) -> None:
    # Both directions are full at once: neither end may block the other.
    pipe = open_(
        "import threading\n"
        "flood = threading.Thread(target=lambda: [put(b'o', b'x' * 50_000) for _ in range(200)])\n"
        "flood.start(); kind, payload = frame(); flood.join()\n"
        "put(b'm', b'{\"length\": %d}' % len(payload))\n"
    )
    sender = threading.Thread(target=lambda: pipe.send_message(text="y" * 5_000_000))
    sender.start()
    *outputs, message, _ = everything(pipe)
    sender.join()
    assert sum(len(o.data) for o in outputs if isinstance(o, Output)) == 200 * 50_000
    assert message == Message({"length": len(json.dumps({"text": "y" * 5_000_000}))})


def test_frames_from_many_threads_do_not_mix(open_: Open) -> None:
    pipe = open_("for _ in range(80):\n    put(*frame())")

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
    monkeypatch.setattr("rlm_containers.interpreter.writer._WRITE_TIMEOUT", 0.1)
    pipe = open_("import time\nwhile True: time.sleep(1000)")
    with pytest.raises(SandboxLostError, match="does not read"):
        pipe.send_message(text="x" * 10_000_000)
    pipe.process.kill()


def test_sending_to_a_program_that_closed_its_input(open_: Open) -> None:
    pipe = open_(
        "import socket, stat, time\n"
        "if stat.S_ISSOCK(os.fstat(0).st_mode):\n"
        "    socket.socket(fileno=os.dup(0)).shutdown(socket.SHUT_RD)\n"
        "os.close(0)\nput(b'o', b'closed')\ntime.sleep(1000)"
    )
    assert pipe.receive(TIMEOUT) == Output(wire.STDOUT, b"closed")
    with pytest.raises(SandboxLostError, match="broken"):
        pipe.send_message(text="x")
    pipe.process.kill()


@pytest.mark.parametrize("open_", ["streams"], indirect=True)
def test_a_program_that_lies_about_a_direct_connection(open_: Open) -> None:
    pipe = open_('put(b\'e\', b\'{"event": "hello", "direct": true}\')\nframe()')
    (closed,) = everything(pipe)
    assert isinstance(closed, Closed)
    assert "says that it has connected" in closed.reason


def test_only_two_connections_are_taken(tmp_path: Path) -> None:
    direct = DirectSocket(tmp_path)
    path = str(tmp_path / wire.SOCKET)
    with contextlib.ExitStack() as stack:
        first, second, third, fourth = (
            stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(4)
        )
        for connection in (first, second, third):
            connection.connect(path)
        assert direct.accept()
        assert direct.errors is not None
        assert direct.peer == os.getpid()
        first.sendall(b"first")
        second.sendall(b"second")
        assert os.read(direct.fileno(), 10) == b"first"
        assert direct.errors.recv(10) == b"second"
        with pytest.raises(ConnectionError):
            third.sendall(b"third")
        with pytest.raises(FileNotFoundError):
            fourth.connect(path)
    direct.close()


@pytest.mark.parametrize("connections", [0, 1])
def test_a_guest_that_connects_less_often_has_not_connected(
    tmp_path: Path, connections: int
) -> None:
    direct = DirectSocket(tmp_path)
    with socket.socket(socket.AF_UNIX) as only:
        if connections:
            only.connect(str(tmp_path / wire.SOCKET))
        assert not direct.accept()
    direct.close()


@pytest.mark.parametrize("end", ["by itself", "closed"])
def test_a_guest_goes_on_without_its_client(tmp_path: Path, end: str) -> None:
    direct = DirectSocket(tmp_path)
    code = (
        "child = os.fork()\nif child: os._exit(os.waitpid(child, 0)[1])\nos.setsid()\n"
        + CONNECT.format(path=str(tmp_path / wire.SOCKET))
        + "os.close(stream)\n"  # only the client has it
        + "kind, payload = frame()\nput(kind, payload)\nframe()\nos.write(2, b'bye')"
    )
    process = EngineCommand((sys.executable, "-E")).hold("rlm-test", "-c", PRELUDE + code)
    pipe = Pipe(process, direct=direct)
    try:
        assert pipe.receive(TIMEOUT) == HELLO
        assert pipe.leave_client(lambda: 7) not in (0, process.pid)
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)
        assert eventually(lambda: (process.stdin, process.stdout, process.stderr) == (-1, -1, -1))
        pipe.send_message(op="echo")
        assert pipe.receive(TIMEOUT) == Message({"op": "echo"})
        if end == "by itself":
            pipe.send_message(op="end")
            assert pipe.receive(TIMEOUT) == Closed(7, "bye", "")
    finally:
        pipe.close(TIMEOUT)
    if end == "closed":  # nobody asks the engine
        assert pipe.closed is not None
        assert pipe.closed.exit_code != 7


@pytest.mark.parametrize("open_", ["streams"], indirect=True)
def test_a_client_that_the_guest_needs_stays(open_: Open) -> None:
    pipe = open_("put(*frame())")
    assert pipe.leave_client(lambda: 7) == 0
    pipe.send_message(op="x")
    assert pipe.receive(TIMEOUT) == Message({"op": "x"})


def test_what_a_session_has_left_in_its_place(tmp_path: Path) -> None:
    (tmp_path / wire.SOCKET).symlink_to("/nonesuch/elsewhere")
    DirectSocket(tmp_path).close()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / wire.SOCKET).mkdir()
    with pytest.raises(IsADirectoryError):
        DirectSocket(tmp_path)


def test_a_long_path(tmp_path: Path) -> None:
    workspace = tmp_path / ("long" * 30)
    workspace.mkdir()
    DirectSocket(workspace).close()
    assert list(workspace.iterdir()) == []


def test_a_payload_that_is_too_large_is_not_sent(open_: Open) -> None:
    pipe = open_("put(*frame())")
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
    pipe = open_(f"put(b'o', b'good')\n{said}\nput(b'o', b'late')\nframe()")
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
    pipe = open_("frame()")
    pipe.close(TIMEOUT)
    assert pipe.closed == Closed(0, "", "")
    pipe.close(TIMEOUT)
    with pytest.raises(SandboxLostError):
        pipe.send_message(op="x")


def test_closing_while_many_items_are_pending(open_: Open) -> None:
    pipe = open_("for number in range(2000): put(b'o', b'x')\nput(b'o', b'end')\nframe()")
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
    assert eventually(lambda: not ours())  # of the test before
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        pipe = open_("frame()")
        pipe.send_message(op="x")
        pipe.close(TIMEOUT)
    # The reader ends when it has nothing left to read.
    assert eventually(lambda: os.listdir("/proc/self/fd") == before)
    assert eventually(lambda: not ours()), ours()


def test_a_write_in_the_middle_of_a_write_is_refused(open_: Open) -> None:
    """A signal handler may strike there. It would wait for itself."""
    pipe = open_(
        "import select\npoll = select.poll()\npoll.register(0, select.POLLRDHUP)\npoll.poll()"
    )
    caught: list[Exception] = []

    def handle(*_: object) -> None:
        try:
            pipe.send(wire.SWEEP)
        except SandboxBusyError as error:
            caught.append(error)
        pipe.hang_up()

    def strike() -> None:
        assert eventually(pipe._writer._writing.locked)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        thread = threading.Thread(target=strike)
        thread.start()
        with pytest.raises(SandboxLostError):
            pipe.send(wire.MESSAGE, bytes(10_000_000))
        thread.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert [type(error) for error in caught] == [SandboxBusyError]


def test_a_program_that_is_blocked_when_it_is_hung_up_on(open_: Open) -> None:
    """It is not read any more, and would not notice."""
    pipe = open_("raw(b'garbage')\ntry: raw(bytes(10_000_000))\nfinally: os._exit(5)")
    *_, closed = everything(pipe)
    assert isinstance(closed, Closed)
    assert closed.exit_code == 5


@pytest.mark.parametrize("open_", ["direct"], indirect=True)
def test_what_writes_on_when_the_client_has_ended(open_: Open) -> None:
    pipe = open_(
        "import signal\nif os.fork() == 0:\n    os.close(stream)\n    signal.alarm(60)\n"
        "    while True: put(b'o', bytes(1000))\nos._exit(3)"
    )
    received = 0
    while not isinstance(item := pipe.receive(TIMEOUT), Closed):
        received += isinstance(item, Output)
        assert received < 100_000  # some 40,000 may wait in the queue
    assert item.exit_code == 3


def test_descriptors_stay_while_they_are_read(open_: Open) -> None:
    """Their numbers would be those of another container's."""
    pipe = open_(
        "import signal\nchild = os.fork()\nif child == 0:\n    os.setsid()\n    signal.pause()\n"
        "event(child=child)\nos._exit(0)"
    )
    item = pipe.receive(TIMEOUT)
    assert isinstance(item, Event)
    stderr = pipe.process.stderr
    try:
        pipe.close(0.1)
        os.fstat(stderr)
    finally:
        os.kill(item.content["child"], signal.SIGKILL)
    assert eventually(lambda: pipe.closed is not None and not ours()), ours()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(stderr)


def test_what_comes_without_an_end_takes_no_more_than_its_time(open_: Open) -> None:
    pipe = open_(
        "import select\npoll = select.poll()\npoll.register(0, select.POLLRDHUP)\n"
        "while not poll.poll(0): put(b'o', b'x')"
    )
    with pytest.raises(TimeoutError):
        for item in pipe.items(0.2):
            assert isinstance(item, Output)
