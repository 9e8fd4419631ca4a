"""Cells in the live interpreter: how they end, what they print, and that the session goes on."""

from __future__ import annotations

import re
import textwrap

import pytest

from rlm_containers import Sandbox
from rlm_containers.errors import OptionError
from tests.unit.sessions import DIE, Boxes, revive, run, settle, workspace_of


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("", "ok"),
        ("pass", "ok"),
        ("# a comment", "ok"),
        ("1 / 0", "error"),
        ("x = (", "error"),
        ("x = 'a\0b'", "error"),
        ("x = '\ud800'", "error"),
        ("\tx = 1\n  y = 2", "error"),
        ("await f()", "error"),
        ("return 5", "error"),
        ("import no_such_module", "error"),
        ("raise Exception", "error"),
        ("raise BaseException('x')", "error"),
        ("raise GeneratorExit", "error"),
        ("raise MemoryError", "error"),
        ("def f(): f()\nf()", "error"),
        ("import sys; sys.exit()", "exit"),
        ("import sys; sys.exit(3)", "exit"),
        ("import sys; sys.exit('a message')", "exit"),
        ("raise SystemExit", "exit"),
        ("exit()", "exit"),
        ("quit(1)", "exit"),
        ("raise KeyboardInterrupt", "interrupted"),
        ("from __future__ import annotations\ndef f(x: undefined): pass", "ok"),
    ],
)
def test_how_a_cell_ends(shared: Sandbox, code: str, status: str) -> None:
    run(shared, "y = 'kept'")
    result = shared.execute(code)
    assert result.status == status
    assert result.locals["y"] == "'kept'"
    if status == "error":
        assert re.search(
            r"^(\w+Error|Exception|BaseException|GeneratorExit)\b", result.stderr, re.MULTILINE
        )
    elif status == "ok":
        assert result.stderr == ""
    assert run(shared, "print(y)").stdout == "kept\n"


def test_output_comes_before_the_answer_to_its_cell(shared: Sandbox) -> None:
    for number in range(20):
        code = f"import os\nprint('a' * 1000)\nos.write(1, b'b')\nprint('c{number}', end='')"
        assert run(shared, code).stdout == "a" * 1000 + f"\nbc{number}"


def test_output_of_children_is_in_order(shared: Sandbox) -> None:
    code = """
import os, subprocess, sys
print("one", end=" ")
os.system("printf 'two '")
print("three", end=" ")
subprocess.run(["printf", "four "])
if os.fork() == 0:
    os.write(1, b"five ")
    os._exit(0)
os.wait()
print("six")
"""
    assert run(shared, code).stdout == "one two three four five six\n"


def test_a_message_of_sys_exit_goes_to_stderr(shared: Sandbox) -> None:
    assert shared.execute("import sys; sys.exit('so long')").stderr == "so long\n"
    assert shared.execute("import sys; sys.exit(3)").stderr == ""


def test_a_traceback_shows_the_cells_lines_and_none_of_ours(shared: Sandbox) -> None:
    run(shared, "def divide(a, b):\n    return a / b  # here")
    stderr = shared.execute("x = 1\ndivide(x, 0)").stderr
    assert stderr.startswith("Traceback (most recent call last):\n")
    assert "divide(x, 0)" in stderr
    assert "return a / b  # here" in stderr
    assert stderr.endswith("ZeroDivisionError: division by zero\n")
    assert "rlm_guest" not in stderr
    assert "worker.py" not in stderr


@pytest.mark.parametrize(
    "code",
    [
        "class E(Exception):\n    def __str__(self): raise ValueError\nraise E",
        "class E(Exception):\n    def __str__(self): raise SystemExit(3)\nraise E",
        "class E(Exception):\n    def __str__(self): raise KeyboardInterrupt\nraise E",
        "class E(Exception):\n    def __str__(self): return 'x' * 10_000_000\nraise E",
        "import sys\nclass E:\n    def __str__(self): raise ValueError\nsys.exit(E())",
        "import sys\nclass E:\n    def __str__(self): raise SystemExit(3)\nsys.exit(E())",
        "e = ValueError('x'); e.__cause__ = e; raise e",
        "raise ValueError('\\ud800\\0')",
        "import sys; sys.stderr = None; 1 / 0",
        "import sys; sys.stdout = sys.stderr = None; sys.exit('bye')",
        "import sys; sys.stderr.close(); 1 / 0",
        "import sys; sys.stderr.close(); sys.exit('bye')",
        "import sys; sys.stdout.close(); sys.stdin.close(); print('x')",
        "import sys; sys.stdout = object(); print('x')",
        "import os; os.close(1); os.close(2); print('x', flush=True)",
        "import os; os.close(0); os.closerange(1, 3)",
        "import sys; sys.stdout = open('/dev/full', 'w'); print('x', flush=True)",
        "import sys; sys.tracebacklimit = 0; 1 / 0",
        "import traceback; traceback.TracebackException = None; 1 / 0",
        "import builtins; builtins.print = None; 1 / 0",
        "import sys; sys.modules.clear(); 1 / 0",
        "import sys; sys.setrecursionlimit(60)\ndef f(): f()\nf()",
    ],
)
def test_a_cell_that_breaks_its_environment_does_not_end_the_session(
    box: Sandbox, code: str
) -> None:
    run(box, "import os, sys; pid = os.getpid()")
    assert box.execute(code).status in ("ok", "error", "exit")
    again = "sys.setrecursionlimit(1000); n = sys.stdout.write(str(pid == os.getpid()))"
    assert run(box, again).stdout == "True"  # in the same interpreter


def test_input_finds_nothing(shared: Sandbox) -> None:
    result = shared.execute("input('name? ')")
    assert result.status == "error"
    assert result.stderr.endswith("EOFError: EOF when reading a line\n")
    assert run(shared, "import sys; print(repr(sys.stdin.read()))").stdout == "''\n"


def test_a_child_that_a_cell_forked_does_not_answer(box: Sandbox) -> None:
    code = """
    import os, sys
    child = os.fork()
    if child: os.waitpid(child, 0)
    print('end', child == 0)
    """
    assert sorted(run(box, code).stdout.splitlines()) == ["end False", "end True"]
    for way in ("sys.exit(5)", "1 / 0", "pass"):
        run(
            box,
            f"child = os.fork()\nif child: os.waitpid(child, 0)\nelse: sys.stderr = None; {way}",
        )
        assert run(box, "print('one worker')").stdout == "one worker\n"


def test_an_interrupt_ends_the_cell_and_nothing_more(box: Sandbox) -> None:
    code = "x = 1\nprint('running', flush=True)\nwhile True: pass"
    result = box.execute(code, on_output=lambda name, text: box.interrupt())
    assert (result.status, result.stdout) == ("interrupted", "running\n")
    assert result.stderr.endswith("KeyboardInterrupt\n")
    assert run(box, "print(x)").stdout == "1\n"


def test_a_cell_may_catch_its_interrupt(box: Sandbox) -> None:
    code = """
    try:
        print('running', flush=True)
        while True: pass
    except KeyboardInterrupt:
        print('caught')
    """

    def interrupt_once(name: str, text: str) -> None:
        if text == "running\n":
            box.interrupt()

    result = box.execute(textwrap.dedent(code), on_output=interrupt_once)
    assert (result.status, result.stdout) == ("ok", "running\ncaught\n")


def test_an_interrupt_between_cells_is_harmless(box: Sandbox) -> None:
    run(box, "x = 1")
    settle(box)
    for _ in range(5):
        box.interrupt()
        # It may reach the next cell before it runs or while it runs, but not after it.
        assert box.execute("y = x + 1").status in ("ok", "interrupted")
    assert run(box, "print('end')").stdout == "end\n"


def test_the_environment_and_the_directory(boxes: Boxes) -> None:
    box = boxes(env={"GREETING": "hällo=\n", "EMPTY": ""})
    code = "import os; print(os.environ['GREETING'], os.environ['EMPTY'], os.getcwd())"
    assert run(box, code).stdout == f"hällo=\n  {workspace_of(box)}\n"
    (workspace_of(box) / "module_of_mine.py").write_text("x = 5")
    assert run(box, "import module_of_mine; print(module_of_mine.x)").stdout == "5\n"
    revive(box)
    assert run(box, code).stdout == f"hällo=\n  {workspace_of(box)}\n"


def test_modules_of_cells_do_not_replace_ours(box: Sandbox) -> None:
    for name in ("json", "dill", "wire", "socket", "pickle", "linecache", "traceback", "zlib"):
        (workspace_of(box) / f"{name}.py").write_text("raise RuntimeError('not this one')")
    run(box, "x = 1")
    revive(box)
    assert box.execute("1 / 0").stderr.endswith("ZeroDivisionError: division by zero\n")
    assert run(box, "print(x)").stdout == "1\n"


def test_the_output_can_be_watched(shared: Sandbox) -> None:
    heard: list[tuple[str, str]] = []
    code = "import sys\nprint('ä' * 3)\nprint('oops', file=sys.stderr)\nprint('end', end='')"
    result = shared.execute(code, on_output=lambda name, text: heard.append((name, text)))
    assert "".join(text for name, text in heard if name == "stdout") == result.stdout == "äää\nend"
    assert "".join(text for name, text in heard if name == "stderr") == result.stderr == "oops\n"


def test_a_listener_that_fails_ends_the_cell_and_not_the_session(box: Sandbox) -> None:
    def fail(name: str, text: str) -> None:
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        box.execute("x = 1\nprint('running', flush=True)\nwhile True: pass", on_output=fail)
    assert run(box, "print(x)").stdout == "1\n"


def test_output_is_bounded_and_counted(boxes: Boxes) -> None:
    box = boxes(max_output=1000)
    result = run(box, "print('a' * 100_000, end='b' * 100_000)")
    assert result.stdout == "a" * 500 + "\n[... 199000 characters cut ...]\n" + "b" * 500
    result = box.execute("import sys; sys.stderr.write('e' * 5000)")
    assert "[... 4000 characters cut ...]" in result.stderr


def test_the_time_and_the_status_of_a_result(shared: Sandbox) -> None:
    result = run(shared, "import time; time.sleep(0.05)")
    assert 0.05 <= result.execution_time < 30


def test_a_cell_that_is_too_long_is_refused_and_nothing_is_lost(box: Sandbox) -> None:
    run(box, "kept = 1; live = iter([1, 2])")
    with pytest.raises(OptionError, match="too large"):
        box.execute("#" * (65 * 1024 * 1024))
    assert run(box, "print(kept, next(live))").stdout == "1 1\n"


# Exit codes


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
def test_display_prints_the_value_at_the_end(shared: Sandbox, code: str, printed: str) -> None:
    result = shared.execute(code, display=True)
    assert (result.status, result.stdout, result.stderr) == ("ok", printed, "")
    assert not [name for name in result.locals if "value" in name]


def test_without_display_no_value_is_printed(shared: Sandbox) -> None:
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
