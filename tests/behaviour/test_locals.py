"""The locals in a cell's result: short forms, bounded in every direction."""

from __future__ import annotations

import pytest

from rlm_containers import CellResult, Sandbox
from tests.support import execute, printed


def size(result: CellResult) -> int:
    """Characters of a result's locals."""
    return sum(len(name) + len(form) for name, form in result.locals.items())


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


# Many more kinds of values: tests/unit/guest/test_namespace.py.
@pytest.mark.parametrize(
    "value", ["'x' * 50_000_000", "['y' * 10_000_000] * 5", "set(range(100_000))"]
)
def test_big_values_are_short(box: Sandbox, value: str) -> None:
    result = box.execute(f"big = {value}")
    assert (result.status, result.stderr) == ("ok", "")
    assert 1 <= len(result.locals["big"]) <= 200
    printed(box, "del big")


def test_big_strings_tell_their_length(box: Sandbox) -> None:
    form = box.execute("big = 'abc' * 1_000_000").locals["big"]
    assert form.startswith("'abcabc")
    assert "3000000" in form


def test_many_variables_are_bounded(box: Sandbox) -> None:
    result = box.execute("globals().update({f'many_{n}': 'v' * 1000 for n in range(20_000)})")
    assert result.status == "ok"
    assert 1000 < size(result) < 100_000
    printed(box, "for n in range(20_000): del globals()[f'many_{n}']")


def test_long_names_are_bounded(box: Sandbox) -> None:
    result = box.execute("globals()['n' * 1_000_000] = 1\nshort = 2")
    assert result.locals["short"] == "2"
    assert size(result) < 100_000
    printed(box, "del globals()['n' * 1_000_000], short")


@pytest.mark.parametrize(
    "body",
    [
        "raise ValueError('no')",
        "return 'r' * 50_000_000",
        "return None",
        "import sys; sys.exit()",
        "raise KeyboardInterrupt",
        "print('from repr'); return 'printed'",
        "return repr(self)",
    ],
)
def test_odd_reprs_do_no_harm(box: Sandbox, body: str) -> None:
    result = box.execute(f"class Odd:\n    def __repr__(self):\n        {body}\nodd = Odd()")
    assert result.status == "ok"
    assert 1 <= len(result.locals["odd"]) <= 200
    assert printed(box, "print(odd.__class__.__name__)\ndel odd") == "Odd\n"


def test_names_with_an_underscore_are_left_out(box: Sandbox) -> None:
    result = box.execute("_hidden = 1\n__dunder__ = 2\nshown = 3")
    assert result.locals["shown"] == "3"
    assert not [name for name in result.locals if name.startswith("_")]


def test_locals_are_there_after_a_failure_too(box: Sandbox) -> None:
    assert box.execute("got_here = 1\n1 / 0").locals["got_here"] == "1"


def test_keys_that_are_no_names(box: Sandbox) -> None:
    # globals() is a dict like any other.
    result = execute(box, "globals()['two words'] = 1\nglobals()[''] = 2\nokay = 3")
    assert result.locals["okay"] == "3"
    printed(box, "del globals()['two words'], globals()[''], okay")


def test_keys_that_are_no_strings(box: Sandbox) -> None:
    result = execute(box, "globals()[7] = 'seven'\nglobals()[None] = 'none'\nokay = 3")
    assert (result.status, result.locals["okay"]) == ("ok", "3")
    assert printed(box, "print(globals()[7])\ndel globals()[7], globals()[None]") == "seven\n"
