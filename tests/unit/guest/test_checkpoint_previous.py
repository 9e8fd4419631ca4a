"""The checkpoint before the last one, which is used when the last one is damaged."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from rlm_containers import CellResult, Sandbox
from tests.unit.sessions import DIE, Boxes, revive, run, settle, workspace_of

#: These tests are of the file: no heir may keep what is lost, or leave out a checkpoint.
OPTIONS = {"heirs": "never"}

Damage = Callable[[Path], None]


def damaged(box: Sandbox, damage: Damage) -> CellResult:
    """Damage the last checkpoint and kill the interpreter. Return the result of that cell."""
    settle(box)
    damage(workspace_of(box) / "state.dill")
    result = box.execute(DIE)
    assert result.status == "died"
    return result


def cut(tenths: int) -> Damage:
    def damage(state: Path) -> None:
        os.truncate(state, state.stat().st_size * tenths // 10)

    return damage


def flip(tenths: int) -> Damage:
    def damage(state: Path) -> None:
        raw = bytearray(state.read_bytes())
        raw[len(raw) * tenths // 10] ^= 1
        state.write_bytes(raw)

    return damage


def longer(state: Path) -> None:
    with state.open("ab") as file:
        file.write(b"x")


def other(state: Path) -> None:
    state.write_bytes(b"hello " * 99)


def version(state: Path) -> None:
    state.write_bytes(state.read_bytes()[:-1] + b"9")


def replaced_by(make: Callable[[Path], object]) -> Damage:
    def damage(state: Path) -> None:
        state.unlink()
        make(state)

    return damage


DAMAGES: dict[str, tuple[Damage, str]] = {
    **{f"cut at {n}/10": (cut(n), "state.dill|it is only|end is missing") for n in range(10)},
    **{f"a bit at {n}/10": (flip(n), "checksum does not match") for n in range(9)},
    "missing": (Path.unlink, "No such file"),
    "another version": (version, "it has format 9, and this is for format 4"),
    "a longer file": (longer, "end is missing"),
    "other contents": (other, "end is missing"),
    "a directory": (replaced_by(Path.mkdir), "is not a regular file"),
    "a FIFO": (replaced_by(os.mkfifo), "is not a regular file"),
    "a link to itself": (replaced_by(lambda path: path.symlink_to(path.name)), "symbolic links"),
    "a link to a device": (replaced_by(lambda path: path.symlink_to("/dev/zero")), "regular file"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_checkpoint_costs_one_cell_and_is_reported(boxes: Boxes, what: str) -> None:
    damage, reason = DAMAGES[what]
    box = boxes()
    run(box, "def f(): return count\nsame = [1, 2]\ncount = 1")
    run(box, "count = 2\nnew = 'n'")
    result = damaged(box, damage)
    assert set(result.lost) == {"new"}
    assert "count" in result.older
    assert "state.dill could not be used" in result.stderr
    assert re.search(reason, result.stderr), result.stderr
    assert "new" in result.stderr.partition("These variables are lost")[2]
    run(box, "assert f() == 1 and same == [1, 2] and 'new' not in globals()")
    if what != "a directory":  # nothing can be saved until a cell removes it
        run(box, "count = 3")
        revive(box)
        run(box, "assert f() == 3 and same == [1, 2]")


def test_variables_that_cannot_have_changed_are_not_called_older(boxes: Boxes) -> None:
    box = boxes()
    run(box, "import math\ndef f(): return 1\nfirst = [1]\nsecond = [2]\nthird = [3]")
    run(box, "second.append(2)")
    result = damaged(box, flip(0))  # the index is whole, and shows how far both files are the same
    assert set(result.older) == {"second", "third"}
    assert result.lost == ()


def test_all_variables_come_from_the_same_file(boxes: Boxes) -> None:
    # Otherwise variables that share an object would not share it any more.
    box = boxes()
    run(box, "a = [1]\nb = {'a': a}\nn = 0")
    run(box, "a.append(2)\nn = 1")
    damaged(box, flip(3))
    run(box, "assert n == 0 and a == [1] and b['a'] is a")


def test_variables_that_were_never_saved_are_named_too(boxes: Boxes) -> None:
    box = boxes()
    run(box, "x = 1")
    run(box, "generator = (n for n in range(3))\nx = 2")
    result = damaged(box, flip(0))
    assert result.lost == ("generator",)
    run(box, "assert x == 1")


@pytest.mark.parametrize("what", ["cut at 5/10", "a bit at 0/10", "missing"])
def test_two_damaged_files_lose_everything_by_name(boxes: Boxes, what: str) -> None:
    damage, _ = DAMAGES[what]
    box = boxes()
    run(box, "x, y = 1, 2")
    run(box, "z = 3")
    settle(box)
    damage(workspace_of(box) / "state.dill.previous")
    result = damaged(box, damage)
    assert {"*", "x", "y", "z"} <= set(result.lost)
    assert result.older == ()
    assert "state.dill cannot be read" in result.stderr
    if what != "missing":
        assert "state.dill.previous" in result.stderr
    run(box, "assert 'x' not in globals()\nw = 5")
    revive(box)
    run(box, "assert w == 5")


def test_the_previous_file_is_a_hard_link_and_not_a_copy(boxes: Boxes) -> None:
    box = boxes()
    state = workspace_of(box) / "state.dill"
    for number in range(4):
        run(box, f"n = {number}")
        settle(box)
        inode = state.stat().st_ino
        run(box, f"n = 'x{number}'")
        settle(box)
        assert state.with_name("state.dill.previous").stat().st_ino == inode
    names = sorted(path.name for path in workspace_of(box).iterdir())
    assert names == ["state.dill", "state.dill.previous"]


def test_a_cell_that_changes_nothing_keeps_the_previous_file(boxes: Boxes) -> None:
    box = boxes()
    run(box, "n = 1")
    run(box, "n = 2")
    for _ in range(3):
        run(box, "n")
    damaged(box, cut(5))
    run(box, "assert n == 1")


def test_a_damaged_file_does_not_replace_the_previous_one(boxes: Boxes) -> None:
    box = boxes()
    run(box, "n = 1")
    run(box, "n = 2")
    settle(box)
    cut(5)(workspace_of(box) / "state.dill")
    run(box, "n = 3")  # the interpreter is alive, and saves
    damaged(box, cut(5))
    run(box, "assert n == 1")
    # The file that was restored is still there after one more checkpoint.
    run(box, "n = 4")
    damaged(box, cut(5))
    run(box, "assert n == 1")


def test_a_damaged_file_is_written_again_even_if_nothing_changed(boxes: Boxes) -> None:
    box = boxes()
    run(box, "n = 1")
    settle(box)
    (workspace_of(box) / "state.dill").write_bytes(b"")
    run(box, "n")
    revive(box)
    run(box, "assert n == 1")


def test_long_strings_of_the_previous_file_stay_as_long_as_the_file(boxes: Boxes) -> None:
    box = boxes()
    run(box, "text = 'x' * 400_000\nn = 1")
    run(box, "text = 'y' * 400_000\nn = 2")
    damaged(box, cut(5))
    run(box, "assert text == 'x' * 400_000 and n == 1")
    run(box, "del text\nn = 3")
    damaged(box, cut(5))
    run(box, "assert text == 'x' * 400_000 and n == 1")
    for number in range(3):
        run(box, f"text, n = '', {number}")
    settle(box)
    assert list((workspace_of(box) / ".blobs").iterdir()) == []


@pytest.mark.parametrize("kind", ["text", "document"])
def test_loaded_files_of_the_previous_file_stay_as_long_as_the_file(
    boxes: Boxes, kind: str
) -> None:
    first: str | list[str] = "a" * 300_000 if kind == "text" else ["a"] * 50_000
    second: str | list[str] = "b" * 300_000 if kind == "text" else ["b"] * 50_000
    box = boxes()
    box.load("data", first)
    run(box, "n = 1")
    box.load("data", second)
    damaged(box, cut(5))
    run(box, "assert n == 1 and data[0] == 'a' and data[-1] == 'a'")
    box.load("data", second)
    run(box, "n = 2")
    revive(box)  # the next worker must know too which files to remove
    for number in range(3):
        run(box, f"n = 'x{number}'")
    settle(box)
    files = [path for path in workspace_of(box).iterdir() if path.name.startswith("data")]
    assert len(files) == 1


def test_unneeded_files_of_an_earlier_interpreter_are_removed(boxes: Boxes) -> None:
    box = boxes()
    run(box, "text = 'x' * 400_000")
    run(box, "text = 'y' * 400_000")
    revive(box)
    for number in range(3):
        run(box, f"n = {number}")
    settle(box)
    assert len(list((workspace_of(box) / ".blobs").iterdir())) == 1
    run(box, "assert text == 'y' * 400_000")


def test_a_file_system_without_hard_links(boxes: Boxes) -> None:
    box = boxes()
    run(
        box,
        """
        import errno, rlm_guest.worker
        def link(*args, **keywords): raise OSError(errno.EPERM, "no links here")
        rlm_guest.worker.os.link = link
        """,
    )
    run(box, "n = 1")
    run(box, "n = 2")
    damaged(box, cut(5))
    run(box, "assert n == 1")


@pytest.mark.parametrize(
    "obstacle",
    ["os.mkdir('state.dill.previous')", "os.mkdir('state.dill.previous.new')"],
)
def test_failing_to_keep_a_previous_file_costs_nothing_else(boxes: Boxes, obstacle: str) -> None:
    box = boxes()
    run(box, f"import os, shutil\nshutil.rmtree('state.dill.previous', True)\n{obstacle}")
    run(box, "n = 1")
    run(box, "n = 2")
    assert box.unsaved == ()
    revive(box)
    run(box, "assert n == 2")


def test_leftover_temporary_files_are_replaced(boxes: Boxes) -> None:
    box = boxes()
    run(box, "long = [f'{i:050}' for i in range(40_000)]")  # longer than what is kept in memory
    settle(box)
    victim = workspace_of(box) / "victim"
    victim.write_bytes(b"untouched")
    for name in ("state.dill.new", "state.dill.previous.new"):
        (workspace_of(box) / name).symlink_to("victim")
    run(box, "long.append(1)")
    assert box.unsaved == ()
    assert victim.read_bytes() == b"untouched"
    os.mkfifo(workspace_of(box) / "state.dill.new")
    run(box, "long.append(2)")
    assert box.unsaved == ()
    revive(box)
    run(box, "assert long[-2:] == [1, 2]")


def test_a_restore_that_kills_the_interpreter_falls_back(boxes: Boxes) -> None:
    box = boxes()
    run(box, "n = 1\nother = [2]")
    run(
        box,
        """
        class Deadly:
            def __reduce__(self):
                return (exec, ("import os; os.path.exists('armed') and os._exit(9)",))
        deadly = Deadly()
        n = 2
        """,
    )
    settle(box)
    (workspace_of(box) / "armed").touch()
    result = box.execute(DIE)
    assert result.status == "died"
    assert "deadly" in result.lost
    assert "*" not in result.lost
    assert "restoring it killed the interpreter" in result.stderr
    run(box, "assert n == 1 and other == [2]\nn = 3")
    revive(box)
    run(box, "assert n == 3")
