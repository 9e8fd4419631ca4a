"""The reaper cleans up if its host process dies, and only then."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlm_containers.container import Reaper
from rlm_containers.state import owner_file
from tests.support import TIMEOUT, eventually
from tests.unit.guests import await_end

REPOSITORY = Path(__file__).parents[3]

# Makes a reaper, prints its process id, and waits to be killed.
OWNER = """
import sys
from pathlib import Path
from rlm_containers.container import Reaper
reaper = Reaper("rlm-test", Path(sys.argv[2]), sys.argv[3:])
if sys.argv[1] != "0":
    reaper.watch(int(sys.argv[1]))
print(reaper.pid, flush=True)
sys.stdin.read()
"""


def owner(
    workspace: Path, *command: str, client: int | None = None
) -> tuple[subprocess.Popen[str], int]:
    """Start a process with a reaper, and return it with the reaper's process id."""
    if client is None:
        gone = subprocess.Popen("true")
        gone.wait()
        client = gone.pid
    process = subprocess.Popen(
        (sys.executable, "-c", OWNER, str(client), str(workspace), *command),
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def ignores(pid: int, number: signal.Signals) -> bool:
    """Whether a process ignores a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    (mask,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigIgn")]
    return bool(int(mask, 16) >> (number - 1) & 1)


def end(process: subprocess.Popen[str], number: int) -> None:
    process.send_signal(number)
    process.communicate(timeout=TIMEOUT)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    workspace = tmp_path / "a workspace"
    (workspace / "deep").mkdir(parents=True)
    (workspace / "deep" / "file").write_text("x")
    (workspace / "link").symlink_to(tmp_path)
    return workspace


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_an_owner_that_is_killed(tmp_path: Path, workspace: Path, number: int) -> None:
    note = tmp_path / "note"
    process, reaper = owner(
        workspace, "/bin/sh", "-c", f'printf "%s\\n" "$@" >{note}', "x", "a b", "c"
    )
    end(process, number)
    assert await_end(reaper)
    assert note.read_text() == "a b\nc\n"
    assert not workspace.exists()
    assert sorted(os.listdir(tmp_path)) == ["note"]  # a link in it was not followed


def test_an_owner_that_ends_without_dismissing_its_reaper(workspace: Path) -> None:
    owner_file(workspace).write_text("whose it is")
    process, reaper = owner(workspace, "true")
    process.communicate(timeout=TIMEOUT)
    assert await_end(reaper)
    assert not workspace.exists()
    assert not owner_file(workspace).exists()


def test_a_remove_command_that_fails_or_is_missing(workspace: Path) -> None:
    for command in ("false", "/no/such/engine"):
        workspace.mkdir(exist_ok=True)
        process, reaper = owner(workspace, command)
        end(process, signal.SIGKILL)
        assert await_end(reaper)
        assert not workspace.exists()


def test_a_workspace_that_is_gone_already(workspace: Path, tmp_path: Path) -> None:
    process, reaper = owner(tmp_path / "nowhere", "true")
    end(process, signal.SIGKILL)
    assert await_end(reaper)
    assert workspace.exists()


def test_a_reaper_ignores_signals(workspace: Path) -> None:
    process, reaper = owner(workspace, "true")
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        assert eventually(functools.partial(ignores, reaper, number))
        os.kill(reaper, number)
    end(process, signal.SIGKILL)
    assert await_end(reaper)
    assert not workspace.exists()


def test_a_reaper_waits_for_the_client(tmp_path: Path, workspace: Path) -> None:
    # It may still be making the container, which cannot be removed before it is there.
    note = tmp_path / "note"
    client = subprocess.Popen(("cat",), stdin=subprocess.PIPE)
    script = f"kill -0 {client.pid} 2>/dev/null && echo running >{note} || echo gone >{note}"
    process, reaper = owner(workspace, "/bin/sh", "-c", script, client=client.pid)
    end(process, signal.SIGKILL)
    client.communicate()  # its input is closed, so it ends
    assert await_end(reaper)
    assert note.read_text() == "gone\n"
    assert not workspace.exists()


def test_a_slow_clients_container_is_removed_again(tmp_path: Path, workspace: Path) -> None:
    # The first removal came too early: the client went on, and made the container after it.
    note = tmp_path / "note"
    client = subprocess.Popen(
        ("sh", "-c", f"cat >/dev/null; until [ -s {note} ]; do sleep 0.05; done"),
        stdin=subprocess.PIPE,
    )
    script = f"kill -0 {client.pid} 2>/dev/null && echo running >>{note} || echo gone >>{note}"
    process, reaper = owner(workspace, "/bin/sh", "-c", script, client=client.pid)
    end(process, signal.SIGKILL)
    client.communicate()
    assert await_end(reaper)
    assert note.read_text() == "running\ngone\n"
    assert not workspace.exists()


def test_a_client_that_was_never_started(workspace: Path) -> None:
    process, reaper = owner(workspace, "true", client=0)
    end(process, signal.SIGKILL)
    assert await_end(reaper)
    assert not workspace.exists()


def test_directories_without_permissions_are_removed(workspace: Path) -> None:
    (workspace / "deep" / "deeper").mkdir()
    (workspace / "deep" / "deeper" / "file").write_text("x")
    (workspace / "deep" / "deeper").chmod(0)
    (workspace / "deep").chmod(0o500)
    process, reaper = owner(workspace, "true")
    end(process, signal.SIGKILL)
    assert await_end(reaper)
    assert not workspace.exists()


def test_a_reaper_has_a_session_of_its_own(workspace: Path) -> None:
    process, reaper = owner(workspace, "true")
    assert os.getsid(reaper) != os.getsid(process.pid)
    end(process, signal.SIGKILL)
    assert await_end(reaper)


def test_a_dismissed_reaper_does_nothing(tmp_path: Path, workspace: Path) -> None:
    note = tmp_path / "note"
    reaper = Reaper("rlm-test", workspace, ("touch", str(note)))
    pid = reaper.pid
    reaper.dismiss()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert workspace.is_dir()
    assert not note.exists()


def test_a_killed_reaper_can_be_dismissed(workspace: Path) -> None:
    reaper = Reaper("rlm-test", workspace, ("true",))
    os.kill(reaper.pid, signal.SIGKILL)
    reaper.dismiss()
    assert workspace.is_dir()


def test_many_reapers_are_dismissed_without_waiting_for_each_other(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    paths = [tmp_path / str(number) for number in range(5)]
    for path in paths:
        path.mkdir()
    reapers = [Reaper(f"rlm-{path.name}", path, ("true",)) for path in paths]
    for reaper in reapers:
        reaper.dismiss()
    assert os.listdir("/proc/self/fd") == before
    assert all(path.is_dir() for path in paths)
