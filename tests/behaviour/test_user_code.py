"""Code of the cells' own objects, which runs after a cell: it neither hangs nor kills the session."""

from __future__ import annotations

import textwrap

import pytest

from rlm_containers import Sandbox
from tests.support import execute, printed

WAITS = "import threading\ndef wait(*_): threading.Event().wait()\n"
#: A thousand frames on top of what the cell may have.
DEEP = "import sys\nsys.setrecursionlimit(10 ** 6)\n"


@pytest.mark.parametrize(
    "define",
    [
        "class V:\n    __repr__ = wait",
        "class V(dict):\n    items = __len__ = wait",
        "class Meta(type):\n    __repr__ = wait\nclass V(metaclass=Meta): pass\nV = [V]",
        "class V(list):\n    __iter__ = __len__ = __repr__ = wait",
        "class V:\n    __repr__ = lambda self: str(self.x)\n    __getattr__ = wait",
        "class V:\n    def __repr__(self):\n        while True: pass",
        "class V:\n    @property\n    def __class__(self): wait()\n    __repr__ = wait",
    ],
    ids=["repr", "items", "metaclass", "iter", "getattr", "busy", "class"],
)
def test_a_repr_that_does_not_end_costs_one_cell_some_seconds(fresh: Sandbox, define: str) -> None:
    result = execute(fresh, WAITS + define + "\nv = V() if isinstance(V, type) else V\ny = 5")
    assert result.status == "ok"
    assert result.locals["y"] == "5" or result.locals["y"] == "<int>"
    # It is not asked again: an interrupt that is due in seconds would find this cell first.
    assert printed(fresh, "print(y, type(v) is not None)") == "5 True\n"
    assert not fresh.execute("y").notices


@pytest.mark.parametrize(
    "harm",
    [
        "class E(Exception):\n    __str__ = wait\nraise E",
        "class E:\n    __str__ = wait\nraise SystemExit(E())",
        "class F:\n    flush = wait\n    write = lambda *_: 0\nimport sys; sys.stdout = F()",
        "class B:\n    __bool__ = wait\nanswer['ready'] = B()",
        "class S(str):\n    __str__ = wait\nanswer.update(ready=True, content=S())",
    ],
    ids=["exception", "exit", "flush", "bool", "answer"],
)
def test_nothing_else_that_runs_after_a_cell_hangs(fresh: Sandbox, harm: str) -> None:
    execute(fresh, WAITS + harm)
    assert printed(fresh, "print('goes on')") == "goes on\n"


@pytest.mark.parametrize(
    "define",
    [
        "class N:\n    def __init__(s, n): s.n = n\n    def __repr__(s): return repr(s.n)",
        "class N:\n    def __init__(s, n): s.n = n",
        "class N(list):\n    def __init__(s, n): s.append(n)",
    ],
    ids=["repr", "attribute", "list"],
)
def test_deep_objects_do_not_overflow_the_stack(fresh: Sandbox, define: str) -> None:
    code = DEEP + define + "\nn = None\nfor _ in range(20_000): n = N(n)\nkept = [1]"
    assert execute(fresh, code).status == "ok"
    result = execute(fresh, "print(kept, sys.getrecursionlimit())")
    assert (result.stdout, result.notices) == ("[1] 1000000\n", ())
    assert [variable.name for variable in fresh.unsaved] == ["n"]
    execute(fresh, "sys.setrecursionlimit(1000)")


@pytest.mark.parametrize("method", ["__reduce__", "__getstate__", "__reduce_ex__"])
def test_saving_that_does_not_end_costs_that_variable(fresh: Sandbox, method: str) -> None:
    execute(fresh, WAITS + f"class V:\n    {method} = wait\nv = V()\nother = 7")
    assert printed(fresh, "print(other)") == "7\n"  # it has waited for the checkpoint
    assert [variable.name for variable in fresh.unsaved] == ["v"]


def test_tracers_do_not_see_our_code(fresh: Sandbox) -> None:
    code = """
        import sys
        seen = set()
        def trace(frame, event, arg):
            seen.add(frame.f_code.co_filename)
        sys.settrace(trace)
        sys.setprofile(trace)
        """
    execute(fresh, textwrap.dedent(code))
    lines = printed(fresh, "sys.settrace(None); sys.setprofile(None); print('\\n'.join(seen))")
    assert not [line for line in lines.splitlines() if line.endswith(("namespace.py", "dill.py"))]


#: A variable that only an heir keeps, so that there is one.
LIVE = "import os\nnumbers = (n for n in range(9))\n"


@pytest.mark.parametrize("when", ["before", "after_in_child", "after_in_parent"])
def test_what_is_called_around_a_fork_is_not_called_in_ours(fresh: Sandbox, when: str) -> None:
    execute(fresh, WAITS + LIVE + f"os.register_at_fork({when}=wait)")
    for _ in range(2):
        assert printed(fresh, "kept = [1]; print('goes on')") == "goes on\n"
    assert [variable.name for variable in fresh.unsaved] == ["numbers"]
    assert fresh.execute("os._exit(1)").lost == ("numbers",)


def test_signals_that_come_between_cells_are_handled_in_the_next(fresh: Sandbox) -> None:
    pid = printed(fresh, LIVE + "print(os.getpid())").strip()
    code = """
        import signal
        seen = []
        def handle(*_):
            seen.append(1)
            raise TimeoutError('late')
        signal.signal(signal.SIGUSR1, handle)
        """
    execute(fresh, code)
    fresh.command(["sh", "-c", f"kill -USR1 {pid}"])
    result = fresh.execute("x = 5")
    assert (result.status, result.stderr[-19:]) == ("error", "TimeoutError: late\n")
    assert printed(fresh, "print(next(numbers), seen)") == "0 [1]\n"
    assert printed(fresh, "signal.raise_signal(signal.SIGUSR1) if 0 else print(seen)") == "[1]\n"


def test_a_handler_of_sigchld_sees_no_child_of_ours(fresh: Sandbox) -> None:
    code = "import signal\nseen = []\nsignal.signal(signal.SIGCHLD, lambda *_: seen.append(1))"
    execute(fresh, LIVE + code)
    for _ in range(3):
        assert printed(fresh, "print(seen)") == "[]\n"
    assert printed(fresh, "os.system('true'); print(len(seen) in (0, 1))") == "True\n"


def test_finalizers_of_garbage_run_in_cells(fresh: Sandbox) -> None:
    code = """
        import gc, sys
        where = []
        class Left:
            def __del__(self):
                frame, names = sys._getframe(), []
                while frame:
                    names.append(frame.f_code.co_name)
                    frame = frame.f_back
                where.append('finish' in names)
        gc.collect()
        gc.set_threshold(50)
        left = Left()
        left.me = left
        del left
        """
    execute(fresh, code)
    assert printed(fresh, "gc.set_threshold(700); gc.collect(); print(where)") == "[False]\n"


def test_clocks_that_a_cell_has_replaced(fresh: Sandbox) -> None:
    fail = "import time\ntime.monotonic = time.perf_counter = time.time = lambda: 1 / 0\nx = [1]"
    assert execute(fresh, LIVE + fail).status == "ok"
    assert printed(fresh, "print(x, next(numbers))") == "[1] 0\n"
    assert fresh.execute("os._exit(1)").status == "died"
