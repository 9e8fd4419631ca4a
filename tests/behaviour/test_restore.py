"""What comes back when a worker has died: everything, as what it was."""

from __future__ import annotations

import textwrap

import pytest

from rlm_containers import Sandbox
from tests.behaviour.class_values import CLASSES
from tests.behaviour.instance_values import INSTANCES
from tests.behaviour.object_values import OBJECTS
from tests.behaviour.values import Value, assert_seen, define
from tests.support import printed

#: These tests are of the file: no heir may keep what is lost, or leave out a checkpoint.
OPTIONS = {"heirs": "never"}


def kill(box: Sandbox) -> None:
    """Have the interpreter die, and see that nothing was lost with it."""
    result = box.execute("import os; os._exit(1)")
    assert (result.status, result.lost) == ("died", ()), result.stderr


def test_restored_as_what_it_was(fresh: Sandbox) -> None:
    define(fresh)
    kill(fresh)
    assert_seen(fresh)


def test_what_was_restored_is_saved_as_well_as_what_was_made(fresh: Sandbox) -> None:
    define(fresh)
    kill(fresh)
    printed(fresh, "one_more = 1")
    kill(fresh)
    assert_seen(fresh)


@pytest.mark.parametrize(
    "values", [CLASSES, INSTANCES, OBJECTS], ids=["classes", "instances", "objects"]
)
def test_what_pickle_alone_would_lose(fresh: Sandbox, values: tuple[Value, ...]) -> None:
    assert fresh.python_version is not None
    major, minor = fresh.python_version.split(".")[:2]
    possible = [value for value in values if (int(major), int(minor)) >= value.since]
    for value in possible:
        printed(fresh, value.define)
    kill(fresh)
    printed(fresh, "one_more = 1")
    kill(fresh)
    assert_seen(fresh, possible)


def test_source_of_restored_functions(fresh: Sandbox) -> None:
    printed(fresh, "def fail():\n    # explained here\n    return 1 / 0")
    kill(fresh)
    result = fresh.execute("fail()")
    assert result.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert ", line 3, in fail\n" in result.stderr
    assert "rlm_guest" not in result.stderr


def test_deleted_variables_do_not_come_back(fresh: Sandbox) -> None:
    printed(fresh, "a = 1\nb = [2] * 100_000\nc = 'x' * 500_000")
    printed(fresh, "del a, b, c")
    kill(fresh)
    assert printed(fresh, "print({'a', 'b', 'c'} & set(globals()))") == "set()\n"


def test_changes_inside_of_a_variable_are_seen(fresh: Sandbox) -> None:
    # Nothing is bound anew by these.
    printed(
        fresh,
        textwrap.dedent(
            """
            class C: pass
            c, deep, default = C(), {'a': {'b': []}}, lambda v=[]: v
            def f(): return 'old'
            """
        ),
    )
    printed(fresh, "c.x = 1; deep['a']['b'].append(2); default().append(3); C.y = 4; f.z = 5")
    kill(fresh)
    assert printed(fresh, "print(c.x, deep, default(), C().y, f.z)") == (
        "1 {'a': {'b': [2]}} [3] 4 5\n"
    )


def test_changes_by_a_thread_after_the_cell(fresh: Sandbox) -> None:
    printed(
        fresh,
        textwrap.dedent(
            """
            import threading
            go, seen = threading.Event(), []
            worker = threading.Thread(target=lambda: (go.wait(), seen.append('late')))
            worker.start()
            """
        ),
    )
    printed(fresh, "go.set(); worker.join(); del go, worker")
    kill(fresh)
    assert printed(fresh, "print(seen)") == "['late']\n"
