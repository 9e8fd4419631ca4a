"""JSON from a container: valid JSON is parsed, and nothing takes more memory or time than its bound."""

from __future__ import annotations

import json
import sys
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

from rlm_containers.interpreter import UntrustedJSON


@pytest.mark.parametrize(
    "value",
    [
        None,
        5,
        -1.5e300,
        "",
        "x" * 100_000,
        "ünï\ud800€😀",
        [],
        {},
        [[[]]],
        [[[]] * 300, {"a": [{}] * 300}],
        {"a": [1, {"b": None}]},
        ["[" * 1000, "{" * 1000, "," * 2_000_000, '"' * 1000, "\\" * 1001],
        {"[{,:": ':,{["'},
        ["\\", '\\"', '"\\', "\\\\"] * 300,
        list(range(100_000)),
        float("inf"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_valid_json_is_parsed(value: Any) -> None:
    said = UntrustedJSON(json.dumps(value).encode())
    assert said.load() == value


@pytest.mark.parametrize(
    "payload",
    [b"", b"{", b"nope", b"\xff", b'"\xff"', b"[1,]", b"\xef\xbb\xbf{}", b"{}x", b"'a'", b"\0"],
)
def test_invalid_json_is_a_value_error(payload: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of many kinds
        UntrustedJSON(payload).load()


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        "[" * 201 + "]" * 201,
        "[" * 100_000 + "]" * 100_000,
        '{"a":' * 300 + "1" + "}" * 300,
        "[" * 150 + "[]," * 500 + "[" * 60 + "]" * 60 + "]" * 150,
    ],
    ids=lambda text: text[:10],
)
def test_deep_nesting_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="nested"):
        UntrustedJSON(text.encode()).load()


def test_deep_nesting_is_refused_whatever_the_recursion_limit() -> None:
    # With a high limit json would overflow the C stack, which ends the process.
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1_000_000)
    try:
        with pytest.raises(ValueError, match="nested"):
            UntrustedJSON(b"[" * 400_000 + b"]" * 400_000)
    finally:
        sys.setrecursionlimit(before)


@pytest.mark.parametrize("part", [b"[],", b"1,", b'"":1,'])
def test_too_many_parts_are_refused(part: bytes) -> None:
    with pytest.raises(ValueError, match="more than 1000 parts"):
        UntrustedJSON(b"[" + part * 1000 + b"1]", 1000)


@pytest.fixture
def no_digit_limit() -> Iterator[None]:
    """Lifts the limit of digits, as some programs do for the whole process."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    yield
    sys.set_int_max_str_digits(before)


def test_a_long_number_is_refused() -> None:
    with pytest.raises(ValueError, match="digits"):
        UntrustedJSON(b"1" * 1_000_000).load()


@pytest.mark.usefixtures("no_digit_limit")
def test_a_long_number_is_refused_even_if_python_would_take_it() -> None:
    with pytest.raises(ValueError, match="digits"):
        UntrustedJSON(b"[" + b"1" * 5_000_000 + b"]").load()
    assert UntrustedJSON(b"[" + b"1" * 4000 + b"]").load() == [int("1" * 4000)]


@pytest.mark.parametrize(
    "payload",
    [
        b"[" + b"[]," * 50_000 + b"[]]",
        b"[" + b"{}," * 50_000 + b"{}]",
        b"[" + b'{"a":{}},' * 30_000 + b"{}]",
        b"[" + b'{"a":1,"b":"x"},' * 30_000 + b"{}]",
        b"[" + b"1.5," * 50_000 + b"1]",
        b"[" + b"123456789012," * 50_000 + b"1]",
        b"[" + b'"ab",' * 50_000 + b"1]",
        b'{"' + b'","'.join(b'%d":"' % n for n in range(30_000)) + b'"}',
        b'"' + b"x" * 1_000_000 + b'"',
        b'"' + b"\\ud83d\\ude00" + b"x" * 1_000_000 + b'"',
        b'"' + b"\\u20ac" + b"x" * 1_000_000 + b'"',
        ('"' + "😀" + "x" * 1_000_000 + '"').encode(),
    ],
    ids=lambda payload: payload[:12].decode(errors="replace"),
)
def test_the_memory_of_a_value_is_known_before_it_is_parsed(payload: bytes) -> None:
    said = UntrustedJSON(payload)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        value = said.load()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert value
    assert after - before < said.size


@pytest.mark.parametrize(
    "payload",
    [
        b"[" * 201 + b'"' + b'\\"' * 5_000_000,
        b"[" * 201 + b'"' + b"\\" * 10_000_001,
        b'["' + b'","' * 3_000_000,
        b'["",' + b'"",' * 3_000_000,
        b"[" * 201 + b"]" * 10_000_000,
        b"," * 10_000_000,
    ],
    ids=lambda payload: repr(payload[199:206]),
)
def test_looking_at_a_text_takes_bounded_time_and_memory(payload: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError):  # noqa: PT011 - of many kinds
            UntrustedJSON(payload)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000  # nothing is copied


@pytest.mark.parametrize("payload", [b"x" * 100_000, b"\xff" * 100_000])
def test_an_error_does_not_keep_the_text(payload: bytes) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        UntrustedJSON(payload).load()
    assert not hasattr(caught.value, "doc")
    assert not hasattr(caught.value, "object")
    assert caught.value.__context__ is None
