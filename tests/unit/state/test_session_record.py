"""Whether a session is ready, and sessions that cannot be read: listed, removed, never guessed."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rlm_containers.errors import SessionError, SessionStateError, SetupCodeError
from rlm_containers.state import SessionStore, export_session, import_session, sessions_directory
from tests.unit.sessions import Boxes, run

pytestmark = pytest.mark.usefixtures("own_sessions")


@pytest.fixture
def store() -> SessionStore:
    return SessionStore()


@pytest.fixture
def one(boxes: Boxes) -> Path:
    """The directory of a session "one" with a snapshot."""
    box = boxes(session="one")
    run(box, "x = 1")
    box.snapshot("first")
    box.close()
    return sessions_directory() / "one"


def state(directory: Path) -> object:
    return json.loads((directory / "session.json").read_text())["state"]


def test_a_session_is_ready_after_its_setup_code(boxes: Boxes) -> None:
    directory = sessions_directory() / "one"
    seen = []
    code = "print('in the setup')"

    with pytest.raises(SetupCodeError):
        boxes(session="one", setup_code="raise ValueError")
    assert not directory.exists()
    box = boxes(session="one", setup_code=code)
    seen.append(state(directory))
    box.close()
    assert seen == ["ready"]


def test_a_start_that_fails_keeps_what_a_session_has(
    boxes: Boxes, store: SessionStore, one: Path
) -> None:
    boxes.local.programs += [("/bin/sh", "-c", "exit 3")]
    with pytest.raises(Exception, match="status 3"):
        boxes(session="one")
    assert boxes(session="one").execute("x").locals["x"] == "1"
    assert len(store.snapshots("one")) == 1


def test_a_missing_workspace_is_an_error_and_a_snapshot_brings_it_back(
    boxes: Boxes, store: SessionStore, one: Path
) -> None:
    shutil.rmtree(one / "workspace")
    for attempt in (
        lambda: boxes(session="one"),
        lambda: store.snapshot("one"),
        lambda: store.fork("one", "two"),
        lambda: export_session("one", one.parent.parent / "one.tar"),
    ):
        with pytest.raises(SessionStateError, match="The workspace of the session 'one' is miss"):
            attempt()
    info = store.inspect("one")
    assert (info.size, info.snapshots) == (None, 1)
    assert "is missing" in info.problem
    assert not (one / "workspace").exists()
    store.restore("one", store.snapshots("one")[0].id)
    assert boxes(session="one").execute("x").locals["x"] == "1"


def test_a_session_of_an_early_version_has_no_record(
    boxes: Boxes, store: SessionStore, one: Path
) -> None:
    (one / "session.json").unlink()
    assert store.names() == ["one"]
    shutil.rmtree(one / "workspace")  # its snapshots are worth keeping
    assert store.names() == ["one"]
    with pytest.raises(SessionStateError, match="is missing"):
        boxes(session="one")
    assert len(store.snapshots("one")) == 1


def test_a_record_of_a_later_version_is_refused_and_stays(
    boxes: Boxes, store: SessionStore, one: Path
) -> None:
    later = json.dumps({"format": 99, "state": "improved"})
    (one / "session.json").write_text(later)
    for attempt in (lambda: boxes(session="one"), lambda: store.fork("other", "one")):
        with pytest.raises(SessionError):
            attempt()
    assert store.names() == ["one"]
    store.sweep()
    assert (one / "session.json").read_text() == later
    store.remove("one")
    assert store.names() == []


# Workspaces in any shape


def deep(top: Path, levels: int) -> None:
    descriptor = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=descriptor)
        inner = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)


def odd(top: Path) -> None:
    os.mkfifo(top / "fifo")
    os.mknod(top / "socket", stat.S_IFSOCK | 0o600)
    (top / ("n" * 255)).touch()
    with open(os.fsencode(top) + b"/\xff\xfe\n\x1b[31m", "wb"):
        pass
    (top / "loop").symlink_to("loop")


def unlocked(top: Path) -> None:
    (top / "dir").mkdir()
    (top / "dir" / "file").touch()
    (top / "dir").chmod(0)
    top.chmod(0)


def replaced(top: Path) -> None:
    shutil.rmtree(top)
    top.symlink_to("/")


SHAPES: dict[str, Callable[[Path], None]] = {
    "105 levels": lambda top: deep(top, 105),
    "5,000 levels": lambda top: deep(top, 5000),
    "locked": unlocked,
    "odd files": odd,
    "a link": replaced,
    "gone": shutil.rmtree,
    "the state is a directory": lambda top: [
        (top / "state.dill").unlink(),
        (top / "state.dill").mkdir(),
    ][-1],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_session_is_listed_and_can_be_removed(
    store: SessionStore, one: Path, shape: str
) -> None:
    store.fork("one", "two")
    SHAPES[shape](one / "workspace")
    found = {name: store.inspect(name) for name in store.names()}
    assert set(found) == {"one", "two"}
    assert found["two"].problem == ""
    assert (found["one"].size is None) == bool(found["one"].problem)
    store.remove("one")
    assert store.names() == ["two"]
    assert {path.name for path in store.directory.iterdir()} == {"two"}


# Several processes, and permissions


def test_what_another_importer_has_under_way_is_left_alone(
    store: SessionStore, one: Path, tmp_path: Path
) -> None:
    export_session("one", tmp_path / "one.tar")
    read, write = os.pipe()
    fifo = tmp_path / "held"
    os.mkfifo(fifo)
    child = os.fork()
    if child == 0:  # an importer that is held in the middle
        status = 1
        try:
            from rlm_containers.state import archive

            lay_out = archive.SnapshotStore.lay_out

            def held(*args: object, **options: object) -> None:
                os.write(write, b"1")
                fifo.read_bytes()
                lay_out(*args, **options)  # type: ignore[arg-type]

            archive.SnapshotStore.lay_out = held  # type: ignore[method-assign]
            import_session(tmp_path / "one.tar", "slow")
            status = 0
        finally:
            os._exit(status)
    os.read(read, 1)
    import_session(tmp_path / "one.tar", "quick")
    store.sweep()
    fifo.write_bytes(b"go on")
    assert os.waitpid(child, 0)[1] == 0
    assert store.names() == ["one", "quick", "slow"]
    assert len(os.listdir(store.directory)) == 3


@pytest.fixture(params=[0, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_nobody_else_can_read_or_write_what_is_kept(
    boxes: Boxes, store: SessionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "a" / "state"))
    box = boxes(session="one")
    run(box, "x = 1")
    box.snapshot("first")
    box.close()
    archive = tmp_path / "one.tgz"
    export_session("one", archive)
    import_session(archive, "two")
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    for path in (tmp_path / "a").rglob("*"):
        if "workspace" not in path.parts:
            assert stat.S_IMODE(path.lstat().st_mode) & 0o077 == 0, path


def test_a_directory_that_others_could_write_to_is_closed(one: Path, boxes: Boxes) -> None:
    one.parent.chmod(0o777)
    one.chmod(0o777)
    boxes(session="one")
    boxes(session="two")
    assert one.stat().st_mode & 0o022 == one.parent.stat().st_mode & 0o022 == 0
