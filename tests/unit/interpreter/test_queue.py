"""The queue between a pipe's reader and the thread that receives."""

from __future__ import annotations

import threading

import pytest

from rlm_containers.interpreter.queue import BoundedQueue
from tests.support import TIMEOUT, eventually


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


def test_an_item_that_is_too_large_waits_until_it_fits() -> None:
    queue: BoundedQueue[str] = BoundedQueue(10)
    queue.put("a", 6)
    putting = threading.Thread(target=lambda: [queue.put("b", 6), queue.put("c", 4)])
    putting.start()
    assert not eventually(lambda: len(queue) > 1, 0.1)
    assert queue.get(0) == "a"
    assert queue.get(TIMEOUT) == "b"
    assert queue.get(TIMEOUT) == "c"
    putting.join()


def test_a_single_item_may_be_larger_than_the_limit() -> None:
    queue: BoundedQueue[str] = BoundedQueue(10)
    queue.put("large", 1000)
    assert queue.get(0) == "large"


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


def test_nobody_waits_to_put_into_a_closed_queue() -> None:
    queue: BoundedQueue[str] = BoundedQueue(10)
    queue.put("a", 10)
    putting = threading.Thread(target=lambda: queue.put("b", 10))
    putting.start()
    queue.close()
    putting.join(TIMEOUT)
    assert not putting.is_alive()
    queue.put("c", 1)
    assert queue.get(0) == "a"  # what was there before is still there
    with pytest.raises(TimeoutError):
        queue.get(0)
