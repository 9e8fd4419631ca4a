"""A worker that dies: said in the cell's result, replaced by itself, with every variable."""

from __future__ import annotations

import pytest

from rlm_containers import Sandbox
from tests.conftest import MakeBox
from tests.support import execute, printed

WAYS = {
    "os._exit(1)": "ended itself with status 1",
    "os._exit(0)": "ended itself with status 0",
    "os.kill(os.getpid(), 9)": "killed by SIGKILL",
    "os.kill(os.getpid(), 15)": "killed by SIGTERM",
    "os.abort()": "killed by SIGABRT",
    "import ctypes; ctypes.string_at(0)": "killed by SIGSEGV",
}


@pytest.mark.parametrize("way", WAYS)
def test_death_is_reported_and_the_session_comes_back(box: Sandbox, way: str) -> None:
    printed(box, "import os\nnumbers = [1, 2]\ndef total(): return sum(numbers)")
    printed(box, "numbers.append(3)")
    result = box.execute(f"print('last words')\nnumbers.append(4)\nextra = 5\n{way}\nprint('no')")
    assert (result.status, result.stdout, result.lost) == ("died", "last words\n", ())
    assert WAYS[way] in result.stderr
    assert "rlm_guest" not in result.stderr
    assert result.locals["numbers"] == "[1, 2, 3]"
    assert "extra" not in result.locals
    assert printed(box, "print(numbers, total(), 'extra' in globals())") == "[1, 2, 3] 6 False\n"


def test_death_in_the_first_cell(make_box: MakeBox) -> None:
    box = make_box()
    result = box.execute("import os\nos._exit(1)")
    assert (result.status, result.lost) == ("died", ())
    assert "lost" not in result.stderr
    assert printed(box, "print('alive')") == "alive\n"


def test_death_in_every_cell(box: Sandbox) -> None:
    printed(box, "count = 0")
    for number in range(1, 4):
        assert printed(box, "count += 1\nprint(count)") == f"{number}\n"
        for _ in range(2):
            assert box.execute("import os; os._exit(1)").status == "died"
    assert printed(box, "print(count)") == "3\n"


def test_death_takes_the_cells_children_along(box: Sandbox) -> None:
    result = execute(
        box,
        """
        import os, subprocess
        child = subprocess.Popen(['sleep', '600'])
        print(child.pid)
        os._exit(1)
        """,
    )
    assert result.status == "died"
    pid = result.stdout.strip()
    assert printed(
        box,
        f"""
        import os
        try:
            print(open('/proc/{pid}/cmdline').read().startswith('sleep'))
        except OSError:
            print(False)
        """,
    ) == "False\n"  # fmt: skip


def test_what_a_dying_cell_printed_is_there(box: Sandbox) -> None:
    result = execute(
        box,
        """
        import os, sys
        sys.stdout.write('no newline, not flushed by the cell')
        sys.stdout.flush()
        os.write(2, b'and a last word')
        os._exit(1)
        """,
    )
    assert result.stdout == "no newline, not flushed by the cell"
    assert result.stderr.startswith("and a last word\nThe Python process")


def test_death_while_another_cell_defines_things(make_box: MakeBox) -> None:
    # The reference point is the last cell that ended, whatever that one did.
    box = make_box()
    assert box.execute("first = 1\n1 / 0").status == "error"
    assert box.execute("second = 2\nimport sys; sys.exit()").status == "exit"
    assert box.execute("import os; os._exit(1)").status == "died"
    assert printed(box, "print(first, second)") == "1 2\n"
