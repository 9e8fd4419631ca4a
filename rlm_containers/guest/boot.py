"""The first module that runs: takes over the standard streams and sends ``hello`` to the host.

The host has work of its own to do after ``hello``. So send it before importing anything that a bare
interpreter has not imported already.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Send ``hello`` and become the supervisor. Does not return."""
    host_in = os.dup(0)
    host_out = os.dup(1)
    # Nothing else that writes to the standard streams may get between the frames.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    version = ".".join(str(part) for part in sys.version_info[:3])
    hello = '{{"event": "hello", "python": "{}", "pid": {}}}'.format(version, os.getpid())
    # A frame by hand, as rlm_guest.wire would encode this event.
    os.write(host_out, len(hello).to_bytes(4, "big") + b"e" + hello.encode())

    from .supervisor import Supervisor

    Supervisor(host_in, host_out).run()
