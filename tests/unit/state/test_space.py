"""How much a workspace takes, and when that is too much."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlm_containers.errors import WorkspaceError
from rlm_containers.state import DirectoryMeter, Excess, Space, Workspace, space
from rlm_containers.state.nofollow import opened_directory
from rlm_containers.state.space import Usage, measure

MiB = 1024**2
GiB = 1024**3


def write(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        if size:
            os.posix_fallocate(file.fileno(), 0, size)


@pytest.fixture
def top(tmp_path: Path) -> Path:
    top = tmp_path / "workspace"
    top.mkdir()
    return top


def usage(top: Path) -> Usage:
    with opened_directory(top) as descriptor:
        return measure(descriptor)


# Counting


def test_files_count_by_what_they_take(top: Path) -> None:
    write(top / "a" / "b" / "file", MiB)
    with (top / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    os.link(top / "a" / "b" / "file", top / "same")
    found = usage(top)
    assert found.whole
    assert MiB <= found.files < 1.1 * MiB


def test_nothing_is_followed_or_opened(top: Path, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "file", 8 * MiB)
    (top / "directory").symlink_to(tmp_path / "elsewhere")
    (top / "link").symlink_to(tmp_path / "elsewhere" / "file")
    os.mkfifo(top / "fifo")
    found = usage(top)
    assert found == Usage(files=3 * 4096, state=0, whole=True)


def test_saved_variables_are_counted_apart(top: Path) -> None:
    for name in ("state.dill", "state.dill.previous", "state.dill.new", ".blobs/1", "d/state.dill"):
        write(top / name, MiB)
    found = usage(top)
    assert 4 * MiB <= found.state < 4.1 * MiB
    assert MiB <= found.files < 1.1 * MiB


def test_empty_files_count_too(top: Path) -> None:
    for number in range(100):
        (top / str(number)).touch()
    assert usage(top).files == 100 * 4096


def test_what_is_too_deep_or_too_much_is_left_out_and_said(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = top
    for _ in range(105):
        deep /= "d"
        deep.mkdir()
    descriptors = len(os.listdir("/proc/self/fd"))
    assert not usage(top).whole
    assert len(os.listdir("/proc/self/fd")) == descriptors
    shutil.rmtree(top / "d")
    assert usage(top).whole
    monkeypatch.setattr(space, "MAX_NODES", 9)
    for number in range(10):
        (top / str(number)).touch()
    assert not usage(top).whole


# Looking, on a disk that nobody else uses unless the test says so


class Disk:
    """Answers for the file system of a workspace.

    Attributes:
        size: bytes that the workspace and others have together.
        others: bytes that others take.
        counts: how often the files were counted.
    """

    def __init__(self, top: Path) -> None:
        self.top = top
        self.size = 100 * GiB
        self.others = 0
        self.counts = 0

    def fstatvfs(self, descriptor: int) -> SimpleNamespace:
        used = sum(path.lstat().st_blocks * 512 for path in self.top.rglob("*"))
        blocks = max(0, self.size - used - self.others) // 4096
        return SimpleNamespace(f_bavail=blocks, f_frsize=4096, f_favail=0)

    def measure(self, descriptor: int) -> Usage:
        self.counts += 1
        return measure(descriptor)

    def space(self, size: int | None, state_size: int | None = None) -> Space:
        made = Space(DirectoryMeter(lambda: opened_directory(self.top)), size, state_size)
        self.counts = 0
        return made


@pytest.fixture
def disk(top: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk(top)
    monkeypatch.setattr(os, "fstatvfs", disk.fstatvfs)
    monkeypatch.setattr(space, "measure", disk.measure)
    monkeypatch.setattr(space, "_REST", 0)
    return disk


def excess(space: Space) -> Excess:
    found = space.look()
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("size", "there", "limit"),
    [
        (100 * GiB, 0, 16 * GiB + 4096),
        (10 * GiB, 0, 5 * GiB + 4096),
        (10 * GiB, 2 * MiB, 5 * GiB + MiB),
        (0, 0, MiB + 4096),
    ],
)
def test_by_default_it_is_a_share_of_what_is_free(
    disk: Disk, size: int, there: int, limit: int
) -> None:
    write(disk.top / "there", there)
    disk.size = size
    assert disk.space(None).limit == pytest.approx(limit, abs=8192)


def test_files_are_not_counted_while_there_is_room(disk: Disk) -> None:
    watched = disk.space(64 * MiB)
    for number in range(15):
        write(disk.top / str(number), 4 * MiB)
        assert watched.look() is None
        assert watched.end_cell() is None
    assert disk.counts == 0
    write(disk.top / "more", 8 * MiB)
    assert excess(watched).fact == (
        "The files in the workspace take 68 MiB, and may take 64 MiB (workspace_size)."
    )
    assert disk.counts == 1


def test_what_others_write_does_not_count(disk: Disk) -> None:
    watched = disk.space(8 * MiB)
    for _ in range(20):
        disk.others += 4 * MiB
        assert watched.look() is None
    write(disk.top / "file", 10 * MiB)
    assert "10 MiB" in excess(watched).fact


def test_room_that_others_make_hides_nothing(disk: Disk) -> None:
    disk.others = 50 * GiB
    watched = disk.space(8 * MiB)
    disk.others = 0
    assert watched.look() is None
    write(disk.top / "file", 10 * MiB)
    assert "10 MiB" in excess(watched).fact


def test_only_growth_is_an_excess(disk: Disk) -> None:
    write(disk.top / "old", 10 * MiB)
    watched = disk.space(8 * MiB)
    assert watched.look() is None
    write(disk.top / "log", 4096)
    assert watched.look() is None
    write(disk.top / "new", 2 * MiB)
    assert not excess(watched).far
    assert watched.look() is None
    write(disk.top / "newer", 2 * MiB)
    assert watched.end_cell() is not None
    # The next cell is not to blame.
    assert watched.look() is None
    # Less is never too much, and what was less must not become more again.
    shutil.rmtree(disk.top)
    write(disk.top / "file", 7 * MiB)
    assert watched.look() is None
    write(disk.top / "again", 2 * MiB)
    assert "9 MiB" in excess(watched).fact


def test_past_its_margin_it_is_far(disk: Disk) -> None:
    watched = disk.space(8 * MiB)
    write(disk.top / "a", 70 * MiB)
    assert not excess(watched).far
    write(disk.top / "b", 4 * MiB)
    assert excess(watched).far
    # What a cell has left, no process need be killed for.
    watched.end_cell()
    write(disk.top / "c", 4 * MiB)
    assert not excess(watched).far


def test_the_last_free_space_is_kept_for_checkpoints(disk: Disk) -> None:
    disk.size = 80 * MiB
    watched = disk.space(GiB)
    assert watched.reserve == 10 * MiB
    write(disk.top / "a", 72 * MiB)
    assert watched.look() is None  # others may have taken it meanwhile
    write(disk.top / "b", 2 * MiB)
    found = excess(watched)
    assert re.fullmatch(
        "The files in the workspace take 74 MiB, and their disk has only 6 MiB left.", found.fact
    )
    assert "make room on the disk" in found.remedy
    assert not found.far
    write(disk.top / "c", 2 * MiB)
    assert excess(watched).far


def test_a_disk_that_others_fill_is_not_its_fault(disk: Disk) -> None:
    disk.size = 80 * MiB
    watched = disk.space(GiB)
    disk.others = 76 * MiB
    for number in range(3):
        assert watched.look() is None
        write(disk.top / str(number), MiB)
    assert watched.look() is None


def test_what_cannot_be_counted_may_be_all_that_the_disk_has_lost(disk: Disk) -> None:
    deep = disk.top.joinpath(*["d"] * 105)
    deep.mkdir(parents=True)
    watched = disk.space(8 * MiB)
    write(deep / "file", 7 * MiB)
    assert watched.look() is None
    write(deep / "more", 2 * MiB)
    assert "9" in excess(watched).fact


def test_saved_variables_have_room_of_their_own(disk: Disk) -> None:
    watched = disk.space(8 * MiB, state_size=20 * MiB)
    write(disk.top / "state.dill", 19 * MiB)
    write(disk.top / "file", 7 * MiB)
    assert watched.look() is None
    # But no more than that: a cell can write under their names.
    write(disk.top / ".blobs" / "mine", 4 * MiB)
    assert "10 MiB" in excess(watched).fact


def test_the_less_room_the_shorter_the_pause(disk: Disk) -> None:
    assert disk.space(8 * GiB).pause() == 1.0
    assert 0.4 < disk.space(2 * GiB).pause() < 0.6
    watched = disk.space(GiB)
    assert watched.pause() > 0.2
    disk.others = GiB - MiB
    assert watched.look() is None
    assert watched.pause() == 0.05


# Writes of the host


@pytest.fixture
def workspace(disk: Disk) -> Iterator[Workspace]:
    made = Workspace(disk.top, (os.getuid(), os.getgid()))
    yield made
    made.close()


def test_what_does_not_fit_is_refused_and_leaves_nothing(disk: Disk, workspace: Workspace) -> None:
    workspace.space = disk.space(8 * MiB)
    chunk = bytes(MiB)
    assert workspace.write("a", [chunk] * 5) == 5 * MiB
    with pytest.raises(WorkspaceError, match=r"no room for 'b' .* 8 MiB \(workspace_size\)"):
        workspace.write("b", [chunk] * 4)
    assert os.listdir(disk.top) == ["a"]
    assert workspace.write("b", [chunk] * 3) == 3 * MiB
    with pytest.raises(WorkspaceError, match="no room for 'c'") as caught:
        workspace.write("c", [b"x"])
    assert "raise workspace_size" in caught.value.remedy
    (disk.top / "a").unlink()
    assert workspace.write("c", [b"x"]) == 1


def test_others_take_no_room_from_the_host(disk: Disk, workspace: Workspace) -> None:
    workspace.space = disk.space(8 * MiB)
    disk.others = GiB
    assert workspace.write("a", [bytes(MiB)] * 7) == 7 * MiB


def test_others_who_make_room_give_none_to_the_host(disk: Disk, workspace: Workspace) -> None:
    disk.others = GiB
    workspace.space = disk.space(8 * MiB)

    def chunks() -> Iterator[bytes]:
        for _ in range(16):
            disk.others -= MiB
            yield bytes(MiB)

    with pytest.raises(WorkspaceError, match="no room for 'a'"):
        workspace.write("a", chunks())
    assert os.listdir(disk.top) == []
