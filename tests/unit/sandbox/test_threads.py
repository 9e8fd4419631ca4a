"""This project's threads on the host: what waits for them, and what is left of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rlm_containers
from rlm_containers import Sandbox
from rlm_containers.container.bundle import Bundle
from rlm_containers.errors import SandboxError, SandboxLostError
from tests.support import TIMEOUT, eventually
from tests.unit.guests import LocalRuntime, run_python
from tests.unit.sessions import Boxes, run


def ours() -> list[str]:
    """The names of this project's threads."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("rlm-")]


def test_a_start_without_threads_is_an_error_and_leaves_nothing(
    local: LocalRuntime, made_bundle: Bundle, no_threads: Callable[[], None]
) -> None:
    no_threads()
    with pytest.raises(SandboxError, match="could not start a thread") as caught:
        Sandbox(runtime=local).start()
    assert "ulimit -u" in caught.value.remedy
    assert [process.stdin for process in local.processes] == [-1]


def test_without_threads_calls_get_an_error_at_once(
    boxes: Boxes, no_threads: Callable[[], None], route: str
) -> None:
    box = boxes(lm=str.upper, tools={"double": lambda x: 2 * x})
    no_threads()
    said = run(
        box,
        """
        print(llm_query("x"))
        try: double(2)
        except Exception as error: print(error)
        """,
    ).stdout
    assert said.count("could not start a thread") == 2


def test_a_reader_that_dies_ends_the_wait(boxes: Boxes, monkeypatch: pytest.MonkeyPatch) -> None:
    # The memory that a frame takes is the system's to refuse.
    def refuse(self: object, data: bytes) -> list[Any]:
        raise MemoryError

    box = boxes()
    run(box, "import os, signal")
    monkeypatch.setattr("rlm_containers.guest.wire.FrameDecoder.feed", refuse)
    with pytest.raises(SandboxLostError, match="no memory left") as caught:
        box.execute("while True: print('x')")
    assert caught.value.container == box.name


def test_closing_leaves_no_thread(made_bundle: Bundle, route: str, local: LocalRuntime) -> None:
    before = ours()
    with Sandbox(runtime=local, lm=str.upper, tools={"double": lambda x: 2 * x}) as box:
        run(box, "llm_query_batched(['x'] * 20); double(2)")
        assert len(ours()) > len(before)
    assert eventually(lambda: len(ours()) <= len(before), 1.0), ours()


def test_a_function_that_hangs_does_not_keep_a_sandbox_from_closing(
    made_bundle: Bundle, route: str, local: LocalRuntime
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hang(*_: object) -> str:
        begun.set()
        go_on.wait(TIMEOUT)
        return ""

    box = Sandbox(runtime=local, lm=hang, tools={"hang": hang}).start()
    closer = threading.Thread(target=lambda: (begun.wait(TIMEOUT), box.close()))
    closer.start()
    with pytest.raises(SandboxLostError):
        box.execute("import threading\nthreading.Thread(target=hang).start()\nllm_query('x')")
    closer.join(TIMEOUT)
    assert not closer.is_alive()
    go_on.set()


PROGRAM = """
import sys
from rlm_containers import Sandbox
from tests.unit.guests import LocalRuntime
from runtimes import HostRoute
import rlm_containers.sandbox.lifecycle as lifecycle

lifecycle.HOST_ALIAS = "127.0.0.1"
written = open(sys.argv[1], "w")
route = HostRoute(bind="127.0.0.1", address=None) if sys.argv[2] == "http" else None

def answer(prompt):
    return prompt.upper()

def tool():
    return 1

box = Sandbox(runtime=LocalRuntime(route), lm=answer, tools={"tool": tool}).start()
print(box.execute("print(llm_query('a'), tool())").stdout)
written.write("all of it")
if sys.argv[3] == "closed":
    box.close()
"""


@pytest.mark.parametrize("end", ["open", "closed"])
@pytest.mark.parametrize("route", ["pipe", "http"])
def test_a_program_that_ends_at_once_keeps_its_own_files(
    made_bundle: Bundle, tmp_path: Path, route: str, end: str
) -> None:
    top = [str(Path(rlm_containers.__file__).parent.parent)]
    file = tmp_path / "written.txt"
    done = run_python(PROGRAM, str(file), route, end, path=top)
    assert (done.returncode, done.stdout, done.stderr) == (0, "A 1\n\n", "")
    assert file.read_text() == "all of it"
