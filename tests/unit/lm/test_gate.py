"""The gate: how many requests are answered at once, and the memory they take."""

from __future__ import annotations

import threading

import pytest

from rlm_containers.lm.gate import Gate, GateClosedError, GateFullError
from tests.support import TIMEOUT, eventually


def test_memory_is_shared_and_given_back() -> None:
    gate = Gate(10)
    gate.reserve(6)
    with pytest.raises(GateFullError):
        gate.reserve(5)
    gate.reserve(4)
    reserved = threading.Event()

    def wait() -> None:
        gate.wait_and_reserve(8)
        reserved.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    gate.release(6)
    assert not reserved.wait(0.05)
    gate.release(4)
    waiting.join(TIMEOUT)
    assert reserved.is_set()


def test_a_parsed_request_is_held_with_its_memory() -> None:
    gate = Gate(2000)
    payload = b'{"prompt": "x"}'
    with gate.parsed(payload) as request:
        assert request == {"prompt": "x"}
        with pytest.raises(GateFullError):
            gate.reserve(2000)
    gate.reserve(2000)
    with pytest.raises(GateFullError), gate.parsed(payload):
        pass


def test_invalid_json_keeps_no_memory() -> None:
    gate = Gate(2000)
    for payload in (b"{", b"\xff", b"[" * 100_000):
        with pytest.raises(ValueError), gate.parsed(payload):  # noqa: PT011
            pass
    gate.reserve(2000)


def test_requests_take_turns() -> None:
    gate = Gate(turns=1)
    answered = threading.Event()

    def answer() -> None:
        with gate.turn():
            answered.set()

    waiting = threading.Thread(target=answer)
    with gate.turn():
        waiting.start()
        assert not answered.wait(0.05)
    waiting.join(TIMEOUT)
    assert answered.is_set()


def test_closing_turns_away_everyone_who_waits() -> None:
    gate = Gate(1000, turns=1)
    turned_away: list[str] = []
    gate.reserve(1)

    def wait_for_memory() -> None:
        with pytest.raises(GateClosedError):
            gate.wait_and_reserve(1000)
        turned_away.append("memory")

    def wait_for_a_turn() -> None:
        with pytest.raises(GateClosedError), gate.turn():
            pass
        turned_away.append("turn")

    with gate.turn():
        waiting = [threading.Thread(target=target) for target in (wait_for_memory, wait_for_a_turn)]
        for thread in waiting:
            thread.start()
        assert not eventually(lambda: turned_away, 0.05)
        gate.close()
        for thread in waiting:
            thread.join(TIMEOUT)
    assert sorted(turned_away) == ["memory", "turn"]
