"""Makes ``state.dill``: run it with the commit that README.md names."""

import shutil
import sys

from tests.unit.guests import LocalRuntime
from tests.unit.sessions import workspace_of

from rlm_containers import Sandbox

CELL = """
import dataclasses

@dataclasses.dataclass
class Point:
    x: int

    def norm(self):
        return self.x * self.x

point = Point(3)
shared = [point]
alias = shared
long = "z" * 700

def counter():
    n = 0

    def up():
        nonlocal n
        n += 1
        return n

    return up

up = counter()
stream = (i for i in range(3))
"""

with Sandbox(runtime=LocalRuntime()) as box:
    assert box.execute(CELL).status == "ok"
    assert len(box.unsaved) == 1
    shutil.copy(workspace_of(box) / "state.dill", sys.argv[1])
