"""No space for a checkpoint: the last one stays, and the failure is reported.

Most tests have a cell set RLIMIT_FSIZE in its own interpreter. A write past that limit fails as on
a full disk.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from rlm_containers import Sandbox
from tests.support import on_ci
from tests.unit.sessions import DIE, Boxes, revive, run, settle, workspace_of

#: These tests are of the file: no heir may keep what is lost, or leave out a checkpoint.
OPTIONS = {"heirs": "never"}

LIMIT = """
import resource
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
def limit(soft): resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
"""

# Longer than what a state file keeps in memory before it is written.
LONG = "[f'{i:050}' for i in range(40_000)]"


def unsaved(box: Sandbox) -> Sequence[tuple[str, str]]:
    return [(variable.name, variable.reason) for variable in box.unsaved]


@pytest.fixture
def limited(boxes: Boxes) -> Sandbox:
    """A sandbox with ``limit()`` in it and one saved variable."""
    box = boxes()
    run(box, LIMIT + "keep = [1]")
    settle(box)
    return box


@pytest.mark.parametrize("value", ["list(range(100_000))", LONG, "'x' * 1_000_000"])
def test_the_last_file_stays_and_the_failure_is_reported(
    limited: Sandbox, caplog: pytest.LogCaptureFixture, value: str
) -> None:
    before = (workspace_of(limited) / "state.dill").read_bytes()
    with caplog.at_level(logging.WARNING, logger="rlm_containers"):
        assert run(limited, f"limit(100_000)\nbig = {value}").status == "ok"
        ((name, reason),) = unsaved(limited)
    assert name == "*"
    assert "File too large" in reason
    assert "the checkpoint failed" in caplog.text
    assert (workspace_of(limited) / "state.dill").read_bytes() == before
    assert run(limited, "print(len(big) > 1000)").stdout == "True\n"  # the session goes on


@pytest.mark.parametrize("value", [LONG, "'x' * 1_000_000"])
def test_nothing_half_written_stays_on_the_disk(limited: Sandbox, value: str) -> None:
    # Half a file would take the space that the next checkpoint needs.
    run(limited, f"limit(100_000)\nbig = {value}")
    settle(limited)
    files = [path for path in workspace_of(limited).rglob("*") if path.is_file()]
    assert [path.name for path in files] == ["state.dill"]


@pytest.mark.parametrize("value", [LONG, "'x' * 1_000_000"])
def test_all_is_saved_once_there_is_space(limited: Sandbox, value: str) -> None:
    run(limited, f"limit(100_000)\nbig = {value}")
    assert [name for name, _ in unsaved(limited)] == ["*"]
    run(limited, "limit(hard)")
    assert unsaved(limited) == []
    revive(limited)
    run(limited, f"assert big == {value} and keep == [1]")


def test_all_is_saved_without_the_large_variable(limited: Sandbox) -> None:
    run(limited, "limit(100_000)\nbig = 'x' * 1_000_000\nother = 5")
    assert [name for name, _ in unsaved(limited)] == ["*"]
    run(limited, "del big")
    # What a cell has limited is named, too.
    assert [name for name, _ in unsaved(limited)] == ["resource.RLIMIT_FSIZE"]
    revive(limited, "resource.RLIMIT_FSIZE")
    run(limited, "assert keep == [1] and other == 5")


def test_a_death_after_a_failed_checkpoint_says_what_is_missing(limited: Sandbox) -> None:
    run(limited, f"limit(100_000)\nbig = {LONG}\nkeep.append(2)")
    assert [name for name, _ in unsaved(limited)] == ["*"]
    result = limited.execute(DIE)
    assert result.status == "died"
    # The variables are not those of the last cell.
    assert "lost" in result.stderr
    run(limited, "assert keep == [1] and 'big' not in globals()")


@pytest.mark.parametrize(
    "how",
    [
        "os.unlink('state.dill')",
        "os.rename('target', 'state.dill')",
        "os.unlink('state.dill'); os.symlink('target', 'state.dill')",
    ],
)
def test_a_state_file_that_a_cell_replaced_is_written_again(limited: Sandbox, how: str) -> None:
    target = workspace_of(limited) / "target"
    target.write_bytes(b"untouched")
    run(limited, "import os")
    settle(limited)
    run(limited, how)
    settle(limited)
    assert (workspace_of(limited) / "state.dill").is_file()
    assert not (workspace_of(limited) / "state.dill").is_symlink()
    if target.exists():
        assert target.read_bytes() == b"untouched"
    revive(limited)
    run(limited, "assert keep == [1]")


def test_an_unwritable_directory_is_reported(limited: Sandbox) -> None:
    run(limited, "import os; os.mkdir('state.dill.new')\nx = list(range(1000))")
    settle(limited)
    run(limited, f"y = {LONG}")
    ((name, reason),) = unsaved(limited)
    assert name == "*"
    assert "state.dill.new" in reason
    run(limited, "os.rmdir('state.dill.new')")
    assert unsaved(limited) == []


# The limit of the option disk


def test_a_file_that_grows_too_large(boxes: Boxes) -> None:
    box = boxes(disk="1m")
    result = box.execute("open('x', 'wb').write(bytes(2 << 20))")
    assert (result.status, "File too large" in result.stderr) == ("error", True)
    assert box.execute("import os\nos._exit(1)").status == "died"
    assert "File too large" in box.execute("open('x', 'wb').write(bytes(2 << 20))").stderr


def test_a_checkpoint_may_be_larger_than_any_file(boxes: Boxes) -> None:
    box = boxes(disk="1m")
    box.execute("large = list(range(1_000_000))")
    assert box.unsaved == ()
    revive(box)
    assert box.execute("print(len(large), large[-1])").stdout == "1000000 999999\n"


def test_a_string_that_is_larger_than_any_file_is_reported(boxes: Boxes) -> None:
    box = boxes(disk="1m")
    box.execute("small = 1")
    box.execute("large = 'x' * 2_000_000")
    (unsaved,) = box.unsaved
    assert "File too large" in str(unsaved)
    assert box.execute("print(len(large), small)").stdout == "2000000 1\n"


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file system of 4 MB."""
    if os.getuid() != 0:
        if on_ci():
            pytest.fail("this must run in CI, and needs root to mount a file system")
        pytest.skip("needs root, to mount a small file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(("mount", "-t", "tmpfs", "-o", "size=4m", "none", disk), check=True)
    try:
        yield disk
    finally:
        subprocess.run(("umount", "-l", disk), check=True)


@pytest.fixture
def full(small_disk: Path, private_cache: Path, boxes: Boxes) -> Iterator[Sandbox]:
    """A sandbox whose workspace is on that disk."""
    (private_cache / "rlm-containers" / "workspaces").mkdir(parents=True, exist_ok=True)
    place = private_cache / "rlm-containers" / "workspaces"
    subprocess.run(("mount", "--bind", small_disk, place), check=True)
    try:
        box = boxes(workspace_size=None)
        yield box
        box.close()
    finally:
        subprocess.run(("umount", "-l", place), check=True)


def test_on_a_full_disk_the_previous_file_makes_way(full: Sandbox) -> None:
    # Two of these strings fit on the disk, three do not.
    run(full, "text = 'x' * 1_500_000")
    run(full, "text = 'y' * 1_500_000")
    assert full.unsaved == ()
    run(full, "text = 'z' * 1_500_000\nn = 5")
    assert full.unsaved == ()
    revive(full)
    run(full, "assert text == 'z' * 1_500_000 and n == 5")


def test_a_full_disk_keeps_the_last_file_and_is_reported(full: Sandbox) -> None:
    run(full, "keep = [1]")
    run(full, "import os\nfiller = open('filler', 'wb')")
    run(full, "text = 'x' * 6_000_000\nkeep.append(2)")
    ((name, reason),) = [(variable.name, variable.reason) for variable in full.unsaved]
    assert (name, reason) == ("*", "[Errno 28] No space left on device")
    result = full.execute(DIE)
    assert "lost" in result.stderr
    run(full, "assert keep == [1]\nm = 6")
    revive(full)
    run(full, "assert keep == [1] and m == 6")
