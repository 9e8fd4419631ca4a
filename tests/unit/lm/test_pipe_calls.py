"""Calls over the pipe: too many are refused, and a flood ends the conversation."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rlm_containers.errors import SandboxLostError
from rlm_containers.guest import wire
from rlm_containers.interpreter import FloodError
from rlm_containers.lm import pipe_calls
from rlm_containers.lm.gate import Gate
from rlm_containers.lm.pipe_calls import PipeCalls
from tests.support import TIMEOUT, eventually
from tests.unit.lm.conftest import Asked

CALL = b'{"path": "/llm_query", "request": {}}'
REFUSAL = {"error": "too much is being asked at once; ask less, or wait for answers"}


class Replies(dict[int, Any]):
    """The replies by the numbers of their calls, received when it is let."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.go_on.set()

    def receive(self, kind: int, payload: bytes) -> None:
        assert kind == wire.CALL
        assert self.go_on.wait(TIMEOUT)
        self[int.from_bytes(payload[:4], "big")] = json.loads(payload[4:])


@pytest.fixture
def replies() -> Iterator[Replies]:
    replies = Replies()
    yield replies
    replies.go_on.set()


Make = Callable[[Gate], PipeCalls]


@pytest.fixture
def make(asked: Asked, replies: Replies) -> Iterator[Make]:
    made: list[PipeCalls] = []

    def make(gate: Gate) -> PipeCalls:
        made.append(PipeCalls(asked, gate))
        made[-1].send = replies.receive
        return made[-1]

    yield make
    for calls in made:
        calls.close()


def test_calls_for_which_there_is_no_memory_are_refused(make: Make, replies: Replies) -> None:
    gate = Gate(large=10 * len(CALL), small=0)
    calls = make(gate)
    gate.enter(9 * len(CALL))
    calls.submit(5, CALL)
    assert eventually(lambda: replies == {5: REFUSAL})


def test_a_call_for_which_there_is_never_memory_is_told_so(make: Make, replies: Replies) -> None:
    calls = make(Gate(large=len(CALL), small=0))
    calls.submit(5, CALL)
    assert eventually(lambda: 5 in replies)
    assert "the request is too large: it takes" in replies[5]["error"]


def test_a_call_of_many_parts_takes_their_memory(make: Make, replies: Replies) -> None:
    calls = make(Gate(large=50_000, small=0))
    calls.submit(5, b'{"path": "/llm_query", "request": [' + b"[]," * 1000 + b"[]]}")
    assert eventually(lambda: 5 in replies)
    assert "the request is too large: it takes" in replies[5]["error"]
    calls.submit(6, CALL)
    assert eventually(lambda: 6 in replies)
    assert "error" not in replies[6]


def test_calls_that_cannot_wait_are_refused(
    make: Make, asked: Asked, replies: Replies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe_calls, "_THREADS", 2)
    monkeypatch.setattr(pipe_calls, "_MAX_WAITING", 3)
    asked.go_on.clear()
    calls = make(Gate(turns=1))
    for number in range(20):
        calls.submit(number, CALL)
    asked.go_on.set()
    assert eventually(lambda: len(replies) == 20)
    assert 3 <= sum(reply != REFUSAL for reply in replies.values()) <= 5
    assert replies[19] == REFUSAL  # the first ones took the places


def test_calls_faster_than_refusals_end_the_conversation(
    make: Make, replies: Replies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe_calls, "_THREADS", 2)
    monkeypatch.setattr(pipe_calls, "_MAX_WAITING", 3)
    monkeypatch.setattr(pipe_calls, "_MAX_REFUSED", 5)
    replies.go_on.clear()
    calls = make(Gate())
    with pytest.raises(FloodError, match="faster than they could be refused"):
        for number in range(100):
            calls.submit(number, CALL)


def test_an_answer_that_is_not_json_is_an_error(replies: Replies) -> None:
    calls = PipeCalls(lambda path, request: {"response": object()}, Gate())
    calls.send = replies.receive
    calls.submit(1, CALL)
    assert eventually(lambda: 1 in replies)
    assert replies[1]["error"].startswith("TypeError: ")
    calls.close()


def test_a_container_that_is_gone_gets_no_reply(make: Make, asked: Asked, replies: Replies) -> None:
    def lost(kind: int, payload: bytes) -> None:
        raise SandboxLostError("gone")

    calls = make(Gate())
    calls.send = lost
    calls.submit(1, CALL)
    assert asked.arrived.acquire(timeout=TIMEOUT)
    assert eventually(lambda: calls._idle == 1)
    calls.send = replies.receive
    calls.submit(2, CALL)
    assert eventually(lambda: 2 in replies)
