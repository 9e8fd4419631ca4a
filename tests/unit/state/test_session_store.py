"""Sessions without a sandbox: list, copy, remove, export and import them."""

from __future__ import annotations

import copy
import gzip
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlm_containers import Sandbox
from rlm_containers.container.bundle import Bundle
from rlm_containers.errors import (
    ArchiveError,
    OptionError,
    SessionError,
    SessionInUseError,
    SessionNotFoundError,
    SnapshotNotFoundError,
)
from rlm_containers.state import SessionStore, export_session, import_session, sessions_directory
from tests.support import TIMEOUT
from tests.unit.guests import LocalRuntime
from tests.unit.sessions import Boxes, run

pytestmark = pytest.mark.usefixtures("own_sessions")


@pytest.fixture
def store() -> SessionStore:
    return SessionStore()


@pytest.fixture
def snapshots(boxes: Boxes) -> list[str]:
    """Make a session "one" with many kinds of files, and return the ids of its snapshots."""
    return fill(boxes(session="one"))


def fill(box: Sandbox) -> list[str]:
    box.load("context", "c" * 400_000)
    run(
        box,
        """
        import os
        def double(x): return 2 * x
        x = 1
        os.makedirs("d/e")
        open("d/e/file", "w").write("deep")
        os.symlink("e/file", "d/link")
        os.symlink("../d/e", "d/up")
        os.symlink("/etc/passwd", "out")
        os.mkfifo("fifo")
        """,
    )
    taken = [box.snapshot("first")]
    run(box, "x = 2\nopen('d/e/file', 'w').write('later')")
    taken.append(box.snapshot("second"))
    run(box, "x = 3")
    box.close()
    return taken


def x_of(boxes: Boxes, session: str) -> str:
    box = boxes(session=session)
    try:
        assert box.lost == ()
        return box.execute("").locals["x"]
    finally:
        box.close()


def test_inspecting_a_session(store: SessionStore, boxes: Boxes, snapshots: list[str]) -> None:
    assert store.names() == ["one"]
    info = store.inspect("one")
    assert (info.name, info.path) == ("one", sessions_directory() / "one")
    assert (info.pid, info.snapshots, info.is_current) == (None, 2, True)
    assert info.manifest is not None
    assert {"context", "double", "x"} <= {v.name for v in info.manifest.variables}
    assert info.size is not None
    assert 400_000 < info.size < 420_000
    assert 400_000 < info.snapshots_size < 420_000
    assert [s.id for s in store.snapshots("one")] == snapshots
    box = boxes(session="one")
    assert store.inspect("one").pid == os.getpid()
    box.close()


def test_sessions_that_do_not_exist(store: SessionStore, tmp_path: Path) -> None:
    assert store.names() == []
    for call in (
        lambda: store.inspect("one"),
        lambda: store.remove("one"),
        lambda: store.snapshots("one"),
        lambda: store.snapshot("one"),
        lambda: store.restore("one", "abcd"),
        lambda: store.fork("one", "two"),
        lambda: export_session("one", tmp_path / "x"),
    ):
        with pytest.raises(SessionNotFoundError, match="no session 'one'") as caught:
            call()
        assert caught.value.remedy == "There is none at all."
    assert os.listdir(tmp_path) == []  # nothing has been made


def test_removing(store: SessionStore, boxes: Boxes, snapshots: list[str]) -> None:
    (store.directory / ".removed-by-one-who-died").mkdir()
    (store.directory / ".imported-too" / "workspace").mkdir(parents=True)
    (store.directory / "one" / "workspace" / "d").chmod(0)
    store.remove("one")
    assert os.listdir(store.directory) == []
    assert "x" not in boxes(session="one").execute("").locals


def test_a_session_in_use_is_not_changed(
    store: SessionStore, boxes: Boxes, snapshots: list[str], tmp_path: Path
) -> None:
    box = boxes(session="one")
    calls: list[Callable[[], Any]] = [
        lambda: store.remove("one"),
        lambda: store.snapshot("one"),
        lambda: store.restore("one", snapshots[0]),
        lambda: store.remove_snapshot("one", snapshots[0]),
        lambda: store.fork("one", "two"),
        lambda: export_session("one", tmp_path / "file.tar"),
    ]
    for call in calls:
        with pytest.raises(SessionInUseError) as caught:
            call()
        assert caught.value.pid == os.getpid()
    assert box.execute("").locals["x"] == "3"
    assert (store.names(), store.inspect("one").snapshots) == (["one"], 2)


def test_snapshots(store: SessionStore, boxes: Boxes, snapshots: list[str]) -> None:
    assert store.snapshot("one").id not in snapshots
    store.restore("one", snapshots[0])
    info = store.inspect("one")
    assert info.is_current
    assert x_of(boxes, "one") == "1"
    store.remove_snapshot("one", snapshots[1])
    with pytest.raises(SnapshotNotFoundError):
        store.restore("one", snapshots[1])
    assert [s.note for s in store.snapshots("one")] == ["first", ""]


def test_forking(store: SessionStore, boxes: Boxes, snapshots: list[str]) -> None:
    store.fork("one", "two")
    store.fork("one", "old", snapshots[0][:6])
    assert store.names() == ["old", "one", "two"]
    assert (x_of(boxes, "old"), x_of(boxes, "two"), x_of(boxes, "one")) == ("1", "3", "3")
    assert store.inspect("two").snapshots == 0
    with pytest.raises(SessionError, match="'two' already"):
        store.fork("one", "two")
    with pytest.raises(SnapshotNotFoundError):
        store.fork("one", "three", "0000")
    with pytest.raises(OptionError):
        store.fork("one", "../three")
    assert store.names() == ["old", "one", "two"]
    assert not (store.directory / "three").exists()


@pytest.mark.parametrize("name", ["file.tar", "file.tar.gz", "file.tgz", "file"])
def test_export_and_import(
    store: SessionStore, boxes: Boxes, snapshots: list[str], tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    assert export_session("one", path) == ("fifo", "out")
    assert (path.stat().st_size < 15_000) == (name.endswith("gz"))
    with tarfile.open(path) as archive:  # it is an ordinary tar
        names = archive.getnames()
        assert names[0] == "session.json"
        assert all(member.isfile() for member in archive)
    assert len(names) == len(set(names))
    elsewhere = SessionStore(tmp_path / "elsewhere")
    assert import_session(path, sessions=elsewhere) == "one"
    assert [s.note for s in elsewhere.snapshots("one")] == ["first", "second"]
    assert os.readlink(elsewhere.directory / "one" / "workspace" / "d" / "link") == "e/file"
    assert not os.path.lexists(elsewhere.directory / "one" / "workspace" / "out")
    assert import_session(path, "again") == "again"
    assert x_of(boxes, "again") == "3"
    store.restore("again", store.snapshots("again")[0].id)
    assert x_of(boxes, "again") == "1"
    box = boxes(session="again")
    assert (
        run(box, "print(double(4), open('d/link').read(), len(context))").stdout
        == "8 deep 400000\n"
    )
    # The exported session has not changed.
    assert store.inspect("one").snapshots == 2
    assert x_of(boxes, "one") == "3"


def test_export_without_snapshots(
    store: SessionStore, snapshots: list[str], tmp_path: Path
) -> None:
    export_session("one", tmp_path / "file", snapshots=False)
    import_session(tmp_path / "file", "two")
    assert store.inspect("two").snapshots == 0


def test_files_and_sessions_in_the_way(
    store: SessionStore, snapshots: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(ArchiveError, match="already"):
        export_session("one", path)
    assert path.read_text() == "mine"
    export_session("one", path, overwrite=True)
    with pytest.raises(SessionError, match="'one' already"):
        import_session(path)
    with pytest.raises(ArchiveError, match="could not be exported"):
        export_session("one", tmp_path / "no" / "place")
    with pytest.raises(OptionError):
        import_session(path, "a/b")
    for nothing in (tmp_path / "nothing", tmp_path):
        with pytest.raises(ArchiveError, match="could not be imported"):
            import_session(nothing)
    assert store.names() == ["one"]
    assert sorted(os.listdir(tmp_path)) == ["file", "state"]


def test_a_damaged_object_is_not_exported(
    store: SessionStore, snapshots: list[str], tmp_path: Path
) -> None:
    for path in (store.directory / "one" / "objects").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(SessionError, match="is damaged"):
        export_session("one", tmp_path / "file")
    assert sorted(os.listdir(tmp_path)) == ["state"]


# Archives from strangers


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, made_bundle: Bundle) -> bytes:
    """An archive of the session "one", as bytes."""
    place = tmp_path_factory.mktemp("good")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(place))
        fill(Sandbox(runtime=LocalRuntime(), session="one").start())
        export_session("one", place / "good", snapshots=False)
    return (place / "good").read_bytes()


@pytest.fixture
def members(good: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    """The members of a good archive, with their contents."""
    with tarfile.open(fileobj=io.BytesIO(good)) as archive:
        return [(m, archive.extractfile(m).read()) for m in archive]  # type: ignore[union-attr]


def pack(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for member, data in members:
            archive.addfile(member, io.BytesIO(data))
    return path


def edited(
    members: list[tuple[tarfile.TarInfo, bytes]], change: Callable[[dict[str, Any]], object]
) -> list[tuple[tarfile.TarInfo, bytes]]:
    raw = json.loads(members[0][1])
    change(raw)
    text = json.dumps(raw).encode()
    header = tarfile.TarInfo("session.json")
    header.size = len(text)
    return [(header, text), *members[1:]]


def refused(path: Path, match: str | None, store: SessionStore, **options: Any) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ArchiveError, match=match) as caught:
        import_session(path, "two", **options)
    assert "Nothing has been imported" in caught.value.remedy
    assert os.listdir(store.directory) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_good_archive_is_imported(
    members: list[tuple[tarfile.TarInfo, bytes]], store: SessionStore, tmp_path: Path, boxes: Boxes
) -> None:
    import_session(pack(tmp_path / "packed", members), "two")
    assert x_of(boxes, "two") == "3"


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> Any:
    made = tarfile.TarInfo(name)
    made.size = len(data)
    made.type = kind
    made.linkname = link
    return made, data


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        (member("../../evil", b"x"), "does not belong"),
        (member("/etc/cron.d/evil", b"x"), "does not belong"),
        (member("objects/../../evil", b"x"), "does not belong"),
        (member("objects/" + "0" * 64, b"x"), "does not belong"),
        (member("objects/" + "0" * 64, kind=tarfile.SYMTYPE, link="/etc/passwd"), "no file"),
        (member("objects/" + "0" * 64, kind=tarfile.LNKTYPE, link="session.json"), "no file"),
        (member("objects/" + "0" * 64, kind=tarfile.FIFOTYPE), "no file"),
        (member("objects/" + "0" * 64, kind=tarfile.CHRTYPE), "no file"),
        (member("objects", kind=tarfile.DIRTYPE), "no file"),
        (member("session.json", b"{}"), "does not belong"),
        (member("x" * 200, b"x"), "no file"),  # a long name has a header of its own
    ],
)
def test_members_that_do_not_belong(
    members: list[Any], store: SessionStore, tmp_path: Path, extra: Any, match: str
) -> None:
    refused(pack(tmp_path / "packed", [members[0], extra, *members[1:]]), match, store)
    refused(pack(tmp_path / "packed", [extra, *members]), None, store)
    refused(pack(tmp_path / "packed", [*members, extra]), None, store)
    assert not (tmp_path / "evil").exists()


def test_contents_that_do_not_match(
    members: list[Any], store: SessionStore, tmp_path: Path
) -> None:
    header, data = members[1]
    changed = (header, bytes([data[0] ^ 1]) + data[1:])
    refused(pack(tmp_path / "p", [members[0], changed, *members[2:]]), "does not match", store)
    refused(pack(tmp_path / "p", [members[0], *members[2:]]), "are missing|belong", store)
    refused(pack(tmp_path / "p", [members[0], members[1], *members[1:]]), "belong", store)
    refused(pack(tmp_path / "p", members[1:]), "does not begin with", store)
    refused(pack(tmp_path / "p", []), "does not begin with", store)


def set_entry(number: int, **change: Any) -> Callable[[dict[str, Any]], object]:
    return lambda raw: raw["head"]["entries"][number].update(change)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda raw: raw.update(format=2), "no known format"),
        (lambda raw: raw.update(name="../x"), "no name"),
        (lambda raw: raw.update(name=None), "no name"),
        (lambda raw: raw.update(snapshots=None), "snapshots"),
        (lambda raw: raw.update(snapshots=[{}] * 2000), "snapshots"),
        (lambda raw: raw.update(head=[]), "no known format"),
        (lambda raw: raw["head"].update(manifest=5), "no known format"),
        (lambda raw: raw["head"].update(created="yesterday"), None),
        (lambda raw: raw["head"]["manifest"].update(python="3" * 1000), "text"),
        (lambda raw: raw["head"]["manifest"].update(variables=[5]), "variables"),
        (lambda raw: raw["head"]["manifest"].update(state="x"), "state"),
        (set_entry(0, path="../evil"), "path"),
        (set_entry(0, path="/evil"), "path"),
        (lambda raw: raw["head"]["entries"].append({"path": "d", "kind": "directory"}), "where it should be"),
        (lambda raw: raw["head"]["entries"].append({"path": "z", "kind": "symlink", "target": "/etc"}), "leads out"),
        (lambda raw: raw["head"]["entries"].append({"path": "z", "kind": "symlink", "target": "../x"}), "leads out"),
        (lambda raw: raw["head"]["entries"].append({"path": "z", "kind": "symlink", "target": "d/../../x"}), "leads out"),
        (lambda raw: raw["head"]["entries"].append({"path": "z", "kind": "symlink", "target": ".."}), "leads out"),
        (lambda raw: raw["head"]["entries"].append({"path": "z", "kind": "symlink", "target": "\ud800"}), "no valid target"),
        (lambda raw: raw["head"]["entries"].append({"path": "\ud800", "kind": "directory"}), "has the path"),
        (lambda raw: raw["head"]["entries"].append({"path": "z", "kind": "file", "size": 1 << 60, "digest": "0" * 64}), "are allowed"),
        (lambda raw: raw["head"]["entries"].append({"path": "z", "kind": "file", "size": 3, "digest": "0" * 64}), "missing"),
    ],
)  # fmt: skip
def test_descriptions_that_lie(
    members: list[Any], store: SessionStore, tmp_path: Path, change: Any, match: str | None
) -> None:
    refused(pack(tmp_path / "packed", edited(members, change)), match, store)


def test_descriptions_that_are_not_json(
    members: list[Any], store: SessionStore, tmp_path: Path
) -> None:
    for text in (b"", b"{", b"\xff", b"null", b"[" * 100_000, b"1" * 5000):
        refused(
            pack(tmp_path / "packed", [member("session.json", text), *members[1:]]), None, store
        )


def test_an_archive_that_is_too_large(
    members: list[Any], store: SessionStore, tmp_path: Path
) -> None:
    path = pack(tmp_path / "packed", members)
    refused(path, r"1,000 are allowed \(max_size\)", store, max_size=1000)


@pytest.mark.parametrize("where", ["head", "snapshots"])
def test_entries_that_share_an_object_count_as_often_as_they_are_written(
    members: list[Any], store: SessionStore, tmp_path: Path, where: str
) -> None:
    def multiply(raw: dict[str, Any]) -> None:
        raw["snapshots"] = [copy.deepcopy(raw["head"])]
        tree = raw["head"] if where == "head" else raw["snapshots"][0]
        (big,) = (row for row in tree["entries"] if row.get("size", 0) > 300_000)
        tree["entries"] += [{**big, "path": f"copy-{n}"} for n in range(3_000)]

    path = pack(tmp_path / "packed", edited(members, multiply))
    assert path.stat().st_size < 3_000_000
    refused(path, "are allowed", store, max_size=10**9)


def test_a_description_that_would_take_much_memory(
    members: list[Any], store: SessionStore, tmp_path: Path
) -> None:
    def inflate(raw: dict[str, Any]) -> None:
        row = {"path": "", "kind": "directory", "mode": 448}
        rows = [{**row, "path": f"d{n}"} for n in range(150_000)]
        raw["snapshots"] = [{**raw["head"], "entries": rows}] * 12

    packed = pack(tmp_path / "packed", edited(members, inflate))
    (tmp_path / "bomb").write_bytes(gzip.compress(packed.read_bytes(), 1))
    program = """
import resource, sys
from rlm_containers.errors import ArchiveError
from rlm_containers.state import import_session
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    import_session(sys.argv[1], "two")
except ArchiveError as error:
    print(error.what)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run(
        (sys.executable, "-c", program, str(tmp_path / "bomb")),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    what, mebibytes = done.stdout.splitlines()
    assert "does not begin with session.json" in what or "bytes of memory" in what
    assert int(mebibytes) < 500


def test_a_compressed_archive_that_is_a_bomb(
    members: list[Any], store: SessionStore, tmp_path: Path
) -> None:
    # No more is unpacked than the description announces.
    plain = pack(tmp_path / "packed", members).read_bytes()
    bomb = tarfile.TarInfo("objects/" + "0" * 64)
    bomb.size = 1 << 40
    with gzip.open(tmp_path / "bomb", "wb", compresslevel=1) as file:
        file.write(plain[: plain.rindex(b"objects/") - plain.rindex(b"objects/") % 512])
        file.write(bomb.tobuf(tarfile.GNU_FORMAT))
        for _ in range(64):
            file.write(bytes(1 << 20))
    refused(tmp_path / "bomb", "does not belong", store)


@pytest.mark.parametrize("kept", [0, 1, 100, 511, 512, 5_000, -1025])
def test_an_archive_that_was_cut_off(
    good: bytes, store: SessionStore, tmp_path: Path, kept: int
) -> None:
    (tmp_path / "cut").write_bytes(good[:kept])
    refused(tmp_path / "cut", None, store)


@pytest.mark.parametrize("kept", [1, 10, 100, -1, -9])
def test_a_compressed_archive_that_was_cut_off(
    good: bytes, store: SessionStore, tmp_path: Path, kept: int
) -> None:
    (tmp_path / "cut").write_bytes(gzip.compress(good, 1)[:kept])
    refused(tmp_path / "cut", None, store)


def test_files_that_are_no_archives(store: SessionStore, tmp_path: Path) -> None:
    for data in (b"PK\3\4", os.urandom(100_000), bytes(100_000), b"\x1f\x8b" + os.urandom(1000)):
        (tmp_path / "file").write_bytes(data)
        refused(tmp_path / "file", None, store)
    os.mkfifo(tmp_path / "fifo")
    refused(tmp_path / "fifo", None, store)


def test_a_symbolic_link_in_an_archive_is_not_followed(
    members: list[Any], store: SessionStore, tmp_path: Path, boxes: Boxes
) -> None:
    # A link that stays in the workspace is allowed.
    def change(raw: dict[str, Any]) -> None:
        raw["head"]["entries"].append({"path": "z", "kind": "symlink", "target": "d"})

    import_session(pack(tmp_path / "packed", edited(members, change)), "two")
    assert stat.S_ISLNK(os.lstat(store.directory / "two" / "workspace" / "z").st_mode)
    assert x_of(boxes, "two") == "3"
