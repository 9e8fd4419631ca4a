"""Snapshots, restores and forks, of named sessions and of others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rlm_containers import Sandbox
from rlm_containers.errors import (
    OptionError,
    SandboxClosedError,
    SessionError,
    SessionStateError,
    SnapshotNotFoundError,
    WorkspaceError,
)
from rlm_containers.lm import AsyncFunctions, CallableBackend, LMBroker
from rlm_containers.state import (
    Manifest,
    SessionStore,
    Snapshot,
    Workspace,
    passing_snapshots_directory,
    sessions_directory,
)
from rlm_containers.state.snapshot_store import SnapshotStore
from tests.unit.guests import LocalRuntime, await_end
from tests.unit.sessions import DIE, Boxes, run, settle, workspace_of

pytestmark = pytest.mark.usefixtures("own_sessions")


@pytest.fixture(params=[None, "one"], ids=["unnamed", "named"])
def any_box(boxes: Boxes, request: pytest.FixtureRequest) -> Sandbox:
    return boxes(session=request.param)


def objects_of(box: Sandbox) -> list[Path]:
    directory = (
        sessions_directory() / box.options.session
        if box.options.session
        else passing_snapshots_directory() / box.name
    )
    return [path for path in (directory / "objects").rglob("*") if path.is_file()]


def test_restoring_brings_back_variables_and_files(any_box: Sandbox) -> None:
    box = any_box
    box.load("context", ["a", {"b": "c" * 1000}])
    run(
        box,
        """
        import os
        os.makedirs("d/e")
        open("d/e/file", "w").write("first")
        os.chmod("d/e/file", 0o640)
        os.chmod("d", 0o555)
        os.symlink("d/e/file", "link")
        items = [1]
        both = [items, context[1]]
        """,
    )
    first = box.snapshot("the first")
    run(
        box,
        """
        os.chmod("d", 0o755)
        os.remove("d/e/file"); os.rmdir("d/e"); os.remove("link")
        open("d/e", "w").write("a file in the place of a directory")
        os.mkdir("link")
        open("new", "w")
        items.append(2); context.append("more"); other = 5
        """,
    )
    second = box.snapshot()
    assert box.restore(first) == ()
    result = run(
        box,
        """
        assert items == [1] and both[0] is items and both[1] is context[1] and len(context) == 2
        assert open("d/e/file").read() == open("link").read() == "first"
        assert os.stat("d/e/file").st_mode & 0o777 == 0o640 and os.stat("d").st_mode & 0o777 == 0o555
        assert not os.path.exists("new")
        """,
    )
    assert "other" not in result.locals
    # After a death the interpreter comes back from the restored state.
    assert box.execute(DIE).status == "died"
    run(box, "assert items == [1] and both[0] is items")
    assert box.restore(second) == ()
    run(
        box,
        "assert items == [1, 2] and other == 5 and os.path.isdir('link') and open('d/e').read()",
    )
    assert [(s.id, s.note) for s in box.snapshots()] == [(first, "the first"), (second, "")]


def test_ten_snapshots_of_a_large_context_cost_one(any_box: Sandbox) -> None:
    box = any_box
    box.load("context", "line of the context\n" * 500_000)
    ids = []
    for number in range(10):
        run(box, f"x = {number}")
        ids.append(box.snapshot())
    assert len(set(ids)) == 10
    assert 10_000_000 < sum(path.stat().st_size for path in objects_of(box)) < 10_100_000
    assert sum(snapshot.size for snapshot in box.snapshots()) > 100_000_000
    for id_ in ids[:-1]:
        box.remove_snapshot(id_)
    box.restore(ids[-1])
    assert run(box, "print(x, len(context))").stdout == "9 10000000\n"
    box.remove_snapshot(ids[-1])
    assert objects_of(box) == []


def test_the_same_state_is_the_same_snapshot(any_box: Sandbox) -> None:
    box = any_box
    run(box, "x = 1\nopen('f', 'w').write('same')")
    first = box.snapshot("first")
    assert box.snapshot("second") == first
    run(box, "import os\nos.utime('f', (1, 1))\ndel os")
    assert [snapshot.note for snapshot in box.snapshots()] == ["first"]
    run(box, "x = 2")
    assert box.snapshot() != first


def test_a_cell_cannot_change_a_snapshot(any_box: Sandbox) -> None:
    box = any_box
    run(box, "x = 'x' * 300_000\nopen('file', 'wb').write(b'before')")
    before = box.snapshot()
    # Write in place, which a hard link to the snapshot would share.
    run(
        box,
        """
        import glob
        for path in ["file", *glob.glob(".blobs/*")]:
            with open(path, "r+b") as file: file.write(b"AFTER!")
        """,
    )
    box.restore(before)
    run(box, "assert x == 'x' * 300_000 and open('file', 'rb').read() == b'before'")
    with open(workspace_of(box) / "file", "r+b") as file:  # the restored file is a copy, too
        file.write(b"again")
    box.restore(before)
    assert box.get_file("file") == b"before"


def test_a_snapshot_leaves_out_what_cannot_be_saved(any_box: Sandbox) -> None:
    box = any_box
    run(box, "import os\nos.mkfifo('fifo')\nopen('file', 'w')\ngenerator = (i for i in 'ab')")
    id_ = box.snapshot()
    (snapshot,) = box.snapshots()
    assert snapshot.skipped == ("fifo",)
    assert [variable.name for variable in box.restore(id_)] == ["generator"]
    assert [variable.name for variable in box.lost] == ["generator"]
    assert [file.name for file in box.list_files()] == ["file"]


def test_a_snapshot_before_the_first_cell(any_box: Sandbox) -> None:
    box = any_box
    empty = box.snapshot()
    run(box, "x = 1")
    assert box.restore(empty) == ()
    result = run(box, "y = 2")
    assert "x" not in result.locals
    assert box.list_files() == ()


def test_snapshots_are_found_by_the_beginning_of_their_id(any_box: Sandbox) -> None:
    box = any_box
    run(box, "x = 1")
    with pytest.raises(SnapshotNotFoundError, match="no snapshot 'abcd'") as caught:
        box.restore("abcd")
    assert caught.value.remedy == "None has been taken."
    id_ = box.snapshot()
    run(box, "x = 2")
    box.restore(id_[:4])
    assert box.execute("").locals["x"] == "1"
    for wrong in ("", "abc", id_ + "0", id_.upper() + "G", "../" + id_, "*" * 8, 5, None):
        with pytest.raises(SnapshotNotFoundError):
            box.restore(wrong)  # type: ignore[arg-type]
        with pytest.raises(SnapshotNotFoundError):
            box.remove_snapshot(wrong)  # type: ignore[arg-type]
    other = "0000" if not id_.startswith("0000") else "1111"
    with pytest.raises(SnapshotNotFoundError, match="no snapshot") as caught:
        box.restore(other)
    assert id_[:12] in caught.value.remedy
    assert box.execute("").locals["x"] == "1"


def test_notes_are_cut(any_box: Sandbox) -> None:
    with pytest.raises(OptionError, match="note"):
        any_box.snapshot(5)  # type: ignore[arg-type]
    any_box.snapshot("ü\n" * 500)
    assert any_box.snapshots()[0].note == "ü\n" * 100


def test_restoring_leaves_the_hosts_history_alone(any_box: Sandbox) -> None:
    box = any_box
    box.load("history", [{"role": "user", "content": "one"}], keep=True)
    run(box, "x = 1")
    id_ = box.snapshot()
    box.load("history", [{"role": "user", "content": "two"}], keep=True)
    box.restore(id_)
    assert run(box, "print(x, history[0]['content'])").stdout == "1 two\n"


def test_a_variable_is_loaded_after_a_restore(any_box: Sandbox) -> None:
    box = any_box
    box.load("context", "first")
    run(box, "old = context")
    id_ = box.snapshot()
    box.load("context", "second")
    box.restore(id_)
    box.load("context", "third")
    assert run(box, "print(old, context)").stdout == "first third\n"
    assert box.execute(DIE).lost == ()
    assert run(box, "print(old, context)").stdout == "first third\n"
    box.restore(id_)
    assert run(box, "print(old, context)").stdout == "first first\n"


def test_a_damaged_snapshot_is_found_out_before_anything_is_changed(any_box: Sandbox) -> None:
    box = any_box
    run(box, "x = 'x' * 300_000")
    id_ = box.snapshot()
    run(box, "x = 'later'")
    (large,) = [path for path in objects_of(box) if path.stat().st_size == 300_000]
    name = str(box.options.session or box.name)
    for damage in (b"short", b"x" * 299_999 + b"y", b"x" * 300_001, None):
        if damage is None:
            large.unlink()
        else:
            large.write_bytes(damage)
        with pytest.raises(SessionStateError, match="missing|damaged") as caught:
            box.restore(id_)
        for part in (id_[:12], name, str(large), ".blobs/"):
            assert part in caught.value.what
        assert "Nothing has been changed" in caught.value.remedy
        assert run(box, "print(x)").stdout == "later\n"


def test_a_damaged_object_is_repaired_by_the_next_snapshot(
    boxes: Boxes, caplog: pytest.LogCaptureFixture
) -> None:
    box = boxes(session="one")
    run(box, "open('file', 'w').write('x' * 1000)")
    first = box.snapshot()
    box.close()
    (path,) = [path for path in objects_of(box) if path.stat().st_size == 1000]
    path.write_bytes(b"x" * 999 + b"y")
    again = boxes(session="one")
    run(again, "y = 2")
    second = again.snapshot()
    assert f"{path} was damaged" in caplog.text
    for id_ in (second, first):
        again.restore(id_)
        assert again.get_file("file") == b"x" * 1000


def test_a_damaged_record_is_written_again_by_the_same_snapshot(boxes: Boxes) -> None:
    box = boxes(session="one")
    run(box, "x = 1")
    id_ = box.snapshot("note")
    record = sessions_directory() / "one" / "snapshots" / f"{id_}.json"
    record.write_text("{")
    assert box.snapshot() == id_
    assert box.restore(id_) == ()
    record.write_text('{"format": 3}')
    with pytest.raises(SessionStateError, match="format 3"):
        box.snapshot()
    assert record.read_text() == '{"format": 3}'


def test_a_damaged_record(boxes: Boxes) -> None:
    box = boxes(session="one")
    run(box, "x = 1")
    id_ = box.snapshot()
    path = sessions_directory() / "one" / "snapshots" / f"{id_}.json"
    raw = json.loads(path.read_text())
    raw["entries"][0]["mode"] = 0o777
    for text in ("", "{", "[]", "{}", json.dumps(raw), '{"format": 2}'):
        path.write_text(text)
        assert box.snapshots() == []
        with pytest.raises(SessionStateError):
            box.restore(id_)
    box.remove_snapshot(id_)
    assert objects_of(box) == []


def test_a_snapshot_whose_variables_cannot_be_read(any_box: Sandbox) -> None:
    box = any_box
    run(box, "x = 1")
    good = box.snapshot()
    run(box, "y = 1")
    settle(box)
    (workspace_of(box) / "state.dill").write_bytes(b"damaged by a cell")
    (workspace_of(box) / "state.dill.previous").unlink(missing_ok=True)
    bad = box.snapshot()
    with pytest.raises(SessionStateError, match="cannot be read"):
        box.restore(bad)
    assert "x" not in box.execute("").locals
    box.restore(good)
    run(box, "x = 5\nopen('file', 'w').write('mine')")
    with pytest.raises(SessionStateError, match="as it was before"):
        box.restore(bad)  # and back
    assert (box.execute("").locals["x"], box.get_file("file"), box.lost) == ("5", b"mine", ())


def test_what_cannot_be_snapshot(any_box: Sandbox) -> None:
    box = any_box
    run(box, "with open('huge', 'wb') as f: f.truncate(1 << 43)\nx = 1")
    with pytest.raises(WorkspaceError, match="holes"):
        box.snapshot()
    run(box, "import os\nos.remove('huge')\nfor _ in range(150): os.mkdir('d'); os.chdir('d')")
    with pytest.raises(WorkspaceError, match="100 deep"):
        box.snapshot()
    with pytest.raises(WorkspaceError, match="100 deep"):
        box.fork()
    assert box.snapshots() == []
    assert box.execute("").locals["x"] == "1"


def test_a_state_that_could_not_be_saved_is_no_snapshot(any_box: Sandbox) -> None:
    box = any_box
    run(
        box,
        "x = 1\nimport os\nos.mkdir('state.dill.new')\ny = 'y' * 5_000_000\nz = list(range(500_000))",
    )
    with pytest.raises(SessionStateError, match="could not be saved"):
        box.snapshot()
    with pytest.raises(SessionStateError, match="could not be saved"):
        box.fork()


ENDLESS = """
import time
class Endless:
    def __reduce__(self):
        while True: time.sleep(0.01)
"""


def test_a_variable_whose_saving_never_ends_is_given_up(
    any_box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlm_containers.sandbox.running.SETTLE_TIMEOUT", 0.5)
    box = any_box
    run(box, ENDLESS + "a = 1\nendless = Endless()\nz = 2")
    id_ = box.snapshot()
    assert [variable.name for variable in box.restore(id_)] == ["endless"]
    run(box, "assert a + z == 3")
    run(box, "endless = Endless()")
    box.close()  # does not wait for ever


def test_forks_are_independent(any_box: Sandbox) -> None:
    box = any_box
    box.load("context", "c" * 400_000)
    run(box, "items = [1]\nsame = items\nopen('file', 'w').write('one')")
    with box.fork() as other, other.fork() as third:
        assert len({box.name, other.name, third.name}) == 3
        run(other, "assert same is items and len(context) == 400_000\nitems.append(2)")
        run(third, "assert items == [1]\nopen('file', 'w').write('three')")
        run(box, "assert items == [1]\nitems.append(9)\nassert open('file').read() == 'one'")
        other.load("context", "new")
        assert other.execute(DIE).lost == ()
        assert run(other, "print(items, same is items, context)").stdout == "[1, 2] True new\n"
        assert run(third, "print(len(context), open('file').read())").stdout == "400000 three\n"
    assert run(box, "print(items, len(context))").stdout == "[1, 9] 400000\n"


def test_a_fork_has_the_options_tools_and_model(boxes: Boxes) -> None:
    async def later(prompt: str) -> str:
        await asyncio.sleep(0)
        return prompt.upper()

    box = boxes(
        lm=later,
        tools={"add": lambda a, b: a + b},
        setup_code="made = []",
        env={"NAME": "value"},
        max_output=500,
    )
    box.set_tools({"sub": lambda a, b: a - b})
    box.load("history", [1], keep=True)
    run(box, "made.append(1)\nimport os")
    with box.fork() as other:
        assert other.options == box.options
        result = run(
            other, "history = 0\nprint(made, sub(3, 1), os.environ['NAME'], llm_query('hi'))"
        )
        assert result.stdout == "[1] 2 value HI\n"
        assert [call.prompt for call in result.lm_calls] == ["hi"]
        assert run(other, "print(history)").stdout == "[1]\n"
        assert run(box, "print(llm_query('ho'))").lm_calls[0].prompt == "ho"


def test_a_fork_does_not_read_the_configuration_again(
    boxes: Boxes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[profiles.short]\nmax_output = 200\n")
    monkeypatch.setenv("RLM_CONTAINERS_CONFIG", str(path))
    box = boxes(profile="short")
    run(box, "x = 1")
    path.write_text("max_output = 5000\n")
    with box.fork() as other:
        assert other.options == box.options
        path.unlink()
        with other.fork("branch") as third:
            assert third.options.max_output == 200
            assert run(third, "print(x)").stdout == "1\n"


def test_a_fork_of_a_subclass_has_its_attributes(local: LocalRuntime, cache: object) -> None:
    class Named(Sandbox):
        def __init__(self, label: str, **options: Any) -> None:
            super().__init__(**options)
            self.label = label

    with Named("mine", runtime=local) as box, box.fork() as other:
        assert isinstance(other, Named)
        assert (other.label, other.name != box.name) == ("mine", True)
        assert run(other, "print(1)").stdout == run(box, "print(1)").stdout == "1\n"


def test_a_fork_records_its_own_calls(boxes: Boxes) -> None:
    broker = LMBroker(CallableBackend(str.upper, 60.0, AsyncFunctions()))
    box = boxes(lm=broker)
    with box.fork() as other:
        assert run(other, "llm_query('a')").lm_calls[0].response == "A"
        assert run(box, "llm_query('b')").lm_calls[0].response == "B"


def test_a_fork_as_a_session(boxes: Boxes) -> None:
    box = boxes()
    run(box, "x = 1\ngenerator = (i for i in 'ab')")
    with box.fork("branch") as other:
        assert [variable.name for variable in other.lost] == ["generator"]
        run(other, "x = 2")
        with pytest.raises(SessionError, match="in use"):
            box.fork("branch")
    with pytest.raises(SessionError, match="session 'branch' already"):
        box.fork("branch")
    with pytest.raises(OptionError):
        box.fork("no/name")
    assert boxes(session="branch").execute("").locals["x"] == "2"
    assert box.execute("").locals["x"] == "1"


def test_snapshots_without_a_session_end_with_the_sandbox(
    boxes: Boxes, local: LocalRuntime
) -> None:
    box = boxes()
    run(box, "x = 1")
    box.snapshot()
    assert (passing_snapshots_directory() / box.name).is_dir()
    box.close()
    assert not (passing_snapshots_directory() / box.name).exists()
    for closed in (box, Sandbox(runtime=local)):
        for call in (closed.snapshot, closed.snapshots, closed.fork):
            with pytest.raises(SandboxClosedError):
                call()
        with pytest.raises(SandboxClosedError):
            closed.restore("abcdef")


def test_the_reaper_removes_snapshots_without_a_session() -> None:
    program = (
        "import sys, os\nfrom rlm_containers import Sandbox\n"
        "from tests.unit.guests import LocalRuntime\n"
        "box = Sandbox(runtime=LocalRuntime()).start()\nbox.execute('x = 1')\nbox.snapshot()\n"
        "print(box.name, box._life.running.reaper.pid, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        (sys.executable, "-c", program),
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    name, reaper = done.stdout.split()
    assert await_end(int(reaper))
    assert not (passing_snapshots_directory() / name).exists()


#: Restores a snapshot of the session "one" for each line of input, each time in a child that is
#: killed before a rename. A line has the snapshot and how many renames come before that. The
#: answers are the children's exit codes: how many renames were left, if a child was not killed.
RESTORER = """
import os, signal, sys
from rlm_containers.state import SessionStore
left, rename = 0, os.rename
def counted(*args, **options):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(*args, **options)
os.rename = counted
for line in sys.stdin:
    snapshot, number = line.split()
    if (child := os.fork()) == 0:
        left = int(number)
        SessionStore().restore("one", snapshot)
        os._exit(left)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture
def restore_and_die(own_sessions: None) -> Iterator[Callable[[str, int], int]]:
    """Restores a snapshot in a process that dies before a rename; see ``RESTORER``."""
    with subprocess.Popen(
        (sys.executable, "-c", RESTORER),
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as restorer:
        assert restorer.stdin is not None
        assert restorer.stdout is not None
        stdin, stdout = restorer.stdin, restorer.stdout

        def restore(snapshot: str, renames: int) -> int:
            print(snapshot, renames, file=stdin, flush=True)
            return int(stdout.readline())

        yield restore


def contents(session: str) -> dict[str, bytes]:
    """Return the contents of a session's workspace."""
    top = sessions_directory() / session / "workspace"
    return {str(p.relative_to(top)): p.read_bytes() for p in top.rglob("*") if p.is_file()}


def test_a_restore_that_is_killed_at_any_rename_is_undone(
    boxes: Boxes, restore_and_die: Callable[[str, int], int]
) -> None:
    box = boxes(session="one")
    run(box, "x = 1\nopen('a', 'w').write('1')\nopen('only before', 'w')")
    id_ = box.snapshot()
    after = contents("one")
    run(box, "import os\nos.remove('only before')\nx = 2\nopen('a', 'w').write('2')")
    run(box, "os.mkdir('d')\nopen('d/b', 'w').write('2')")
    box.close()
    before = contents("one")
    assert before != after
    total = 100 - restore_and_die(id_, 100)
    assert contents("one") == after
    assert total > 5
    store = SessionStore()
    back = store.snapshot("one").id
    assert back == id_
    # Go on from the state before, as often as there are renames.
    path = sessions_directory() / "one"
    shutil.rmtree(path / "workspace")
    (path / "workspace").mkdir()
    for name, text in before.items():
        (path / "workspace" / name).parent.mkdir(exist_ok=True)
        (path / "workspace" / name).write_bytes(text)
    kept = {p: p.read_bytes() for p in [*objects_of(box), *(path / "snapshots").iterdir()]}
    for moves in range(total):
        assert restore_and_die(id_, moves) == -signal.SIGKILL
        # Neither the record nor the objects are needed to go back.
        for file in kept:
            file.write_bytes(b"damaged")
        with store.locked("one"):
            pass
        assert contents("one") == before, moves
        for file, text in kept.items():
            file.write_bytes(text)


def test_a_sandbox_says_that_a_restore_was_undone(
    boxes: Boxes,
    restore_and_die: Callable[[str, int], int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    box = boxes(session="one")
    run(box, "x = 1\nopen('a', 'w').write('1')")
    id_ = box.snapshot()
    run(box, "x = 2\nopen('a', 'w').write('2')")
    box.close()
    assert restore_and_die(id_, 4) == -signal.SIGKILL
    again = boxes(session="one")
    assert again.execute("").locals["x"] == "2"
    assert again.get_file("a") == b"2"
    assert "was interrupted; it goes on from its state before that" in caplog.text


def test_a_session_with_an_interrupted_restore_can_be_removed(
    boxes: Boxes, restore_and_die: Callable[[str, int], int]
) -> None:
    box = boxes(session="one")
    run(box, "x = 1")
    id_ = box.snapshot()
    box.close()
    assert restore_and_die(id_, 1) == -signal.SIGKILL
    staging = sessions_directory() / "one" / "staging"
    shutil.rmtree(staging / "old")
    (staging / "old").write_text("in the way")
    with pytest.raises(SessionStateError, match="could not be moved back") as caught:
        boxes(session="one")
    assert str(staging) in caught.value.what
    SessionStore().remove_snapshot("one", id_)
    SessionStore().remove("one")
    assert SessionStore().names() == []


@pytest.mark.parametrize(
    "change",
    [
        {"path": "../x"}, {"path": "/x"}, {"path": "a/../b"}, {"path": "a//b"}, {"path": "./a"},
        {"path": ""}, {"path": "."}, {"path": "a\0"}, {"path": 5}, {"path": "nowhere/x"},
        {"path": "\ud900"}, {"path": "dir"}, {"path": "link/x"}, {"path": "file/x"},
        {"kind": "device"}, {"kind": None}, {"mode": -1}, {"mode": 0o4755}, {"mode": "7"},
        {"mode": True}, {"size": -1}, {"size": 1 << 62}, {"size": 1.0}, {"modified": -1},
        {"digest": "abc"}, {"digest": None}, {"digest": "../" * 21 + "x"}, {"kind": "symlink"},
        {"kind": "symlink", "target": ""}, {"kind": "symlink", "target": "a\0b"},
    ],
)  # fmt: skip
def test_records_are_checked(change: dict[str, Any], boxes: Boxes, tmp_path: Path) -> None:
    (tmp_path / "w" / "dir").mkdir(parents=True)
    (tmp_path / "w" / "file").write_text("x")
    (tmp_path / "w" / "link").symlink_to("dir")
    with contextlib.closing(Workspace.open(tmp_path / "w")) as workspace:
        taken = SnapshotStore(tmp_path / "s").create(workspace, Manifest.new())
    raw = json.loads(json.dumps(taken.to_json()))
    assert Snapshot.from_json(raw) == taken
    raw["entries"].append({**raw["entries"][1], "path": "more", **change})
    with pytest.raises(ValueError):  # noqa: PT011 - the words are for people
        Snapshot.from_json(raw)


@pytest.mark.parametrize("use", ["fork", "afork", "restore", "arestore"])
def test_going_on_reads_no_configuration(
    boxes: Boxes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[profiles.small]\npids = 64\nsetup_code = "runs = 1"\n')
    monkeypatch.setenv("RLM_CONTAINERS_CONFIG", str(config))
    monkeypatch.setenv("RLM_CONTAINERS_CPUS", "0.5")
    box = boxes(profile="small")
    taken = box.snapshot()
    config.write_text("this is no TOML")
    monkeypatch.setenv("RLM_CONTAINERS_CPUS", "many")
    monkeypatch.setenv("RLM_CONTAINERS_PROFILE", "none-such")
    if use == "restore":
        other, _ = box, box.restore(taken)
    elif use == "arestore":
        other, _ = box, asyncio.run(box.arestore(taken))
    else:
        other = box.fork() if use == "fork" else asyncio.run(box.afork())
    with contextlib.closing(other):
        assert (other.options.pids, other.options.cpus) == (64, 0.5)
        assert other.options.profile == "small"
        assert run(other, "print(runs)").stdout == "1\n"
