"""The exit codes of cells, and the value of an expression at a cell's end."""

from __future__ import annotations

import pytest

from rlm_containers import Sandbox
from tests.unit.sessions import DIE


@pytest.mark.parametrize(
    ("code", "status", "exit_code"),
    [
        ("x = 1", "ok", 0),
        ("1 / 0", "error", 1),
        ("1 +", "error", 1),
        ("import sys; sys.exit()", "exit", 0),
        ("import sys; sys.exit(3)", "exit", 3),
        ("import sys; sys.exit(True)", "exit", 1),
        ("import sys; sys.exit(-1)", "exit", 255),
        ("import sys; sys.exit(10 ** 30)", "exit", 0),
        ("import sys; sys.exit('no')", "exit", 1),
        ("class Code(int):\n    __and__ = None\nraise SystemExit(Code(5))", "exit", 5),
        ("raise KeyboardInterrupt", "interrupted", 130),
    ],
)
def test_the_exit_code(shared: Sandbox, code: str, status: str, exit_code: int) -> None:
    result = shared.execute(code)
    assert (result.status, result.exit_code) == (status, exit_code)


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        (DIE, 1),
        ("import os; os._exit(7)", 7),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137),
    ],
)
def test_the_exit_code_of_an_interpreter_that_dies(
    shared: Sandbox, code: str, exit_code: int
) -> None:
    result = shared.execute(code)
    assert (result.status, result.exit_code) == ("died", exit_code)


@pytest.mark.parametrize(
    ("code", "printed"),
    [
        ("6 * 7", "42\n"),
        ("x = 5\nx", "5\n"),
        ("x = 5", ""),
        ("None", ""),
        ("print('a'); 'b'", "a\n'b'\n"),
        ("", ""),
        ("# nothing", ""),
        (
            "from __future__ import annotations\ndef f(a: no) -> no: ...\nf.__annotations__['a']",
            "'no'\n",
        ),
        ("for i in range(3):\n    i", ""),
    ],
)
def test_a_prompt_prints_the_value_at_the_end(shared: Sandbox, code: str, printed: str) -> None:
    result = shared.execute(code, display=True)
    assert (result.status, result.stdout, result.stderr) == ("ok", printed, "")
    assert not [name for name in result.locals if "value" in name]


def test_without_being_asked_a_cell_prints_no_value(shared: Sandbox) -> None:
    assert shared.execute("6 * 7").stdout == ""


def test_the_traceback_of_a_displayed_value_shows_what_was_written(shared: Sandbox) -> None:
    result = shared.execute("x = 0\n1 / x", display=True, name="my.py")
    assert 'File "<my.py>", line 2, in <module>\n    1 / x\n' in result.stderr
    assert "value" not in result.stderr


def test_a_value_whose_repr_fails_is_an_exception_of_the_cell(shared: Sandbox) -> None:
    code = "class Bad:\n    def __repr__(self): raise ValueError('no')\nBad()"
    result = shared.execute(code, display=True)
    assert (result.status, result.stdout) == ("error", "")
    assert result.stderr.endswith("ValueError: no\n")
    assert shared.execute("'<value>' in globals()", display=True).stdout == "False\n"
