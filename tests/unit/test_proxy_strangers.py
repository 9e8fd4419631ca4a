"""The proxy and callers that break off, send garbage, or never go away."""

from __future__ import annotations

import json
import random
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from rlm_containers.lm.proxy import LMProxy

BODY = b'{"prompt": "x"}'


class Asked:
    """Answers the proxy's requests, each as soon as it is let."""

    def __init__(self) -> None:
        self.requests: list[object] = []
        self.arrived = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self, path: str, request: object) -> dict[str, Any]:
        self.requests.append(request)
        self.arrived.release()
        assert self.go_on.wait(30)
        return {"response": "yes"}


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def proxy(asked: Asked) -> Iterator[LMProxy]:
    proxy = LMProxy("127.0.0.1", asked)
    yield proxy
    asked.go_on.set()
    proxy.close()


def connect(proxy: LMProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), 30)


def request(proxy: LMProxy, body: bytes = BODY, length: int | None = None) -> bytes:
    head = (
        "POST /llm_query HTTP/1.1\r\nHost: proxy\r\n"
        f"Authorization: Bearer {proxy.token}\r\n"
        f"Content-Length: {len(body) if length is None else length}\r\n\r\n"
    )
    return head.encode() + body


def everything(connection: socket.socket) -> bytes:
    """What comes until the other end hangs up."""
    received = b""
    while True:
        try:
            part = connection.recv(65536)
        except ConnectionResetError:
            return received
        if not part:
            return received
        received += part


def still_serves(proxy: LMProxy) -> bool:
    with connect(proxy) as connection:
        connection.sendall(request(proxy).replace(b"Host: proxy", b"Connection: close"))
        return everything(connection).startswith(b"HTTP/1.1 200 ")


def test_a_caller_that_says_nothing_and_goes(proxy: LMProxy) -> None:
    for _ in range(20):
        connect(proxy).close()
    assert still_serves(proxy)


def test_a_caller_that_hangs_up_anywhere_in_its_request(proxy: LMProxy, asked: Asked) -> None:
    whole = request(proxy)
    for cut in range(0, len(whole), 7):
        with connect(proxy) as connection:
            connection.sendall(whole[:cut])
    assert still_serves(proxy)
    assert asked.requests == [{"prompt": "x"}]


def test_a_body_that_ends_early_is_not_answered(proxy: LMProxy, asked: Asked) -> None:
    with connect(proxy) as connection:
        connection.sendall(request(proxy, b'{"prompt": "x"}', length=500))
        connection.shutdown(socket.SHUT_WR)
        assert everything(connection) == b""
    assert asked.requests == []


def test_a_caller_that_does_not_wait_for_its_answer(proxy: LMProxy, asked: Asked) -> None:
    asked.go_on.clear()
    with connect(proxy) as connection:
        connection.sendall(request(proxy))
        assert asked.arrived.acquire(timeout=30)
    asked.go_on.set()
    assert still_serves(proxy)


def test_requests_may_come_in_one_piece_or_in_single_bytes(proxy: LMProxy, asked: Asked) -> None:
    with connect(proxy) as connection:
        connection.sendall(request(proxy) + request(proxy, b'{"prompt": "y"}'))
        connection.shutdown(socket.SHUT_WR)
        assert everything(connection).count(b"HTTP/1.1 200 ") == 2
    with connect(proxy) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw = request(proxy, b'{"prompt": "z"}')
        for i in range(len(raw)):
            connection.sendall(raw[i : i + 1])
        connection.shutdown(socket.SHUT_WR)
        assert everything(connection).count(b"HTTP/1.1 200 ") == 1
    assert asked.requests == [{"prompt": prompt} for prompt in "xyz"]


def test_a_body_that_was_refused_is_not_read_as_a_request(proxy: LMProxy, asked: Asked) -> None:
    # The body holds a whole request with the right token; without its frame it counts for nothing.
    hidden = request(proxy)
    stranger = request(proxy, hidden).replace(proxy.token.encode(), b"wrong", 1)
    with connect(proxy) as connection:
        connection.sendall(stranger)
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert answer.count(b"HTTP/1.1") == 1
    assert asked.requests == []


GARBAGE = {
    "an empty line": b"\r\n\r\n",
    "one word": b"hello\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "POST without version": b"POST /llm_query\r\n\r\n",
    "a strange version": b"POST /llm_query HTTP/9.9\r\n\r\n",
    "no version number": b"POST /llm_query HTTP/x.y\r\n\r\n",
    "other protocol": b"SSH-2.0-OpenSSH_9.0\r\n",
    "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(200),
    "frames": b"\0\0\0\x02m{}",
    "zeros": bytes(5000),
    "a long line": b"POST /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
    "a long header": b"POST / HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
    "many headers": b"POST / HTTP/1.1\r\n" + b"A: b\r\n" * 300 + b"\r\n",
    "header without colon": b"POST /llm_query HTTP/1.1\r\nhello\r\n\r\n",
    "bytes that are no text": b"\xff\xfe POST / HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_is_refused_and_served_no_further(proxy: LMProxy, asked: Asked, what: str) -> None:
    with connect(proxy) as connection:
        try:
            connection.sendall(GARBAGE[what])
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it hung up at once, which is as good
        answer = everything(connection)
    assert b" 200 " not in answer
    assert b"Traceback" not in answer
    assert b"BaseHTTP" not in answer  # nor what it is made of
    assert asked.requests == []
    assert still_serves(proxy)


def test_random_bytes(proxy: LMProxy, asked: Asked) -> None:
    chance = random.Random(3)
    whole = request(proxy, b"{}")
    for _ in range(60):
        raw = bytearray(whole)
        for _ in range(chance.randrange(1, 10)):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
        with connect(proxy) as connection:
            try:
                connection.sendall(raw)
                connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            everything(connection)
    assert still_serves(proxy)


def test_strangers_with_open_connections_do_not_keep_the_sandbox_out(proxy: LMProxy) -> None:
    strangers = [connect(proxy) for _ in range(30)]
    try:
        assert still_serves(proxy)
    finally:
        for stranger in strangers:
            stranger.close()


def test_close_ends_idle_connections(proxy: LMProxy) -> None:
    with connect(proxy) as silent, connect(proxy) as kept:
        kept.sendall(request(proxy))
        assert kept.recv(65536).startswith(b"HTTP/1.1 200 ")
        proxy.close()
        assert everything(silent) == b""
        assert everything(kept) == b""
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)


def test_close_does_not_wait_for_an_answer_that_takes_long(proxy: LMProxy, asked: Asked) -> None:
    asked.go_on.clear()
    with connect(proxy) as waiting:
        waiting.sendall(request(proxy))
        assert asked.arrived.acquire(timeout=30)
        proxy.close()  # the answer is still being made
        assert everything(waiting) == b""
    asked.go_on.set()


def test_close_ends_the_proxys_thread(asked: Asked) -> None:
    proxy = LMProxy("127.0.0.1", asked)
    name = f"rlm-proxy-{proxy.port}"
    assert name in {thread.name for thread in threading.enumerate()}
    proxy.close()
    assert name not in {thread.name for thread in threading.enumerate()}


def test_two_proxies_have_ports_of_their_own(asked: Asked) -> None:
    proxies = [LMProxy("127.0.0.1", asked) for _ in range(5)]
    assert len({proxy.port for proxy in proxies}) == 5
    assert len({proxy.token for proxy in proxies}) == 5
    for proxy in proxies:
        proxy.close()


def test_an_answer_that_is_no_json_ends_the_connection_and_nothing_else(asked: Asked) -> None:
    proxy = LMProxy("127.0.0.1", lambda path, request: {"response": object()})
    with connect(proxy) as connection:
        connection.sendall(request(proxy))
        answer = everything(connection)
    assert b" 200 " not in answer
    with connect(proxy) as connection:
        connection.sendall(request(proxy, b"not json"))
        assert b" 400 " in everything(connection)
    proxy.close()


def test_errors_are_json(proxy: LMProxy) -> None:
    with connect(proxy) as connection:
        connection.sendall(b"BREW /coffee HTTP/1.1\r\n\r\n")
        head, _, body = everything(connection).partition(b"\r\n\r\n")
    assert b"Content-Type: application/json" in head
    assert list(json.loads(body)) == ["error"]
