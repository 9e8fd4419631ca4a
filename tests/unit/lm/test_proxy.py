"""The proxy, for callers with the token and for callers without."""

from __future__ import annotations

import http.client
import json
from contextlib import closing
from typing import Any

import pytest

from rlm_containers.lm import CallableBackend, LMBroker, LMProxy
from tests.unit.lm.conftest import Asked


def connect(proxy: LMProxy) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)


def post(
    connection: http.client.HTTPConnection,
    token: str | None,
    body: bytes = b'{"prompt": "x"}',
    path: str = "/llm_query",
) -> tuple[int, Any]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    connection.request("POST", path, body, headers)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def test_with_the_token_a_request_is_answered(proxy: LMProxy, asked: Asked) -> None:
    with closing(connect(proxy)) as connection:
        assert post(connection, proxy.token) == (200, {"response": "answer 1"})
    assert (asked.paths, asked.requests) == (["/llm_query"], [{"prompt": "x"}])


def test_the_broker_behind_it(proxy: LMProxy) -> None:
    whole = LMProxy("127.0.0.1", LMBroker(CallableBackend(str.upper)).handle)
    with closing(connect(whole)) as connection:
        body = json.dumps({"prompts": ["ä", "b\ud800"]}).encode()
        status, answer = post(connection, whole.token, body, "/llm_query_batched")
        assert (status, answer) == (200, {"responses": ["Ä", "B\ud800"]})
        assert post(connection, whole.token, b"[]") == (
            200,
            {"error": "bad request: not an object"},
        )
        # The broker rejects the path; as HTTP, the request is fine.
        assert post(connection, whole.token, path="/nothing") == (
            200,
            {"error": "there is no '/nothing'"},
        )
    whole.close()


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Basic {token}",
        "{token}",
        "bearer {token}",
        "Bearer {token}x",
        "Bearer {short}",
        "Bearer {swapped}",
        "Bearer  {token}",
        "Bearer {token} {token}",
        "Bearer \xe4\xf6\xfc",
    ],
)
def test_without_the_token_nobody_is_asked(
    proxy: LMProxy, asked: Asked, authorization: str | None
) -> None:
    headers = {}
    if authorization is not None:
        filled = authorization.format(
            token=proxy.token, short=proxy.token[:-1], swapped=proxy.token.swapcase()
        )
        headers["Authorization"] = filled
    with closing(connect(proxy)) as connection:
        connection.request("POST", "/llm_query", b'{"prompt": "x"}', headers)
        response = connection.getresponse()
        assert response.status == 401
        assert response.getheader("Connection") == "close"
        answer = json.loads(response.read())
    assert list(answer) == ["error"]
    assert proxy.token not in str(answer)
    assert asked.requests == []


def test_a_token_is_valid_for_one_proxy_only(proxy: LMProxy, asked: Asked) -> None:
    other = LMProxy("127.0.0.1", asked)
    other.close()
    assert other.token != proxy.token
    with closing(connect(proxy)) as connection:
        assert post(connection, other.token)[0] == 401
    assert asked.requests == []


def test_the_token_is_long_and_not_in_the_repr(proxy: LMProxy) -> None:
    assert len(proxy.token) >= 32
    assert proxy.token not in repr(proxy)


@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "post"]
)
def test_other_methods_are_refused(proxy: LMProxy, asked: Asked, method: str) -> None:
    with closing(connect(proxy)) as connection:
        headers = {"Authorization": f"Bearer {proxy.token}", "Content-Length": "0"}
        connection.request(method, "/llm_query", headers=headers)
        response = connection.getresponse()
        assert response.status == 501
        response.read()
    assert asked.requests == []


@pytest.mark.parametrize(
    ("length", "status"),
    [
        (None, 411),
        ("", 411),
        ("x", 411),
        ("-1", 411),
        ("1.5", 411),
        ("0x10", 411),
        (str(64 * 1024 * 1024 + 1), 413),
        ("9" * 30, 413),
    ],
)
def test_a_body_needs_a_valid_length(
    proxy: LMProxy, asked: Asked, length: str | None, status: int
) -> None:
    with closing(connect(proxy)) as connection:
        connection.putrequest("POST", "/llm_query")
        connection.putheader("Authorization", f"Bearer {proxy.token}")
        if length is not None:
            connection.putheader("Content-Length", length)
        connection.endheaders()
        response = connection.getresponse()
        assert response.status == status
        assert "error" in json.loads(response.read())
    assert asked.requests == []


@pytest.mark.parametrize(
    "body", [b"", b"{", b"hello", b"\xff\xfe", b"{'a': 1}", b"1" * 5000, b"[" * 100_000]
)
def test_a_body_that_is_not_json_is_refused(proxy: LMProxy, asked: Asked, body: bytes) -> None:
    with closing(connect(proxy)) as connection:
        status, answer = post(connection, proxy.token, body)
    assert status == 400
    assert list(answer) == ["error"]
    assert asked.requests == []


def test_a_connection_serves_many_requests(proxy: LMProxy, asked: Asked) -> None:
    with closing(connect(proxy)) as connection:
        post(connection, proxy.token)
        opened = connection.sock
        for count in range(2, 200):
            assert post(connection, proxy.token) == (200, {"response": f"answer {count}"})
        assert connection.sock is opened


def test_many_threads_may_keep_their_connections(proxy: LMProxy) -> None:
    # The threads of a pool in a cell all keep theirs until the last has its answer.
    connections = [connect(proxy) for _ in range(150)]
    try:
        for connection in connections:
            assert post(connection, proxy.token)[0] == 200
    finally:
        for connection in connections:
            connection.close()


def test_an_address_of_another_machine_is_an_error() -> None:
    with pytest.raises(OSError, match="assign"):
        LMProxy("192.0.2.1", Asked())
