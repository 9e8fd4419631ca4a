"""The limit on all files of a workspace, where the files are a container's."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlm_containers.errors import SandboxLostError, WorkspaceError
from tests.conftest import MakeBox, workspaces_on_disk_of
from tests.support import GROW, Engine, eventually, execute, interpreter_of, printed, set_grace

#: The same as a program of its own, which ignores interrupts.
PROGRAM = """
import os, subprocess, sys
program = 'import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN)' + (
    '\\nfile = open("file", "wb", 0)'
    '\\nfor _ in range(2000): file.write(bytes(1 << 18)); time.sleep(0.002)')
process = subprocess.Popen([sys.executable, '-c', program], start_new_session=True)
"""


@pytest.mark.parametrize("isolation", ["default", "strict"])
def test_a_cell_that_writes_too_much(engine: Engine, make_box: MakeBox, isolation: str) -> None:
    options = {"memory": None, "pids": None} if isolation == "strict" else {}
    box = make_box(workspace_size="32m", isolation=isolation, **options)
    printed(box, GROW + "kept = [1]")
    result = execute(box, "kept.append(2)\ngrow('file')")
    assert (result.status, result.lost) == ("full", ())
    assert "KeyboardInterrupt" in result.stderr
    assert "may take 32 MiB (workspace_size). The cell was interrupted." in result.stderr
    assert box.unsaved == ()
    assert box.execute("import os\nos._exit(1)").lost == ()
    assert printed(box, "import os\nprint(kept, os.remove('file'))") == "[1, 2] None\n"
    printed(box, "with open('file', 'wb') as file: file.write(bytes(1 << 20))")


def test_a_child_process_that_ignores_interrupts(make_box: MakeBox) -> None:
    box = make_box(workspace_size="32m")
    printed(box, "kept = 1")
    set_grace(box, 60.0)  # it is not waited for
    result = box.execute(
        PROGRAM
        + """
while True:
    try: process.wait()
    except BaseException: pass
"""
    )
    assert (result.status, result.lost) == ("killed", ())
    assert "They went on growing after its interrupt, and it was killed." in result.notices
    assert printed(box, "print(kept)") == "1\n"


def test_a_daemon_is_killed_between_cells(make_box: MakeBox) -> None:
    box = make_box(workspace_size="32m")
    printed(box, "kept = 1")
    printed(box, PROGRAM)
    assert eventually(lambda: interpreter_of(box)._conversation._growth is not None)
    result = box.execute("print(kept, [p for p in os.listdir('/proc') if p.isdigit()])")
    assert "What cells had left running was killed." in result.notices[0]
    assert result.stdout.startswith("1 ")
    size = "import os, time\nprint(os.path.getsize('file'))"
    assert printed(box, size) == printed(box, f"time.sleep(0.2)\n{size}")


def test_a_supervisor_that_is_stopped_does_not_help(make_box: MakeBox) -> None:
    box = make_box(workspace_size="32m")
    with pytest.raises(SandboxLostError, match="not even to being killed"):
        execute(
            box,
            GROW
            + """
import os, signal
os.kill(os.getppid(), signal.SIGSTOP)
while True:
    try: grow('file')
    except BaseException: pass
""",
        )


@pytest.fixture
def small_disk(engine: Engine, cache: Path) -> Iterator[Path]:
    """Meanwhile workspaces are on a file system of 128 MB."""
    assert cache
    with workspaces_on_disk_of("128m") as place:
        yield place


def test_the_last_free_space_is_left_to_the_checkpoint(small_disk: Path, make_box: MakeBox) -> None:
    box = make_box(workspace_size="1g", heirs="never")  # an heir has the variables still
    printed(box, GROW + "kept = [1]")
    # Who does not write is not interrupted, however full others make the disk.
    (small_disk / "other").write_bytes(bytes(120 << 20))
    printed(box, "time.sleep(0.3)\nwith open('log', 'w') as log: log.write('a line')")
    (small_disk / "other").unlink()
    slowly = """
with open('file', 'wb', 0) as file:
    file.write(bytes(100 << 20))
    for _ in range(4000):
        file.write(bytes(1 << 16))
        time.sleep(0.004)
"""
    result = box.execute(f"text = 'x' * 1_000_000\nkept.append(2)\n{slowly}")
    assert result.status == "full"
    assert "MiB, and their disk has only" in result.notices[0]
    assert box.unsaved == ()
    assert box.execute("import os\nos._exit(1)").lost == ()
    looked = printed(box, "print(kept, len(text), file.closed, log.closed)")
    assert looked == "[1, 2] 1000000 True True\n"


def test_by_default_half_of_the_disk(small_disk: Path, make_box: MakeBox) -> None:
    box = make_box()
    printed(box, GROW)
    result = execute(box, "grow('file')")
    assert result.status == "full"
    assert "and may take 64 MiB (workspace_size)" in result.notices[0]


def test_a_workspace_on_the_engines_disk(engine: Engine, make_box: MakeBox) -> None:
    box = make_box(workspace="volume", workspace_size="32m")
    names = "--format={{range .Mounts}}{{.Name}}{{end}}"
    volume = engine.run("inspect", names, box.name).stdout.strip()
    assert volume in engine.run("volume", "ls", "--quiet").stdout.split()
    box.load("context", "text " * 100_000)
    box.files.write("dir/file", "data")
    assert printed(box, "print(len(context), open('dir/file').read())") == "500000 data\n"
    assert printed(box, "import os; print(os.getuid() != 0, os.listdir('dir'))").startswith("True")
    printed(box, GROW + "kept = [1]")
    first = box.snapshot()
    result = execute(box, "kept.append(2)\ngrow('grown')")
    assert result.status == "full"
    assert "may take 32 MiB (workspace_size)" in result.stderr
    with pytest.raises(WorkspaceError, match="no room"):
        box.put_file(bytes(40 << 20), "large")
    box.restore(first)
    result = execute(box, "print(kept, sorted(os.listdir()))")  # which may still be told of it
    assert result.stdout == "[1] ['context.txt', 'dir', 'state.dill', 'state.dill.previous']\n"
    box.close()
    assert eventually(lambda: volume not in engine.run("volume", "ls", "--quiet").stdout.split())


def test_a_workspace_in_memory_is_full(make_box: MakeBox) -> None:
    box = make_box(workspace="memory", workspace_size="8m")
    result = execute(box, "x = 1; open('file', 'wb').write(bytes(9_000_000))")
    assert "No space left on device" in result.stderr
    with pytest.raises(WorkspaceError, match="could not be written") as caught:
        box.put_file(bytes(9_000_000), "other")
    assert caught.value.errno == errno.ENOSPC
    assert [variable.name for variable in box.unsaved] == ["*"]  # there is no room for them either
    printed(box, "import os; os.remove('file')")
    assert box.unsaved == ()
    assert printed(box, "print(x, os.listdir())") == "1 ['state.dill']\n"


def test_processes_that_crash_leave_no_core_file(make_box: MakeBox) -> None:
    limit = "import resource\nprint(resource.getrlimit(resource.RLIMIT_CORE)[0])"
    assert printed(make_box(), limit) == "0\n"
    assert (
        printed(
            make_box(
                run_args=[
                    "--ulimit",
                    "core=4096:4096",
                    "--ulimit=nofile=1024:1024",
                    "--ulimit=nproc=1024:1024",
                ]
            ),
            limit,
        )
        == "4096\n"
    )
