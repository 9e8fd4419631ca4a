"""Each kind of value as what it was, after its interpreter has died. Engines have no part in it."""

from __future__ import annotations

import pytest

from rlm_containers import Sandbox
from tests.behaviour.values import CLEAR, VALUES, Value
from tests.support import printed
from tests.unit.sessions import revive


@pytest.fixture
def fresh(shared: Sandbox) -> Sandbox:
    """A sandbox without any variables."""
    printed(shared, CLEAR)
    return shared


@pytest.mark.parametrize("value", VALUES, ids=[value.name for value in VALUES])
def test_restored_as_what_it_was(fresh: Sandbox, value: Value) -> None:
    printed(fresh, value.define)
    revive(fresh)
    assert printed(fresh, value.look) == value.expected + "\n"
    # What was restored is saved as well as what was made.
    revive(fresh)


def test_the_same_without_a_death(fresh: Sandbox) -> None:
    # Expectations that a live interpreter does not meet would say nothing about restoring.
    for value in VALUES:
        printed(fresh, CLEAR)
        printed(fresh, value.define)
        assert printed(fresh, value.look) == value.expected + "\n"
