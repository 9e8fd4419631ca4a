"""A variable is saved only if it can be loaded, which a child process finds out."""

from __future__ import annotations

import pytest

from rlm_containers import Sandbox
from tests.unit.sessions import Boxes, revive, run, settle, workspace_of

#: These tests are of the file: no heir may keep what is lost, or leave out a checkpoint.
OPTIONS = {"heirs": "never"}

#: A class whose objects write a line to a file whenever one is loaded.
WITNESS = """
class Witness:
    loads = 0
    def __init__(self, number): self.number = number
    def __setstate__(self, state):
        Witness.loads += 1
        open('loads', 'a').write('x')
        self.__dict__.update(state)
"""


def unsaved(box: Sandbox) -> dict[str, str]:
    """The variables that are not saved, with the reasons."""
    return {variable.name: variable.reason for variable in box.unsaved}


def loads(box: Sandbox) -> int:
    """How many objects of ``Witness`` were loaded."""
    settle(box)
    return len((workspace_of(box) / "loads").read_text())


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("def __setstate__(self, state): raise ValueError('no')", "ValueError: no"),
        ("def __reduce__(self): return (int, ('no number',))", "ValueError"),
        ("def __reduce__(self): return 'only_here'", "AttributeError"),
        ("def __setstate__(self, state): import os; os._exit(3)", "status 3"),
        ("def __setstate__(self, state): import os; os.abort()", "status -6"),
        ("def __setstate__(self, state): raise SystemExit", "SystemExit"),
        ("def __hash__(self): return hash(self.shared[0])", "AttributeError"),
    ],
)
def test_what_is_saved_and_does_not_load(boxes: Boxes, method: str, reason: str) -> None:
    box = boxes()
    code = """
        class Odd:
            def __init__(self):
                self.shared = shared
                self.members = {self} if "hash" in METHOD else None
                self.index = 1
            METHOD
        shared = ["s"]
        only_here = object.__new__(Odd)
        only_here.index = 1
        Odd.__init__(only_here)
        other = {"shared": shared}
        """
    run(box, code.replace('"hash" in METHOD', str("__hash__" in method)).replace("METHOD", method))
    assert set(unsaved(box)) == {"only_here"}
    assert reason in unsaved(box)["only_here"]
    revive(box, "only_here")
    run(box, "assert other['shared'] is shared == ['s']")


def test_keys_whose_hashes_have_changed_are_not_lost_unnamed(boxes: Boxes) -> None:
    box = boxes()
    run(
        box,
        """
        class Key:
            def __init__(self, number): self.number = number
            def __hash__(self): return hash(self.number)
            def __eq__(self, other): return self.number == other.number
        class Late:
            def __init__(self): self.peers = {}
            def __hash__(self): return hash(getattr(self, "name", None))
            def __getstate__(self): return self.__dict__
            def __setstate__(self, state): self.__dict__.update(state)
        first = Key(1)
        merging, whole = {first: "a", Key(2): "b"}, {Key(3), first}
        first.number = 2
        late = Late(); late.peers[late] = 1; late.peers.clear(); late.name = "x"; late.peers[late] = 1
        """,
    )
    assert set(unsaved(box)) == {"merging", "whole", "late"}
    assert "did not find its elements" in unsaved(box)["merging"]
    run(box, "whole = {Key(3), Key(4)}; late.peers = {}")
    assert set(unsaved(box)) == {"merging"}
    revive(box, "merging")
    run(box, "assert Key(4) in whole and late.name == 'x'")


def test_an_object_is_loaded_once_as_long_as_it_stays_the_same(boxes: Boxes) -> None:
    box = boxes()
    run(box, WITNESS + "witness = Witness(1)\nrows = [{'a': n} for n in range(1000)]")
    assert loads(box) == 1
    run(box, "x = 1")  # its record moves behind those of others once
    settle(box)
    before = loads(box)
    for number in range(3):
        run(box, f"rows[{number}]['a'] = 'changed'\ny = {number}")
    assert loads(box) == before
    run(box, "assert Witness.loads == 0")  # not in this process
    run(box, "witness.number = 2")
    assert loads(box) == before + 1
    revive(box)
    run(box, "assert witness.number == 2")


def test_plain_data_and_ordinary_objects_are_not_loaded(boxes: Boxes) -> None:
    box = boxes()
    run(
        box,
        """
        import dataclasses, os, datetime
        @dataclasses.dataclass
        class Point:
            x: int
        class Child(Point): pass
        points = [Point(1), Child(2)]
        day, made = datetime.date(2020, 1, 1), lambda: points
        forks = []
        os.register_at_fork(before=lambda: forks.append(1))
        """,
    )
    run(box, "points.append(Point(3))")
    settle(box)
    run(box, "assert forks == []")


def test_what_did_not_load_is_tried_again_when_it_has_changed(boxes: Boxes) -> None:
    box = boxes()
    run(
        box,
        """
        class Picky:
            def __init__(self): self.good = False
            def __setstate__(self, state):
                open('loads', 'a').write('x')
                if not state["good"]: raise ValueError("not good")
                self.__dict__.update(state)
        picky = Picky()
        """,
    )
    assert set(unsaved(box)) == {"picky"}
    before = loads(box)
    run(box, "x = 1")
    run(box, "x = 2")
    assert set(unsaved(box)) == {"picky"}
    assert loads(box) == before
    run(box, "picky.good = True")
    assert unsaved(box) == {}
    revive(box)
    run(box, "assert picky.good")


def test_many_that_do_not_load(boxes: Boxes) -> None:
    box = boxes()
    run(
        box,
        """
        import os
        class Odd:
            def __init__(self, number): self.number, self.common = number, common
            def __setstate__(self, state):
                if state["number"] % 3 == 1: raise ValueError
                if state["number"] % 3 == 2: os._exit(1)
                self.__dict__.update(state)
        common = []
        for number in range(9): globals()[f"odd{number}"] = Odd(number)
        """,
    )
    bad = {f"odd{number}" for number in range(9) if number % 3}
    assert set(unsaved(box)) == bad
    revive(box, *bad)
    run(box, "assert all(odd.common is common for odd in (odd0, odd3, odd6))")


def test_an_object_is_proved_with_what_is_loaded_before_it(boxes: Boxes) -> None:
    # Its class, a function and a shared object are in other records.
    box = boxes()
    run(
        box,
        """
        def double(number): return 2 * number
        shared = [str(number) for number in range(500)]
        class Odd:
            def __init__(self): self.shared = shared; self.last = shared[-1]
            def __setstate__(self, state):
                self.__dict__.update(state)
                self.twice = double(len(self.shared))
        odd = Odd()
        """,
    )
    assert unsaved(box) == {}
    revive(box)
    run(box, "assert odd.shared is shared and odd.twice == 1000 and odd.last is shared[-1]")


def test_where_no_process_can_be_made_nothing_is_proved(boxes: Boxes) -> None:
    box = boxes()
    run(
        box,
        WITNESS
        + "import os, rlm_guest.worker as w\nfork = os.fork\ndef fail(): raise OSError(11, 'no more')",
    )
    run(box, "w.os.fork = fail\nwitness = Witness(1)")
    assert unsaved(box) == {}
    run(box, "w.os.fork = fork; del fork, fail, w")
    assert loads(box) == 1
    revive(box)
    run(box, "assert witness.number == 1")
