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
from tests.support import eventually
from tests.unit.guests import PATIENCE

CALL = b'{"path": "/llm_query", "request": {}}'
REFUSAL = {"error": "too much is being asked at once; ask less, or wait for answers"}


class Caller:
    """Answers calls when it is let, and keeps the replies by their numbers."""

    def __init__(self) -> None:
        self.replies: dict[int, Any] = {}
        self.go_on = threading.Event()
        self.reads = threading.Event()
        self.reads.set()

    def answer(self, path: str, request: object) -> dict[str, Any]:
        assert self.go_on.wait(PATIENCE)
        return {"response": path}

    def receive(self, kind: int, payload: bytes) -> None:
        assert kind == wire.CALL
        assert self.reads.wait(PATIENCE)
        self.replies[int.from_bytes(payload[:4], "big")] = json.loads(payload[4:])


@pytest.fixture
def caller() -> Caller:
    return Caller()


@pytest.fixture
def make(caller: Caller) -> Iterator[Callable[[Gate], PipeCalls]]:
    made: list[PipeCalls] = []

    def make(gate: Gate) -> PipeCalls:
        made.append(PipeCalls(caller.answer, gate))
        made[-1].send = caller.receive
        return made[-1]

    yield make
    caller.go_on.set()
    caller.reads.set()
    for calls in made:
        calls.close()


Make = Callable[[Gate], PipeCalls]


def test_calls_for_which_there_is_no_memory_are_refused(make: Make, caller: Caller) -> None:
    calls = make(Gate(size=len(CALL) - 1))
    calls.submit(5, CALL)
    assert eventually(lambda: caller.replies == {5: REFUSAL})


def test_calls_that_cannot_wait_are_refused(
    make: Make, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe_calls, "_THREADS", 2)
    monkeypatch.setattr(pipe_calls, "_MAX_WAITING", 3)
    calls = make(Gate(turns=1))
    for number in range(20):
        calls.submit(number, CALL)
    caller.go_on.set()
    assert eventually(lambda: len(caller.replies) == 20)
    answered = [number for number, reply in caller.replies.items() if reply != REFUSAL]
    assert 3 <= len(answered) <= 5
    # The first ones took the places.
    assert 19 not in answered


def test_calls_faster_than_refusals_end_the_conversation(
    make: Make, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe_calls, "_THREADS", 2)
    monkeypatch.setattr(pipe_calls, "_MAX_WAITING", 3)
    monkeypatch.setattr(pipe_calls, "_MAX_REFUSED", 5)
    caller.reads.clear()
    calls = make(Gate())
    with pytest.raises(FloodError, match="faster than they could be refused"):
        for number in range(100):
            calls.submit(number, CALL)


def test_an_answer_that_is_not_json_is_an_error(make: Make, caller: Caller) -> None:
    caller.answer = lambda path, request: {"response": object()}  # type: ignore[method-assign]
    calls = make(Gate())
    calls.submit(1, CALL)
    assert eventually(lambda: 1 in caller.replies)
    assert caller.replies[1]["error"].startswith("TypeError: ")


def test_a_container_that_is_gone_is_sent_no_reply_and_nothing_fails(
    make: Make, caller: Caller
) -> None:
    def lost(kind: int, payload: bytes) -> None:
        raise SandboxLostError("gone")

    calls = make(Gate())
    caller.go_on.set()
    calls.send = lost
    calls.submit(1, CALL)
    calls.send = caller.receive
    calls.submit(2, CALL)
    assert eventually(lambda: 2 in caller.replies)
