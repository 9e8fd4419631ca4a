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
    # The host removes it, and so sees that it has the same workspace as this container.
    try:
        os.close(os.open(".hello", os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
        wrote = "true"
    except OSError:  # a full disk, for one
        wrote = "false"
    connection = _connect()
    errors = _connect() if connection >= 0 else -1
    if errors >= 0:
        # Standard error goes there from now on. The streams may lead nowhere some day: the host may
        # let go of the engine's client, which is at their other end.
        os.dup2(errors, 2)
        os.dup2(errors, 1)
        os.close(errors)
    version = ".".join(str(part) for part in sys.version_info[:3])
    hello = '{{"event": "hello", "python": "{}", "pid": {}, "wrote": {}, "direct": {}}}'.format(
        version, os.getpid(), wrote, "true" if errors >= 0 else "false"
    )
    # A frame by hand, as rlm_guest.wire would encode this event.
    os.write(host_out, len(hello).to_bytes(4, "big") + b"e" + hello.encode())

    from . import wire
    from .supervisor import Supervisor

    os.environ.pop(wire.TUNABLES, None)

    if errors >= 0:
        # The standard streams stay open: they tell the host how long the container lives.
        host_in = host_out = connection
    Supervisor(host_in, host_out).run()


def _connect() -> int:
    """Connect to the host by the socket in the workspace. Return a descriptor, or -1."""
    try:
        from _socket import AF_UNIX, SOCK_STREAM, socket  # without socket.py, which takes time

        connection = socket(AF_UNIX, SOCK_STREAM)
        try:
            connection.connect(".socket")
        except BaseException:
            connection.close()
            raise
        return connection.detach()
    except (ImportError, OSError):
        return -1
