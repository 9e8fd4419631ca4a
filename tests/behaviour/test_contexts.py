"""Contexts: what the host puts into a container, and how it gets there."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from rlm_containers import Sandbox
from tests.support import printed

DIGEST = (
    "import hashlib\nprint(hashlib.sha256({name}.encode('utf-8', 'surrogatepass')).hexdigest())"
)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() + "\n"


@pytest.mark.parametrize(
    "value",
    [
        "plain",
        "",
        "line\nline\r\nline\rend",
        "nul \0 nul",
        "half \ud800 \udfff halves",
        "grüße 世界 \U0001f680 \u2028 \ufeff",
        "\ufeffstarts with a mark",
        "'\"\\{}%s$HOME`",
        "\x1b[0m\x7f\x80",
        {},
        [],
        {"a": [1, 2.5, None, True, {"b": "ü \ud800"}], "": 0},
        [{"role": "user", "content": "x" * 1000}],
        [2**100, -(2**100), 1e300, -0.0, float("inf")],
        ["deep", [[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]],
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_values_arrive_as_they_were(box: Sandbox, value: Any) -> None:
    box.load("context_0", value)
    assert printed(box, f"print(context_0 == {value!r}, type(context_0).__name__)".replace(
        "inf]", "float('inf')]"
    )) == f"True {type(value).__name__}\n"  # fmt: skip
    assert printed(box, "print(context is context_0)") == "True\n"


@pytest.mark.parametrize(
    ("character", "megabytes"), [("x", 500), ("ü", 20), ("\U0001f680", 20), ("\ud800", 20)]
)
def test_megabytes_of_text(box: Sandbox, character: str, megabytes: int) -> None:
    size = megabytes * 1_000_000 // len(character.encode("utf-8", "surrogatepass"))
    text = "".join((character * (size // 2), "the middle", character * (size // 2)))
    box.load("context_0", text)
    assert printed(box, DIGEST.format(name="context_0")) == digest(text)
    result = box.execute("found = context.find('the middle')")
    assert result.locals["found"] == str(size // 2)
    assert len(result.locals["context"]) < 200
    box.load("context_0", "")


def test_a_character_on_the_edge_of_a_piece(box: Sandbox) -> None:
    # The text is written in pieces of 256 Ki characters.
    for shift in range(2):
        text = "x" * (256 * 1024 - shift) + "\U0001f680ü\ud800"
        box.load("context_0", text)
        assert printed(box, DIGEST.format(name="context_0")) == digest(text)


def test_megabytes_of_json(box: Sandbox) -> None:
    rows: list[dict[str, Any]] = [{"id": n, "text": f"row {n} " * 10} for n in range(80_000)]
    assert len(json.dumps(rows)) > 8_000_000
    box.load("context_0", rows)
    assert printed(
        box, "print(len(context), context[79_999]['id'], sum(len(r['text']) for r in context))"
    ) == f"80000 79999 {sum(len(row['text']) for row in rows)}\n"  # fmt: skip
    box.load("context_0", [])


def test_several_contexts(box: Sandbox) -> None:
    box.load("context_0", "first")
    box.load("context_1", {"second": 2})
    assert printed(box, "print(context, context_0, context_1)") == "first first {'second': 2}\n"
    box.load("context_0", "anew")
    assert printed(box, "print(context, context_1)") == "anew {'second': 2}\n"


def test_other_names(box: Sandbox) -> None:
    box.load("history_0", [{"role": "user", "content": "hello"}])
    assert printed(box, "print(history[0]['content'])") == "hello\n"
    box.load("données", "unicode names")
    assert printed(box, "print(données)") == "unicode names\n"


def test_a_context_after_a_death(fresh: Sandbox) -> None:
    text = "x" * 3_000_000 + "\ud800"
    fresh.load("context_0", text)
    fresh.load("context_1", {"key": ["v"]})
    fresh.load("history", ["kept"], keep=True)
    result = fresh.execute("import os; os._exit(1)")
    assert (result.status, result.lost) == ("died", ())
    assert printed(fresh, DIGEST.format(name="context")) == digest(text)
    assert printed(fresh, "print(context_1)\nhistory = 'overwritten'") == "{'key': ['v']}\n"
    assert printed(fresh, "print(history)") == "['kept']\n"


def test_the_death_of_a_cell_right_after_a_load(fresh: Sandbox) -> None:
    for number in range(3):
        fresh.load("context_0", f"text {number}" * 100_000)
        assert fresh.execute("import os; os._exit(1)").lost == ()
        assert printed(fresh, "print(context[:6])") == f"text {number}\n"
