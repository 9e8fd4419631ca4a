"""The gate: how many requests are answered at once, and the memory they take."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from rlm_containers.interpreter import UntrustedJSON
from rlm_containers.lm.gate import (
    Gate,
    GateClosedError,
    GateFullError,
    RequestTooLargeError,
)
from tests.support import TIMEOUT, eventually


def test_memory_is_shared_and_given_back() -> None:
    gate = Gate(large=10, small=0)
    first = gate.enter(6)
    with pytest.raises(GateFullError):
        gate.enter(5)
    second = gate.enter(4)
    entered = threading.Event()

    def wait() -> None:
        with gate.wait(8):
            entered.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    first.release()
    assert not entered.wait(0.05)
    second.release()
    waiting.join(TIMEOUT)
    assert entered.is_set()
    gate.enter(10)


def test_a_request_changes_its_size() -> None:
    gate = Gate(large=10, small=0)
    with gate.enter(8) as room, gate.enter(2) as other:
        with pytest.raises(GateFullError):
            room.resize(9)
        room.resize(3)
        other.resize(7)
        with pytest.raises(GateFullError):
            gate.enter(1)
    gate.enter(10)


def test_what_is_too_large_is_told_at_once() -> None:
    gate = Gate(large=10, small=0)
    with pytest.raises(RequestTooLargeError, match="takes 11 bytes .* may take 10 bytes"):
        gate.enter(11)
    with gate.wait(11) as room:  # it may turn out to need less
        room.resize(9)
        with pytest.raises(RequestTooLargeError):
            room.resize(11)


def test_small_requests_do_not_wait_for_large_ones() -> None:
    gate = Gate(large=5_000_000, small=10_000)
    with gate.enter(5_000_000):
        with pytest.raises(GateFullError):
            gate.enter(20_000)
        with gate.enter(6_000), gate.wait(4_000), pytest.raises(GateFullError):
            gate.enter(1)
        with pytest.raises(GateFullError):
            gate.enter(5_000_000)
    # If nothing large is there, they may take its place.
    with gate.enter(10_000), gate.enter(10_000):
        pass


def test_a_text_is_parsed_with_its_memory() -> None:
    gate = Gate(large=2000, small=0)
    with gate.enter(100) as room:
        assert room.load(UntrustedJSON(b'{"prompt": "x"}')) == {"prompt": "x"}
        with pytest.raises(GateFullError):
            gate.enter(1900)
    gate.enter(2000)


def test_invalid_json_keeps_no_memory() -> None:
    gate = Gate(large=2_000_000, small=0)
    for payload in (b"{", b"\xff", b"[" * 100_000):
        with pytest.raises(ValueError), gate.enter(100) as room:  # noqa: PT011
            room.load(UntrustedJSON(payload))
    gate.enter(2_000_000)


def test_texts_are_parsed_after_the_end_too() -> None:
    gate = Gate()
    room = gate.enter(2_000_000)
    assert room.load(UntrustedJSON(b"[1]")) == [1]
    gate.close()
    assert room.load(UntrustedJSON(b"[2]")) == [2]
    assert len(room.buffer(5)) == 5


def test_texts_are_parsed_without_a_thread_too(no_threads: Callable[[], None]) -> None:
    gate = Gate()
    no_threads()
    with gate.enter(2_000_000) as room:
        assert room.load(UntrustedJSON(b"[1]")) == [1]
        assert room.load(UntrustedJSON(b"[2]")) == [2]


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
    gate = Gate(large=1000, small=0, turns=1)
    turned_away: list[str] = []
    gate.enter(1)

    def wait_for_memory() -> None:
        with pytest.raises(GateClosedError):
            gate.wait(1000)
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
