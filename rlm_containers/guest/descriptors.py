"""Descriptors of a process that was just forked from the supervisor."""

from __future__ import annotations

import os
from collections.abc import Sequence

#: Up to which descriptors are closed if there is no /proc to list them.
_MOST = 4096


def become(ends: Sequence[int]) -> None:
    """Make these the descriptors from 0 on, and close all others.

    Those from 3 on are closed when this process executes a program.
    """
    import fcntl

    # Move them up first, so that dup2() onto 0, 1 … cannot overwrite one of them.
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 64) for descriptor in ends]
    for number, descriptor in enumerate(moved):
        os.dup2(descriptor, number, inheritable=number < 3)
    first = len(moved)
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        os.closerange(first, _MOST)
        return
    for number in numbers:
        if number >= first:
            try:
                os.close(number)
            except OSError:
                pass  # the one that listed them
