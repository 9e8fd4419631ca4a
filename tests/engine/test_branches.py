"""Branches of a sandbox in real containers. What no engine changes is in ``unit/sandbox``."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from rlm_containers import Branches, Sandbox
from tests.conftest import MakeBox
from tests.engine.test_limits import enforces
from tests.support import TIMEOUT, Engine, execute, printed


def in_all(branches: Branches, code: str) -> list[str]:
    """Run a cell in all branches at once."""
    with ThreadPoolExecutor(len(branches)) as pool:
        results = list(pool.map(lambda branch: branch.execute(code), branches))
    assert [result.stderr for result in results] == [""] * len(branches)
    return [result.stdout for result in results]


@pytest.mark.parametrize("isolation", ["default", "strict"])
def test_branches(make_box: MakeBox, engine: Engine, isolation: str) -> None:
    meeting = threading.Barrier(3)
    limits: dict[str, Any] = {} if enforces(engine) else {"memory": None, "pids": None}
    box = make_box(
        lm=str.upper,
        tools={"meet": lambda: meeting.wait(TIMEOUT) >= 0},
        isolation=isolation,
        **limits,
    )
    printed(box, "import os\nnumbers = (n for n in range(9))\nnext(numbers)\nx = [1]")
    route = box.lm_route
    with box.branch(3) as branches:
        code = "x.append(2)\nprint(meet(), next(numbers), x, llm_query('a'), os.getppid() != 1)"
        (said,) = set(in_all(branches, code))
        assert said.startswith("True 1 [1, 2] A ")
        leave = "import subprocess; p = subprocess.Popen(['sleep', '1000'], start_new_session=True)"
        in_all(branches, leave)
        code = "os.system('setsid sleep 1000 > /dev/null 2>&1 &')"
        in_all(branches, code)
        branches[2].execute("x.append('kept')\np.kill(); _ = p.wait()")
        branches[2].keep()
    assert printed(box, "print(x, next(numbers), llm_query('b'))") == "[1, 2, 'kept'] 2 B\n"
    assert box.lm_route == route
    assert running(box, "sleep") == 0
    with box.branch(2) as branches:
        in_all(branches, "x.append('lost')\n" + leave)
    assert running(box, "sleep") == 0
    assert [variable.name for variable in box.unsaved] == ["numbers"]
    result = execute(box, "os._exit(1)")
    assert result.status == "died"
    assert printed(box, "print(x)") == "[1, 2, 'kept']\n"


def running(box: Sandbox, program: str) -> int:
    """Return how many processes of a program run in a container."""
    code = f"""
found = 0
for pid in filter(str.isdigit, os.listdir('/proc')):
    try:
        found += open(f'/proc/{{pid}}/comm').read().strip() == {program!r}
    except OSError:
        pass
print(found)
"""
    return int(printed(box, code))
