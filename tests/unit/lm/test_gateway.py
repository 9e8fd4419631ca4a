"""The gateway: HTTP and the pipe lead to the same broker, through one gate."""

from __future__ import annotations

import http.client
import json
import logging
import queue
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from rlm_containers.guest import wire
from rlm_containers.interpreter import CellClock, ProxyAddress
from rlm_containers.lm import CallableBackend, Gate, Gateway, LMBroker
from runtimes import HostRoute
from tests.support import TIMEOUT, eventually

LOOPBACK = HostRoute(bind="127.0.0.1", address=None)
PROMPT = {"prompt": "x"}


class Host:
    """A gateway, and both ways to it."""

    def __init__(self, answer: Any = str.upper) -> None:
        self.clock = CellClock(longest_wait=60)
        broker = LMBroker(CallableBackend(answer))
        self.gateway = Gateway(broker, self.clock, "rlm-test")
        self.replies: queue.Queue[tuple[int, Any]] = queue.Queue()

    def attach(self) -> None:
        self.gateway.attach(self._receive)

    def _receive(self, kind: int, payload: bytes) -> None:
        assert kind == wire.CALL
        self.replies.put((int.from_bytes(payload[:4], "big"), json.loads(payload[4:])))

    def call(self, path: str, request: object = PROMPT, number: int = 1) -> None:
        self.gateway.on_call(number, json.dumps({"path": path, "request": request}).encode())

    def reply(self) -> Any:
        return self.replies.get(timeout=TIMEOUT)[1]

    def open_proxy(self) -> ProxyAddress:
        address = self.gateway.open_proxy(LOOPBACK, "alias")
        assert address is not None
        return address


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.gateway.close()


def post(address: ProxyAddress, path: str, request: object = PROMPT) -> Any:
    with closing(http.client.HTTPConnection("127.0.0.1", address.port, timeout=30)) as connection:
        headers = {"Authorization": f"Bearer {address.token}"}
        connection.request("POST", path, json.dumps(request), headers)
        return json.loads(connection.getresponse().read())


def test_both_ways_lead_to_the_broker(host: Host) -> None:
    host.attach()
    address = host.open_proxy()
    assert address.host == "alias"
    host.call("/llm_query")
    assert host.reply() == post(address, "/llm_query") == {"response": "X"}


def test_tools_are_called_over_the_pipe_only(host: Host) -> None:
    host.attach()
    address = host.open_proxy()
    host.call("/tool", {"name": "f"})
    assert host.reply()["error"]["type"] == "NameError"
    host.gateway.call_tool = lambda request: {"result": request}
    host.call("/tool", {"name": "f"})
    assert host.reply() == {"result": {"name": "f"}}
    assert post(address, "/tool", {"name": "f"}) == {"error": "there is no '/tool'"}


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"{}", b"no JSON", b"[]", b"null", b"5", b"\xff", b"[" * 100_000,
        b'{"path": "/tool"}', b'{"request": {}}',
    ],
)  # fmt: skip
def test_a_malformed_call_is_answered(host: Host, payload: bytes) -> None:
    host.attach()
    host.gateway.on_call(7, payload)
    assert host.replies.get(timeout=TIMEOUT) == (7, {"error": "bad request"})


def test_a_call_before_the_pipe_is_there_gets_no_reply(host: Host) -> None:
    asked = threading.Event()
    host.gateway.call_tool = lambda request: {"result": asked.set()}
    host.call("/tool")
    assert asked.wait(TIMEOUT)
    host.attach()
    host.call("/llm_query")
    assert host.reply() == {"response": "X"}


def test_the_clock_stands_while_a_request_is_answered() -> None:
    asked, go_on = threading.Event(), threading.Event()

    def answer(prompt: str) -> str:
        asked.set()
        assert go_on.wait(TIMEOUT)
        return prompt

    host = Host(answer)
    host.attach()
    address = host.open_proxy()
    asking = [lambda: host.call("/llm_query"), lambda: post(address, "/llm_query")]
    for ask in asking:
        asked.clear()
        go_on.clear()
        thread = threading.Thread(target=ask)
        thread.start()
        assert asked.wait(TIMEOUT)
        host.clock.start(1.0)
        left = host.clock.left()
        assert left is not None
        assert left > 50  # the longest wait, and the limit
        go_on.set()
        thread.join()
        assert eventually(lambda: (host.clock.left() or 0) <= 1.0)
    host.gateway.close()


def test_one_gate_bounds_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "rlm_containers.lm.gateway.Gate", lambda: Gate(large=10_000, small=2000, turns=1)
    )
    asked, go_on = threading.Event(), threading.Event()

    def answer(prompt: str) -> str:
        asked.set()
        assert go_on.wait(TIMEOUT)
        return prompt

    host = Host(answer)
    host.attach()
    address = host.open_proxy()
    large = {"prompt": "x" * 2500}
    asking = threading.Thread(target=post, args=(address, "/llm_query", large))
    asking.start()
    assert asked.wait(TIMEOUT)
    # Its memory is not there for a call over the pipe.
    host.call("/llm_query", {"prompt": "x" * 1000})
    assert "too much is being asked at once" in host.reply()["error"]
    # Nor is its turn, which a tool does not need: the answer may wait for a tool. And small calls
    # have memory of their own.
    host.call("/llm_query")
    host.gateway.call_tool = lambda request: {"result": request}
    host.call("/tool", 5, number=2)
    assert host.replies.get(timeout=TIMEOUT) == (2, {"result": 5})
    assert host.replies.empty()
    go_on.set()
    assert host.reply() == {"response": "x"}
    asking.join()
    host.gateway.close()


def test_a_proxy_that_cannot_listen_is_logged(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "rlm_containers.lm"):
        assert host.gateway.open_proxy(HostRoute(bind="192.0.2.1", address=None), "alias") is None
    assert "rlm-test: the proxy cannot listen on 192.0.2.1" in caplog.text


def test_a_closed_gateway_answers_nothing(host: Host) -> None:
    host.attach()
    address = host.open_proxy()
    host.gateway.close()
    host.gateway.close()
    host.call("/llm_query")
    with pytest.raises(queue.Empty):
        host.replies.get(timeout=0.05)
    with pytest.raises(ConnectionRefusedError):
        post(address, "/llm_query")
