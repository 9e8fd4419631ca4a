"""A program that is executed in a pod, and the streams to it."""

from __future__ import annotations

import os
import select
from collections.abc import Mapping
from typing import Protocol

from runtimes.holder import read, write
from runtimes.process import ClientProcess

#: Bytes of what a client says that are kept.
_SAID = 1 << 16

#: Seconds for a client that was killed to end.
_END_TIMEOUT = 10.0


class Exec(Protocol):
    """Carries bytes to and from a program in a pod. It may break at any time.

    Attributes:
        said: what the program, kubectl and the cluster have said for people.
    """

    said: bytearray

    def interests(self, *, reads: bool, writes: bool) -> list[tuple[int, int]]:
        """Return descriptors to poll, and for which events.

        Args:
            reads: whether there is room for what comes.
            writes: whether there is something to send.
        """

    def pass_on(self, happened: Mapping[int, int], outbox: bytearray) -> bytes | None:
        """Do what can be done without waiting.

        Args:
            happened: the events of descriptors.
            outbox: what is to be sent; what was sent is deleted.

        Returns:
            What has come; nothing at the end, and ``None`` if there is nothing now.
        """

    def kill(self) -> None:
        """Break it. Any thread may call this."""

    def close(self) -> None:
        """End it, and close its descriptors."""


class KubectlExec:
    """A ``kubectl exec``. See :class:`Exec`."""

    def __init__(self, client: ClientProcess) -> None:
        self.said = bytearray()
        self._client = client
        os.set_blocking(client.stdin, False)

    def interests(self, *, reads: bool, writes: bool) -> list[tuple[int, int]]:
        client = self._client
        wanted = []
        if reads:
            wanted.append((client.stdout, select.POLLIN))
        if writes:
            wanted.append((client.stdin, select.POLLOUT))
        if client.stderr >= 0:
            wanted.append((client.stderr, select.POLLIN))
        return wanted

    def pass_on(self, happened: Mapping[int, int], outbox: bytearray) -> bytes | None:
        client = self._client
        if events := happened.get(client.stderr, 0):
            if events & select.POLLIN:
                self.said += read(client.stderr) or b""
                del self.said[:-_SAID]
            else:
                os.close(client.stderr)
                client.stderr = -1
        if client.stdin in happened and not write(client.stdin, outbox):
            return b""
        return read(client.stdout) if client.stdout in happened else None

    def kill(self) -> None:
        self._client.kill()

    def close(self) -> None:
        self._client.kill()
        self._client.wait(_END_TIMEOUT)
        self._client.close()
