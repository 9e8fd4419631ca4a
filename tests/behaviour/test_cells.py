"""Cells: what lives on between them, and how they end."""

from __future__ import annotations

import pytest

from rlm_containers import Sandbox
from tests.support import printed

# Variables


def test_variables_imports_functions_and_classes_live_on(box: Sandbox) -> None:
    printed(
        box,
        """
        import math
        from collections import Counter as Tally
        radius = 2

        def area(r):
            return round(math.pi * r ** 2, 2)

        class Circle:
            count = 0
            def __init__(self, r):
                Circle.count += 1
                self.r = r

        circles = [Circle(radius), Circle(3)]
        """,
    )
    assert printed(box, "print(area(radius), [c.r for c in circles], Circle.count)") == (
        "12.57 [2, 3] 2\n"
    )
    assert printed(box, "print(Tally('aab')['a'], isinstance(circles[0], Circle))") == "2 True\n"


def test_what_cannot_be_pickled_lives_on(box: Sandbox) -> None:
    printed(
        box,
        """
        import socket, sqlite3, threading
        numbers = (n * n for n in range(10))
        next(numbers)
        one, other = socket.socketpair()
        one.sendall(b"still here")
        database = sqlite3.connect(":memory:")
        database.execute("create table t (n)")
        lock = threading.Lock()
        lock.acquire()
        opened = open("notes.txt", "w+")
        opened.write("written")
        """,
    )
    assert printed(
        box,
        """
        print(next(numbers), other.recv(99), database.execute("select count(*) from t").fetchone(),
              lock.locked(), opened.seek(0), opened.read())
        one.close(); other.close(); database.close(); opened.close()
        """,
    ) == "1 b'still here' (0,) True 0 written\n"  # fmt: skip


def test_a_cell_is_the_main_module(box: Sandbox) -> None:
    # Pickle, multiprocessing and inspect find what a cell defines there.
    assert printed(
        box,
        """
        import inspect, pickle, sys
        class Point:
            def __init__(self, x): self.x = x
        def double(v):
            return v * 2
        copy = pickle.loads(pickle.dumps(Point(7)))
        print(__name__, sys.modules["__main__"].double is double, copy.x, type(copy) is Point)
        print(inspect.getsource(double), end="")
        """,
    ) == "__main__ True 7 True\ndef double(v):\n    return v * 2\n"  # fmt: skip


def test_a_cell_does_not_inherit_how_the_guest_is_compiled(box: Sandbox) -> None:
    # The guest's own modules say `from __future__ import annotations`.
    assert printed(box, "def f(x: int): pass\nprint(f.__annotations__)") == (
        "{'x': <class 'int'>}\n"
    )


def test_asyncio(box: Sandbox) -> None:
    assert printed(
        box,
        """
        import asyncio
        async def main():
            return await asyncio.gather(*(asyncio.sleep(0, n) for n in range(3)))
        print(asyncio.run(main()))
        """,
    ) == "[0, 1, 2]\n"  # fmt: skip


@pytest.mark.parametrize("code", ["", "\n\n", "# nothing", "1 + 1", "'not shown'"])
def test_cells_that_print_nothing(box: Sandbox, code: str) -> None:
    assert printed(box, code) == ""


# How cells end


def test_input_has_nothing_to_read(box: Sandbox) -> None:
    result = box.execute("input('name? ')")
    assert result.status == "error"
    assert result.stderr.splitlines()[-1].startswith("EOFError")
    assert printed(box, "import sys; print(repr(sys.stdin.read()))") == "''\n"


@pytest.mark.parametrize(
    ("ending", "stderr"),
    [
        ("import sys; sys.exit()", ""),
        ("import sys; sys.exit(3)", ""),
        ("import sys; sys.exit('no more')", "no more\n"),
        ("raise SystemExit", ""),
        ("exit()", ""),
        ("quit(1)", ""),
    ],
)
def test_exit_ends_the_cell_and_not_the_session(box: Sandbox, ending: str, stderr: str) -> None:
    result = box.execute(f"before = 1\nkept = object()\nprint('seen')\n{ending}\nafter = 2")
    assert (result.status, result.stdout, result.stderr) == ("exit", "seen\n", stderr)
    assert printed(box, "print(before, 'kept' in globals(), 'after' in globals())") == (
        "1 True False\n"
    )
    # The site module's exit() closes sys.stdin on its way.
    assert box.execute("input()").stderr.splitlines()[-1].startswith("EOFError")


def test_an_exception_keeps_what_came_before_it(box: Sandbox) -> None:
    result = box.execute("early = [1]\nearly.append(2)\nprint('so far')\nraise ValueError('stop')")
    assert (result.status, result.stdout) == ("error", "so far\n")
    assert printed(box, "print(early)") == "[1, 2]\n"


def test_what_a_cell_takes_is_counted(box: Sandbox) -> None:
    assert box.execute("import time; time.sleep(0.25)").execution_time >= 0.25
