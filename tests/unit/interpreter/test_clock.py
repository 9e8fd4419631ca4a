"""The clock of a cell, and wall clocks that jump."""

from __future__ import annotations

import ast
import itertools
import threading
import time as wall
from contextlib import ExitStack

import pytest

from rlm_containers.interpreter import CellClock
from tests.unit.sessions import Boxes, revive, run, settle
from tests.unit.test_imports import sources


class Time:
    """A clock that moves only when the test says so."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds

    def passes(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def clock(time: Time) -> CellClock:
    """A clock that one request may stop for 100 s."""
    return CellClock(100.0, time)


@pytest.fixture
def woken(clock: CellClock) -> list[float]:
    """The seconds left at each call of wake()."""
    calls: list[float] = []

    def wake() -> None:
        left = clock.left()
        assert left is not None
        calls.append(left)

    clock.wake = wake
    return calls


def test_nothing_is_left_without_a_limit(clock: CellClock) -> None:
    assert clock.left() is None
    with clock.waiting():
        assert clock.left() is None
    clock.start(5.0)
    clock.reset()
    assert clock.left() is None


def test_it_counts_down_to_zero(clock: CellClock, time: Time) -> None:
    clock.start(5.0)
    assert clock.left() == 5.0
    time.passes(2.0)
    assert clock.left() == 3.0
    time.passes(3.0)
    assert clock.left() == 0.0
    time.passes(3.0)
    assert clock.left() == 0.0


def test_each_cell_starts_at_zero(clock: CellClock, time: Time) -> None:
    clock.start(5.0)
    time.passes(4.0)
    clock.reset()
    time.passes(50.0)
    clock.start(3.0)
    assert clock.left() == 3.0


def test_it_stands_during_a_request(clock: CellClock, time: Time) -> None:
    clock.start(5.0)
    time.passes(1.0)
    with clock.waiting():
        time.passes(90.0)
    assert clock.left() == 4.0
    time.passes(1.0)
    with clock.waiting():
        time.passes(90.0)
    assert clock.left() == 3.0


def test_it_stands_during_overlapping_requests(clock: CellClock, time: Time) -> None:
    clock.start(5.0)
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(clock.waiting())
        time.passes(10.0)
        second.enter_context(clock.waiting())
        time.passes(10.0)
        first.close()
        time.passes(10.0)
    assert clock.left() == 5.0
    time.passes(1.0)
    assert clock.left() == 4.0


@pytest.mark.parametrize("looks", [0, 3])
def test_one_request_stops_it_for_a_limited_time(clock: CellClock, time: Time, looks: int) -> None:
    clock.start(5.0)
    with clock.waiting():
        for _ in range(looks):  # reading the clock must not change it
            time.passes(101.0 / looks)
            clock.left()
        if not looks:
            time.passes(101.0)
        assert clock.left() == pytest.approx(4.0)
        time.passes(3.0)
        assert clock.left() == pytest.approx(1.0)
    assert clock.left() == pytest.approx(1.0)


def test_an_old_request_does_not_shorten_a_new_one(clock: CellClock, time: Time) -> None:
    clock.start(5.0)
    with clock.waiting():
        time.passes(102.0)
        with clock.waiting():
            time.passes(50.0)
        assert clock.left() == pytest.approx(3.0)
        time.passes(1.0)
        assert clock.left() == pytest.approx(2.0)


def test_the_time_left_is_finite_while_it_stands(clock: CellClock, time: Time) -> None:
    clock.start(5.0)
    with clock.waiting():
        assert clock.left() == 105.0
        time.passes(40.0)
        assert clock.left() == 65.0


def test_the_waiting_thread_is_woken_when_it_goes_on_sooner(
    clock: CellClock, time: Time, woken: list[float]
) -> None:
    clock.start(5.0)
    with clock.waiting():
        time.passes(20.0)
        assert clock.left() == 85.0
    assert woken == [5.0]


def test_the_waiting_thread_is_not_woken_without_need(
    clock: CellClock, time: Time, woken: list[float]
) -> None:
    # The usual case: the cell makes a request while the host already waits for its limit.
    clock.start(5.0)
    assert clock.left() == 5.0
    for _ in range(10):
        with clock.waiting():
            time.passes(0.3)
        time.passes(0.1)
    assert woken == []
    assert clock.left() == pytest.approx(4.0)


def test_the_waiting_thread_is_woken_when_the_later_request_ends_first(
    clock: CellClock, time: Time, woken: list[float]
) -> None:
    clock.start(5.0)
    with clock.waiting():
        time.passes(60.0)
        with clock.waiting():
            assert clock.left() == 105.0
        assert woken == [45.0]


def test_requests_of_earlier_cells_do_not_count(
    clock: CellClock, time: Time, woken: list[float]
) -> None:
    with clock.waiting():
        clock.reset()
        clock.start(5.0)
        time.passes(4.0)
        assert clock.left() == 1.0
    assert woken == []
    assert clock.left() == 1.0


def test_a_request_may_arrive_before_its_cell_has_begun(clock: CellClock, time: Time) -> None:
    clock.reset()
    with clock.waiting():  # over HTTP, which may be faster than the pipe
        clock.start(5.0)
        time.passes(50.0)
    assert clock.left() == 5.0


def test_a_failed_request_is_over(clock: CellClock, time: Time) -> None:
    clock.start(5.0)
    with pytest.raises(LookupError), clock.waiting():
        time.passes(50.0)
        raise LookupError
    time.passes(1.0)
    assert clock.left() == 4.0


def test_requests_of_many_threads(clock: CellClock, time: Time) -> None:
    clock.start(5.0)
    both = threading.Barrier(8)

    def ask() -> None:
        for _ in range(200):
            with clock.waiting():
                clock.left()
        both.wait(30)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.passes(1.0)
    assert clock.left() == 4.0


# Jumps of the wall clock


#: Names that read the wall clock.
WALL_CLOCK = {"time", "time_ns", "localtime", "gmtime", "ctime", "now", "today", "utcnow"}


#: Uses per file to search the engine's journal for how containers have ended.
JOURNAL = {"launch.py": 1, "container.py": 1, "conversation.py": 2, "docker.py": 2}

#: Uses per file for dates that users see.
DATES = {
    "cache.py": 2,
    "completion.py": 1,
    "index.py": 1,
    "inventory.py": 3,
    "manifest.py": 1,
    "units.py": 1,
}


def test_only_dates_use_the_wall_clock() -> None:
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
def test_a_wall_clock_that_jumps_at_every_reading(
    boxes: Boxes, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    start = wall.time()
    jumping = itertools.count()
    monkeypatch.setattr(wall, "time", lambda: max(0.0, start + step * next(jumping)))
    box = boxes(lm=str.upper, start_timeout=20)
    # Also in the container, where a cell can change it.
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
