"""The sandbox of a module, emptied for each test that wants it so."""

from __future__ import annotations

import pytest

from rlm_containers import Sandbox
from tests.behaviour.values import CLEAR
from tests.support import printed


@pytest.fixture
def fresh(box: Sandbox) -> Sandbox:
    """The module's sandbox without variables and handlers. Its interpreter may be killed."""
    printed(
        box, "import signal as s; s.signal(s.SIGUSR1, s.SIG_DFL), s.signal(s.SIGCHLD, s.SIG_DFL)"
    )
    printed(box, CLEAR)
    return box
