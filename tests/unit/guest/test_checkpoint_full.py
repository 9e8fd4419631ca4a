"""No room for a checkpoint: the one before stays, and it is said that it is not the last.

The limit is the kernel's, RLIMIT_FSIZE, set by a cell in its own interpreter: a write past it fails
as it does on a full disk.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest

from rlm_containers import Sandbox
from tests.unit.sessions import DIE, Boxes, revive, run, settle, workspace_of

LIMIT = """
import resource
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
def limit(soft): resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
"""

# More than is kept in memory until it is written.
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
def test_the_file_before_stays_and_the_failure_is_told(
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
    # What was written of it would take the room that the next checkpoint needs.
    run(limited, f"limit(100_000)\nbig = {value}")
    settle(limited)
    files = [path for path in workspace_of(limited).rglob("*") if path.is_file()]
    assert [path.name for path in files] == ["state.dill"]


@pytest.mark.parametrize("value", [LONG, "'x' * 1_000_000"])
def test_once_there_is_room_all_is_saved(limited: Sandbox, value: str) -> None:
    run(limited, f"limit(100_000)\nbig = {value}")
    assert [name for name, _ in unsaved(limited)] == ["*"]
    run(limited, "limit(hard)")
    assert unsaved(limited) == []
    revive(limited)
    run(limited, f"assert big == {value} and keep == [1]")


def test_without_the_large_variable_all_is_saved(limited: Sandbox) -> None:
    run(limited, "limit(100_000)\nbig = 'x' * 1_000_000\nother = 5")
    assert [name for name, _ in unsaved(limited)] == ["*"]
    run(limited, "del big")
    assert unsaved(limited) == []
    revive(limited)
    run(limited, "assert keep == [1] and other == 5")


def test_a_death_after_that_says_what_is_missing(limited: Sandbox) -> None:
    run(limited, f"limit(100_000)\nbig = {LONG}\nkeep.append(2)")
    assert [name for name, _ in unsaved(limited)] == ["*"]
    result = limited.execute(DIE)
    assert result.status == "died"
    # The variables are not those of the last cell, whatever else the message says.
    assert "lost" in result.stderr
    run(limited, "assert keep == [1] and 'big' not in globals()")


def test_a_state_file_that_a_cell_removed_is_written_again(limited: Sandbox) -> None:
    state = workspace_of(limited) / "state.dill"
    run(limited, "import os")
    settle(limited)
    run(limited, "os.unlink('state.dill')")
    settle(limited)
    assert state.exists()
    revive(limited)
    run(limited, "assert keep == [1]")


def test_a_state_file_that_a_cell_replaced_is_written_again(limited: Sandbox) -> None:
    run(limited, "import os")
    settle(limited)
    run(limited, "open('other', 'w').write('x'); os.replace('other', 'state.dill')")
    revive(limited)
    run(limited, "assert keep == [1]")


def test_a_symlink_in_place_of_the_state_file_is_replaced(limited: Sandbox) -> None:
    target = workspace_of(limited) / "target"
    target.write_bytes(b"untouched")
    run(limited, "import os; os.unlink('state.dill'); os.symlink('target', 'state.dill')\nx = 5")
    revive(limited)
    assert target.read_bytes() == b"untouched"
    assert not (workspace_of(limited) / "state.dill").is_symlink()
    run(limited, "assert x == 5")


def test_an_unwritable_directory_is_reported(limited: Sandbox) -> None:
    run(limited, "import os; os.mkdir('state.dill.new')\nx = list(range(1000))")
    settle(limited)
    run(limited, f"y = {LONG}")
    ((name, reason),) = unsaved(limited)
    assert name == "*"
    assert "state.dill.new" in reason
    run(limited, "os.rmdir('state.dill.new')")
    assert unsaved(limited) == []
