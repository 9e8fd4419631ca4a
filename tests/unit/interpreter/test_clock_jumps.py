"""The wall clock may jump, by hours or years: nothing waits for it."""

from __future__ import annotations

import ast
import itertools
import time

import pytest

from tests.unit.sessions import Boxes, revive, run, settle
from tests.unit.test_imports import sources

#: What says what time of day it is.
WALL_CLOCK = {"time", "time_ns", "localtime", "gmtime", "ctime", "now", "today", "utcnow"}


#: Only to look into the engine's own journal, for whether the kernel has killed a container for its
#: memory. In which files, and how often.
JOURNAL = {"launch.py": 1, "interpreter.py": 2, "docker.py": 1}

#: To say when something was made or used, and how long ago that was.
DATES = {
    "cache.py": 2,
    "completion.py": 1,
    "index.py": 1,
    "inventory.py": 3,
    "manifest.py": 1,
    "units.py": 1,
}


def test_nothing_asks_what_time_of_day_it_is() -> None:
    asked: dict[str, int] = {}
    for folder in ("rlm_containers", "runtimes"):
        for source in sources(folder):
            for node in ast.walk(ast.parse(source.read_text())):
                if (
                    isinstance(node, ast.Attribute)
                    and node.attr in WALL_CLOCK
                    and ast.unparse(node.value) in ("time", "datetime", "date", "datetime.datetime")
                ):
                    asked[source.name] = asked.get(source.name, 0) + 1
                if isinstance(node, ast.ImportFrom) and node.module in ("time", "datetime"):
                    assert not WALL_CLOCK & {alias.name for alias in node.names}, source
    assert asked == {**JOURNAL, **DATES}


@pytest.mark.parametrize("step", [3600, -3600, 1e9, -1e9])
def test_a_clock_that_jumps_with_every_look(
    boxes: Boxes, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    start = time.time()
    jumping = itertools.count()
    monkeypatch.setattr(time, "time", lambda: max(0.0, start + step * next(jumping)))
    box = boxes(lm=str.upper, start_timeout=20)
    # In the container, too, where a cell may do that as well.
    run(
        box,
        f"""
        import itertools, time
        jumping, before = itertools.count(), time.time()
        time.time = lambda: max(0.0, before + {step} * next(jumping))
        """,
    )
    for number in range(3):
        run(box, f"n = {number}\nassert llm_query('on') == 'ON'")
    settle(box)
    revive(box)
    run(box, "assert n == 2 and llm_query('on') == 'ON'")
