"""A guest that says strange things: the host believes none of them and never hangs."""

from __future__ import annotations

import json

import pytest

from rlm_containers.errors import SandboxLostError
from tests.unit.hostile import CELL, LINGER, execute, result, script
from tests.unit.sessions import Boxes


@pytest.mark.parametrize("status", ["fine", "", None, 5, [], {}, True, "OK", "died "])
def test_a_status_that_does_not_exist(boxes: Boxes, status: object) -> None:
    assert execute(boxes, result(status=status)).status == "error"


@pytest.mark.parametrize("answer", [5, True, [], {}, 1.5])
def test_a_final_answer_that_is_no_text(boxes: Boxes, answer: object) -> None:
    assert execute(boxes, result(final_answer=answer)).final_answer is None


@pytest.mark.parametrize("value", [None, 5, "x", [], [["a", "b"]], True])
def test_locals_that_are_none(boxes: Boxes, value: object) -> None:
    assert execute(boxes, result(locals=value)).locals == {}


def test_locals_with_strange_values_are_text(boxes: Boxes) -> None:
    found = execute(boxes, result(locals={"a": 5, "b": None, "c": {"d": [1]}, "": "x"})).locals
    assert found
    assert {type(word) for pair in found.items() for word in pair} == {str}


def test_locals_are_bounded(boxes: Boxes) -> None:
    # "At most some tens of kilobytes in all, whatever the variables are."
    code = (
        "say(op='result', id=cell['id'], status='ok',"
        " locals={f'v{i}' * 50: 'x' * 100_000 for i in range(200)})\n"
    )
    found = execute(boxes, code).locals
    assert sum(len(key) + len(text) for key, text in found.items()) < 1_000_000


@pytest.mark.parametrize(
    "said",
    [
        "say(op='result', id=99, status='exit')",
        "say(op='result', id='1', status='exit')",
        "say(op='result', status='exit')",
        "say(op='ready', locals=[], lost=5, route=5)",
        "say(op='saved')",
        "say(op='saved', unsaved=5, error=[])",
        "say(op='saved', unsaved=[[], [1], 5, None, ['a', 'b', 'c', 'd']], error=None)",
        "say(op='unknown')",
        "say(op=['list'])",
        "say()",
        "put(b'i', b'')",
        "put(b'k', b'')",
        "put(b'c', b'')",
        "put(b'c', b'abc')",
        'put(b\'m\', b\'{"op": "result", "id": 1e999, "status": "exit"}\')',
        "put(b'm', b'\\xef\\xbb\\xbf{}')",
        "put(b'o', b'')",
    ],
)
def test_what_is_not_the_answer_is_not_taken_for_it(boxes: Boxes, said: str) -> None:
    try:
        found = execute(boxes, f"{said}\n{result(status='ok')}")
    except SandboxLostError as error:
        # Or is refused altogether.
        assert "no JSON object" in str(error) or "no frame" in str(error)  # noqa: PT017
    else:
        assert found.status == "ok"


def test_names_of_unsaved_variables_are_bounded(boxes: Boxes) -> None:
    script(
        boxes.local,
        CELL
        + "say(op='saved', unsaved=[['n' * 100_000, 't' * 100_000, 'r' * 100_000]] * 50, error=None)\n"
        + result()
        + "sync = hear()\nsay(op='result', id=sync['id'], status='ok')\n"
        + LINGER,
    )
    box = boxes()
    assert box.execute("x").status == "ok"
    unsaved = list(box.unsaved)
    assert len(unsaved) == 50
    assert all(len(str(variable)) < 10_000 for variable in unsaved)


@pytest.mark.parametrize(
    "how",
    [
        {"signal": 9},
        {"signal": 99},
        {"signal": -1},
        {"signal": 10**30},
        {"signal": "nine"},
        {"signal": True},
        {"exit": 3},
        {"exit": None},
        {"exit": "x" * 10_000},
        {"exit": []},
        {},
        {"exit": 1, "saved": "x", "begun": []},
        {"exit": 1, "saved": -5, "begun": 10**30},
    ],
    ids=lambda how: str(how)[:40],
)
def test_news_of_a_death_is_taken_with_care(boxes: Boxes, how: dict[str, object]) -> None:
    told = {"event": "died", "begun": 1, **how}
    code = f"event(**json.loads({json.dumps(json.dumps(told))}))\nhear()\n"
    code += "say(op='ready', locals={}, route='none', reason='', lost=[])\n"
    code += "cell = hear()\nsay(op='result', id=cell['id'], status='ok')\n"
    found = execute(boxes, code)
    assert found.status in ("died", "ok")
    assert "The Python process of this session" in found.stderr
    assert len(found.stderr) < 5000


def test_deaths_without_end_are_bounded(boxes: Boxes) -> None:
    code = "for _ in range(3000): event(event='died', exit=1, begun=1)\nhear()\n"
    code += "say(op='ready', locals={}, route='none', reason='', lost=[])\n"
    code += "while True:\n    cell = hear()\n    if 'id' in cell:\n        "
    code += "say(op='result', id=cell['id'], status='ok')\n"
    try:
        found = execute(boxes, code)
    except SandboxLostError:
        pass  # given up, which is as good
    else:
        assert len(found.stderr) < 100_000


def test_kills_without_end_are_cut(boxes: Boxes) -> None:
    code = "for n in range(5000): event(event='killed', memory={'limit': n + 1})\n"
    found = execute(boxes, code + result())
    assert "A process that a cell started was killed for its memory" in found.stderr
    assert len(found.stderr) < 5000


@pytest.mark.parametrize("memory", [None, 5, "x" * 10_000, [], {"limit": {}}, {"limit": 1e400}])
def test_deaths_of_strange_reasons(boxes: Boxes, memory: object) -> None:
    code = f"event(event='killed', memory=json.loads({json.dumps(json.dumps(memory))}))\n"
    found = execute(boxes, code + result())
    assert found.status == "ok"
    assert len(found.stderr) < 1000
