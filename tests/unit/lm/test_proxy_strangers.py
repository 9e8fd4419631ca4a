"""The proxy, and callers that hang up early, send garbage, or never leave."""

from __future__ import annotations

import json
import select
import socket
import threading

import pytest

from rlm_containers.lm import Gate, LMProxy
from rlm_containers.lm import proxy as proxy_module
from tests.support import eventually
from tests.unit.lm.conftest import Asked

BODY = b'{"prompt": "x"}'


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
    """Read until the other end hangs up."""
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
    # The body contains a whole request with the right token.
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
def test_garbage_is_refused_and_ends_the_connection(
    proxy: LMProxy, asked: Asked, what: str
) -> None:
    with connect(proxy) as connection:
        try:
            connection.sendall(GARBAGE[what])
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the proxy may hang up at once
        answer = everything(connection)
    assert b" 200 " not in answer
    assert b"Traceback" not in answer
    assert b"BaseHTTP" not in answer  # the name of the base class is not shown either
    assert asked.requests == []
    assert still_serves(proxy)


@pytest.mark.parametrize("said", [b"", b"POST /llm_query HTTP/1.1\r\nHost: x\r\n"])
def test_strangers_with_open_connections_do_not_keep_the_sandbox_out(
    proxy: LMProxy, said: bytes
) -> None:
    # More than the proxy listens to, and more than its queue holds.
    strangers = [connect(proxy) for _ in range(150)]
    try:
        for stranger in strangers:
            stranger.sendall(said)
        for _ in range(3):
            assert still_serves(proxy)
    finally:
        for stranger in strangers:
            stranger.close()


def test_strangers_that_come_again_and_again_do_not_keep_the_sandbox_out(proxy: LMProxy) -> None:
    stop = threading.Event()

    def bother() -> None:
        held: list[socket.socket] = []
        while not stop.is_set():
            try:
                held.append(connect(proxy))
            except OSError:
                pass
            while len(held) > 100:
                held.pop(0).close()
        for connection in held:
            connection.close()

    bothering = [threading.Thread(target=bother) for _ in range(3)]
    for thread in bothering:
        thread.start()
    try:
        for _ in range(5):
            assert still_serves(proxy)
    finally:
        stop.set()
        for thread in bothering:
            thread.join()


@pytest.mark.parametrize("first", [b"", b"POST /llm_query HTTP/1.1\r\n"])
def test_a_stranger_that_is_slow_is_sent_away(
    proxy: LMProxy, asked: Asked, monkeypatch: pytest.MonkeyPatch, first: bytes
) -> None:
    # Even if it keeps sending: the total time counts.
    monkeypatch.setattr(proxy_module, "_STRANGER_TIME", 0.5)
    with connect(proxy) as connection:
        connection.sendall(first)
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            while True:
                connection.send(b"x")
                select.select((), (), (), 0.01)
    assert still_serves(proxy)
    assert len(asked.requests) == 1


def test_the_sandbox_is_not_sent_away(
    proxy: LMProxy, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy_module, "_STRANGER_TIME", 0.2)
    asked.go_on.clear()
    with connect(proxy) as slow, connect(proxy) as stranger:
        slow.sendall(request(proxy))
        assert asked.arrived.acquire(timeout=30)
        assert everything(stranger) == b""  # its time is over
        asked.go_on.set()
        assert slow.recv(65536).startswith(b"HTTP/1.1 200 ")
        # It may also be silent for as long as it likes.
        with connect(proxy) as another:
            assert everything(another) == b""
        slow.sendall(request(proxy))
        assert slow.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_the_head_of_a_request_is_bounded_in_all(proxy: LMProxy, asked: Asked) -> None:
    # Neither the length of a line nor the number of lines is too large.
    head = b"POST /llm_query HTTP/1.1\r\n" + b"".join(
        b"X%d: %s\r\n" % (number, b"y" * 1000) for number in range(90)
    )
    with connect(proxy) as connection:
        connection.sendall(head[:17_000])
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert still_serves(proxy)


def test_a_stranger_cannot_send_a_body(proxy: LMProxy) -> None:
    with connect(proxy) as connection:
        connection.sendall(b"POST /llm_query HTTP/1.1\r\nContent-Length: 60000000\r\n\r\n")
        assert everything(connection).startswith(
            b"HTTP/1.1 401 "
        )  # at once, without waiting for the body


def test_the_token_is_compared_in_constant_time(
    proxy: LMProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(offered: bytes, expected: bytes) -> bool:
        compared.append((offered, expected))
        return False

    monkeypatch.setattr("hmac.compare_digest", compare)
    assert not still_serves(proxy)  # nothing else compares it
    assert compared == [(f"Bearer {proxy.token}".encode(),) * 2]


def test_bodies_in_memory_are_bounded_in_all(asked: Asked) -> None:
    proxy = LMProxy("127.0.0.1", asked, Gate(large=5_000_000, small=0))
    body = json.dumps({"prompt": "x" * 400_000}).encode()
    answers: list[bytes] = []

    def ask() -> None:
        with connect(proxy) as connection:
            connection.sendall(request(proxy, body).replace(b"Host: proxy", b"Connection: close"))
            answers.append(everything(connection)[:12])

    asked.go_on.clear()
    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    assert asked.arrived.acquire(timeout=30)
    asked.go_on.set()
    for thread in threads:
        thread.join()
    assert answers == [b"HTTP/1.1 200"] * 12  # one after the other
    with connect(proxy) as connection:  # what it needs is known once it is read
        connection.sendall(request(proxy, json.dumps({"prompt": "€" * 300_000}).encode()))
        assert everything(connection).startswith(b"HTTP/1.1 413 ")
    assert still_serves(proxy)
    proxy.close()


def test_the_connections_of_the_sandbox_are_bounded(
    proxy: LMProxy, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy_module, "_MEMBERS", 3)
    asked.go_on.clear()
    members = [connect(proxy) for _ in range(3)]
    for member in members:
        member.sendall(request(proxy))
        assert asked.arrived.acquire(timeout=30)
    with connect(proxy) as another:
        another.sendall(request(proxy))
        assert everything(another).startswith(b"HTTP/1.1 503 ")
    asked.go_on.set()
    for member in members:
        assert member.recv(65536).startswith(b"HTTP/1.1 200 ")
        member.close()
    assert eventually(lambda: still_serves(proxy))


def test_close_ends_idle_connections(proxy: LMProxy) -> None:
    with connect(proxy) as silent, connect(proxy) as kept:
        silent.settimeout(5)  # less than a stranger has
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


def test_an_answer_that_is_not_json_ends_only_its_connection(asked: Asked) -> None:
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
