"""The supervisor's link to a worker."""

from __future__ import annotations

import select
import signal
import subprocess

from rlm_containers.guest.link import Link, close_all, open_channels
from rlm_containers.guest.succession import SHARED
from tests.support import TIMEOUT


def test_a_process_that_does_not_lead_its_group_yet_is_killed() -> None:
    ours, theirs = open_channels()
    link = Link(select.poll(), ours, memoryview(bytearray(8 * SHARED)).cast("Q"))
    with subprocess.Popen(("sleep", "1000")) as process:
        try:
            link.listen(process.pid)
            link.kill_group()
            assert process.wait(TIMEOUT) == -signal.SIGKILL
        finally:
            process.kill()
            link.close()
            close_all(theirs)
