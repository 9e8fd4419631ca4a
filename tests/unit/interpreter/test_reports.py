"""Reports of the guest: all of them are bounded, and every lost change is named."""

from __future__ import annotations

import json

import pytest

from rlm_containers import CellResult, Sandbox
from rlm_containers.errors import SandboxLostError
from rlm_containers.interpreter.reports import UnsavedChanges
from tests.unit.hostile import CELL, LINGER, execute, result, script
from tests.unit.sessions import Boxes, revive, run

#: These tests are of the file: no heir may keep what is lost, or leave out a checkpoint.
OPTIONS = {"heirs": "never"}


@pytest.mark.parametrize("status", ["fine", "", None, 5, [], {}, True, "OK", "died "])
def test_an_unknown_status_is_an_error(boxes: Boxes, status: object) -> None:
    assert execute(boxes, result(status=status)).status == "error"


@pytest.mark.parametrize("answer", [5, True, [], {}, 1.5])
def test_a_final_answer_that_is_not_text_is_dropped(boxes: Boxes, answer: object) -> None:
    assert execute(boxes, result(final_answer=answer)).final_answer is None


@pytest.mark.parametrize("value", [None, 5, "x", [], [["a", "b"]], True])
def test_locals_of_a_wrong_type_are_dropped(boxes: Boxes, value: object) -> None:
    assert execute(boxes, result(locals=value)).locals == {}


def test_values_of_locals_are_always_text(boxes: Boxes) -> None:
    found = execute(boxes, result(locals={"a": 5, "b": None, "c": {"d": [1]}, "": "x"})).locals
    assert found
    assert {type(word) for pair in found.items() for word in pair} == {str}


def test_locals_are_bounded(boxes: Boxes) -> None:
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
def test_other_messages_are_not_taken_for_the_answer(boxes: Boxes, said: str) -> None:
    try:
        found = execute(boxes, f"{said}\n{result(status='ok')}")
    except SandboxLostError as error:
        # Or the pipe refuses it.
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
def test_invalid_reports_of_a_death(boxes: Boxes, how: dict[str, object]) -> None:
    told = {"event": "died", "begun": 1, **how}
    code = f"event(**json.loads({json.dumps(json.dumps(told))}))\nhear()\n"
    code += "say(op='ready', locals={}, route='none', reason='', lost=[])\n"
    code += "cell = hear()\nsay(op='result', id=cell['id'], status='ok')\n"
    found = execute(boxes, code)
    assert found.status in ("died", "ok")
    assert "The Python process of this sandbox" in found.stderr
    assert len(found.stderr) < 5000


def test_endless_deaths_are_bounded(boxes: Boxes) -> None:
    code = "for _ in range(3000): event(event='died', exit=1, begun=1)\nhear()\n"
    code += "say(op='ready', locals={}, route='none', reason='', lost=[])\n"
    code += "while True:\n    cell = hear()\n    if 'id' in cell:\n        "
    code += "say(op='result', id=cell['id'], status='ok')\n"
    try:
        found = execute(boxes, code)
    except SandboxLostError:
        pass  # given up, which is bounded, too
    else:
        assert len(found.stderr) < 100_000


def test_endless_kills_are_bounded(boxes: Boxes) -> None:
    code = "for n in range(5000): event(event='killed', memory={'limit': n + 1})\n"
    found = execute(boxes, code + result())
    assert "A process that a cell or a command started was killed for its memory" in found.stderr
    assert len(found.stderr) < 5000


@pytest.mark.parametrize("memory", [None, 5, "x" * 10_000, [], {"limit": {}}, {"limit": 1e400}])
def test_invalid_reasons_of_a_kill(boxes: Boxes, memory: object) -> None:
    code = f"event(event='killed', memory=json.loads({json.dumps(json.dumps(memory))}))\n"
    found = execute(boxes, code + result())
    assert found.status == "ok"
    assert len(found.stderr) < 1000


# The words of changes that no checkpoint has


@pytest.fixture
def changes() -> UnsavedChanges:
    changes = UnsavedChanges()
    changes.note_answer(1, "first = 1", saved=0)
    changes.note_answer(2, "second = f(first, 'word')", saved=1)
    return changes


@pytest.mark.parametrize("saved", [2, 3])
def test_nothing_is_lost_if_the_checkpoint_has_everything(
    changes: UnsavedChanges, saved: int
) -> None:
    assert changes.note_death(saved) is None
    assert changes.last_answer == 2


def test_the_words_of_the_last_cell(changes: UnsavedChanges) -> None:
    names = changes.note_death(1)
    assert names is not None
    assert {"second", "f", "first"} <= names
    assert changes.last_answer == 1
    assert changes.note_death(1) is None  # reported once


def test_the_words_of_all_cells_since_a_checkpoint_failed(changes: UnsavedChanges) -> None:
    changes.note_answer(3, "third = 3", saved=1)
    changes.note_answer(4, "fourth = größe", saved=1)
    assert changes.note_death(1) == {"second", "f", "first", "word", "third", "fourth", "größe"}


def test_no_words_of_cells_that_a_checkpoint_has(changes: UnsavedChanges) -> None:
    changes.note_answer(3, "third = 3", saved=1)
    changes.note_answer(4, "fourth = 4", saved=3)
    assert changes.note_death(3) == {"fourth"}


def test_a_request_without_code_has_no_words(changes: UnsavedChanges) -> None:
    changes.note_answer(3, None, saved=2)
    assert changes.note_death(2) == set()


@pytest.mark.parametrize("saved", [None, "1", [1], 1.5])
def test_an_invalid_number_of_the_last_checkpoint(changes: UnsavedChanges, saved: object) -> None:
    assert changes.note_death(saved) is None


def test_the_number_of_words_is_bounded(changes: UnsavedChanges) -> None:
    changes.note_answer(3, " ".join(f"n{n}" for n in range(300_000)), saved=1)
    names = changes.note_death(1)
    assert names is not None
    assert len(names) <= 100_000


# Workers that die after an answer and before its checkpoint


#: Its checkpoint ends the worker, so that nothing that the cell changed is saved.
FATAL = """
import os
class Fatal:
    def __reduce__(self): os._exit(7)
fatal = Fatal()
"""


@pytest.fixture
def box(boxes: Boxes) -> Sandbox:
    return boxes()


def die_after(box: Sandbox, code: str) -> CellResult:
    """Run a cell whose changes are never saved. Return the result of the next one."""
    run(box, code + FATAL)
    result = box.execute("pass")
    assert result.status == "ok"
    assert "What that cell changed had not been saved yet and is lost" in result.stderr
    return result


def test_before_the_first_checkpoint(box: Sandbox) -> None:
    result = die_after(box, "x = 1")
    assert set(result.lost) == {"os", "Fatal", "fatal", "x"}
    run(box, "x = 2\ny = 3")
    assert box.unsaved == ()
    revive(box)
    assert run(box, "print(x, y)").stdout == "2 3\n"


def test_variables_that_are_named_or_look_different_may_be_older(box: Sandbox) -> None:
    run(
        box,
        "items = [1]\nother = [2]\nstill = 3\n_hidden = 4\ndef f(): other.append(5)\ng = lambda: 6",
    )
    result = die_after(box, "items.append(7)\nf()\n_hidden = 8\nnew = 9\n")
    assert set(result.lost) == {"os", "Fatal", "fatal", "new"}
    assert set(result.older) == {"items", "other", "_hidden", "f"}
    assert run(box, "print(items, other, _hidden, still)").stdout == "[1] [2] 4 3\n"


def test_a_deleted_variable_comes_back_as_older(box: Sandbox) -> None:
    run(box, "x = 1\ny = 2")
    result = die_after(box, "del x")
    assert result.older == ("x",)


def test_restored_variables_are_not_lost_however_many_they_are(box: Sandbox) -> None:
    run(box, "for n in range(550): globals()[f'v{n}'] = n")
    run(box, "for n in range(60): exec(f'def f{n}(): pass')")
    result = die_after(box, "v549 = 'new'\n")
    assert not [name for name in result.lost if name[0] == "v"]
    assert result.older == ("v549",)


def test_a_context_may_be_older(box: Sandbox) -> None:
    run(box, "class Late:\n    def __reduce__(self): return int, ()\nlate = Late()")
    rows = [[n] for n in range(100)]
    box.load("data_0", [*rows, [100]])
    assert box.unsaved == ()
    run(
        box,
        "import os\nLate.__reduce__ = lambda self: os._exit(7) if len(data_0) < 101 else (int, ())",
    )
    assert box.unsaved == ()
    box.load("data_0", [*rows, [100.5]][1:])
    result = box.execute("pass")
    assert "data_0" in {*result.older, *result.lost}


def test_names_are_normalized_as_python_does(box: Sandbox) -> None:
    run(box, "नमस्ते = [1]\nfile = [2]")
    result = die_after(box, "नमस्ते.append(3); नमस्ते.pop()\nﬁle.append(4); ﬁle.pop()")
    assert set(result.older) == {"नमस्ते", "file"}
