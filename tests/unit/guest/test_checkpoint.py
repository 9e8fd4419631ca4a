"""What a session has after its interpreter died: all variables that could be saved.

More kinds of values: ``tests/behaviour/values.py``.
"""

from __future__ import annotations

import pickle
import zlib
from pathlib import Path

import pytest

from rlm_containers.guest.state.loaded import LoadedFiles
from tests.unit.sessions import DIE, Boxes, revive, run, settle, workspace_of

#: These tests are of the file: no heir may keep what is lost, or leave out a checkpoint.
OPTIONS = {"heirs": "never"}

LITERALS = [
    "{'a': {1, 2}, (1, 2): frozenset((3,)), None: ...}",
    "float('inf')",
    "bytearray(b'abc')",
    "range(3, 30, 3)",
    "slice(1, 2)",
    "__import__('datetime').datetime(2020, 1, 2, tzinfo=__import__('datetime').timezone.utc)",
    "__import__('array').array('d', [1.0, 2.0])",
]


def test_values_of_many_types_come_back(boxes: Boxes) -> None:
    box = boxes()
    for number, value in enumerate(LITERALS):
        run(box, f"v{number} = {value}")
    revive(box)
    for number, value in enumerate(LITERALS):
        run(box, f"assert v{number} == {value}, v{number}\nassert type(v{number}) is type({value})")


def test_defaults_annotations_and_subclass_hooks_come_back(boxes: Boxes) -> None:
    # What tests/behaviour/values.py has not.
    box = boxes()
    run(
        box,
        """
        a = [1]
        default = lambda x=a: x
        def annotated(x: "int") -> list[int]: return [x]
        class Base:
            registry = {}
            def __init_subclass__(cls): Base.registry[cls.__name__] = cls
        class Square(Base): pass
        """,
    )
    revive(box)
    run(
        box,
        """
        assert default() is a
        assert annotated.__annotations__ == {"x": "int", "return": list[int]}
        assert Base.registry == {"Square": Square}
        """,
    )


def test_a_module_that_a_cell_wrote_comes_back(boxes: Boxes) -> None:
    box = boxes()
    run(
        box,
        """
        open("helper.py", "w").write("class Thing:\\n    size = 3\\ndef work(): return 42\\n")
        import helper
        from helper import work, Thing
        thing = Thing()
        """,
    )
    revive(box)
    run(box, "assert helper.work() == work() == 42 and isinstance(thing, helper.Thing)")


def test_private_and_odd_names_come_back_too(boxes: Boxes) -> None:
    box = boxes()
    run(box, "_a = 1\n__b = 2\nünï = 3\n_ = 4\nglobals()['not a name'] = 5\nprint = 6\nlist = 7")
    revive(box)
    run(
        box,
        "assert (_a, __b, ünï, _, globals()['not a name'], print, list) == (1, 2, 3, 4, 5, 6, 7)",
    )


def test_a_change_in_place_is_saved(boxes: Boxes) -> None:
    box = boxes()
    run(box, "a = [1, 2, 3]\nd = {'x': 1}")
    run(box, "a[1] = 9\nd['x'] = 9")  # same length, other contents
    revive(box)
    run(box, "assert a == [1, 9, 3] and d == {'x': 9}")


# What variables share


def test_a_long_string_outlives_the_variable_it_came_from(boxes: Boxes) -> None:
    box = boxes()
    run(box, "a = 'x' * 400_000\nb = [a]\nc = b'y' * 400_000")
    revive(box)
    run(box, "del a")
    revive(box)
    run(box, "assert b[0] == 'x' * 400_000\nassert c == b'y' * 400_000\ndel c")
    revive(box)
    run(box, "assert b[0] == 'x' * 400_000")


def test_files_of_dropped_strings_are_removed(boxes: Boxes) -> None:
    box = boxes()

    def files() -> list[str]:
        return sorted(path.name for path in (workspace_of(box) / ".blobs").iterdir())

    run(box, "a, b = 'x' * 400_000, 'y' * 400_000")
    settle(box)
    assert len(files()) == 2
    for _ in range(5):
        run(box, "a = a + 'z'")
    settle(box)
    assert len(files()) == 3  # one is the previous checkpoint's
    run(box, "n = 1")
    settle(box)
    assert len(files()) == 2
    run(box, "del a, b")
    run(box, "n = 2")
    settle(box)
    assert files() == []


def test_a_long_string_is_written_once(boxes: Boxes) -> None:
    box = boxes()
    run(box, "big = 'x' * 1_000_000")
    settle(box)
    (before,) = (workspace_of(box) / ".blobs").iterdir()
    stamp = before.stat().st_mtime_ns, before.stat().st_ino
    for number in range(3):
        run(box, f"x = {number}")
    settle(box)
    (after,) = (workspace_of(box) / ".blobs").iterdir()
    assert (after.stat().st_mtime_ns, after.stat().st_ino) == stamp
    assert (workspace_of(box) / "state.dill").stat().st_size < 100_000


# What cannot be saved


def test_files_that_cells_wrote_stay_as_they_are(boxes: Boxes) -> None:
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


def test_a_variable_that_becomes_saveable_is_no_longer_listed(boxes: Boxes) -> None:
    box = boxes()
    run(box, "odd = [i for i in range(3)], (i for i in range(3))")
    assert [variable.name for variable in box.unsaved] == ["odd"]
    run(box, "odd = list(odd[0])")
    assert list(box.unsaved) == []
    revive(box)
    run(box, "assert odd == [0, 1, 2]")


# What is saved by reference


def test_long_strings_are_found_wherever_they_are(boxes: Boxes) -> None:
    box = boxes()
    run(
        box,
        """
        class Holder: pass
        holder = Holder()
        holder.text = "t" * 400_000
        deep = [[[[{"raw": b"r" * 400_000}]]]]
        many = [str(n) for n in range(1000)] + ["m" * 400_000]
        def function(default="d" * 400_000): return default
        """,
    )
    settle(box)
    assert len(list((workspace_of(box) / ".blobs").iterdir())) == 4
    assert (workspace_of(box) / "state.dill").stat().st_size < 100_000
    run(box, "alias = holder.text")
    revive(box)
    run(box, "assert alias is holder.text and deep[0][0][0][0]['raw'] == b'r' * 400_000")
    run(box, "assert many[-1] == 'm' * 400_000 and function() == 'd' * 400_000")
    run(box, "del alias, holder, deep, many, function")
    for number in range(2):
        run(box, f"n = {number}")
        settle(box)
    assert list((workspace_of(box) / ".blobs").iterdir()) == []


def test_pieces_of_a_loaded_value_are_the_same_objects_again(boxes: Boxes) -> None:
    box = boxes()
    box.load("rows", [{"id": number, "tags": ["a", "b"]} for number in range(3000)])
    run(
        box,
        """
        class Holder: pass
        chosen = [row for row in rows if row["id"] % 100 == 0]
        holder = Holder()
        holder.tags = rows[7]["tags"]
        """,
    )
    settle(box)
    assert (workspace_of(box) / "state.dill").stat().st_size < 15_000
    revive(box)
    run(box, "assert chosen[3] is rows[300] and holder.tags is rows[7]['tags']")
    run(box, "del chosen, holder")
    revive(box)
    run(box, "assert len(rows) == 3000")


def test_the_namespaces_of_modules_are_themselves_again(boxes: Boxes) -> None:
    box = boxes()
    run(
        box,
        """
        import builtins
        space, deep = globals(), [[[[[globals()]]]]]
        basics = vars(builtins)
        """,
    )
    revive(box)
    run(box, "assert space is deep[0][0][0][0][0] is globals() and basics is vars(builtins)")


def test_nothing_keeps_what_was_restored(boxes: Boxes) -> None:
    box = boxes()
    run(box, "class Big: pass\nbig, text = Big(), ['x' * 400_000]")
    revive(box)
    run(box, "import weakref; gone = weakref.ref(big); del big, text")
    run(box, "assert gone() is None\ndel gone")
    for number in range(2):
        run(box, f"n = {number}")
        settle(box)
    assert list((workspace_of(box) / ".blobs").iterdir()) == []


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_around_the_rename(boxes: Boxes, moment: str) -> None:
    box = boxes()
    run(box, "n = 1")
    settle(box)
    kill = "os.kill(os.getpid(), 9)"
    code = f"""
        import os, rlm_guest.worker
        def watch(real=os.replace):
            def replace(source, target):
                if target.endswith('/state.dill'):
                    {kill if moment == "before" else "real(source, target)"}
                    {kill}
                real(source, target)
            rlm_guest.worker.os.replace = replace
        watch()
        n = 2
        """
    assert run(box, code).status == "ok"
    result = box.execute("print(n)")
    if result.status == "died":
        result = box.execute("print(n)")
    if moment == "before":
        assert (result.stdout, "n" in result.older) == ("1\n", True)
    else:
        assert (result.stdout, result.lost, result.older) == ("2\n", (), ())


def test_a_document_that_an_earlier_version_has_pickled(tmp_path: Path) -> None:
    contents = pickle.dumps({"rows": [{"n": 1}]}, 4)
    (tmp_path / "data.pickle").write_bytes(contents)
    reference = ("pickle", "data.pickle", len(contents), zlib.crc32(contents), ("rows", 0))
    assert LoadedFiles(str(tmp_path)).fetch(reference) == {"n": 1}
