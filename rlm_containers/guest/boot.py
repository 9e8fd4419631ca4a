"""The first thing that runs: takes over the standard streams and reports for duty.

The host waits for the greeting and has work of its own to do after it, so it is sent before
anything is imported that is not in every interpreter already.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Say hello to the host and become the supervisor. Does not return."""
    host_in = os.dup(0)
    host_out = os.dup(1)
    # Whatever else writes to the standard streams from here on must not get between the frames.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    version = ".".join(str(part) for part in sys.version_info[:3])
    hello = '{{"event": "hello", "python": "{}", "pid": {}}}'.format(version, os.getpid())
    # By hand, as rlm_guest.wire would write it: an event.
    os.write(host_out, len(hello).to_bytes(4, "big") + b"e" + hello.encode())

    from .supervisor import Supervisor

    Supervisor(host_in, host_out).run()
