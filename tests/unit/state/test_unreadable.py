"""What is there and cannot be read is refused by name, and nothing is thrown away."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlm_containers import Sandbox
from rlm_containers.errors import SessionError, SessionStateError
from rlm_containers.state import Manifest, SessionStore, Workspace, export_session
from rlm_containers.state.lock import owner_of
from rlm_containers.state.snapshot_store import SnapshotStore
from tests.support import warnings_of
from tests.unit.guests import LocalRuntime
from tests.unit.sessions import Boxes, run

pytestmark = pytest.mark.usefixtures("own_sessions")

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def ids(own_sessions: None) -> tuple[str, str]:
    """The ids of two snapshots of a session "one", which no sandbox has made."""
    path = SessionStore().directory / "one"
    path.mkdir(parents=True)
    made = []
    with contextlib.closing(Workspace.open(path / "workspace")) as workspace:
        for text in (b"first", b"second"):
            workspace.write("file", [text])
            made.append(SnapshotStore(path).create(workspace, Manifest.new()).id)
    Manifest.new().write(path / "manifest.json")
    return made[0], made[1]


def session() -> Path:
    return SessionStore().directory / "one"


def record(snapshot: str) -> Path:
    return session() / "snapshots" / f"{snapshot}.json"


def objects() -> set[str]:
    return {path.name for path in (session() / "objects").rglob("*") if path.is_file()}


def of_a_later_format(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 3}))


def hidden_by_a_directory(path: Path) -> None:
    path.rename(path.with_suffix(".aside"))
    path.mkdir()


def hidden_by_a_fifo(path: Path) -> None:
    path.rename(path.with_suffix(".aside"))
    os.mkfifo(path)


@pytest.mark.parametrize("spoil", [of_a_later_format, hidden_by_a_directory, hidden_by_a_fifo])
def test_a_record_that_cannot_be_read_costs_no_object(
    spoil: object, ids: tuple[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = ids
    before = objects()
    spoil(record(first))  # type: ignore[operator]
    store = SessionStore()
    for refused in (
        lambda: store.restore("one", first),
        lambda: store.fork("one", "two", first),
        lambda: export_session("one", tmp_path / "file"),
    ):
        with pytest.raises(SessionStateError) as caught:
            refused()
        assert str(record(first)) in caught.value.what
        assert caught.value.remedy
    assert [snapshot.id for snapshot in store.snapshots("one")] == [second]
    assert store.inspect("one").snapshots == 2
    assert str(record(first)) in " ".join(r.getMessage() for r in warnings_of(caplog))
    caplog.clear()
    store.remove_snapshot("one", second)
    assert objects() == before
    assert "are all kept" in caplog.text
    export_session("one", tmp_path / "file", snapshots=False)
    assert objects() == before
    store.remove("one")
    assert store.names() == []


def test_a_record_that_can_be_read_again_is_complete(ids: tuple[str, str]) -> None:
    first, second = ids
    whole = record(first).read_text()
    of_a_later_format(record(first))
    SessionStore().remove_snapshot("one", second)
    record(first).write_text(whole)
    SessionStore().restore("one", first)
    assert (session() / "workspace" / "file").read_bytes() == b"first"


#: Does something while only a few more files can be opened: with 0, 1, 2, … of them.
FEW_FILES = """
import os, resource, sys
from rlm_containers.errors import ContainersError
from rlm_containers.state import SessionStore, export_session
import rlm_containers.state.archive
store = SessionStore()
before = {
    (d, f) for d, _, files in os.walk(sys.argv[1]) for f in files if not f.startswith("lock")
}
limit = resource.getrlimit(resource.RLIMIT_NOFILE)
refused = 0
for free in range(12):
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + free, limit[1]))
    try:
        exec(sys.argv[2])
    except ContainersError as error:
        assert "Too many open files" in str(error), error
        refused += 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    after = {(d, f) for d, _, files in os.walk(sys.argv[1]) for f in files}
    assert before <= after, before - after
assert refused, "the limit was never met"
"""


@pytest.mark.parametrize(
    "code",
    [
        "store.snapshots('one')",
        "refused += bool(store.inspect('one').problem)",
        "store.snapshot('one')",
        "export_session('one', sys.argv[3], overwrite=True)",
        "store.restore('one', sys.argv[4])",
        "store.fork('one', f'fork-{free}')",
        "store.sweep(); store.names()",
    ],
)
def test_too_many_open_files_cost_nothing(code: str, ids: tuple[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        (sys.executable, "-c", FEW_FILES, str(session()), code, str(tmp_path / "file"), ids[0]),
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert SessionStore().inspect("one").snapshots == 2


def test_a_manifest_of_a_later_format_is_not_replaced(boxes: Boxes) -> None:
    box = boxes(session="one")
    run(box, "x = 1")
    box.close()
    path = session() / "manifest.json"
    whole = path.read_text()
    of_a_later_format(path)
    later = path.read_text()
    store = SessionStore()
    for refused in (
        lambda: boxes(session="one"),
        lambda: store.snapshot("one"),
        lambda: store.fork("one", "two"),
    ):
        with pytest.raises(SessionStateError, match="format 3"):
            refused()
    assert "format 3" in store.inspect("one").problem
    assert path.read_text() == later
    path.write_text(whole)
    assert boxes(session="one").execute("").locals["x"] == "1"


def test_a_damaged_manifest_is_kept_aside(boxes: Boxes, caplog: pytest.LogCaptureFixture) -> None:
    box = boxes(session="one")
    run(box, "x = 1")
    box.close()
    (session() / "manifest.json").write_text("{")
    boxes(session="one").close()
    assert (session() / "manifest.damaged").read_text() == "{"
    assert "manifest of the session 'one' is lost" in caplog.text


def test_a_lock_that_cannot_be_opened(ids: tuple[str, str], local: LocalRuntime) -> None:
    store = SessionStore()
    store.snapshot("one")  # a missing one is made
    hidden_by_a_directory(session() / "lock")
    for refused in (
        lambda: store.snapshot("one"),
        lambda: store.remove("one"),
        lambda: store.remove_snapshot("one", ids[0]),
        lambda: Sandbox(runtime=local, session="one").start(),
    ):
        with pytest.raises(SessionError) as caught:
            refused()
        assert str(session() / "lock") in caught.value.what
        assert caught.value.remedy
    assert str(session() / "lock") in store.inspect("one").problem
    assert store.names() == ["one"]


def test_what_somebody_may_still_import_is_not_swept(own_sessions: None) -> None:
    store = SessionStore()
    for name in (".imported-abc", ".removed-abc"):
        (store.directory / name / "lock").mkdir(parents=True)
    with pytest.raises(SessionError):
        owner_of(store.directory / ".imported-abc")
    store.sweep()
    assert sorted(os.listdir(store.directory)) == [".imported-abc", ".removed-abc"]


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be another user")
@pytest.mark.parametrize("place", ["snapshots", "objects", "manifest.json", "lock", ""])
def test_another_users_files(place: str, ids: tuple[str, str], tmp_path: Path) -> None:
    program = (
        "import os, sys\nfrom rlm_containers.errors import ContainersError\n"
        "from rlm_containers.state import SessionStore, export_session\n"
        "os.setgid(65534); os.setuid(65534)\nstore = SessionStore()\n"
        "for call in (lambda: store.snapshots('one'), lambda: store.inspect('one'),\n"
        "             lambda: store.snapshot('one'), lambda: store.remove('one'),\n"
        f"             lambda: store.remove_snapshot('one', {ids[0]!r})):\n"
        "    try: call()\n"
        "    except ContainersError as error: print(error)\n"
    )
    SessionStore().snapshot("one")  # makes the lock
    above = session()
    while above != tmp_path.parent.parent.parent:
        above.chmod(0o755)
        above = above.parent
    before = objects()
    for path in session().rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (session() / place).chmod(0o700 if (session() / place).is_dir() else 0o600)
    done = subprocess.run(
        (sys.executable, "-c", program),
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Permission denied" in done.stdout
    assert objects() == before
    assert SessionStore().inspect("one").snapshots == 2
