"""The limit on all files of a workspace: who is stopped, how, and what the user is told."""

from __future__ import annotations

import dataclasses
import resource
import threading
from pathlib import Path

import pytest

from rlm_containers import Sandbox
from rlm_containers.errors import SandboxLostError, WorkspaceError
from runtimes import EngineInfo
from tests.support import GROW, execute, interpreter_of, set_grace
from tests.unit.guests import LocalRuntime, await_end
from tests.unit.sessions import Boxes, revive, run, workspace_of

MiB = 1024**2

LIMIT = "32m"

TOLD = r"The files in the workspace take .* MiB, and may take 32 MiB \(workspace_size\)\. "

#: The same as a program of its own.
PROGRAM = """
import subprocess, sys
program = "import time; file = open('file', 'wb', 0)" + 1000 * "; file.write(bytes(1 << 19)); time.sleep(0.002)"
process = subprocess.Popen([sys.executable, '-c', program])
print(process.pid)
"""


@pytest.fixture
def box(boxes: Boxes) -> Sandbox:
    box = boxes(workspace_size=LIMIT)
    run(box, GROW + "kept = ['kept']")
    return box


def size(box: Sandbox) -> int:
    return sum(path.stat().st_size for path in workspace_of(box).rglob("*") if path.is_file())


def test_a_cell_that_writes_too_much_is_interrupted_and_saved(box: Sandbox) -> None:
    result = execute(box, "changed = 'changed'\nkept.append(1)\ngrow('file')")
    assert (result.status, result.exit_code, result.lost) == ("full", 153, ())
    assert result.stderr.startswith("Traceback")
    assert "KeyboardInterrupt" in result.stderr
    (notice,) = result.notices
    assert 32 * MiB < size(box) < 250 * MiB  # of the 500 that it would write
    assert notice.startswith("The files in the workspace take ")
    assert notice.endswith(
        ", and may take 32 MiB (workspace_size). The cell was interrupted. "
        "Remove files from it, or raise workspace_size."
    )
    # Its variables were saved all the same.
    assert box.unsaved == ()
    revive(box)
    run(box, "assert kept == ['kept', 1] and changed == 'changed'")


def test_a_cell_that_handles_its_interrupt_is_full_too(box: Sandbox) -> None:
    result = execute(
        box,
        """
        try:
            grow('file')
        except KeyboardInterrupt:
            print('tidied up')
        """,
    )
    assert (result.status, result.stdout) == ("full", "tidied up\n")
    assert len(result.notices) == 1


def test_then_cells_that_write_nothing_run_and_others_do_not(box: Sandbox) -> None:
    assert execute(box, "grow('file')").status == "full"
    run(box, "time.sleep(0.3)\nwith open('log', 'w') as log: log.write('a line')")
    assert execute(box, "grow('more')").status == "full"
    run(box, "import os\nos.remove('file')\nos.remove('more')")
    run(box, "with open('file', 'wb') as file: file.write(bytes(10 << 20))")
    assert execute(box, "grow('file')").status == "full"


@pytest.mark.parametrize(
    "ignore",
    [
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)",
        """
import subprocess
def grow(name):
    child = subprocess.Popen(['sh', '-c', "trap '' INT; exec dd if=/dev/zero of=file bs=64k count=8000"])
    while child.poll() is None:
        try:
            child.wait()
        except KeyboardInterrupt:
            pass
""",
    ],
)
def test_a_cell_that_goes_on_is_killed(box: Sandbox, ignore: str) -> None:
    set_grace(box, 60.0)  # it is not waited for
    result = execute(box, f"{ignore}\nkept.append(1)\nwhile True: grow('file')")
    assert (result.status, result.lost) == ("killed", ())
    assert "(workspace_size). The cell was interrupted." in result.notices[0]
    assert result.notices[1] == "They went on growing after its interrupt, and it was killed."
    assert run(box, "print(kept)").stdout == "['kept']\n"


def test_what_a_cell_has_left_is_killed_between_cells(box: Sandbox) -> None:
    run(box, "kept.append(1)")
    process = int(run(box, PROGRAM).stdout)
    assert await_end(process)
    result = box.execute("print(kept)")
    assert (result.status, result.stdout) == ("ok", "['kept', 1]\n")
    assert "What cells had left running was killed. Remove files" in result.notices[0]
    assert "was killed by SIGKILL" in result.notices[1]
    assert "time" in result.locals


def test_a_command_that_writes_too_much_is_killed(box: Sandbox) -> None:
    run(box, "kept.append(1)")
    result = box.command("while :; do dd if=/dev/zero bs=64k count=16 2>/dev/null; done >file")
    assert (result.status, result.exit_code) == ("killed", 137)
    (notice,) = result.notices
    assert "(workspace_size). The command was killed. Remove files" in notice
    after = box.execute("print(kept)")  # the worker lives
    assert (after.status, after.stdout, after.lost) == ("ok", "['kept', 1]\n", ())


def test_a_thread_that_a_cell_has_left_is_killed_between_cells(box: Sandbox) -> None:
    run(box, "import threading\nkept.append(1)")
    assert box.unsaved == ()
    # The file is that of a program that tells by its end when the worker is killed.
    process = int(
        run(
            box,
            """
            import os, subprocess
            process = subprocess.Popen(['sleep', '1000'])
            print(process.pid)
            thread = threading.Thread(target=grow, args=('file',), daemon=True)
            thread.start()
            del thread, process
            """,
        ).stdout
    )
    assert await_end(process)
    result = box.execute("print(kept)")
    assert (result.status, result.stdout, result.lost) == ("ok", "['kept', 1]\n", ())
    assert "What cells had left running was killed." in result.notices[0]


def test_a_supervisor_that_is_stopped_does_not_help(box: Sandbox) -> None:
    set_grace(box, 1.0)
    interpreter_of(box).deadlines.kill_timeout = 0.5
    with pytest.raises(SandboxLostError, match="not even to being killed"):
        execute(
            box,
            """
            import os, signal
            os.kill(os.getppid(), signal.SIGSTOP)
            for _ in range(20):
                try:
                    grow('file')
                except BaseException:
                    pass
            """,
        )
    assert box.options.runtime.removed == [box.name]  # type: ignore[union-attr]


def test_many_files_and_files_out_of_sight_count(box: Sandbox) -> None:
    result = execute(
        box,
        """
        import os
        for _ in range(105):
            os.mkdir('d')
            os.chdir('d')
        grow('file')
        """,
    )
    assert result.status == "full"


def test_a_cell_that_is_faster_is_told_at_its_end(box: Sandbox) -> None:
    result = execute(
        box,
        """
        import os
        with open('file', 'wb') as file:
            os.posix_fallocate(file.fileno(), 0, 60 << 20)
        """,
    )
    assert result.status in ("ok", "full")
    assert result.notices[0].startswith("The files in the workspace take 60 MiB")
    assert len(result.notices) == 1
    run(box, "x = 1")


def test_files_of_the_host_are_refused(box: Sandbox, tmp_path: Path) -> None:
    assert box.put_file(bytes(20 * MiB), "file") == "file"
    with pytest.raises(WorkspaceError, match=r"no room for 'more'.*32 MiB \(workspace_size\)") as a:
        box.put_file(bytes(20 * MiB), "more")
    (tmp_path / "source").write_bytes(bytes(20 * MiB))
    with pytest.raises(WorkspaceError, match="no room for 'source'"):
        box.put_file(tmp_path / "source")
    with pytest.raises(WorkspaceError, match="no room for 'context.txt'") as b:
        box.load("context", "x" * 20 * MiB)
    for caught in (a, b):
        assert caught.value.container == box.name
        assert "raise workspace_size" in caught.value.remedy
    assert [file.name for file in box.list_files()] == ["file"]
    run(box, "import os\nos.remove('file')")
    box.load("context", "x" * 20 * MiB)
    assert run(box, "print(len(context))").stdout == f"{20 * MiB}\n"


class Machine(LocalRuntime):
    """A runtime that says how much memory there is."""

    def info(self) -> EngineInfo:
        return dataclasses.replace(super().info(), memory=1024 * MiB)


def test_variables_have_room_of_their_own() -> None:
    with Sandbox(runtime=Machine(), workspace_size="1m") as box:
        for letter in "xyz":
            run(box, f"text = {letter!r} * 20_000_000")
            assert box.unsaved == ()
        run(box, "import time\ntime.sleep(0.2)\nassert text[0] == 'z'")
        revive(box)
        run(box, "assert text[0] == 'z'")


def test_a_session_that_has_more_can_start_and_make_room(boxes: Boxes) -> None:
    box = boxes(session="one", workspace_size=None)
    run(box, "with open('file', 'wb') as file: file.write(bytes(40 << 20))")
    box.close()
    box = boxes(session="one", workspace_size=LIMIT)
    run(box, GROW + "time.sleep(0.2)")
    assert execute(box, "grow('more')").status == "full"
    run(box, "import os\nos.remove('file')\nos.remove('more')")
    box.put_file(bytes(MiB), "new")


def test_without_a_limit_nobody_watches(boxes: Boxes) -> None:
    box = boxes(workspace_size=None)
    assert not [thread for thread in threading.enumerate() if "rlm-space" in thread.name]
    run(box, "with open('file', 'wb') as file: file.write(bytes(40 << 20))")


def test_nobody_watches_after_the_end(box: Sandbox) -> None:
    def watching() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if box.name in thread.name]

    assert any("rlm-space" in thread.name for thread in watching())
    box.close()
    assert watching() == []


def test_processes_that_crash_leave_no_core_file(boxes: Boxes) -> None:
    code = "import resource\nprint(resource.getrlimit(resource.RLIMIT_CORE)[0])"
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    try:
        box = boxes()
        assert run(box, code).stdout == "0\n"
        assert box.execute("import os\nos.abort()").status == "died"
        assert run(box, code).stdout == "0\n"
        assert box.list_files() == ()
        # The limit of a user who sets one holds.
        theirs = boxes(run_args=["--ulimit", "core=4096"])
        assert run(theirs, code).stdout == f"{before[1]}\n"
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)
