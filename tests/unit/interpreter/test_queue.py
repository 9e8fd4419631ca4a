"""The queue between a pipe's reader and the thread that receives."""

from __future__ import annotations

import threading

import pytest

from rlm_containers.interpreter.queue import BoundedQueue
from tests.support import eventually


def test_items_come_in_order() -> None:
    queue: BoundedQueue[int] = BoundedQueue(100)
    for number in range(5):
        queue.put(number, 1)
    assert len(queue) == 5
    assert [queue.get(0) for _ in range(5)] == list(range(5))


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_an_empty_queue_times_out(timeout: float) -> None:
    queue: BoundedQueue[int] = BoundedQueue(100)
    with pytest.raises(TimeoutError):
        queue.get(timeout)


def test_who_has_filled_it_is_told_once_there_is_room() -> None:
    told: list[str] = []
    queue: BoundedQueue[str] = BoundedQueue(10, lambda: told.append("room"))
    for item in "abc":
        assert not queue.is_full
        queue.put(item, 4)
    assert queue.is_full
    assert queue.get(0) == "a"
    assert (queue.is_full, told) == (True, [])  # 8 of 10 are not room enough
    assert queue.get(0) == "b"
    assert (queue.is_full, told) == (False, ["room"])
    assert queue.get(0) == "c"
    assert told == ["room"]


def test_a_single_item_may_be_larger_than_the_limit() -> None:
    queue: BoundedQueue[str] = BoundedQueue(10)
    queue.put("large", 1000)
    assert queue.is_full
    assert queue.get(0) == "large"
    assert not queue.is_full


def test_a_waiting_thread_can_be_woken() -> None:
    queue: BoundedQueue[str] = BoundedQueue(10)
    woken = threading.Event()

    def wait() -> None:
        with pytest.raises(TimeoutError):
            queue.get(None)
        woken.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert eventually(lambda: queue.wake() or woken.is_set())
    waiting.join()
    # The wake-up was used up by the thread that waited, or an item comes before it.
    if not len(queue):
        queue.put("a", 1)
    assert queue.get(0) == "a"


def test_a_closed_queue_is_never_full() -> None:
    told: list[str] = []
    queue: BoundedQueue[str] = BoundedQueue(10, lambda: told.append("room"))
    queue.put("a", 10)
    assert queue.is_full
    queue.close()
    queue.close()
    assert (queue.is_full, told) == (False, ["room"])
    queue.put("b", 10)
    assert not queue.is_full
    assert queue.get(0) == "a"  # what was there before is still there
    with pytest.raises(TimeoutError):
        queue.get(0)
