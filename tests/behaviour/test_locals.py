"""The locals in a cell's result. Many more kinds of values: tests/unit/guest/test_namespace.py."""

from __future__ import annotations

import pytest

from rlm_containers import Sandbox


@pytest.mark.parametrize(
    ("value", "form"),
    [
        ("42", "42"),
        ("'text'", "'text'"),
        ("[1, 2, 3]", "[1, 2, 3]"),
        ("{'a': 1}", "{'a': 1}"),
        ("None", "None"),
        ("2.5", "2.5"),
        ("b'raw'", "b'raw'"),
        ("range(3)", "range(0, 3)"),
        ("(1,)", "(1,)"),
    ],
)
def test_short_values_are_whole(box: Sandbox, value: str, form: str) -> None:
    assert box.execute(f"v = {value}").locals["v"] == form


def test_big_strings_tell_their_length(box: Sandbox) -> None:
    form = box.execute("big = 'abc' * 1_000_000").locals["big"]
    assert form.startswith("'abcabc")
    assert "3000000" in form


def test_locals_are_there_after_a_failure_too(box: Sandbox) -> None:
    assert box.execute("got_here = 1\n1 / 0").locals["got_here"] == "1"
