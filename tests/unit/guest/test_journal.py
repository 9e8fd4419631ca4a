"""Trivial cells, and the journal of what they have bound."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

from rlm_containers import Sandbox
from rlm_containers.guest.journal import SIZE, Journal
from rlm_containers.guest.succession import SHARED
from rlm_containers.guest.trivial import ONLY_AST, bound_names, is_plain
from tests.support import eventually
from tests.unit.guest.test_heirs import SLOW, slow_box, state, worker
from tests.unit.sessions import DIE, Boxes, run, settle, workspace_of


def query(prompt: str) -> str:
    return prompt


class Number(int):
    pass


#: The globals of the cells below.
VALUES: dict[str, Any] = {
    "n": 1,
    "text": "text",
    "nothing": None,
    "items": [1, 2],
    "table": {"a": 1},
    "thing": object(),
    "number": Number(3),
    "llm_query": query,
    "rlm_query": print,
    "sum": max,
    "function": lambda: None,
    "context_0": "context",
}
KNOWN = {"llm_query": query, "rlm_query": query}


def found(code: str) -> set[str] | None:
    tree = compile(code, "<cell>", "exec", ONLY_AST)
    return bound_names(tree, VALUES, KNOWN, {"tool"})


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("", ""),
        ("pass", ""),
        ("x = 1", "x"),
        ("x = y = -1.5", "x y"),
        ("x, (y, z) = 1, 'ab'", "x y z"),
        ("n += 1", "n"),
        ("x = n * 2 + len(text) if n > 0 else None", "x"),
        ("x = f'{n:>5} {text!r}'", "x"),
        ("x = [n, (1, {'a': text}), {2}]", "x"),
        ("x = 1\nx = 'other'", "x"),
        ("x = 1\nprint(x, sep='')", "x"),
        ("for i in range(3):\n    if i == n: break\n    x = i\nelse: pass", "i x"),
        ("while n < 3: n += 1", "n"),
        ("x = len(items) + len(table)", "x"),
        ("x = llm_query(f'say {text}')", "x"),
        ("x = sorted([3, n], reverse=True)", "x"),
    ],
)
def test_trivial_cells(code: str, names: str) -> None:
    assert found(code) == set(names.split())


@pytest.mark.parametrize(
    "code",
    [
        # It changes, calls or drops something else.
        "items.append(1)",
        "items[0] = 1",
        "items += [1]",
        "items = 1",
        "thing = 1",
        "number = 1",
        "x = number + 1",
        "x = thing",
        "x = items",
        "x = [items]",
        "x, items = 1, 2",
        "for items in range(3): pass",
        "thing.x = 1",
        "x = text.upper()",
        "x = len(thing)",
        "x = len(number)",
        "x = str(thing)",
        "print(thing)",
        "print(f'{thing}')",
        "print(1, file=thing)",
        "function()",
        "x = unknown",
        "x = print",
        "exec('items.append(1)')",
        "eval('items.append(1)')",
        "x = sorted([1], key=function)",
        "x = sorted([1], key=exec)",
        "x = max(1, 2, key=abs)",
        "x = sorted(*[[1]])",
        "x = dict(**{'a': 1})",
        "x = __import__('os')",
        "x = input()",
        "x = open('file')",
        "x = iter([1])",
        "x = setattr",
        "del n",
        "n: int = 1",
        "import os",
        "from os import path",
        "def f(): pass",
        "class C: pass",
        "x = lambda: 1",
        "x = [i for i in range(3)]",
        "x = {i: 1 for i in range(3)}",
        "x = sum([1])",
        "x = rlm_query('q')",
        "llm_query = 1",
        "(x := 1)",
        "*x, y = 1, 2",
        "x = [*items]",
        "global n",
        "with thing: pass",
        "try: pass\nexcept Exception: pass",
        "raise ValueError",
        "assert n",
        "return_value = await_me()",
        "x = yield_",
        "@thing\ndef f(): pass",
        "async def f(): pass",
        "match n:\n    case 1: pass",
        # Names that are not the cell's.
        "tool = 1",
        "__name__ = 'x'",
        "context_0 = 'x'",
        "history_7 = 'x'",
        "len = 1\nx = len('a')",
        "print = 1\nprint(2)",
    ],
)
def test_cells_that_are_not_trivial(code: str) -> None:
    assert found(code) is None


def test_a_replaced_built_in_function_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found("x = abs(1)") == {"x"}
    monkeypatch.setattr("builtins.abs", lambda value: value)
    assert found("x = abs(1)") is None


def test_plain_values() -> None:
    assert is_plain({"a": [1, {"b": (2.0, None, b"", range(3))}], "c": {4}})
    for value in (object(), Number(1), [[[Number(1)]]], {"a": {1: object()}}, list(range(1000))):
        assert not is_plain({"a": value})


# The journal itself


@pytest.fixture
def journal() -> Journal:
    return Journal(memoryview(bytearray(8 * SHARED)).cast("Q"), memoryview(bytearray(SIZE)))


def test_entries_come_back_in_their_order(journal: Journal) -> None:
    assert journal.note(5, 4, {"a": 1, "b": [1, {"c": None}]})
    assert journal.note(6, 4, {"a": 2})
    for exact in (True, False):
        values: dict[str, Any] = {"other": 1}
        assert journal.apply(values, 4, exact=exact) == 6
        assert values == {"other": 1, "a": 2, "b": [1, {"c": None}]}
    values = {}
    assert journal.apply(values, 5, exact=False) == 6
    assert values == {"a": 2}
    journal.clear()
    assert journal.apply({}, 4, exact=False) == 4
    assert journal.last == 0


def test_entries_are_not_applied_to_what_they_did_not_come_after(journal: Journal) -> None:
    assert journal.note(5, 4, {"a": 1})
    assert journal.apply({}, 3, exact=True) == 3
    assert journal.apply({}, 3, exact=False) == 3
    assert journal.apply({}, 6, exact=True) == 6


def test_the_journal_is_bounded(journal: Journal) -> None:
    assert not journal.note(5, 4, {"a": "x" * 20_000})
    count = 0
    while journal.note(5 + count, 4, {"a": "x" * 10_000}):
        count += 1
    assert 20 < count < 30
    values: dict[str, Any] = {}
    assert journal.apply(values, 4, exact=True) == 4 + count


# In a session


@pytest.fixture
def box(boxes: Boxes) -> Sandbox:
    return slow_box(boxes)


def test_what_trivial_cells_have_bound_survives(box: Sandbox) -> None:
    run(box, "Slow.seconds = 0.5")
    pid = worker(box)
    run(box, "x = 1")
    run(box, "y = 'a' + str(x)")
    run(box, "x += 1")
    run(box, "pass")
    os.kill(pid, signal.SIGKILL)
    result = box.execute("print(x, y)")
    assert (result.stdout, result.lost, result.older) == ("2 a1\n", (), ())


def test_the_journal_outlives_several_deaths(box: Sandbox) -> None:
    pid = worker(box)
    settle(box)
    run(box, "x = 1")
    run(box, "y = 2")
    run(box, "pass")
    for _ in range(3):
        os.kill(pid, signal.SIGKILL)
        result = box.execute("print(x, y)")
        assert (result.stdout, result.lost, result.older) == ("1 2\n", (), ())
        pid = worker(box)
        run(box, "pass")


def test_aliases_across_worker_heir_and_journal(box: Sandbox) -> None:
    run(box, "Slow.seconds = 0")
    settle(box)
    run(box, "a = [1]; b = {'a': a}")
    settle(box)
    run(box, "Slow.seconds = 0.05; c = (a, b)")
    settle(box)
    run(box, "d = [c]; a.append(2)")
    run(box, "x = y = [1]")
    run(box, "n = 5")
    pid = worker(box)
    run(box, "n = 6")
    run(box, "m = n")
    run(box, "pass")
    os.kill(pid, signal.SIGKILL)
    check = "print(b['a'] is a is c[0], d[0] is c, c[1] is b, x is y, a, n, m)"
    assert box.execute(check).stdout == "True True True True [1, 2] 6 6\n"


def test_it_is_on_disk_once_someone_waits_for_that(box: Sandbox) -> None:
    run(box, "x = 1")
    run(box, "x = 2")
    settle(box)
    state = workspace_of(box) / "state.dill"
    before = state.stat().st_ino
    settle(box)
    assert state.stat().st_ino == before
    assert box.execute(DIE).lost == ()
    assert run(box, "print(x)").stdout == "2\n"


#: Runs until the value of the cell before it is on disk.
LONG = """
import time
def is_there(): return b"second" in open("state.dill", "rb").read()
deadline = time.monotonic() + 60
while not is_there() and time.monotonic() < deadline: time.sleep(0.01)
print(is_there())
"""


def test_it_is_on_disk_while_a_long_cell_runs(box: Sandbox) -> None:
    run(box, "x = 'first'")
    run(box, "x = 'second'")
    assert run(box, LONG).stdout == "True\n"


@pytest.mark.usefixtures("own_sessions")
def test_it_is_on_disk_after_the_end(boxes: Boxes) -> None:
    box = slow_box(boxes, session="one")
    run(box, "x = 1")
    run(box, "x = 2")
    box.close()
    assert run(boxes(session="one"), "print(x)").stdout == "2\n"


# Beside a small state, which is saved at once otherwise


@pytest.fixture
def small(boxes: Boxes) -> Sandbox:
    box = boxes()
    run(box, "import os\nitems = [1]")
    settle(box)
    return box


def test_the_next_cell_does_not_wait_for_a_small_state_either(small: Sandbox) -> None:
    assert eventually(lambda: run(small, "x = 1").unwritten)


def test_a_small_state_is_on_disk_soon(small: Sandbox) -> None:
    before = state(small).stat().st_ino
    run(small, "x = 1")
    assert eventually(lambda: state(small).stat().st_ino != before)
    assert run(small, "pass").unwritten == 0


def test_a_burst_beside_a_small_state_is_on_disk_soon(small: Sandbox) -> None:
    before, number = state(small).stat().st_ino, 0
    deadline = time.monotonic() + 60
    while state(small).stat().st_ino == before:
        assert time.monotonic() < deadline
        number += 1
        run(small, f"x = {number}")
    assert number > 1


@pytest.mark.parametrize("moment", range(12))
def test_a_kill_after_a_trivial_cell_costs_nothing(small: Sandbox, moment: int) -> None:
    pid = worker(small)
    run(small, "x = 1")
    run(small, f"x = 2; y = [{moment}]")
    run(small, "pass")  # what comes before this one is saved
    time.sleep(moment * moment * 0.0001)
    os.kill(pid, signal.SIGKILL)
    result = small.execute("print(x, y, items)")
    assert (result.stdout, result.lost, result.older) == (f"2 [{moment}] [1]\n", (), ())


@pytest.mark.usefixtures("own_sessions")
def test_a_small_session_is_on_disk_while_a_long_cell_runs_and_at_its_end(boxes: Boxes) -> None:
    box = boxes(session="one")
    run(box, "import os")
    run(box, "x = 'second'")
    assert run(box, LONG).stdout == "True\n"
    run(box, "x = 'third'")
    box.close()
    assert run(boxes(session="one"), "print(x)").stdout == "third\n"


def test_aliases_across_checkpoint_and_journal(small: Sandbox) -> None:
    run(small, "a = [1]; b = {'a': a}; _ = [None for _ in ()]")
    run(small, "c = d = [2]")
    run(small, "n = 5")
    run(small, "items.append((a, c))")
    run(small, "m = n")
    assert small.execute(DIE).lost == ()
    check = "print(b['a'] is a is items[1][0], c is d is items[1][1], n, m)"
    assert run(small, check).stdout == "True True 5 5\n"


# Where no cell is trivial


@pytest.mark.parametrize(
    "setup",
    [
        "import sys; sys.settrace(lambda *_: log.append(1))",
        "import sys; sys.setprofile(lambda *_: log.append(1))",
        "import sys; sys.addaudithook(lambda *_: log.append(1))",
        "import signal; signal.signal(signal.SIGUSR1, lambda *_: log.append(1))",
        "import sys; write = sys.stdout.write\n"
        "def log_too(text): log.append(1); return write(text)\n"
        "sys.stdout.write = log_too",
        "import threading; stop = threading.Event()\n"
        "def work():\n    while not stop.wait(0.01): log.append(1)\n"
        "thread = threading.Thread(target=work, daemon=True); thread.start()",
    ],
)
def test_where_other_code_may_run_no_cell_is_trivial(boxes: Boxes, setup: str) -> None:
    box = boxes()
    run(box, SLOW + "\nlog = []\n" + setup)
    settle(box)
    for number in range(3):
        box.execute(
            f"import os, signal; x = {number}; print(x); os.kill(os.getpid(), signal.SIGURG)"
        )
        box.execute(f"x = {number}")
    box.execute("print(x)")
    box.execute("x = 3")
    run(box, "logged = len(log)")
    settle(box)
    lost = box.execute(DIE).lost
    assert "log" not in lost
    assert run(box, "print(len(log) >= logged > 0 or 'signal' in globals())").stdout == "True\n"


def test_dead_objects_are_not_collected_meanwhile(box: Sandbox) -> None:
    code = """
    import gc
    gc.disable()
    deaths = []
    class Dies:
        def __init__(self): self.me = self
        def __del__(self): deaths.append(1)
    for _ in range(50): Dies()
    gc.enable()
    gc.set_threshold(1)
    """
    run(box, code)
    run(box, "x = [[1], [2], [3], [4], [5]]")
    run(box, "print(gc.isenabled())")
    assert run(box, "print(gc.isenabled())").stdout == "True\n"
    settle(box)
    assert box.execute(DIE).lost == ()


def test_a_trivial_cell_asks_no_other_variable_for_its_short_form(boxes: Boxes) -> None:
    box = slow_box(boxes)
    run(box, "_asked = []\nclass Long:\n    def __repr__(self): _asked.append(1); return 'long'")
    first = run(box, "long = Long(); x = 1").locals
    assert (first["long"], first["x"]) == ("long", "1")
    assert run(box, "x = 22").locals == {**first, "x": "22"}
    assert run(box, "print(len(_asked))").stdout == "1\n"
    run(box, "len([].copy())")  # it might change anything
    assert run(box, "print(len(_asked))").stdout == "2\n"
