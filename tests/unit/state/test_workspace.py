"""The directory behind ``/workspace``, whatever cells have put into it."""

from __future__ import annotations

import contextlib
import os
import resource
import stat
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlm_containers.errors import WorkspaceError
from rlm_containers.state import Workspace, workspaces_directory

ME = (os.getuid(), os.getgid())
ROOT = pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be another user for a while")


@pytest.fixture
def workspace() -> Iterator[Workspace]:
    workspace = Workspace.create("rlm-test", ME)
    yield workspace
    workspace.remove()


def names(workspace: Workspace) -> list[str]:
    return sorted(os.listdir(workspace.path))


def test_it_is_private_and_below_the_cache(workspace: Workspace, private_cache: Path) -> None:
    assert workspace.path.parent == workspaces_directory()
    assert workspace.path.is_relative_to(private_cache)
    assert workspace.path.name == "rlm-test"
    assert stat.S_IMODE(workspace.path.stat().st_mode) == 0o700
    assert names(workspace) == []


def test_an_existing_workspace_is_not_taken_over() -> None:
    # Otherwise the reaper of the second sandbox would remove the directory of the first.
    one = Workspace.create("rlm-test", ME)
    with pytest.raises(WorkspaceError, match="exists"):
        Workspace.create("rlm-test", ME)
    assert one.path.is_dir()
    one.remove()


@ROOT
def test_it_belongs_to_the_user_of_the_container() -> None:
    workspace = Workspace.create("rlm-test", (65534, 65534))
    workspace.write("file", [b"x"])
    for path in (workspace.path, workspace.path / "file"):
        assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65534)
    workspace.remove()


@pytest.mark.parametrize("chunks", [[], [b""], [b"abc"], [b"a", b"", b"bc"], [bytes(5_000_000)]])
def test_what_is_written_is_there(workspace: Workspace, chunks: list[bytes]) -> None:
    whole = b"".join(chunks)
    assert workspace.write("file.txt", chunks) == len(whole)
    assert (workspace.path / "file.txt").read_bytes() == whole
    assert stat.S_IMODE((workspace.path / "file.txt").stat().st_mode) == 0o600
    assert names(workspace) == ["file.txt"]


def test_a_file_is_replaced_whole(workspace: Workspace) -> None:
    workspace.write("file", [b"a long first version"])
    before = (workspace.path / "file").open("rb")
    with before:
        workspace.write("file", [b"second"])
        assert before.read() == b"a long first version"  # a reader sees no change
    assert (workspace.path / "file").read_bytes() == b"second"


def test_directories_on_the_path_are_made(workspace: Workspace) -> None:
    workspace.write("a/b/file", [b"contents"])
    with workspace.read("/workspace/a/b/file") as file:
        assert file.read(file.size) == b"contents"
    assert [node.path for node in workspace.nodes()] == ["a", "a/b", "a/b/file"]


def test_paths_that_take_much_memory_are_not_all_listed(workspace: Workspace) -> None:
    """Each of 200,000 files could have a path of 25,000 characters, which is 5 GB."""
    directory = os.open(workspace.path, os.O_RDONLY)
    for _ in range(99):
        os.mkdir("d" * 250, dir_fd=directory)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = below
    for number in range(2_800):
        os.close(os.open(f"{number:04}" + "f" * 250, os.O_CREAT | os.O_WRONLY, dir_fd=directory))
    os.close(directory)
    with pytest.raises(WorkspaceError, match="characters together"):
        list(workspace.nodes())


@pytest.mark.parametrize("name", ["", ".", "..", "/etc/passwd", "../x", "a/../../x", "a\0b", "x/"])
def test_a_name_that_leads_elsewhere_is_refused(workspace: Workspace, name: str) -> None:
    with pytest.raises(WorkspaceError, match="is not the name of a file"):
        workspace.write(name, [b"x"])
    assert names(workspace) == []


def test_a_name_that_is_too_long_is_refused(workspace: Workspace) -> None:
    with pytest.raises(WorkspaceError, match="File name too long"):
        workspace.write("x" * 300, [b"x"])
    assert names(workspace) == []


@pytest.mark.parametrize("kind", ["file", "dangling", "directory", "device", "itself"])
def test_a_symlink_is_replaced_and_not_followed(
    workspace: Workspace, tmp_path: Path, kind: str
) -> None:
    victim = tmp_path / "victim"
    target = {
        "file": victim,
        "dangling": tmp_path / "new",
        "directory": tmp_path,
        "device": Path("/dev/null"),
        "itself": workspace.path / "file",
    }[kind]
    victim.write_bytes(b"untouched")
    (workspace.path / "file").symlink_to(target)
    workspace.write("file", [b"contents"])
    assert victim.read_bytes() == b"untouched"
    assert sorted(os.listdir(tmp_path)) == ["victim"]
    assert not (workspace.path / "file").is_symlink()
    assert (workspace.path / "file").read_bytes() == b"contents"


def test_a_fifo_is_replaced_and_not_waited_for(workspace: Workspace) -> None:
    os.mkfifo(workspace.path / "file")
    workspace.write("file", [b"contents"])
    assert (workspace.path / "file").read_bytes() == b"contents"


@ROOT
def test_a_device_is_replaced_and_not_written_to(workspace: Workspace) -> None:
    # Containers may not make devices, but somebody else may have put one there.
    os.mknod(workspace.path / "file", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    workspace.write("file", [b"contents"])
    assert (workspace.path / "file").read_bytes() == b"contents"
    os.mknod(workspace.path / "disk", stat.S_IFBLK | 0o666, os.makedev(7, 200))


@pytest.mark.parametrize("name", ["..x", "...", "a..b", "-rf", "*", "a\nb", "\udcff", " ", "~"])
def test_odd_names_are_names_of_files_in_the_workspace(workspace: Workspace, name: str) -> None:
    workspace.write(name, [b"contents"])
    assert names(workspace) == [name]
    assert (workspace.path / name).read_bytes() == b"contents"


def test_a_hard_link_is_replaced_and_not_written_through(workspace: Workspace) -> None:
    victim = workspace.path / "victim"
    victim.write_bytes(b"untouched")
    os.link(victim, workspace.path / "file")
    workspace.write("file", [b"contents"])
    assert victim.read_bytes() == b"untouched"


def test_a_directory_in_the_way_is_an_error(workspace: Workspace) -> None:
    (workspace.path / "file").mkdir()
    with pytest.raises(WorkspaceError, match="directory") as caught:
        workspace.write("file", [b"x"])
    assert "in the way" in caught.value.remedy
    assert names(workspace) == ["file"]


def test_a_workspace_that_was_moved_is_still_the_one_written_to(
    workspace: Workspace, tmp_path: Path
) -> None:
    # The host has a descriptor of the directory, so that a link in its place is not followed.
    moved = workspace.path.with_name("moved")
    workspace.path.rename(moved)
    workspace.path.symlink_to(tmp_path)
    workspace.write("file", [b"contents"])
    assert os.listdir(tmp_path) == []
    assert (moved / "file").read_bytes() == b"contents"
    workspace.path.unlink()
    moved.rename(workspace.path)


def test_chunks_that_fail_leave_nothing(workspace: Workspace) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"some"
        raise LookupError("no more")

    with pytest.raises(LookupError):
        workspace.write("file", chunks())
    assert names(workspace) == []


def test_a_full_disk_leaves_nothing_and_says_so(workspace: Workspace) -> None:
    workspace.write("file", [b"before"])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(WorkspaceError, match="File too large") as caught:
            workspace.write("file", [bytes(60_000)] * 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "ulimit -f" in caught.value.remedy
    assert names(workspace) == ["file"]
    assert (workspace.path / "file").read_bytes() == b"before"


def test_removing_takes_everything_and_follows_nothing(tmp_path: Path) -> None:
    workspace = Workspace.create("rlm-test", ME)
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_bytes(b"untouched")
    (workspace.path / "a" / "b").mkdir(parents=True)
    (workspace.path / "a" / "b" / "file").write_bytes(b"x")
    (workspace.path / "a" / "link").symlink_to(victim)
    (workspace.path / "dangling").symlink_to("nowhere")
    os.mkfifo(workspace.path / "fifo")
    workspace.remove()
    assert not workspace.path.exists()
    assert (victim / "file").read_bytes() == b"untouched"
    workspace.remove()  # does nothing


def test_removing_a_workspace_that_is_gone() -> None:
    workspace = Workspace.create("rlm-test", ME)
    workspace.path.rmdir()
    workspace.remove()


def test_removing_a_link_in_its_place_does_not_follow_it(tmp_path: Path) -> None:
    workspace = Workspace.create("rlm-test", ME)
    (tmp_path / "file").write_bytes(b"untouched")
    workspace.path.rmdir()
    workspace.path.symlink_to(tmp_path)
    workspace.remove()
    assert (tmp_path / "file").read_bytes() == b"untouched"
    assert not workspace.path.is_symlink()


def test_no_descriptor_is_left() -> None:
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        workspace = Workspace.create("rlm-test", ME)
        workspace.write("file", [b"x"])
        workspace.remove()
    assert os.listdir("/proc/self/fd") == before


def spoil_and_remove(cache: str) -> None:
    """Lock directories, as a cell may, and remove the workspace."""
    os.environ["XDG_CACHE_HOME"] = cache
    workspace = Workspace.create("rlm-test", (os.getuid(), os.getgid()))
    deep = workspace.path / "a" / "b" / "c"
    deep.mkdir(parents=True)
    (deep / "file").write_text("x")
    (deep / "file").chmod(0o400)
    deep.chmod(0o500)
    deep.parent.chmod(0)
    deep.parents[1].chmod(0o500)
    workspace.path.chmod(0o500)
    workspace.remove()
    assert not workspace.path.exists()


def test_directories_that_a_cell_made_unwritable_go_too() -> None:
    # Root may remove anything, so this needs a child process of an ordinary user.
    with tempfile.TemporaryDirectory() as cache:
        Path(cache).chmod(0o777)
        child = os.fork()
        if child == 0:
            try:
                if os.getuid() == 0:
                    os.setgroups([])
                    os.setgid(65534)
                    os.setuid(65534)
                spoil_and_remove(cache)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
    assert status == 0


def test_the_cache_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(WorkspaceError, match="could not be made") as caught:
        Workspace.create("rlm-test", ME)
    assert "XDG_CACHE_HOME" in caught.value.remedy


def test_with_too_many_open_files_nothing_counts_as_missing(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.closing(Workspace.open(tmp_path / "w")) as workspace:
        workspace.write("there", [b"x"])
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
        try:
            with pytest.raises(WorkspaceError, match="Too many open files"):
                workspace.has("there")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert workspace.has("there")
        assert not workspace.has("not there")
