"""What breaks from outside, and what is left then. See docs/reliability.md for the whole table."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from rlm_containers import Sandbox
from rlm_containers.errors import SandboxLostError, WorkspaceError
from tests.conftest import MakeBox, workspaces_on_disk_of
from tests.support import Engine, assert_gone, eventually, execute, interpreter_of, printed


def kill(engine: Engine, box: Sandbox, whose: str) -> None:
    """SIGKILL the process that a cell calls ``whose``, from outside of the container's programs."""
    pid = int(printed(box, f"import os\nprint(os.{whose}())"))
    assert box.unsaved == ()
    send_signal(engine, box, pid)


def send_signal(engine: Engine, box: Sandbox, pid: int, number: int = 9) -> None:
    code = f"import os; os.kill({pid}, {number})"
    # Not checked: whoever sends it ends with the container, should that be what ends.
    engine.run("exec", box.name, "python3", "-c", code, check=False)


# The worker


def test_a_worker_killed_between_cells(engine: Engine, box: Sandbox) -> None:
    printed(box, "numbers = [1, 2]\ndef total(): return sum(numbers)")
    kill(engine, box, "getpid")
    result = box.execute("print(total(), numbers)")
    # Nothing was lost, not even this cell, and it is said what happened.
    assert (result.status, result.stdout, result.lost) == ("ok", "3 [1, 2]\n", ())
    assert "was killed by SIGKILL" in result.stderr


def test_a_worker_killed_during_a_cell(engine: Engine, box: Sandbox) -> None:
    pid = int(printed(box, "import os, time\nnumbers = [1]\nprint(os.getpid())"))
    inside = threading.Event()
    killer = threading.Thread(
        target=lambda: inside.wait(30) and send_signal(engine, box, pid), daemon=True
    )
    killer.start()
    result = box.execute(
        "numbers.append(2)\nprint('in', flush=True)\ntime.sleep(60)",
        on_output=lambda *_: inside.set(),
    )
    killer.join()
    assert (result.status, result.stdout, result.lost) == ("died", "in\n", ())
    assert printed(box, "print(numbers)") == "[1]\n"


def test_a_worker_killed_right_after_a_cell(box: Sandbox) -> None:
    # At a moment between the answer and a while after the checkpoint; each cell at another one.
    printed(box, "import os, threading, time\nn = 0\nlong = list(range(20_000))")
    assert box.unsaved == ()
    before = 0
    for step in range(12):
        value = step + 1
        result = execute(
            box,
            f"""
            n = {value}
            new_{value} = 1
            long.append(n)
            def die():
                time.sleep({step} / 1500)
                os.kill(os.getpid(), 9)
            threading.Thread(target=die).start()
            """,
        )
        later = box.execute(f"print(n, long[-1], 'new_{value}' in globals())")
        if result.status == "died":  # even before its answer
            assert later.stdout == f"{before} {before or 19_999} False\n"
            continue
        # Acknowledged: it is there, or it is said by name that it is not.
        found = later.stdout
        if later.status != "ok":  # killed in the cell that looks
            assert later.status == "died"
            found = printed(box, f"print(n, long[-1], 'new_{value}' in globals())")
        if found == f"{value} {value} True\n":
            assert (later.lost, later.older) == ((), ())
            before = value
            continue
        assert found == f"{before} {before or 19_999} False\n"
        assert "had not been saved yet and is lost" in later.stderr
        assert f"new_{value}" in later.lost
        assert {"n", "long"} <= set(later.older)


@pytest.mark.parametrize("network", ["bridge", "none"])
def test_a_worker_killed_during_a_question(
    engine: Engine, make_box: MakeBox, network: Literal["bridge", "none"]
) -> None:
    pids: list[int] = []

    def answer(prompt: str) -> str:
        if prompt == "die":
            send_signal(engine, box, pids[-1], 9)
        return prompt.upper()

    box = make_box(lm=answer, network=network)
    pids.append(int(printed(box, "import os\nnumbers = [1]\nprint(os.getpid())")))
    result = execute(box, "numbers.append(2)\nprint(llm_query('die'))\nimport time; time.sleep(60)")
    assert result.status == "died"
    assert "killed by SIGKILL" in result.stderr
    assert (result.lost, result.older) == ((), ())
    assert printed(box, "print(numbers, llm_query('on'))") == "[1] ON\n"


# The supervisor and the container


@pytest.mark.parametrize("number", [9, 15], ids=["SIGKILL", "SIGTERM"])
def test_a_supervisor_killed_from_outside(engine: Engine, make_box: MakeBox, number: int) -> None:
    box = make_box(lm=str.upper)
    pid = int(printed(box, "import os\nprint(os.getppid())"))
    send_signal(engine, box, pid, number)
    with pytest.raises(SandboxLostError, match=box.name):
        for _ in range(1000):
            box.execute("pass")
    with pytest.raises(SandboxLostError):
        box.load("context_0", "text")
    box.close()
    assert_gone(engine, box.name)


@pytest.mark.parametrize("way", ["kill", "stop --time=0", "rm --force"])
def test_a_container_ended_by_somebody_else(engine: Engine, make_box: MakeBox, way: str) -> None:
    box = make_box(lm=str.upper)
    inside = threading.Event()
    ender = threading.Thread(
        target=lambda: inside.wait(30) and engine.run(*way.split(), box.name, check=False)
    )
    ender.start()
    # In the middle of a cell, which is told.
    with pytest.raises(SandboxLostError) as caught:
        box.execute(
            "import time\nprint('in', flush=True)\ntime.sleep(60)",
            on_output=lambda *_: inside.set(),
        )
    ender.join()
    assert caught.value.container == box.name
    assert caught.value.remedy
    box.close()
    assert_gone(engine, box.name)


@pytest.mark.parametrize("way", ["kill", "rm --force"])
def test_another_container_takes_the_place_of_one_that_somebody_ended(
    engine: Engine, make_box: MakeBox, way: str
) -> None:
    box = make_box(lm=str.upper, restarts=1)
    printed(box, "x = [1]; open('file', 'w').write('here')")
    assert box.unsaved == ()
    engine.run(*way.split(), box.name)
    pipe = interpreter_of(box).pipe
    assert eventually(lambda: pipe.closed is not None)
    result = box.execute("print(x, open('file').read(), llm_query('on'))")
    assert (result.status, result.stdout) == ("ok", "[1] here ON\n"), result.stderr
    assert "The container is gone" in result.notices[0]


# The disk


@pytest.fixture
def small_disk(engine: Engine, cache: Path) -> Iterator[Path]:
    """Meanwhile workspaces are on a file system of 8 MB."""
    assert cache
    with workspaces_on_disk_of("8m") as place:
        yield place


def test_a_full_disk(engine: Engine, small_disk: Path, make_box: MakeBox) -> None:
    box = make_box(workspace_size=None)
    printed(box, "keep = [1]")
    assert not box.unsaved
    # A cell that fills it is told so by the system.
    result = execute(
        box,
        """
        keep.append(2)
        file = open('filler', 'wb')
        while True: file.write(bytes(100_000)); file.flush()
        """,
    )
    assert result.status == "error"
    assert "No space left on device" in result.stderr
    printed(box, "new = [str(n) for n in range(100_000)]")
    unsaved = {variable.name: variable.reason for variable in box.unsaved}
    assert list(unsaved) == ["*"]
    assert "No space left on device" in unsaved["*"]
    with pytest.raises(WorkspaceError, match="No space left on device") as caught:
        box.load("context_0", "c" * 5_000_000)
    assert "Make room" in caught.value.remedy
    # What the interpreter has it has; what it loses with its death is said.
    assert printed(box, "print(keep, len(new))") == "[1, 2] 100000\n"
    died = box.execute("import os; os._exit(1)")
    assert died.status == "died"
    assert "could not be saved ([Errno 28] No space left on device) and is lost" in died.stderr
    assert set(died.lost) == {"file", "new"}
    assert died.older == ("keep",)
    assert printed(box, "print(keep[:1])\nimport os; os.remove('filler')") == "[1]\n"
    # With room again all is as before.
    box.load("context_0", "c" * 1_000_000)
    printed(box, "keep.append(3)")
    assert box.unsaved == ()
    assert box.execute("import os; os._exit(1)").lost == ()
    assert printed(box, "print(keep[-1], len(context))") == "3 1000000\n"
    box.close()
    assert list(small_disk.iterdir()) == []


def test_the_supervisors_descriptors_in_a_cells_hands(engine: Engine, make_box: MakeBox) -> None:
    # The cell finds the pipe to the host and speaks in the supervisor's place: whatever it says,
    # the host is fine, the sandbox ends with one clear error, and nothing is left.
    said = {
        "a frame too long": b"\xff\xff\xff\xffm",
        "a call without an end": b"\0\0\0\x08c\0\0\0\1[[[[",
        "an answer to another cell": b'\0\0\0\x1cm{"op": "result", "id": 9999}',
        "no JSON object": b"\0\0\0\2m[]",
        "half a frame": b"\0\0\1\0m{",
    }
    for raw in said.values():
        box = make_box()
        with pytest.raises(SandboxLostError, match="container"):
            execute(
                box,
                f"""
                import os, time
                top = f'/proc/{{os.getppid()}}/fd'
                for name in os.listdir(top):
                    try: os.write(os.open(f'{{top}}/{{name}}', os.O_WRONLY | os.O_NONBLOCK), {raw!r})
                    except OSError: pass
                time.sleep(0.5)
                os.kill(os.getppid(), 9)
                """,
            )
        box.close()
        assert_gone(engine, box.name)


def test_what_no_file_has_survives_the_worker(make_box: MakeBox) -> None:
    box = make_box()

    def survives() -> bool:
        printed(box, "numbers = (n for n in range(100))\nassert next(numbers) == 0")
        printed(box, "import os, sqlite3\ndatabase = sqlite3.connect(':memory:')")
        # Soon after the first heir, the supervisor can have one go on.
        return box.execute("os._exit(1)").lost == ()

    assert eventually(survives)
    assert printed(box, "print(next(numbers), database.total_changes)") == "1 0\n"
    assert box.execute("os._exit(1)").status == "died"
    assert printed(box, "import os; print(os.getpid() > 0)") == "True\n"
