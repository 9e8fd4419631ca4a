"""Descriptors of a process that was just forked from the supervisor or the worker."""

from __future__ import annotations

import os
from collections.abc import Sequence, Set

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


def descriptors() -> set[int]:
    """Return the descriptors of this process."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            os.fstat(int(name))
        except OSError:
            continue  # the one that has listed them
        found.add(int(name))
    return found


def drop_others(own: Set[int]) -> None:
    """Replace all descriptors but these by what is not open, under the same numbers.

    What cells have open must not stay open in a copy of their process.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    nothing = os.open("/", os.O_PATH | os.O_CLOEXEC)
    for descriptor in descriptors() - own - {null, nothing}:
        try:
            os.dup2(nothing, descriptor, inheritable=False)
        except OSError:
            pass
    os.close(null)
    os.close(nothing)


def take(ends: Sequence[int], own: Set[int]) -> None:
    """In a copy of a worker, make these its descriptors in place of the worker's.

    Args:
        ends: those of control, calls, stdout and stderr.
        own: the descriptors that cells have nothing to do with: the first five, and those that the
            standard streams are restored from after each cell.
    """
    control, calls, stdout, stderr = ends
    standard = sorted(own - {*range(5)})
    targets = (0, 1, 2, *standard, 3, 4)
    null = os.open(os.devnull, os.O_RDONLY)
    streams = (null, stdout, stderr)
    sources = (*streams, *streams[: len(standard)], control, calls)
    for source, target in zip(sources, targets):  # noqa: B905 - not in 3.9
        os.dup2(source, target, inheritable=target < 3)
    for descriptor in (null, *ends):
        os.close(descriptor)
