"""Threads that stay for a moment, for calls of functions of others."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import Future

from rlm_containers.lm.callthreads import call_in_background
from tests.support import eventually


def thread_of_a_call() -> threading.Thread:
    made: Future[threading.Thread] = Future()
    call_in_background(lambda: made.set_result(threading.current_thread()))
    return made.result(30)


def test_one_call_after_the_other_has_the_same_thread() -> None:
    first = thread_of_a_call()
    # The thread waits again a moment after its call has ended.
    assert eventually(lambda: thread_of_a_call() is first)


def test_calls_at_the_same_time_have_threads_of_their_own() -> None:
    everyone = threading.Barrier(11)
    for _ in range(10):
        call_in_background(everyone.wait, 30)
    everyone.wait(30)  # passes only if ten threads wait
    assert not everyone.broken


def test_an_idle_thread_holds_nothing_and_ends() -> None:
    class Large:
        pass

    large = Large()
    gone = weakref.ref(large)
    started: Future[threading.Thread] = Future()

    def call(large: Large) -> None:
        started.set_result(threading.current_thread())

    call_in_background(call, large)
    thread = started.result(30)
    del large
    assert eventually(lambda: gc.collect() >= 0 and gone() is None)
    thread.join(30)
    assert not thread.is_alive()
    assert thread_of_a_call() is not thread
