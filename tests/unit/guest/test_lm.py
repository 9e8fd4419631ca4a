"""The query functions in the guest: both ways to the host, and everything that can fail."""

from __future__ import annotations

import contextlib
import ctypes
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

import pytest

from rlm_containers.guest import lm, wire
from rlm_containers.lm import CallableBackend, LMBroker, LMProxy
from tests.support import eventually

Answer = Callable[[str, Any], Any]


@pytest.fixture(autouse=True)
def no_route() -> Iterator[None]:
    """Reset the module's way to the host after each test."""
    yield
    connection = getattr(getattr(lm._route, "local", None), "connection", None)
    if connection is not None:
        connection.close()
    lm._route = None


class Supervisor:
    """The supervisor's end of the socket for calls.

    Args:
        answer: returns the answer for a path and a request, or ``None`` to hang up.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.guest, self._calls = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with ThreadPoolExecutor(32) as pool:
            while True:
                data, descriptors, _, _ = socket.recv_fds(self._calls, 16, 1)
                if data == b"end":
                    return
                for descriptor in descriptors:
                    pool.submit(self._one, socket.socket(fileno=descriptor)).add_done_callback(
                        lambda done: done.result()
                    )

    def _one(self, call: socket.socket) -> None:
        decoder = wire.FrameDecoder()
        with call:
            while data := call.recv(65536):
                for kind, payload in decoder.feed(data):
                    assert kind == wire.CALL
                    asked = json.loads(payload)
                    answer = self._answer(asked["path"], asked["request"])
                    if answer is None:
                        return
                    raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                    call.sendall(wire.encode(wire.CALL, raw))

    def close(self) -> None:
        self.guest.send(b"end")
        self._thread.join()
        self.guest.close()
        self._calls.close()


@pytest.fixture(params=["http", "pipe"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[[Answer], None]]:
    """Returns a function that connects the module to a host, which answers by a function."""
    closing: list[Callable[[], None]] = []

    def make(answer: Answer) -> None:
        supervisor = Supervisor(answer)
        closing.append(supervisor.close)
        told = None
        if request.param == "http":
            proxy = LMProxy("127.0.0.1", answer)
            closing.append(proxy.close)
            told = {"host": "127.0.0.1", "port": proxy.port, "token": proxy.token}
        connected = lm.connect(told, supervisor.guest, has_model=True)
        assert connected["route"] == request.param

    yield make
    for close in closing:
        close()


def broker() -> Answer:
    return LMBroker(CallableBackend(str.upper)).handle


def test_many_questions(connect: Callable[[Answer], None]) -> None:
    connect(broker())
    assert lm.llm_query_batched(["a", "b"]) == ["A", "B"]
    assert lm.rlm_query_batched(["a", "b"], "any") == ["A", "B"]
    assert lm.llm_query_batched(prompt for prompt in ("a", "b")) == ["A", "B"]  # type: ignore[arg-type]


def test_the_requests_have_the_documented_form(connect: Callable[[Answer], None]) -> None:
    asked: list[tuple[str, Any]] = []

    def remember(path: str, request: Any) -> Any:
        asked.append((path, request))
        return {"response": "ok", "responses": ["ok"]}

    connect(remember)
    lm.llm_query("x")
    lm.llm_query([{"role": "user", "content": "\ud800"}], model="big")
    lm.rlm_query_batched(["x"])
    assert asked == [
        ("/llm_query", {"prompt": "x", "model": None}),
        ("/llm_query", {"prompt": [{"role": "user", "content": "\ud800"}], "model": "big"}),
        ("/rlm_query_batched", {"prompts": ["x"], "model": None}),
    ]


def test_nothing_is_asked_for_no_prompts(connect: Callable[[Answer], None]) -> None:
    connect(lambda path, request: pytest.fail("nobody should be asked"))
    assert lm.llm_query_batched([]) == []


@pytest.mark.parametrize("prompts", ["one string", {"role": "user"}])
def test_one_prompt_is_not_taken_for_a_batch(
    connect: Callable[[Answer], None], prompts: Any
) -> None:
    connect(broker())
    (error,) = lm.llm_query_batched(prompts)
    assert error.startswith("Error: prompts must be a list")


def test_an_error_comes_back_as_a_string(connect: Callable[[Answer], None]) -> None:
    connect(lambda path, request: {"error": "no budget"})
    assert lm.llm_query("x") == "Error: no budget"
    assert lm.llm_query_batched(["x", "y"]) == ["Error: no budget"] * 2


@pytest.mark.parametrize("prompt", [object(), {1, 2}, b"bytes", {"a": object()}, float])
def test_a_prompt_that_is_not_json_is_an_error_and_no_exception(
    connect: Callable[[Answer], None], prompt: Any
) -> None:
    connect(broker())
    assert lm.llm_query(prompt).startswith("Error: TypeError: ")
    assert lm.llm_query_batched([prompt, "x"])[1].startswith("Error: ")
    assert lm.llm_query("still there") == "STILL THERE"


def test_a_bad_prompt_is_the_brokers_error(connect: Callable[[Answer], None]) -> None:
    connect(broker())
    for prompt in (None, 5, True):
        assert lm.llm_query(prompt).startswith("Error: bad request: ")


@pytest.mark.parametrize(
    "answer",
    [[], "yes", 5, None, {}, {"response": 5}, {"responses": "ab"}, {"responses": ["only one"]}],
)
def test_a_strange_answer_is_an_error(connect: Callable[[Answer], None], answer: Any) -> None:
    connect(lambda path, request: answer)
    assert lm.llm_query("x").startswith("Error: ")
    responses = lm.llm_query_batched(["x", "y"])
    assert len(responses) == 2
    assert all(response.startswith("Error: ") for response in responses)


def test_threads_get_their_own_answers(connect: Callable[[Answer], None]) -> None:
    everyone = threading.Barrier(16)

    def together(path: str, request: Any) -> Any:
        everyone.wait(30)  # passes only when sixteen ask at once
        return {"response": request["prompt"].upper()}

    connect(together)
    prompts = [f"p{i}" for i in range(16)]

    def ask(prompt: str) -> str:
        answer = lm.llm_query(prompt)
        connection = getattr(getattr(lm._route, "local", None), "connection", None)
        if connection is not None:
            connection.close()
        return answer

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, prompts)) == [prompt.upper() for prompt in prompts]


def test_no_model() -> None:
    later = LMBroker(None)
    supervisor = Supervisor(later.handle)
    assert lm.connect(None, supervisor.guest, has_model=False) == {
        "route": "none",
        "reason": "no language model was given",
    }
    assert lm.llm_query("x").endswith("no language model is connected to this sandbox")
    assert lm.llm_query_batched(["x", "y"])[1].startswith("Error: ")
    later.backend = CallableBackend(str.upper)
    assert lm.llm_query("x") == "X"
    supervisor.close()


def test_a_proxy_that_cannot_be_reached_is_replaced_by_the_pipe() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    supervisor = Supervisor(broker())
    told = lm.connect(
        {"host": "127.0.0.1", "port": port, "token": "t"}, supervisor.guest, has_model=True
    )
    assert told["route"] == "pipe"
    assert f"127.0.0.1:{port} cannot be reached" in told["reason"]
    assert lm.llm_query("x") == "X"
    supervisor.close()


def test_a_host_that_hangs_up_is_an_error_and_the_next_call_goes_through() -> None:
    answers: list[Any] = [None, {"response": "back"}]
    supervisor = Supervisor(lambda path, request: answers.pop(0))
    lm.connect(None, supervisor.guest, has_model=True)
    assert lm.llm_query("x") == "Error: ConnectionError: the supervisor hung up"
    assert lm.llm_query("x") == "back"
    supervisor.close()


@contextlib.contextmanager
def fake_proxy(*answers: bytes) -> Iterator[dict[str, Any]]:
    """A proxy that gives one raw answer to each connection after the probe, and closes it.

    Yields what :func:`lm.connect` needs.
    """

    def serve() -> None:
        for answer in (b"", *answers):
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as stream:
                if answer:
                    read_request(stream)
                    with contextlib.suppress(ConnectionError):  # the guest has read enough
                        connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve)
        server.start()
        yield {"host": "127.0.0.1", "port": listener.getsockname()[1], "token": "t"}
        server.join()


def read_request(stream: IO[bytes]) -> None:
    lines = list(iter(stream.readline, b"\r\n"))
    (length,) = [int(line[15:]) for line in lines if b"Content-Length" in line]
    stream.read(length)


def http(response: str, status: str = "200 OK") -> bytes:
    body = json.dumps({"response": response})
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def test_a_proxy_that_closed_a_kept_connection_is_asked_on_a_new_one() -> None:
    # A proxy does that when it has too many connections.
    ours, theirs = socket.socketpair()
    with ours, theirs, fake_proxy(http("answer 1"), http("answer 2")) as proxy:
        assert lm.connect(proxy, ours, has_model=True)["route"] == "http"
        assert lm.llm_query("x") == "answer 1"
        assert lm._route.local.connection.recv(1, socket.MSG_PEEK) == b""
        assert lm.llm_query("x") == "answer 2"


def test_an_answer_may_come_in_pieces() -> None:
    whole = http("ü" * 20).replace(b"Content-Length", b"X: y\r\ncontent-LENGTH")
    ours, theirs = socket.socketpair()
    listener = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        listener.accept()[0].close()  # the probe
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection:
            for i in range(len(whole)):
                connection.sendall(whole[i : i + 1])
            connection.recv(1 << 16)

    server = threading.Thread(target=drip)
    with ours, theirs, listener:
        server.start()
        proxy = {"host": "127.0.0.1", "port": listener.getsockname()[1], "token": "t"}
        lm.connect(proxy, ours, has_model=True)
        assert lm.llm_query("x") == "ü" * 20
        server.join()


@pytest.mark.parametrize("when", ["before a question", "between questions", "during a question"])
def test_a_proxy_that_goes_away_is_replaced_by_the_pipe(when: str) -> None:
    proxies: list[LMProxy] = []

    def answer(path: str, request: Any) -> Any:
        if when == "during a question":
            proxies[0].close()
        return {"response": "by http"}

    supervisor = Supervisor(lambda path, request: {"response": "by pipe"})
    proxies.append(LMProxy("127.0.0.1", answer))
    told = {"host": "127.0.0.1", "port": proxies[0].port, "token": proxies[0].token}
    assert lm.connect(told, supervisor.guest, has_model=True)["route"] == "http"
    if when == "between questions":
        assert lm.llm_query("x") == "by http"
    if when != "during a question":
        proxies[0].close()
    for _ in range(3):
        assert lm.llm_query("x") == "by pipe"
    supervisor.close()


@pytest.mark.parametrize(
    "said",
    [
        b"hello",
        b"hello\r\n\r\n",
        b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}",
        b"HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000,
    ],
    ids=lambda said: repr(said[:60]),
)
def test_a_proxy_that_does_not_speak_http_is_replaced_by_the_pipe(said: bytes) -> None:
    supervisor = Supervisor(lambda path, request: {"response": "by pipe"})
    with fake_proxy(said) as proxy:
        assert lm.connect(proxy, supervisor.guest, has_model=True)["route"] == "http"
        assert lm.llm_query("x") == "by pipe"
    supervisor.close()


def test_a_busy_proxy_is_asked_again_later() -> None:
    supervisor = Supervisor(lambda path, request: {"response": "by pipe"})
    with fake_proxy(http("", "503 Busy"), http("by http")) as proxy:
        lm.connect(proxy, supervisor.guest, has_model=True)
        assert lm.llm_query("x") == "by pipe"
        lm._route.local.connection.close()
        assert lm.llm_query("x") == "by http"
    supervisor.close()


@pytest.mark.parametrize("what", ["question", "long question", "connection"])
def test_a_proxy_that_the_network_leads_to_no_more_is_replaced_by_the_pipe(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As where a bridge gets another address, and this end sends to the one that it knows.
    monkeypatch.setattr(lm, "_REPEATS", 2)
    monkeypatch.setattr(lm, "_CONNECT_TIMEOUT", 0.5)
    supervisor = Supervisor(lambda path, request: {"response": "by pipe"})
    proxy = LMProxy("127.0.0.1", lambda path, request: {"response": "by http"})
    told = {"host": "127.0.0.1", "port": proxy.port, "token": proxy.token}
    assert lm.connect(told, supervisor.guest, has_model=True)["route"] == "http"
    if what == "connection":
        drop_all(proxy.socket)
    else:
        assert lm.llm_query("x") == "by http"
        (connection,) = proxy._members
        drop_all(connection)
    assert lm.llm_query("x" * (10_000_000 if what == "long question" else 1)) == "by pipe"
    supervisor.close()
    proxy.close()


def drop_all(connection: socket.socket) -> None:
    """Have the kernel drop all that comes for a socket, as if it had got lost."""
    program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # return 0
    described = struct.pack("HP", 1, ctypes.addressof(program))
    connection.setsockopt(socket.SOL_SOCKET, 26, described)  # SO_ATTACH_FILTER, see socket(7)


def test_a_proxy_may_take_its_time_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm, "_LOOK", 10)
    monkeypatch.setattr(lm, "_REPEATS", 1)
    asking: list[socket.socket] = []

    def refusals() -> int:
        # `tcpi_backoff`: how often the asking side was told that there is no room yet.
        return asking[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 5)[4]

    def serve() -> None:
        listener.accept()[0].close()  # that of connect()
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as stream:
            read_request(stream)
            connection.sendall(http("at once"))
            assert eventually(lambda: asking and refusals() > 1)
            read_request(stream)
            connection.sendall(http("late"))

    ours, theirs = socket.socketpair()
    listener = socket.create_server(("127.0.0.1", 0))
    server = threading.Thread(target=serve)
    with ours, theirs, listener:
        server.start()
        told = {"host": "127.0.0.1", "port": listener.getsockname()[1], "token": "t"}
        lm.connect(told, ours, has_model=True)
        assert lm.llm_query("x") == "at once"
        asking.append(lm._route.local.connection)
        assert lm.llm_query("x" * 30_000_000) == "late"
        server.join()


def test_a_silent_connection_is_noticed(connect: Callable[[Answer], None]) -> None:
    connect(broker())
    assert lm.llm_query("x") == "X"
    if lm._route.name == "http":
        sock = lm._route.local.connection
        assert sock.gettimeout() is None  # an answer may take an hour
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        # It would end one whose proxy takes its time to read.
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
