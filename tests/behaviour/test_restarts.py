"""Containers that are lost, and others that take their places."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from rlm_containers import Sandbox
from rlm_containers.errors import SandboxLostError, WorkspaceError
from tests.conftest import MakeBox
from tests.support import Engine, eventually, execute, printed, skip_on_cluster


@pytest.fixture(params=["shared", "memory"])
def make(engine: Engine, request: pytest.FixtureRequest, make_box: MakeBox) -> MakeBox:
    """Makes sandboxes that may be restarted, with their workspaces in either place."""
    if request.param == "shared":
        skip_on_cluster(engine, "no pod sees files of this host")

    def made(image: str | None = None, **options: Any) -> Sandbox:
        return make_box(image, **{"workspace": request.param, "restarts": 2, **options})

    return made


def lose(box: Sandbox) -> None:
    """Kill the client of the sandbox's container, with which that ends."""
    pipe = box._life.running.interpreter.pipe
    pipe.process.kill()
    assert eventually(lambda: pipe.closed is not None)


def test_the_next_cell_goes_on_in_another_container(make: MakeBox) -> None:
    box = make(durability="sync", lm=str.upper, tools={"twice": lambda x: 2 * x})
    box.load("context", "text " * 100_000)
    printed(box, "x = [1]; open('file', 'w').write('1')")
    box.files.write("other", "2")
    execute(box, "pass")
    lose(box)
    result = box.execute("print(x, len(context), open('file').read(), open('other').read())")
    assert result.stdout == "[1] 500000 1 2\n"
    assert (result.status, result.lost, result.older) == ("ok", (), ())
    assert "Another one goes on with what was saved" in " ".join(result.notices)
    assert printed(box, "print(llm_query('on'), twice(2))") == "ON 4\n"
    assert box.command("echo on").stdout == b"on\n"
    assert box.files.read("file") == b"1"
    box.load("context", "new")
    first = box.snapshot()
    printed(box, "x.append(2)")
    lose(box)
    box.restore(first)
    assert printed(box, "print(x)") == "[1]\n"


def test_a_cell_that_was_running_has_died_and_is_not_run_again(make: MakeBox) -> None:
    box = make(durability="sync")
    printed(box, "runs = 0")

    def on_output(stream: str, text: str) -> None:
        box._life.running.interpreter.pipe.process.kill()

    code = "runs += 1\nprint('begun', flush=True)\nimport time\ntime.sleep(5)"
    result = box.execute(code, on_output=on_output)
    assert (result.status, result.stdout) == ("died", "begun\n")
    assert printed(box, "print(runs)") == "0\n"


def test_the_restarts_are_counted(make: MakeBox) -> None:
    box = make(restarts=1)
    printed(box, "x = 1")
    assert box.unsaved == ()
    lose(box)
    execute(box, "pass")
    lose(box)
    for _ in range(2):
        with pytest.raises(SandboxLostError, match="container is gone"):
            box.execute("pass")


def test_what_may_be_lost_is_named(make: MakeBox) -> None:
    """Nobody knows whether the last answers were saved."""
    box = make()
    printed(box, "kept = 1\nlong = list(range(10_000))")
    printed(box, "long.append(kept)")
    lose(box)
    result = box.execute("print('kept' in globals())")
    assert result.status == "ok"
    assert {"long"} <= {*result.older, *result.lost}


def test_commands_and_files_of_a_lost_container_fail(make: MakeBox) -> None:
    box = make(durability="sync")
    printed(box, "x = 1")
    lose(box)
    with pytest.raises(SandboxLostError):
        box.command("echo")
    assert printed_after_loss(box, "print(x)") == "1\n"
    assert box.command("echo on").stdout == b"on\n"
    with pytest.raises(WorkspaceError) as caught:
        box.files.read("missing")
    assert caught.value.errno == errno.ENOENT


def printed_after_loss(box: Sandbox, code: str) -> str:
    result = box.execute(code)
    assert result.status == "ok", result.stderr
    return result.stdout


def test_an_answer_for_a_lost_container_reaches_no_other(make: MakeBox) -> None:
    """A call that the new container makes has the number of one of the old."""

    def slow(text: str) -> str:
        if text == "first":
            lose(box)
            first.append(text)
            assert eventually(lambda: second, 20)
        else:
            second.append(text)
        return f"for the {text}"

    first: list[str] = []
    second: list[str] = []
    box = make(durability="sync", tools={"slow": slow})
    assert execute(box, "print(slow('first'))").status == "died"
    assert first == ["first"]
    assert printed(box, "print(slow('second'))") == "for the second\n"


def test_a_session_is_restarted(make: MakeBox) -> None:
    with make(session="restarted", durability="sync") as box:
        printed(box, "x = 1")
        lose(box)
        assert printed_after_loss(box, "x += 1; print(x)") == "2\n"
    with make(session="restarted") as box:
        assert printed(box, "print(x)") == "2\n"
