"""Large state files: only what has changed is written, and damage costs single variables."""

from __future__ import annotations

import random
import shutil
import sys
from io import BufferedReader
from pathlib import Path

import pytest

from rlm_containers.container.bundle import guest_bundle
from rlm_containers.guest.state.chunks import ChunkStore, NewFile, WholeFile
from rlm_containers.guest.state.files import Sink
from tests.unit.guests import Guest
from tests.unit.sessions import DIE, Boxes, revive, run, settle, workspace_of

#: These tests are of the file: no heir may keep what is lost, or leave out a checkpoint.
OPTIONS = {"heirs": "never"}

#: Two lists of 5 MB each, one with whole numbers and one with objects; the second is in the first.
LARGE = """
class Point:
    def __init__(self, x):
        self.x = x

points = [Point(n) for n in range(250_000)]
numbers = [n * 2**40 for n in range(600_000)]
numbers.append(points)
"""


def files_of(workspace: Path) -> dict[tuple[int, int], int]:
    """The sizes of the files of the state, by what changes when one is written."""
    found = [file.stat() for file in [*workspace.glob(".blobs/*"), *workspace.glob("state.dill*")]]
    return {(stat.st_ino, stat.st_mtime_ns): stat.st_size for stat in found}


def chunks_of(workspace: Path) -> list[Path]:
    """The chunks, the oldest first."""
    return sorted(workspace.glob(".blobs/*.chunk"), key=lambda path: path.stat().st_mtime_ns)


class Written:
    """Counts the bytes that checkpoints write."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self.before = files_of(workspace)

    def __call__(self) -> int:
        """Return how many bytes there are that were not there the last time."""
        before, self.before = self.before, files_of(self.workspace)
        return sum(size for key, size in self.before.items() if key not in before)


def test_only_what_has_changed_is_written(boxes: Boxes) -> None:
    box = boxes()
    run(box, "small = 0\n" + LARGE)
    settle(box)
    run(box, "small = 1")  # from now on, variables with objects of cells come first
    settle(box)
    written = Written(workspace_of(box))
    assert sum(written.before.values()) > 8_000_000
    for code, most in (
        ("small = 2", 1_000_000),
        ("another = 'new'", 1_000_000),
        ("points[100_000].x = 200_007", 2_500_000),
        ("more = [str(n) for n in range(1_000)]", 1_000_000),
        ("points.append(Point(0))", 2_500_000),
    ):
        run(box, code)
        settle(box)
        assert 0 < written() < most, code
    run(box, "2 + 2")
    settle(box)
    assert written() == 0
    revive(box)
    run(
        box,
        """
        assert numbers[-1] is points and numbers[599_999] == 599_999 * 2**40
        assert len(points) == 250_001 and points[100_000].x == 200_007 and points[249_999].x == 249_999
        assert (small, another, more[-1]) == (2, "new", "999")
        """,
    )


def test_a_variable_that_grows_moves_no_other(boxes: Boxes) -> None:
    box = boxes()
    run(box, "import os\nfirst = [0] * 9\nrest = [os.urandom(100_000) for _ in range(40)]")
    settle(box)
    written = Written(workspace_of(box))
    run(box, "first = [n * 1.5 for n in range(200_000)]")
    settle(box)
    assert written() < 3_500_000
    revive(box)
    assert run(box, "print(len(first), len(rest[39]))").stdout == "200000 100000\n"


def test_chunks_that_nothing_needs_are_removed(boxes: Boxes) -> None:
    box = boxes()
    run(box, LARGE)
    settle(box)
    assert len(chunks_of(workspace_of(box))) > 8
    run(box, "del numbers")
    run(box, "del points")
    settle(box)
    run(box, "last = 1")  # the state before it is kept as well
    settle(box)
    run(box, "last = 2")
    settle(box)
    assert chunks_of(workspace_of(box)) == []


def test_damage_costs_the_variables_in_it(boxes: Boxes) -> None:
    box = boxes()
    run(box, "small = 1\nimport os")
    for name in "abc":
        run(box, f"{name} = [n * {ord(name)}.5 for n in range(400_000)]")
    settle(box)
    chunks = chunks_of(workspace_of(box))
    damaged, missing = chunks[0], chunks[-1]
    raw = bytearray(damaged.read_bytes())
    raw[1000] ^= 1
    damaged.write_bytes(raw)
    missing.unlink()
    result = box.execute(DIE)
    assert sorted(result.lost) == ["a", "c"]
    assert f"{damaged.name} is damaged" in result.stderr
    assert run(box, "print(small, b[1000])").stdout == "1 98500.0\n"
    # The same value again is a whole chunk again.
    run(box, "a = [n * 97.5 for n in range(400_000)]")
    revive(box)
    assert run(box, "print(a[1000])").stdout == "97500.0\n"


def test_chunks_that_a_cell_removes_are_written_again(boxes: Boxes) -> None:
    box = boxes()
    run(box, LARGE)
    settle(box)
    shutil.rmtree(workspace_of(box) / ".blobs")
    run(box, "small = 1")
    revive(box)
    assert run(box, "print(small, len(points), len(numbers))").stdout == "1 250000 600001\n"


def test_a_snapshot_and_a_fork_have_the_chunks(boxes: Boxes) -> None:
    box = boxes(session="with-chunks")
    run(box, LARGE)
    before = box.snapshot()
    run(box, "points.clear(); numbers.clear()")
    with box.fork("with-chunks-too") as fork:
        assert run(fork, "print(len(points), len(numbers))").stdout == "0 0\n"
    box.restore(before)
    assert run(box, "print(len(points), len(numbers))").stdout == "250000 600001\n"


def test_a_state_file_of_format_3_is_read(tmp_path: Path) -> None:
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the saved state needs Python 3.11")
    shutil.copy("tests/data/format-3/state.dill", tmp_path)
    with Guest(guest_bundle(), tmp_path) as guest:
        guest.event("hello")
        assert [name for name, *_ in guest.start()["lost"]] == ["stream"]
        code = "print(point.norm(), shared is alias, alias[0] is point, len(long), up(), up())"
        assert guest.run(code)[1] == "9 True True 700 1 2\n"


@pytest.mark.parametrize("seed", range(20))
def test_what_is_written_is_read(tmp_path: Path, seed: int) -> None:
    """Records of any sizes, some of which fail and are undone."""
    chance = random.Random(seed)
    store = ChunkStore(str(tmp_path))
    file = NewFile(str(tmp_path / "new"), store)
    sink = Sink(file)
    expected = b"the prelude"
    sink.write(expected)
    starts = []
    for _ in range(chance.randrange(1, 30)):
        file.begin_record()
        before = sink.mark()
        starts.append(len(expected))
        record = b""
        for _ in range(chance.randrange(1, 4)):
            size = chance.choice((1, 50, 70_000, 500_000, 1 << 20, 3_000_000))
            record += chance.randbytes(chance.randrange(size))
        sink.write(record)
        if chance.random() < 0.2:
            sink.rewind(before)
            starts.pop()
        else:
            expected += record
    file.end_records()
    sink.write(b"the end" * 300_000)
    expected += b"the end" * 300_000
    assert file.read(0, len(expected)) == expected
    assert all(chunk.size <= 1 << 20 for chunk in file.chunks)
    assert len(expected) == file.own_length + sum(chunk.size for chunk in file.chunks)
    file.finish(durable=False)
    with open(tmp_path / "new", "rb") as own:
        whole = BufferedReader(WholeFile(own, file.chunks, store))
        assert whole.read() == expected
        for start in starts:
            whole.seek(start)
            assert whole.read(100) == expected[start : start + 100]
