"""Forks the worker from the supervisor."""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys

from .descriptors import become
from .link import Ends, Link, close_all, open_channels
from .memory import offer_to_kernel

#: How often to try to fork a worker, 20 times a second, while the container is at its limit of
#: processes or memory. What a dead worker used is not free at once.
_TRIES = 100


def fork_worker(
    poll: select.poll, mode: str, progress: memoryview, journal: memoryview, slots: memoryview
) -> Link:
    """Fork a worker. Return what leads to it.

    Args:
        poll: registers what leads to it.
        mode: how it starts, see :class:`rlm_guest.worker.Worker`.
        progress: the numbers that it shares with this process.
        journal: the memory for the journal.
        slots: the numbers of its branches.
    """
    ours, theirs = open_channels()
    # What is there now lives on in both. A collection in one would copy all of its pages.
    gc.freeze()
    pid = _fork()
    if pid == 0:
        _become_worker(theirs, mode, progress, journal, slots)
    close_all(theirs)
    link = Link(poll, ours, progress)
    link.listen(pid)
    return link


def _fork() -> int:
    """Fork, and try again for a while if the container has no room for another process."""
    for _ in range(_TRIES):
        try:
            return os.fork()
        except OSError as failure:
            error = failure
        select.select((), (), (), 0.05)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass  # orphans, if this process is PID 1
        except ChildProcessError:
            pass
    # The host reports what stands on standard error when the container ends.
    os.write(2, "No new worker can be forked: {}.\n".format(error.strerror).encode())
    os._exit(71)


def _become_worker(
    ends: Ends, mode: str, progress: memoryview, journal: memoryview, slots: memoryview
) -> None:
    """In the forked child, drop what is the supervisor's, and serve cells. Does not return.

    ``ends`` are the worker's descriptors of control, calls, stdout and stderr.
    """
    status = 70
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        offer_to_kernel()
        become((os.open(os.devnull, os.O_RDONLY), *ends[2:], *ends[:2]))
        from . import worker

        control, calls = socket.socket(fileno=3), socket.socket(fileno=4)
        status = worker.main(control, calls, mode, progress, journal, slots)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)
