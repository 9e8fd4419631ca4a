"""What waits between two threads is bounded by its weight."""

from __future__ import annotations

import threading

import pytest

from rlm_containers.interpreter.backlog import Backlog
from tests.support import eventually
from tests.unit.guests import PATIENCE


def test_items_come_in_their_order() -> None:
    backlog: Backlog[int] = Backlog(100)
    for number in range(5):
        backlog.put(number, 1)
    assert len(backlog) == 5
    assert [backlog.take(0) for _ in range(5)] == list(range(5))


def test_nothing_in_time() -> None:
    backlog: Backlog[int] = Backlog(100)
    for timeout in (0, 0.01):
        with pytest.raises(TimeoutError):
            backlog.take(timeout)


def test_what_is_too_heavy_waits_until_there_is_room() -> None:
    backlog: Backlog[str] = Backlog(10)
    backlog.put("a", 6)
    putting = threading.Thread(target=lambda: [backlog.put("b", 6), backlog.put("c", 4)])
    putting.start()
    assert not eventually(lambda: len(backlog) > 1, 0.1)
    assert backlog.take(0) == "a"
    assert backlog.take(PATIENCE) == "b"
    assert backlog.take(PATIENCE) == "c"
    putting.join()


def test_one_item_may_be_heavier_than_all_that_may_wait() -> None:
    backlog: Backlog[str] = Backlog(10)
    backlog.put("heavy", 1000)
    assert backlog.take(0) == "heavy"


def test_who_waits_can_be_woken() -> None:
    backlog: Backlog[str] = Backlog(10)
    woken = threading.Event()

    def wait() -> None:
        with pytest.raises(TimeoutError):
            backlog.take(None)
        woken.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert eventually(lambda: backlog.wake() or woken.is_set())
    waiting.join()
    # It was for those who waited then.
    if not len(backlog):
        backlog.put("a", 1)
    assert backlog.take(0) == "a"


def test_nobody_waits_for_one_that_was_abandoned() -> None:
    backlog: Backlog[str] = Backlog(10)
    backlog.put("a", 10)
    putting = threading.Thread(target=lambda: backlog.put("b", 10))
    putting.start()
    backlog.abandon()
    putting.join(PATIENCE)
    assert not putting.is_alive()
    backlog.put("c", 1)
    assert backlog.take(0) == "a"  # what was there is there
    with pytest.raises(TimeoutError):
        backlog.take(0)
