"""When the supervisor ends what a worker does."""

from __future__ import annotations

import pytest

from rlm_containers.guest.interrupts import (
    ANSWERING,
    CHECKPOINTING,
    NUMBERS,
    PHASE,
    PROGRESS,
    RUNNING,
    StallWatch,
)


def actions(phase: int, progress: int, *, waits: bool = False) -> list[str]:
    """Return what is done in each of 150 seconds in which the worker does not get on."""
    numbers = memoryview(bytearray(8 * NUMBERS)).cast("Q")
    numbers[PHASE], numbers[PROGRESS] = phase, progress
    watch = StallWatch(numbers)
    return [watch.action(waits=waits) for _ in range(150)]


@pytest.mark.parametrize("phase", [ANSWERING, CHECKPOINTING])
def test_code_of_a_cell_is_interrupted_and_then_killed(phase: int) -> None:
    done = actions(phase, 1)
    assert 0 < done.index("interrupt") < done.index("kill") < 60


@pytest.mark.parametrize("phase", [ANSWERING, CHECKPOINTING])
def test_code_of_ours_is_killed_late(phase: int) -> None:
    done = actions(phase, 2)
    assert "interrupt" not in done
    assert done.index("kill") == 120


def test_who_waits_for_an_heir_is_not_killed() -> None:
    assert set(actions(CHECKPOINTING, 2, waits=True)) == {""}


def test_a_cell_may_take_any_time() -> None:
    assert set(actions(RUNNING, 1)) == {""}
