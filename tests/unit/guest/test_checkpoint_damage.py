"""State files that are damaged or hostile. A variable is restored whole, or named as lost."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlm_containers import Sandbox
from tests.support import TIMEOUT
from tests.unit.guests import run_python
from tests.unit.sessions import DIE, Boxes, revive, run, settle, workspace_of

#: These tests are of the file: no heir may keep what is lost, or leave out a checkpoint.
OPTIONS = {"heirs": "never"}

# Loads the state file once for each line of its input, after an edit: [offset, replacement] replaces
# a byte, [length] cuts the file. Prints a report of each.
LOADER = """
import json, os, sys
from rlm_guest.namespace import Namespace
kept = sys.modules["__main__"]  # this program, which the namespace replaces
Namespace()
from rlm_guest.state.checkpoint import Checkpoint
directory = sys.argv[1]
path = os.path.join(directory, "state.dill")
good = open(path, "rb").read()
for line in sys.stdin:
    edit = json.loads(line)
    bad = bytearray(good)
    if len(edit) == 1:
        del bad[edit[0]:]
    else:
        bad[edit[0]:edit[0] + 1] = bytes(edit[1])
    with open(path, "wb") as file:
        file.write(bad)
    values = {}
    report = Checkpoint(directory).load(values)
    print(json.dumps({"values": sorted(values), **report}))
"""


def loads(guest_path: list[str], directory: Path, edits: list[list[Any]]) -> list[dict[str, Any]]:
    """Load the state file after each of these edits. Return the reports."""
    done = subprocess.run(
        (sys.executable, "-c", LOADER, str(directory)),
        input="\n".join(map(json.dumps, edits)),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(guest_path)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def filled(boxes: Boxes) -> Sandbox:
    """A sandbox with a few variables, saved."""
    box = boxes()
    code = "a = [1, 2, 3]\nb = {'x': a}\ndef f(): return a\nclass C: pass\nc = C()"
    run(box, code)
    settle(box)
    return box


def test_an_undamaged_file_is_loaded(guest_path: list[str], filled: Sandbox) -> None:
    size = (workspace_of(filled) / "state.dill").stat().st_size
    (whole,) = loads(guest_path, workspace_of(filled), [[size]])
    assert whole["values"] == ["C", "a", "answer", "b", "c", "f"]
    assert (whole["lost"], whole["older"], whole["damage"]) == ([], [], "")


def test_a_file_cut_anywhere_is_reported_and_not_half_loaded(
    guest_path: list[str], filled: Sandbox
) -> None:
    size = (workspace_of(filled) / "state.dill").stat().st_size
    cuts = sorted({*range(60), *range(60, size, 97), *range(size - 60, size)})
    for cut, found in zip(
        cuts, loads(guest_path, workspace_of(filled), [[cut] for cut in cuts]), strict=True
    ):
        assert found["values"] == [], cut
        ((name, _, reason),) = found["lost"]  # the index was at the end
        assert name == "*"
        assert "state.dill cannot be read" in reason


def test_a_flipped_bit_is_noticed_anywhere(guest_path: list[str], filled: Sandbox) -> None:
    raw = (workspace_of(filled) / "state.dill").read_bytes()
    chance = random.Random(1)
    places = sorted({*range(0, len(raw), 31), *range(len(raw) - 28, len(raw))})
    edits: list[list[Any]] = [[at, [raw[at] ^ (1 << chance.randrange(8))]] for at in places]
    for edit, found in zip(edits, loads(guest_path, workspace_of(filled), edits), strict=True):
        assert found["values"] == [], edit
        names = {name for name, _, _ in found["lost"]}
        # Unless the index is damaged too, it says what there was.
        assert names in ({"*"}, {"*", "C", "f", "answer", "a", "b", "c"}), edit


def test_bytes_added_or_missing_are_noticed(guest_path: list[str], filled: Sandbox) -> None:
    edits: list[list[Any]] = [[0, []], [0, [0, 0]], [100, []], [100, [1, 2, 3]]]
    for found in loads(guest_path, workspace_of(filled), edits):
        assert found["values"] == []
        assert found["lost"][0][0] == "*"


def test_half_built_objects_of_a_failed_record_turn_up_nowhere(boxes: Boxes) -> None:
    box = boxes()
    run(
        box,
        """
        class Bomb:
            def __reduce__(self): return (eval, ("1/0",))
        first = [1, Bomb(), 2]
        second = first
        inner = {"a": [1, 2], "bomb": Bomb()}
        outer = [inner, inner["a"]]
        piece = inner["a"]
        whole = [1, 2]
        """,
    )
    result = box.execute(DIE)
    # Each is restored whole or named as lost, never restored by half.
    expected = {"whole": "[1, 2]", "piece": "[1, 2]"}
    back = {name: text for name, text in result.locals.items() if name not in ("answer", "Bomb")}
    assert set(result.lost) | set(back) == {"first", "second", "inner", "outer", "piece", "whole"}
    assert not set(result.lost) & set(back)
    assert back == {name: expected[name] for name in back}
    assert "whole" in back


def test_objects_shared_with_a_failed_record_are_restored(boxes: Boxes) -> None:
    box = boxes()
    run(
        box,
        """
        import collections, datetime, functools, operator
        class Bomb:
            def __reduce__(self): return (eval, ("1/0",))
        word, number, pair = "a shared word", 10**30, ("x", 5)
        first = [
            datetime.date(2020, 1, 1), collections.Counter("ab"), functools.partial(operator.add, 1),
            word, number, pair, Bomb(),
        ]
        second = [
            datetime.date(2021, 1, 1), collections.Counter("b"), functools.partial(operator.add, 2),
            word, number, pair,
        ]
        """,
    )
    revive(box, "first")
    run(
        box,
        """
        assert second[:2] == [datetime.date(2021, 1, 1), collections.Counter("b")]
        assert second[2](3) == 5 and second[3:] == [word, number, pair]
        """,
    )


def test_strings_and_names_shared_with_a_failed_record_are_restored(boxes: Boxes) -> None:
    # They come after what fails.
    box = boxes()
    run(
        box,
        """
        class Bomb:
            def __reduce__(self):
                return (eval, ("1 / (not __import__('os').path.exists('armed'))",))
        def helper(): return 1
        class Late:
            attribute = "a"
            def __init__(self): self.attribute = "b"
        first = [Bomb(), {"shared key": 1}, Late(), "a shared text", 2.5, 10 ** 20]
        second = [{"shared key": 2}, "a shared text", first[4], first[5]]
        class Last:
            attribute = "c"
            def __init__(self): self.attribute = "d"
        last = Last()
        """,
    )
    settle(box)
    (workspace_of(box) / "armed").touch()
    revive(box, "first")
    run(box, "assert second == [{'shared key': 2}, 'a shared text', 2.5, 10 ** 20]")
    run(box, "assert last.attribute == 'd' and Late().attribute == 'b' and helper() == 1")


def test_a_missing_or_changed_blob_costs_only_its_variables(boxes: Boxes) -> None:
    box = boxes()
    run(box, "gone = 'g' * 300_000\nshort = 'c' * 300_001\nother = 'o' * 300_002\nsmall = [1]")
    settle(box)
    by_size = {path.stat().st_size: path for path in (workspace_of(box) / ".blobs").iterdir()}
    by_size[300_000].unlink()
    by_size[300_001].write_bytes(b"c" * 300_000)
    by_size[300_002].write_bytes(b"O" * 300_002)  # as long as before
    revive(box, "gone", "short", "other")
    run(box, "assert small == [1]")


def test_a_restore_that_kills_the_interpreter_is_not_repeated_for_ever(boxes: Boxes) -> None:
    box = boxes()
    run(
        box,
        """
        class Deadly:
            def __reduce__(self):
                return (exec, ("import os; os.path.exists('armed') and os._exit(9)",))
        deadly = Deadly()
        other = 1
        """,
    )
    settle(box)
    (workspace_of(box) / "armed").touch()
    result = box.execute(DIE)
    assert result.status == "died"
    assert "*" in result.lost
    assert "status 9" in result.stderr
    run(box, "x = 5")
    revive(box)
    run(box, "assert x == 5")


def test_a_checkpoint_needs_only_the_files_in_its_directory(
    guest_path: list[str], filled: Sandbox
) -> None:
    # Such as when a sandbox is copied and loaded elsewhere.
    program = """
import sys
from rlm_guest.namespace import Namespace
kept = sys.modules["__main__"]  # this program, which the namespace replaces
namespace = Namespace()
from rlm_guest.state.checkpoint import Checkpoint
values = namespace.values
report = Checkpoint(sys.argv[1]).load(values)
assert report["lost"] == [], report
assert values["b"]["x"] is values["a"] and values["f"]() is values["a"]
assert type(values["c"]) is values["C"]
"""
    done = run_python(program, str(workspace_of(filled)), path=guest_path)
    assert (done.returncode, done.stderr) == (0, "")


# A state file that runs code when it is loaded, which the host must never do

# A class whose pickle writes down which process loads it.
BOMB = """
import os
class Bomb:
    def __reduce__(self):
        note = "open({place!r} + '/' + str(__import__('os').getpid()), 'w').close()"
        return (exec, (note,))
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The directory where a bomb writes down the process that has loaded it."""
    directory = tmp_path / "exploded"
    directory.mkdir()
    return directory


def bomb(box: Sandbox, place: Path) -> None:
    run(box, BOMB.replace("{place!r}", repr(str(place))))


def everything_that_the_host_does(box: Sandbox) -> None:
    run(box, "x = 1")
    box.load("context_0", "text")
    box.load("history", [{"role": "user"}], keep=True)
    settle(box)
    box.reset_answer()
    assert box.execute("1 / 0").status == "error"


def test_only_the_interpreter_loads_a_bomb_that_the_session_saved(
    boxes: Boxes, place: Path
) -> None:
    box = boxes()
    bomb(box, place)
    run(box, "bomb = Bomb()")
    everything_that_the_host_does(box)
    assert str(os.getpid()) not in [path.name for path in place.iterdir()]
    assert box.execute(DIE).status == "died"
    everything_that_the_host_does(box)
    box.close()
    loaded = [int(path.name) for path in place.iterdir()]
    assert loaded  # the bomb works
    assert os.getpid() not in loaded


def test_the_host_does_not_load_a_bomb_that_a_cell_wrote(boxes: Boxes, place: Path) -> None:
    # A plain pickle, under every name that anyone might load.
    box = boxes()
    bomb(box, place)
    run(
        box,
        """
        import pickle
        for name in ("state.dill", "state.dill.previous", "context_0.txt", "x.pkl", "index.json"):
            open(name, "wb").write(pickle.dumps(Bomb()) * 20)
        del Bomb
        """,
    )
    everything_that_the_host_does(box)
    (workspace_of(box) / "state.dill").write_bytes(b"cos\nsystem\n(S'echo'\ntR." * 20)
    assert box.execute(DIE).status == "died"
    everything_that_the_host_does(box)
    box.close()
    assert str(os.getpid()) not in [path.name for path in place.iterdir()]
