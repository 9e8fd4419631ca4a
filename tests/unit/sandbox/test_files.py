"""Copying files into the workspace and out of it, whatever cells have put there."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path, PurePosixPath

import pytest

from rlm_containers import Sandbox
from rlm_containers.errors import OptionError, SandboxClosedError, WorkspaceError
from tests.unit.guests import LocalRuntime
from tests.unit.sessions import Boxes, run, workspace_of


@pytest.fixture
def place(box: Sandbox) -> Path:
    return workspace_of(box)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_bytes_and_files_are_put(box: Sandbox, tmp_path: Path) -> None:
    before = descriptors()
    assert box.put_file(b"a,b\n1,2\n", "data/deep/table.csv") == "data/deep/table.csv"
    source = tmp_path / "large.bin"
    source.write_bytes(os.urandom(3_000_000))
    assert box.put_file(source) == "large.bin"
    assert box.put_file(str(source), PurePosixPath("/workspace/data/copy.bin")) == "data/copy.bin"
    run(
        box,
        """
        import csv, filecmp
        assert list(csv.reader(open("data/deep/table.csv"))) == [["a", "b"], ["1", "2"]]
        assert filecmp.cmp("large.bin", "data/copy.bin", shallow=False)
        open("data/deep/new.txt", "w").write("the directory is the cell's own")
        """,
    )
    assert box.get_file("data/copy.bin") == source.read_bytes()
    assert descriptors() <= before


def test_files_of_cells_are_fetched(box: Sandbox, tmp_path: Path) -> None:
    before = descriptors()
    run(
        box, "import os; os.mkdir('out')\nopen('out/ü n.bin', 'wb').write(bytes(range(256)) * 9000)"
    )
    whole = bytes(range(256)) * 9000
    assert box.get_file("out/ü n.bin") == whole
    assert box.get_file("/workspace/out/ü n.bin") == whole
    assert box.get_file("out/ü n.bin", tmp_path) == tmp_path / "ü n.bin"
    assert box.get_file(PurePosixPath("out/ü n.bin"), str(tmp_path / "x")) == tmp_path / "x"
    assert box.get_file("out/ü n.bin", tmp_path / "x") == tmp_path / "x"  # replaced
    assert sorted(os.listdir(tmp_path)) == ["x", "ü n.bin"]
    assert (tmp_path / "x").read_bytes() == (tmp_path / "ü n.bin").read_bytes() == whole
    assert descriptors() <= before


def test_files_are_put_and_listed_while_a_cell_runs(box: Sandbox) -> None:
    running = threading.Thread(
        target=box.execute,
        args=(
            "import time, os\nopen('ready', 'w')\nwhile not os.path.exists('go'): time.sleep(.01)",
        ),
    )
    running.start()
    while not [file for file in box.list_files() if file.name == "ready"]:
        pass
    box.put_file(b"", "go")
    running.join(20)
    assert not running.is_alive()


def test_files_are_listed(box: Sandbox) -> None:
    assert box.list_files() == ()
    box.load("context_0", "c" * 10)
    run(
        box,
        "import os\nlong = 'x' * 300_000\nos.makedirs('b/c')\nopen('b/c/z', 'w').write('123')\nopen('a', 'w')",
    )
    run(box, "os.symlink('/etc/passwd', 'link')\nos.mkfifo('fifo')\nos.symlink('/', 'b/root')")
    assert box.unsaved == ()
    found = box.list_files()
    assert [(file.name, file.size) for file in found] == [
        ("a", 0),
        ("b/c/z", 3),
        ("context_0.txt", 10),
    ]
    assert all(
        abs(file.modified - os.stat(workspace_of(box) / file.name).st_mtime) < 1 for file in found
    )


@pytest.mark.parametrize(
    "name",
    ["", ".", "/", "..", "../x", "a/../../x", "a/..", "/etc/passwd", "/workspace", "/workspace/",
     "/workspace/../x", "/workspacex/y", "a\0b", "a/", 5, None, b"x"],
)  # fmt: skip
def test_a_name_that_leads_elsewhere_is_refused(box: Sandbox, name: object) -> None:
    with pytest.raises((WorkspaceError, OptionError)):
        box.put_file(b"x", name)  # type: ignore[arg-type]
    with pytest.raises(WorkspaceError, match="name of a file"):
        box.get_file(name)  # type: ignore[call-overload]
    assert box.list_files() == ()


def test_a_name_is_too_long(box: Sandbox) -> None:
    with pytest.raises(WorkspaceError, match=f"File name too long.*{box.name}"):
        box.put_file(b"x", "x" * 300)
    with pytest.raises(WorkspaceError, match="File name too long"):
        box.get_file("x" * 300)


@pytest.mark.parametrize("name", ["state.dill", "state.dill.previous", ".blobs/00000000"])
def test_the_saved_state_is_not_replaced(box: Sandbox, name: str) -> None:
    with pytest.raises(WorkspaceError, match="saved state"):
        box.put_file(b"x", name)


@pytest.mark.parametrize("what", ["file", "directory", "dangling", "device", "itself"])
def test_links_are_not_followed(box: Sandbox, place: Path, tmp_path: Path, what: str) -> None:
    (tmp_path / "secret").write_text("untouched")
    target = {
        "file": tmp_path / "secret",
        "directory": tmp_path,
        "dangling": tmp_path / "new",
        "device": Path("/dev/zero"),
        "itself": Path("link"),
    }[what]
    run(box, f"import os\nos.symlink({str(target)!r}, 'link')")
    with pytest.raises(WorkspaceError, match="symbolic link"):
        box.get_file("link")
    with pytest.raises(WorkspaceError, match=r"Not a directory|Too many levels"):
        box.get_file("link/secret")
    with pytest.raises(WorkspaceError, match=r"Not a directory|Too many levels"):
        box.put_file(b"x", "link/new")
    box.put_file(b"mine", "link")  # this replaces the link
    assert not (place / "link").is_symlink()
    assert box.get_file("link") == b"mine"
    assert os.listdir(tmp_path) == ["secret"]
    assert (tmp_path / "secret").read_text() == "untouched"


def test_what_is_no_file_is_refused_without_waiting(box: Sandbox) -> None:
    before = descriptors()
    run(
        box,
        "import os, socket\nos.mkfifo('fifo')\nos.mkdir('folder')\ns = socket.socket(socket.AF_UNIX)\ns.bind('socket')\ns.close()\ndel s",
    )
    for name, kind in (("fifo", "a FIFO"), ("folder", "a directory"), ("socket", "a socket")):
        with pytest.raises(WorkspaceError, match=f"is {kind} and not a file"):
            box.get_file(name)
    with pytest.raises(WorkspaceError, match=f"No such file.*{box.name}"):
        box.get_file("nothing")
    with pytest.raises(WorkspaceError, match="Not a directory"):
        box.get_file("fifo/x")
    box.put_file(b"1", "fifo")
    assert box.get_file("fifo") == b"1"
    with pytest.raises(WorkspaceError, match="directory"):
        box.put_file(b"1", "folder")
    assert descriptors() <= before


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to make a device")
def test_devices_are_not_opened(box: Sandbox, place: Path) -> None:
    os.mknod(place / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    with pytest.raises(WorkspaceError, match="is a device and not a file"):
        box.get_file("zero")
    assert box.list_files() == ()


def test_hard_links_are_files_and_not_written_through(box: Sandbox) -> None:
    run(box, "import os\nopen('one', 'w').write('same')\nos.link('one', 'two')")
    assert box.get_file("two") == b"same"
    box.put_file(b"other", "two")
    assert box.get_file("one") == b"same"


def test_huge_files_are_bounded(box: Sandbox, tmp_path: Path) -> None:
    run(box, "with open('huge', 'wb') as f: f.truncate(1 << 43)\nopen('small', 'w').write('12345')")
    with pytest.raises(WorkspaceError, match="8,796,093,022,208 bytes") as caught:
        box.get_file("huge")
    assert "to=" in caught.value.remedy
    with pytest.raises(WorkspaceError, match="has no room for it"):
        box.get_file("huge", tmp_path)
    assert os.listdir(tmp_path) == []
    assert box.get_file("small", max_size=5) == b"12345"
    with pytest.raises(WorkspaceError, match="5 bytes long"):
        box.get_file("small", max_size=4)


def test_too_many_and_too_deep(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    before = descriptors()
    run(box, "import os\nfor _ in range(150): os.mkdir('d'); os.chdir('d')\nos.chdir('/')")
    with pytest.raises(WorkspaceError, match="more than 100 deep"):
        box.list_files()
    monkeypatch.setattr("rlm_containers.state.trees.MAX_NODES", 20)
    with pytest.raises(WorkspaceError, match="more than 20 files"):
        box.list_files()
    assert descriptors() <= before


def test_a_target_that_cannot_be_written(box: Sandbox, tmp_path: Path) -> None:
    box.put_file(b"x", "x")
    with pytest.raises(WorkspaceError, match="could not be copied"):
        box.get_file("x", tmp_path / "no" / "such" / "place")
    (tmp_path / "folder" / "x").mkdir(parents=True)
    with pytest.raises(WorkspaceError, match="could not be copied"):
        box.get_file("x", tmp_path / "folder")
    assert os.listdir(tmp_path / "folder") == ["x"]


def test_errors_name_the_container(box: Sandbox) -> None:
    run(box, "import os\nos.mkdir('directory')\nopen('file', 'w')")
    for name, message in (("missing", "No such file"), ("directory", "is a directory")):
        with pytest.raises(WorkspaceError, match=message) as caught:
            box.get_file(name)
        assert caught.value.container == box.name
    with pytest.raises(WorkspaceError, match="Not a directory") as caught:
        box.put_file(b"x", "file/below")
    assert caught.value.container == box.name
    assert "stands in the way" in caught.value.remedy


def test_sources_that_cannot_be_put(box: Sandbox, tmp_path: Path) -> None:
    before = descriptors()
    os.mkfifo(tmp_path / "fifo")
    for wrong, said in (
        (tmp_path / "nothing", "No such file"),
        (tmp_path, "is not a file"),
        (tmp_path / "fifo", "is not a file"),
        ("/dev/zero", "is not a file"),
        ("a\0b", "cannot be read"),
    ):
        with pytest.raises(OptionError, match=said):
            box.put_file(wrong, "x")
    with pytest.raises(OptionError, match="give name="):
        box.put_file(b"x")
    with pytest.raises(OptionError, match="path or bytes, not int"):
        box.put_file(5, "x")  # type: ignore[arg-type]
    assert box.list_files() == ()
    assert descriptors() <= before


def test_files_need_an_open_sandbox(boxes: Boxes, local: LocalRuntime) -> None:
    box = boxes()
    box.put_file(b"x", "x")
    box.close()
    fresh = Sandbox(runtime=local)
    for closed, how in ((box, "was closed"), (fresh, "has not been started")):
        with pytest.raises(SandboxClosedError, match=how):
            closed.put_file(b"x", "x")
        with pytest.raises(SandboxClosedError, match=how):
            closed.get_file("x")
        with pytest.raises(SandboxClosedError, match=how):
            closed.list_files()
