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
