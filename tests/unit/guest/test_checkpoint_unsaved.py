"""What a checkpoint cannot hold is named, and costs nothing else."""

from __future__ import annotations

import pytest

from tests.unit.sessions import DIE, Boxes, revive, run, workspace_of


@pytest.mark.parametrize(
    "value",
    [
        "(i for i in range(3))",
        "__import__('threading').Thread(target=print)",
        "__import__('socket').socket()",
        "open('/dev/null')",
        "__import__('sqlite3').connect(':memory:')",
        "__import__('sys')._getframe()",
        "[1, [2, (i for i in range(3))]]",
        "Refuses()",
        "Exits()",
        "Interrupts()",
        "Endless()",
        "nested(20_000)",
    ],
)
def test_what_cannot_be_saved_is_named_and_nothing_else_is_lost(boxes: Boxes, value: str) -> None:
    box = boxes()
    run(
        box,
        """
        class Refuses:
            def __reduce__(self): raise ValueError("not me")
        class Exits:
            def __reduce__(self): raise SystemExit(5)
        class Interrupts:
            def __reduce__(self): raise KeyboardInterrupt
        class Endless:
            def __reduce__(self): return self.__reduce__()
        def nested(depth):
            value = []
            for _ in range(depth): value = [value]
            return value
        before = [1, 2]
        """,
    )
    run(box, f"odd = {value}\nafter = before")
    (unsaved,) = box.unsaved
    assert unsaved.name == "odd"
    assert unsaved.reason
    assert len(str(unsaved)) < 500
    run(box, "assert odd is not None")  # it lives on in the interpreter
    assert "odd" in revive(box, "odd").stderr
    run(box, "after.append(3)\nassert before == [1, 2, 3]\nassert isinstance(Refuses(), Refuses)")
    assert "NameError" in box.execute("odd").stderr


def test_what_cells_wrote_to_files_stays_as_it_is(boxes: Boxes) -> None:
    box = boxes()
    code = """
        with open("out.txt", "w") as closed: closed.write("precious")
        with open("out.bin", "wb") as closed_binary: closed_binary.write(b"precious")
        still_open = open("log.txt", "w"); still_open.write("entry"); still_open.flush()
    """
    run(box, code)
    result = box.execute(DIE)
    assert result.status == "died"
    for name, contents in (("out.txt", b"precious"), ("out.bin", b"precious")):
        assert (workspace_of(box) / name).read_bytes() == contents
    assert (workspace_of(box) / "log.txt").read_bytes() == b"entry"
    assert "still_open" in result.lost


def test_what_was_lost_is_not_listed_as_unsaved(boxes: Boxes) -> None:
    box = boxes()
    run(box, "odd = (i for i in range(3))\nfine = 1")
    assert [variable.name for variable in box.unsaved] == ["odd"]
    revive(box, "odd")
    run(box, "fine += 1")
    assert list(box.unsaved) == []  # it is gone, and does not live on in the interpreter


def test_what_becomes_saveable_is_no_longer_listed(boxes: Boxes) -> None:
    box = boxes()
    run(box, "odd = [i for i in range(3)], (i for i in range(3))")
    assert [variable.name for variable in box.unsaved] == ["odd"]
    run(box, "odd = list(odd[0])")
    assert list(box.unsaved) == []
    revive(box)
    run(box, "assert odd == [0, 1, 2]")
