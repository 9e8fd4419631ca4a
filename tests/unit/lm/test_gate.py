"""How much of what containers ask may be in memory at once."""

from __future__ import annotations

import threading

from rlm_containers.lm.gate import Gate
from tests.support import eventually
from tests.unit.guests import PATIENCE


def test_room_is_shared_and_given_back() -> None:
    gate = Gate(10)
    assert gate.take(6)
    assert not gate.take(5)
    assert gate.take(4)
    taken: list[bool] = []
    waiting = threading.Thread(target=lambda: taken.append(gate.wait_and_take(8)))
    waiting.start()
    gate.give_back(6)
    assert not eventually(lambda: taken, 0.05)
    gate.give_back(4)
    waiting.join(PATIENCE)
    assert taken == [True]


def test_nobody_waits_for_room_that_is_closed() -> None:
    gate = Gate(10)
    assert gate.take(10)
    taken: list[bool] = []
    waiting = threading.Thread(target=lambda: taken.append(gate.wait_and_take(1)))
    waiting.start()
    gate.close()
    waiting.join(PATIENCE)
    assert taken == [False]
