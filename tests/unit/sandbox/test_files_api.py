"""``Sandbox.files``: reading and changing the workspace, whatever cells have put there."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from rlm_containers import Sandbox, WorkspaceFile
from rlm_containers.errors import OptionError, SandboxClosedError, WorkspaceError
from rlm_containers.guest import wire
from tests.unit.guests import LocalRuntime
from tests.unit.sessions import Boxes, run, workspace_of


@pytest.fixture
def place(box: Sandbox) -> Path:
    return workspace_of(box)


def shown(files: tuple[WorkspaceFile, ...]) -> list[tuple[str, str]]:
    return [(file.name, file.kind) for file in files]


def refused(call: Callable[[], object], number: int | None) -> WorkspaceError:
    """The error of a call, which must have that number."""
    with pytest.raises(WorkspaceError) as caught:
        call()
    assert caught.value.errno == number, caught.value
    assert caught.value.container is not None or number is None
    return caught.value


def test_files_are_written_and_read(box: Sandbox) -> None:
    every = bytes(range(256))
    box.files.write("deep/down/data.bin", every)
    box.files.write(PurePosixPath("/workspace/text.txt"), "ä\r\n")
    assert box.files.read("/workspace/deep/down/data.bin") == every
    assert box.files.read_text("text.txt") == "ä\r\n"
    run(box, "assert open('deep/down/data.bin', 'rb').read() == bytes(range(256))")
    run(box, "open('deep/down/more', 'w').write('the directory is the cell\\'s own')")
    box.files.write("text.txt", b"again")
    assert box.files.read_text("text.txt") == "again"


def test_a_file_that_is_replaced_keeps_its_permissions(box: Sandbox, place: Path) -> None:
    box.files.write("tool", "#!/bin/sh\necho one\n")
    (place / "tool").chmod(0o755)
    box.files.write("tool", "#!/bin/sh\necho two\n")
    assert box.files.stat("tool").mode == 0o755
    assert box.command(["./tool"]).stdout == b"two\n"


def test_directories_are_listed(box: Sandbox) -> None:
    assert box.files.list() == ()
    for path in ("b/file", "b/c/d", "a"):
        box.files.write(path, path)
    run(box, "import os; os.symlink('b', 'link'); os.mkfifo('fifo'); x = 'x' * 100_000")
    assert box.unsaved == ()  # the state file is there by now
    top = [("a", "file"), ("b", "directory"), ("fifo", "other"), ("link", "symlink")]
    tops: list[str | PurePosixPath] = [".", "", "/workspace", "/workspace/", PurePosixPath()]
    for top_path in tops:
        assert shown(box.files.list(top_path)) == top
    below = [("b/c", "directory"), ("b/file", "file")]
    assert shown(box.files.list("b")) == shown(box.files.list("/workspace/b/")) == below
    assert shown(box.files.list("b", recursive=True)) == [
        ("b/c", "directory"),
        ("b/c/d", "file"),
        ("b/file", "file"),
    ]
    assert len(box.files.list(recursive=True)) == 7
    assert [file.name for file in box.list_files()] == ["a", "b/c/d", "b/file"]


def test_what_there_is(box: Sandbox, place: Path) -> None:
    box.files.write("d/file", b"12345")
    file = box.files.stat("d/file")
    assert (file.name, file.kind, file.size) == ("d/file", "file", 5)
    assert file.modified == pytest.approx((place / "d/file").stat().st_mtime)
    assert (box.files.stat("d").name, box.files.stat("d/").kind) == ("d", "directory")
    assert box.files.stat(".").kind == "directory"
    (place / "link").symlink_to("/etc/passwd")
    assert box.files.stat("link").kind == "symlink"


def test_directories_are_made(box: Sandbox, place: Path) -> None:
    for _ in range(2):
        box.files.mkdir("a/b/c")
    box.files.mkdir(".")
    assert (place / "a/b/c").is_dir()
    box.files.write("file", b"")
    refused(lambda: box.files.mkdir("file"), errno.EEXIST)
    refused(lambda: box.files.mkdir("file/below"), errno.ENOTDIR)


def test_files_and_trees_are_removed(box: Sandbox, place: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_bytes(b"the host's own")
    box.files.write("tree/deep/file", b"")
    (place / "tree/out").symlink_to(victim)
    (place / "link").symlink_to(victim)
    box.files.write("file", b"")
    for path in ("tree", "link", "file"):
        box.files.remove(path)
    assert [file.name for file in box.files.list()] == []
    assert (victim / "file").read_bytes() == b"the host's own"
    refused(lambda: box.files.remove("file"), errno.ENOENT)


def test_files_and_trees_are_moved(box: Sandbox) -> None:
    box.files.write("tree/file", b"x")
    box.files.write("old", b"old")
    box.files.move("tree", "new/place/tree")
    assert box.files.read("new/place/tree/file") == b"x"
    box.files.move("/workspace/new/place/tree/file", "old")
    assert box.files.read("old") == b"x"
    box.files.mkdir("full/of")
    refused(lambda: box.files.move("old", "full"), errno.EISDIR)
    refused(lambda: box.files.move("new", "full"), errno.ENOTEMPTY)
    refused(lambda: box.files.move("missing", "x"), errno.ENOENT)
    refused(lambda: box.files.move("full", "full/of/itself"), errno.EINVAL)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../x", "a/../../x", "/", "/workspacex", "a\0b", "a\ud800", 3]
)
def test_a_path_that_leads_elsewhere(box: Sandbox, path: Any) -> None:
    calls: list[Callable[[], object]] = [
        lambda: box.files.read(path),
        lambda: box.files.read_text(path),
        lambda: box.files.write(path, b""),
        lambda: box.files.list(path),
        lambda: box.files.stat(path),
        lambda: box.files.mkdir(path),
        lambda: box.files.remove(path),
        lambda: box.files.move(path, "x"),
        lambda: box.files.move("x", path),
    ]
    for call in calls:
        error = refused(call, None)
        if isinstance(path, str):
            assert "Give a path below /workspace, or relative to it" in str(error)


def test_the_workspace_itself_stays(box: Sandbox) -> None:
    for path in (".", "/workspace", ""):
        refused(lambda path=path: box.files.remove(path), None)  # type: ignore[misc]
        refused(lambda path=path: box.files.move(path, "x"), None)  # type: ignore[misc]
        refused(lambda path=path: box.files.write(path, b""), None)  # type: ignore[misc]


@pytest.mark.parametrize("name", sorted(wire.RESERVED))
def test_the_saved_state_stays(box: Sandbox, name: str) -> None:
    box.files.write("x", b"")
    calls: list[Callable[[], object]] = [
        lambda: box.files.write(name, b""),
        lambda: box.files.write(f"{name}/x", b""),
        lambda: box.files.mkdir(name),
        lambda: box.files.remove(name),
        lambda: box.files.move("x", name),
        lambda: box.files.move(name, "y"),
    ]
    for call in calls:
        with pytest.raises(WorkspaceError, match="belongs to the saved state"):
            call()


def test_links_are_not_followed(box: Sandbox, place: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_bytes(b"the host's own")
    (place / "link").symlink_to(victim)
    (place / "to-file").symlink_to(victim / "file")
    refused(lambda: box.files.read("link/file"), errno.ENOTDIR)
    refused(lambda: box.files.read("to-file"), errno.EINVAL)
    refused(lambda: box.files.list("link"), errno.ENOTDIR)
    refused(lambda: box.files.stat("link/file"), errno.ENOTDIR)
    refused(lambda: box.files.mkdir("link/new"), errno.ENOTDIR)
    refused(lambda: box.files.remove("link/file"), errno.ENOTDIR)
    refused(lambda: box.files.move("link/file", "mine"), errno.ENOTDIR)
    box.files.write("mine", b"")
    refused(lambda: box.files.move("mine", "link/mine"), errno.ENOTDIR)
    refused(lambda: box.files.write("link/file", b""), errno.ENOTDIR)
    box.files.write("to-file", b"replaced")  # the link, not the file
    assert sorted(os.listdir(victim)) == ["file"]
    assert (victim / "file").read_bytes() == b"the host's own"


def test_what_is_no_file(box: Sandbox, place: Path) -> None:
    box.files.mkdir("directory")
    os.mkfifo(place / "fifo")
    refused(lambda: box.files.read("missing"), errno.ENOENT)
    refused(lambda: box.files.stat("missing"), errno.ENOENT)
    refused(lambda: box.files.list("missing"), errno.ENOENT)
    refused(lambda: box.files.read("directory"), errno.EISDIR)
    refused(lambda: box.files.write("directory", b""), errno.EISDIR)
    refused(lambda: box.files.read("fifo"), errno.EINVAL)
    box.files.write("file", b"")
    refused(lambda: box.files.list("file"), errno.ENOTDIR)
    refused(lambda: box.files.write("file/below", b""), errno.ENOTDIR)


def test_what_cannot_be_read_or_written(box: Sandbox) -> None:
    box.files.write("binary", b"abc\xff")
    with pytest.raises(
        WorkspaceError, match="is no UTF-8 text: invalid start byte at byte 3"
    ) as no:
        box.files.read_text("binary")
    assert "read() returns its bytes" in str(no.value)
    with pytest.raises(WorkspaceError, match="at most 3 are returned"):
        box.files.read("binary", max_size=3)
    with pytest.raises(OptionError):
        box.files.write("x", "\ud800")
    with pytest.raises(OptionError):
        box.files.write("x", 3)  # type: ignore[arg-type]


def test_a_tree_that_is_too_deep(box: Sandbox) -> None:
    run(
        box,
        """
        import os
        for _ in range(3000):
            os.mkdir('d')
            os.chdir('d')
        os.chdir('/')
        """,
    )
    with pytest.raises(WorkspaceError, match="more than 100 deep"):
        box.files.list(recursive=True)
    assert shown(box.files.list()) == [("d", "directory")]
    if sys.version_info < (3, 13):
        with pytest.raises(WorkspaceError, match="rm -rf"):
            box.files.remove("d")
        assert box.command(["rm", "-rf", "d"]).status == "ok"
    else:
        box.files.remove("d")
    assert box.files.list() == ()


def test_the_async_twins(box: Sandbox) -> None:
    async def main() -> None:
        files = box.files
        await files.awrite("a/file", "text")
        assert await files.aread("a/file") == b"text"
        assert await files.aread_text("a/file") == "text"
        assert shown(await files.alist("a", recursive=True)) == [("a/file", "file")]
        assert (await files.astat("a")).kind == "directory"
        await files.amkdir("b")
        await files.amove("a/file", "b/file")
        await files.aremove("a")
        assert shown(await files.alist(recursive=True)) == [("b", "directory"), ("b/file", "file")]

    asyncio.run(main())


def test_files_need_an_open_sandbox(boxes: Boxes, local: LocalRuntime) -> None:
    with pytest.raises(SandboxClosedError):
        Sandbox(runtime=local).files.list()
    box = boxes()
    box.close()
    with pytest.raises(SandboxClosedError):
        box.files.write("x", b"")
