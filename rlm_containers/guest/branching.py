"""Forks branches of the worker: processes that go on from its variables, each by itself.

The worker forks a child, which forks all branches and ends. So they become children of the
supervisor, which sees how they end, and ``os.wait()`` in a cell does not return them. A branch is a
:class:`rlm_guest.worker.Worker` that saves nothing. :mod:`rlm_guest.branches` has the supervisor's
side.
"""

from __future__ import annotations

import errno
import gc
import os
import socket
import sys
from collections.abc import Callable
from time import sleep
from typing import NoReturn

from . import lm
from .descriptors import descriptors, drop_others, take
from .heir import forked
from .heirs import random_state
from .interrupts import monotonic
from .link import Ends, close_all, open_channels
from .succession import FAILED, MADE, PID, SLOT, Branched
from .threads import describe_threads, find_strangers, has_children

#: Seconds for all branches to be ready.
_READY_TIMEOUT = 10.0

#: The most descriptors that are named, and the most characters of each.
_NAMED = 5
_NAME = 100

_SIGKILL = 9


class CannotBranchError(Exception):
    """No branches can be forked.

    Args:
        obstacle: what is in the way, one of the words in :mod:`rlm_guest.wire`.
        text: more of that.
    """

    def __init__(self, obstacle: str, text: str) -> None:
        super().__init__(obstacle, text)
        self.obstacle = obstacle
        self.text = text


def check(own: frozenset[int], *, runs_code: bool) -> None:
    """Check that a forked copy of this process would be as good as itself.

    Args:
        own: the descriptors that cells have nothing to do with.
        runs_code: whether a fork runs code of cells.

    Raises:
        CannotBranchError: it would not.
    """
    if runs_code:
        raise CannotBranchError("hooks", "")
    threads = describe_threads()
    if threads:
        raise CannotBranchError("threads", threads)
    awaiting = sys.modules.get(__package__ + ".awaiting")
    if awaiting is not None:
        awaiting.cell_loop.close_idle()
    found = sorted(descriptors() - own - lm.descriptors())
    if found:
        raise CannotBranchError("open", ", ".join(map(_name_of, found[:_NAMED])))
    if has_children():
        raise CannotBranchError("children", "")


def _name_of(descriptor: int) -> str:
    try:
        return os.readlink("/proc/self/fd/{}".format(descriptor))[:_NAME]
    except OSError:
        return "descriptor {}".format(descriptor)


def fork_branches(
    first: int, count: int, slots: memoryview, calls: socket.socket, own: frozenset[int]
) -> None:
    """Fork branches, and hand what leads to them to the supervisor.

    Args:
        first: the number of the first one. The others follow.
        count: how many.
        slots: the numbers that each shares with the supervisor.
        calls: the socket to the supervisor.
        own: as for :func:`check`.

    Raises:
        CannotBranchError: they cannot be forked. None is left.
        Branched: this is one of them.
    """
    for place in range(SLOT * count):
        slots[place] = 0
    numbers = [slots[SLOT * place : SLOT * (place + 1)] for place in range(count)]
    channels: list[tuple[Ends, Ends]] = []
    supervisor = os.getppid()
    restore_random = random_state()
    try:
        try:
            channels.extend(open_channels() for _ in range(count))
            child = forked()
        except OSError as error:
            raise CannotBranchError("room", str(error.strerror)) from None
        if child == 0:
            place = _fork_all(numbers)
            ends = channels[place][1]
            _close(channels, ends)
            _become(numbers[place], ends, own, supervisor, restore_random)
        try:
            os.waitpid(child, 0)
        except ChildProcessError:
            pass  # the cells ignore SIGCHLD
        _await_all(numbers)
        if find_strangers():
            _kill_all(numbers)
            raise CannotBranchError("threads", "those of a library")
        for place, (ours, _) in enumerate(channels):
            message = (first + place).to_bytes(4, "big") + numbers[place][PID].to_bytes(4, "big")
            socket.send_fds(calls, [b"b" + message], ours)
    finally:
        _close(channels)


def _close(channels: list[tuple[Ends, Ends]], kept: Ends | tuple[()] = ()) -> None:
    for ours, theirs in channels:
        close_all([end for end in (*ours, *theirs) if end not in kept])
    channels.clear()


def _fork_all(numbers: list[memoryview]) -> int:
    """In the worker's child, fork all branches, and end. Return in each of them its place."""
    # What is there now lives on in all of them. A collection in one would copy all of its pages.
    gc.freeze()
    for place, slot in enumerate(numbers):
        try:
            pid = forked()
            if pid == 0:
                return place
            slot[PID] = pid
        except OSError as error:
            for missing in numbers[place:]:
                missing[FAILED] = error.errno or errno.EAGAIN
            break
    os._exit(0)


def _become(
    slot: memoryview,
    ends: Ends,
    own: frozenset[int],
    supervisor: int,
    restore_random: Callable[[], None] | None,
) -> NoReturn:
    """Be a branch from now on."""
    try:
        parent = os.getppid()
        os.setsid()
        drop_others(own | {*ends})
        take(ends, own)
        while os.getppid() == parent and parent != supervisor:
            sleep(0.0002)  # the worker's child has not ended yet
        if os.getppid() != supervisor:
            slot[FAILED] = errno.ENOSYS
            os._exit(0)
        if restore_random is not None:
            restore_random()
        slot[MADE] = 1
    except BaseException:
        slot[FAILED] = errno.EIO
        os._exit(1)
    raise Branched(slot)


def _await_all(numbers: list[memoryview]) -> None:
    """Wait until all branches are ready.

    Raises:
        CannotBranchError: one cannot be. The others were killed.
    """
    deadline = monotonic() + _READY_TIMEOUT
    while not all(slot[MADE] or slot[FAILED] for slot in numbers) and monotonic() < deadline:
        sleep(0.0002)
    failed = [slot[FAILED] or errno.ETIMEDOUT for slot in numbers if not slot[MADE]]
    if not failed:
        return
    _kill_all(numbers)
    if failed[0] == errno.ENOSYS:
        raise CannotBranchError("room", "its Python has no ctypes, which adopts processes")
    raise CannotBranchError("room", os.strerror(failed[0]))


def _kill_all(numbers: list[memoryview]) -> None:
    for slot in numbers:
        if slot[PID]:
            try:
                os.kill(slot[PID], _SIGKILL)
            except (OSError, OverflowError):
                pass  # it has ended, or a cell has written to the numbers
