"""A sandbox from start to end, on a runtime that starts a process instead of a container."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from rlm_containers import ContainersError, Sandbox
from rlm_containers.errors import (
    OptionError,
    SandboxClosedError,
    SandboxError,
    SandboxLostError,
    SetupCodeError,
)
from rlm_containers.interpreter import Pipe
from rlm_containers.lm import Gateway
from rlm_containers.sandbox.lifecycle import Lifecycle
from rlm_containers.state import workspaces_directory
from tests.support import TIMEOUT, eventually, set_grace
from tests.unit.guests import LocalRuntime
from tests.unit.sessions import Boxes, revive, run, workspace_of

REPOSITORY = Path(__file__).parents[3]


def test_closing_removes_everything_a_start_makes(local: LocalRuntime) -> None:
    descriptors = os.listdir("/proc/self/fd")
    threads = {
        thread.name for thread in threading.enumerate()
    }  # of an earlier test, which may still end
    with Sandbox(runtime=local) as box:
        (spec,) = local.specs
        directory = workspace_of(box)
        assert spec.name == box.name
        assert directory.is_dir()
        assert directory.parent == workspaces_directory()
        assert box.python_version == ".".join(map(str, sys.version_info[:3]))
        run(box, "open('file', 'w').write('x')")
        assert (directory / "file").read_text() == "x"
    assert not directory.exists()
    assert eventually(lambda: {*os.listdir("/proc/self/fd")} <= {*descriptors})
    assert eventually(lambda: {thread.name for thread in threading.enumerate()} <= threads)
    assert local.removed == []  # the container ended by itself
    for process in local.processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)


def test_every_sandbox_has_its_own_name(boxes: Boxes) -> None:
    assert len({boxes().name for _ in range(3)}) == 3


def test_the_repr_shows_the_state(local: LocalRuntime) -> None:
    box = Sandbox(runtime=local)
    assert "not started" in repr(box)
    with box:
        assert "running" in repr(box)
        assert box.name in repr(box)
    assert "closed" in repr(box)


def test_methods_fail_before_the_start_and_after_the_end(local: LocalRuntime) -> None:
    box = Sandbox(runtime=local)
    for state, match in (("before", "has not been started"), ("after", "was closed")):
        if state == "after":
            box.start().close()
        with pytest.raises(SandboxClosedError, match=match) as caught:
            box.execute("x = 1")
        assert caught.value.container == box.name
        assert "with Sandbox" in caught.value.remedy
        with pytest.raises(SandboxClosedError):
            box.load("x", "text")
        with pytest.raises(SandboxClosedError):
            box.reset_answer()
        with pytest.raises(SandboxClosedError):
            box.unsaved  # noqa: B018
        box.interrupt()  # nothing to interrupt
    with pytest.raises(SandboxClosedError):
        box.start()


def test_starting_twice_starts_once(local: LocalRuntime) -> None:
    with Sandbox(runtime=local) as box:
        assert box.start() is box
        assert len(local.specs) == 1


def test_closing_twice_and_without_a_start(local: LocalRuntime) -> None:
    Sandbox(runtime=local).close()
    box = Sandbox(runtime=local).start()
    box.close()
    box.close()
    assert local.removed == []


def test_a_signal_handler_that_closes_it_again_keeps_the_order(
    local: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = Sandbox(runtime=local).start()
    directory = workspace_of(box)
    end = Pipe.close
    seen = []

    def close(pipe: Pipe, timeout: float) -> None:
        box.close()  # as a signal handler would, while the container still runs
        seen.append(directory.is_dir())
        end(pipe, timeout)

    monkeypatch.setattr(Pipe, "close", close)
    box.close()
    assert seen == [True]
    assert not directory.exists()


def test_an_exception_inside_with_closes_the_sandbox(local: LocalRuntime) -> None:
    with pytest.raises(LookupError), Sandbox(runtime=local) as box:
        directory = workspace_of(box)
        raise LookupError
    assert not directory.exists()


def test_ctrl_c_right_after_the_launch_leaves_nothing(local: LocalRuntime) -> None:
    def trace(frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code is not Lifecycle.start.__code__:
            return None
        if event == "line" and local.processes:  # the first line after the container has started
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    descriptors = os.listdir("/proc/self/fd")
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with pytest.raises(KeyboardInterrupt):
            Sandbox(runtime=local).start()
    finally:
        sys.settrace(before)
    (process,) = local.processes
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
    assert eventually(lambda: {*os.listdir("/proc/self/fd")} <= {*descriptors})
    assert not any(workspaces_directory().iterdir())


def test_sandboxes_do_not_share_anything(boxes: Boxes) -> None:
    one, other = boxes(), boxes()
    run(one, "x = 1; open('file', 'w').write('x')")
    assert "NameError" in other.execute("x").stderr
    assert not (workspace_of(other) / "file").exists()
    one.close()
    run(other, "x = 2")


def test_cells_from_many_threads_take_turns(boxes: Boxes) -> None:
    box = boxes()
    run(box, "total = 0")
    outputs: list[str] = []

    def work(number: int) -> None:
        for _ in range(5):
            outputs.append(box.execute(f"total += 1\nprint({number})").stdout)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert run(box, "print(total)").stdout == "30\n"
    assert sorted(outputs) == sorted(f"{number}\n" for number in range(6) for _ in range(5))


@pytest.mark.parametrize("code", [None, 5, b"x = 1", ["x = 1"]])
def test_code_must_be_a_string(box: Sandbox, code: object) -> None:
    with pytest.raises(OptionError, match="code must be a string"):
        box.execute(code)  # type: ignore[arg-type]
    run(box, "x = 1")


# Setup code


def test_setup_code_runs_first(boxes: Boxes) -> None:
    box = boxes(setup_code="import math\ndef f(): return math.pi")
    assert run(box, "print(int(f()))").stdout == "3\n"
    revive(box)
    assert run(box, "print(int(f()))").stdout == "3\n"


@pytest.mark.parametrize(
    "code", ["1 / 0", "x = (", "import os; os._exit(3)", "raise KeyboardInterrupt"]
)
def test_setup_code_that_fails_fails_the_start(boxes: Boxes, code: str) -> None:
    before = set(workspaces_directory().glob("*"))
    with pytest.raises(SetupCodeError) as caught:
        boxes(setup_code=code)
    assert caught.value.stderr.strip()
    for line in caught.value.stderr.splitlines():
        assert f"\n  | {line}" in str(caught.value)
    assert set(workspaces_directory().glob("*")) == before
    assert "closed" in repr(boxes.made[-1])


def test_setup_code_may_end_early(boxes: Boxes) -> None:
    box = boxes(setup_code="x = 1\nimport sys; sys.exit()\nx = 2")
    assert run(box, "print(x)").stdout == "1\n"


# Failures


def test_a_lost_container_is_an_error_and_is_removed(boxes: Boxes) -> None:
    box = boxes()
    boxes.local.processes[0].kill()
    with pytest.raises(SandboxLostError):
        box.execute("x = 1")
    box.close()
    assert boxes.local.removed == [box.name]  # it did not end by itself


def test_closing_goes_on_if_the_engine_cannot_remove_the_container(
    boxes: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = boxes()
    boxes.local.processes[0].kill()

    def fail(name: str) -> None:
        raise ContainersError("the engine is gone")

    monkeypatch.setattr(boxes.local, "remove", fail)
    directory = workspace_of(box)
    box.close()
    assert not directory.exists()


def test_closing_goes_on_past_an_error_in_one_step(
    boxes: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(gateway: Gateway) -> None:
        raise LookupError("no")

    monkeypatch.setattr(Gateway, "close", fail)
    box = boxes()
    directory = workspace_of(box)
    with pytest.raises(LookupError):
        box.close()
    assert not directory.exists()
    assert "closed" in repr(box)
    box.close()


@pytest.mark.parametrize("heeds", [True, False])
def test_ctrl_c_ends_the_cell_and_keeps_the_session(boxes: Boxes, heeds: bool) -> None:
    box = boxes()
    set_grace(box, 0.3)
    run(box, "kept = 1")

    def ctrl_c(name: str, text: str) -> None:
        raise KeyboardInterrupt

    stubborn = "while True:\n    try: print('x')\n    except BaseException: pass"
    with pytest.raises(KeyboardInterrupt):
        box.execute("while True: print('x')" if heeds else stubborn, on_output=ctrl_c)
    assert run(box, "print(kept)").stdout == "1\n"


def test_close_in_another_thread_ends_a_running_cell(boxes: Boxes) -> None:
    box = boxes()
    running = threading.Event()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            box.execute(
                "print('go', flush=True)\nwhile True: pass",
                on_output=lambda name, text: running.set(),
            )
        except BaseException as error:
            failures.append(error)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    assert running.wait(TIMEOUT)
    closer = threading.Thread(target=box.close, daemon=True)
    closer.start()
    closer.join(TIMEOUT)
    worker.join(TIMEOUT)
    ended = not closer.is_alive() and not worker.is_alive()
    boxes.local.processes[0].kill()  # so that no thread is left if the test fails
    assert ended
    assert isinstance(failures[0], SandboxError)


def test_the_end_of_the_process_closes_the_sandbox(made_bundle: object) -> None:
    program = (
        "from rlm_containers import Sandbox\n"
        "from tests.unit.guests import LocalRuntime\n"
        "box = Sandbox(runtime=LocalRuntime()).start()\n"
        "box.execute('x = 1')\n"
        "print(box.options.runtime.specs[0].mounts[0].source, box.options.runtime.processes[0].pid)"
    )
    done = subprocess.run(
        (sys.executable, "-c", program),
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    directory, pid = done.stdout.split()
    assert not Path(directory).exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
