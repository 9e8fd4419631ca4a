"""Numbers that the supervisor shares with its worker, when somebody has written nonsense there."""

from __future__ import annotations

import os
import subprocess

import pytest

from rlm_containers.guest.succession import HEIR, SHARED, TAKEN, Succession, exists, signal_group

NONSENSE = (1, 2**31, 2**32 + 1, 2**63, 2**64 - 1)


@pytest.fixture
def numbers() -> memoryview:
    return memoryview(bytearray(8 * SHARED)).cast("Q")


@pytest.mark.parametrize("group", NONSENSE)
def test_groups_that_are_none(group: int, numbers: memoryview) -> None:
    assert not exists(group)  # group 1 would stand for every process
    signal_group(group, 0)
    numbers[HEIR] = group
    succession = Succession(numbers)
    assert not succession.is_pending()
    assert not succession.is_able()
    succession.end()


def test_only_a_living_child_goes_on(numbers: memoryview) -> None:
    succession = Succession(numbers)
    with subprocess.Popen(("cat",), stdin=subprocess.PIPE) as child:
        numbers[TAKEN] = child.pid
        assert succession.successor() == child.pid
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert succession.successor() == 0  # it died at once: nobody would be told again
    for stranger in (0, os.getpid(), os.getppid(), *NONSENSE):
        numbers[TAKEN] = stranger
        assert succession.successor() == 0
