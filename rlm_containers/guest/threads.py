"""What keeps a forked copy of this process from being as good as itself: threads and children."""

from __future__ import annotations

import os
import sys
from _thread import _count as count_threads
from time import sleep

from .interrupts import monotonic

#: The threads of this process, a directory for each.
_TASKS = "/proc/self/task"
#: Seconds for threads that end before a fork to be gone.
_END_OF_THREADS = 0.01

#: The most threads that are named, and the most characters of each.
_NAMED = 5
_NAME = 100


def describe_threads() -> str:
    """Return which threads cells have, in words; nothing if they have none."""
    if not count_threads():
        return ""
    try:
        threading = sys.modules["threading"]
        first = threading.main_thread()
        names = [thread.name for thread in threading.enumerate() if thread is not first]
        found = ", ".join(str(name)[:_NAME] for name in names[:_NAMED])
    except Exception:  # a cell may replace any module, and derive from Thread
        found = ""
    return found or "{} threads".format(count_threads())


def find_strangers() -> frozenset[str]:
    """After a fork, return the threads of this process that know nothing of it.

    A library whose threads do ends them before a fork, and makes others when it needs them, as
    OpenBLAS does. What others have left in a child may never be unlocked.
    """
    deadline = monotonic() + _END_OF_THREADS
    # A link for each thread, and two for the directory itself.
    while os.stat(_TASKS).st_nlink > 3:
        if monotonic() > deadline:
            return frozenset(os.listdir(_TASKS)) - {str(os.getpid())}
        sleep(0.0002)
    return frozenset()


def has_children() -> bool:
    """Return whether this process has children, which a forked child of it would not have."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
