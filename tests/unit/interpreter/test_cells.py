"""Cells in the live interpreter: how they end, what they print, and that the session goes on."""

from __future__ import annotations

import re

import pytest

from rlm_containers import Sandbox
from rlm_containers.errors import OptionError
from tests.unit.sessions import DIE, Boxes, revive, run, workspace_of


@pytest.mark.parametrize(
    ("code", "status", "exit_code"),
    [
        ("", "ok", 0),
        ("# a comment", "ok", 0),
        ("from __future__ import annotations\ndef f(x: undefined): pass", "ok", 0),
        ("1 / 0", "error", 1),
        ("x = (", "error", 1),
        ("x = 'a\0b'", "error", 1),
        ("x = '\ud800'", "error", 1),
        ("\tx = 1\n  y = 2", "error", 1),
        ("await f()", "error", 1),
        ("return 5", "error", 1),
        ("import no_such_module", "error", 1),
        ("raise Exception", "error", 1),
        ("raise BaseException('x')", "error", 1),
        ("raise GeneratorExit", "error", 1),
        ("raise MemoryError", "error", 1),
        ("def f(): f()\nf()", "error", 1),
        ("raise SystemExit", "exit", 0),
        ("exit()", "exit", 0),
        ("quit(1)", "exit", 1),
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
def test_how_a_cell_ends(shared: Sandbox, code: str, status: str, exit_code: int) -> None:
    run(shared, "y = 'kept'")
    result = shared.execute(code)
    assert (result.status, result.exit_code) == (status, exit_code)
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


def test_a_cell_that_replaces_what_libraries_define(boxes: Boxes) -> None:
    box = boxes()
    run(
        box,
        """
        import gc, json, os, pickle, select, socket, time
        def broken(*args, **keywords): raise RuntimeError("broken")
        def spoil(module, *names):
            for name in names: setattr(module, name, broken)
        spoil(gc, "collect", "freeze", "get_objects")
        spoil(json, "dumps", "loads")
        spoil(os, "fork", "getcwd", "link", "listdir", "open", "read", "remove", "rename", "replace")
        spoil(os, "stat", "unlink", "waitpid", "write")
        spoil(os.path, "dirname", "exists", "isfile", "join", "realpath")
        spoil(pickle, "dump", "dumps", "load", "loads")
        spoil(select, "poll", "select")
        spoil(socket, "send_fds", "recv_fds")
        spoil(time, "monotonic", "perf_counter", "sleep", "time")
        n = [1]
        """,
    )
    assert run(box, "n.append(2)\nprint(n)").stdout == "[1, 2]\n"
    assert box.execute("os.kill(os.getpid(), 9)").status == "died"
    assert run(box, "print(n, time.time() > 0)").stdout == "[1, 2] True\n"


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


def test_a_cell_that_is_too_long_is_refused_and_nothing_is_lost(box: Sandbox) -> None:
    run(box, "kept = 1; live = iter([1, 2])")
    with pytest.raises(OptionError, match="too large"):
        box.execute("#" * (65 * 1024 * 1024))
    assert run(box, "print(kept, next(live))").stdout == "1 1\n"


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
