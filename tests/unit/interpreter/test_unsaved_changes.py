"""Interpreters that die after an answer and before its checkpoint: what that costs is said by name."""

from __future__ import annotations

import pytest

from rlm_containers import CellResult, Sandbox
from tests.unit.sessions import Boxes, revive, run

#: Its checkpoint ends the interpreter. Bound last, and nothing is left of the cell that does it.
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
    """Run a cell that is answered and never saved; what the next one has to say of it."""
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


def test_what_is_named_or_looks_different_may_be_older(box: Sandbox) -> None:
    run(
        box,
        "items = [1]\nother = [2]\nstill = 3\n_hidden = 4\ndef f(): other.append(5)\ng = lambda: 6",
    )
    result = die_after(box, "items.append(7)\nf()\n_hidden = 8\nnew = 9\n")
    assert set(result.lost) == {"os", "Fatal", "fatal", "new"}
    assert set(result.older) == {"items", "other", "_hidden", "f"}
    assert run(box, "print(items, other, _hidden, still)").stdout == "[1] [2] 4 3\n"


def test_a_variable_that_comes_back(box: Sandbox) -> None:
    run(box, "x = 1\ny = 2")
    result = die_after(box, "del x")
    assert result.older == ("x",)


def test_what_is_there_is_not_lost_however_much_it_is(box: Sandbox) -> None:
    run(box, "for n in range(550): globals()[f'v{n}'] = n")
    run(box, "for n in range(60): exec(f'def f{n}(): pass')")
    result = die_after(box, "v549 = 'new'\n")
    assert not [name for name in result.lost if name[0] == "v"]
    assert result.older == ("v549",)


def test_a_context(box: Sandbox) -> None:
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


def test_names_as_python_reads_them(box: Sandbox) -> None:
    run(box, "नमस्ते = [1]\nfile = [2]")
    result = die_after(box, "नमस्ते.append(3); नमस्ते.pop()\nﬁle.append(4); ﬁle.pop()")
    assert set(result.older) == {"नमस्ते", "file"}
