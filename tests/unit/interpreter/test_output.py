"""The part of a cell's output that is kept: all of it up to a limit, else head, tail and a count."""

from __future__ import annotations

import dataclasses
import random
import re

import pytest

from rlm_containers import CellResult
from rlm_containers.interpreter.output import OutputCollector
from rlm_containers.interpreter.results import StreamName


def collect(*pieces: bytes, limit: int = 100) -> str:
    collector = OutputCollector("stdout", limit, None)
    for piece in pieces:
        collector.feed(piece)
    return collector.text()


class Listener:
    """Records what it is called with."""

    def __init__(self) -> None:
        self.heard: list[tuple[StreamName, str]] = []

    def __call__(self, name: StreamName, text: str) -> None:
        self.heard.append((name, text))

    @property
    def text(self) -> str:
        return "".join(text for _, text in self.heard)


def test_no_output() -> None:
    assert collect() == ""
    assert collect(b"", b"") == ""


@pytest.mark.parametrize("length", [1, 49, 50, 51, 99, 100])
def test_output_up_to_the_limit_is_kept(length: int) -> None:
    text = "".join(chr(33 + i % 90) for i in range(length))
    raw = text.encode()
    assert collect(raw) == text
    assert collect(*(raw[i : i + 1] for i in range(length))) == text


@pytest.mark.parametrize("limit", [100, 101])
@pytest.mark.parametrize("length", [102, 150, 201, 500, 12_345])
@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_past_the_limit_head_tail_and_a_count_are_kept(limit: int, length: int, step: int) -> None:
    text = "".join(chr(33 + i % 90) for i in range(length))
    raw = text.encode()
    kept = collect(*(raw[i : i + step] for i in range(0, length, step)), limit=limit)
    found = re.fullmatch(r"(.*)\n\[\.\.\. (\d+) characters cut \.\.\.\]\n(.*)", kept)
    assert found is not None
    head, count, tail = found.groups()
    assert text.startswith(head)
    assert text.endswith(tail)
    assert len(head) + len(tail) == limit
    assert len(head) + int(count) + len(tail) == length
    assert abs(len(head) - len(tail)) <= 1


def test_one_character_too_many_is_counted_as_one() -> None:
    assert "[... 1 characters cut ...]" in collect(b"x" * 101)


def test_the_limit_counts_characters_and_not_bytes() -> None:
    text = "ü€🐍" * 33 + "é"
    assert len(text) == 100
    assert collect(text.encode()) == text


@pytest.mark.parametrize("text", ["naïve", "€uro", "🐍 in a 🧺", "a\0b", "\ufeffbom"])
def test_a_character_may_be_split_at_every_byte(text: str) -> None:
    raw = text.encode()
    for cut in range(len(raw) + 1):
        assert collect(raw[:cut], raw[cut:]) == text, cut
    assert collect(*(raw[i : i + 1] for i in range(len(raw)))) == text


def test_invalid_utf8_is_replaced() -> None:
    assert collect(b"a\xffb") == "a\ufffdb"
    assert collect(b"a\xed\xa0\x80b").startswith("a\ufffd")  # a lone surrogate


def test_an_incomplete_character_at_the_end_is_replaced() -> None:
    assert collect("x🐍".encode()[:-1]) == "x\ufffd"
    # Only once, however often text() is called.
    collector = OutputCollector("stdout", 100, None)
    collector.feed("🐍".encode()[:2])
    assert collector.text() == collector.text() == "\ufffd"


def test_the_text_is_there_before_the_end() -> None:
    collector = OutputCollector("stdout", 100, None)
    collector.feed(b"a" * 80)
    assert collector.text() == "a" * 80
    collector.feed(b"b" * 80)
    assert collector.text() == "a" * 50 + "\n[... 60 characters cut ...]\n" + "b" * 50
    collector.feed(b"c" * 10)
    assert collector.text() == "a" * 50 + "\n[... 70 characters cut ...]\n" + "b" * 40 + "c" * 10


def test_the_callback_gets_all_output() -> None:
    listener = Listener()
    collector = OutputCollector("stderr", 100, listener)
    for piece in (b"one ", b"two ", b"\xe2\x82", b"\xac", b"x" * 500):
        collector.feed(piece)
    assert listener.text == "one two €" + "x" * 500
    assert {name for name, _ in listener.heard} == {"stderr"}
    assert all(text for _, text in listener.heard)  # never called without text
    assert len(listener.heard) == 4


def test_the_callback_gets_an_incomplete_character_at_the_end() -> None:
    listener = Listener()
    collector = OutputCollector("stdout", 100, listener)
    collector.feed(b"\xe2\x82")
    assert listener.heard == []
    collector.text()
    assert listener.text == "\ufffd"


def test_memory_is_bounded_for_endless_output() -> None:
    collector = OutputCollector("stdout", 1000, None)
    for _ in range(2000):
        collector.feed(b"x" * 1000)
        kept = collector._kept
        held = len(kept._head) + sum(len(piece) for piece in kept._tail)
        assert held <= 5 * 1000
    assert "[... 1999000 characters cut ...]" in collector.text()


def test_random_output_in_random_pieces() -> None:
    chance = random.Random(7)
    for _ in range(100):
        length = chance.randrange(400)
        text = "".join(chance.choice("ab\n€🐍") for _ in range(length))
        raw = text.encode()
        cuts = sorted(chance.randrange(len(raw) + 1) for _ in range(5))
        pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
        limit = chance.randrange(100, 300)
        kept = collect(*pieces, limit=limit)
        if length <= limit:
            assert kept == text
        else:
            marker = f"\n[... {length - limit} characters cut ...]\n"
            assert kept == text[: limit // 2] + marker + text[length - limit + limit // 2 :]


def test_a_result_is_immutable() -> None:
    result = CellResult(stdout="", stderr="", locals={}, execution_time=0.1)
    assert (result.status, result.lm_calls, result.final_answer, result.lost) == (
        "ok",
        (),
        None,
        (),
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.stdout = "other"  # type: ignore[misc]
