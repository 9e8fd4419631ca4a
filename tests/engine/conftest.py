"""The sandbox that a module's tests share, for tests that want it as it was at its start."""

from __future__ import annotations

import pytest

from rlm_containers import Sandbox
from tests.engine.values import CLEAR
from tests.support import printed


@pytest.fixture
def fresh(box: Sandbox) -> Sandbox:
    """The module's sandbox without any variables. Its interpreter may be killed."""
    printed(box, CLEAR)
    return box
