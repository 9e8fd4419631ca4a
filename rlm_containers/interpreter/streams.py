"""The streams to and from a guest: those of the engine's client, then perhaps a socket."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Set

from rlm_containers.guest import wire
from rlm_containers.interpreter.direct import DirectSocket
from runtimes import ContainerProcess

#: Bytes to keep of the container's standard error, where the engine's client writes too.
_STDERR_KEPT = 16_384


class Streams:
    """What leads to one guest, and whether it leads there by the client or directly.

    Args:
        process: the engine's client.
        direct: where the guest may connect to. This object owns it from now on.

    Attributes:
        process: as it was given.
        is_shut: whether nothing can be written any more.
        ask_status: returns the container's exit status once it has ended; ``None`` as long as the
            client tells it.
    """

    def __init__(self, process: ContainerProcess, direct: DirectSocket | None) -> None:
        self.process = process
        self.is_shut = False
        self.ask_status: Callable[[], int | None] | None = None
        self._direct = direct
        self._connected: DirectSocket | None = None  # the same, once the guest has connected
        self._stderr = bytearray()
        # A full pipe must not block the writer without a limit, see FrameWriter.
        os.set_blocking(process.stdin, False)

    @property
    def input(self) -> int:
        """The descriptor to write to."""
        return self._connected.fileno() if self._connected else self.process.stdin

    @property
    def stderr(self) -> str:
        """The end of what was written to standard error."""
        return self._stderr.decode("utf-8", "replace")

    def keep_stderr(self, data: bytes) -> None:
        """Take what was written to standard error."""
        self._stderr += data
        del self._stderr[:-_STDERR_KEPT]

    def connect(self) -> tuple[int, int]:
        """Read and write what follows by the direct connection.

        Returns:
            The descriptors to read its frames and its standard error from.

        Raises:
            ValueError: the guest has not connected.
        """
        direct = self._direct
        if direct is None or self._connected or not direct.accept() or direct.errors is None:
            raise ValueError("it says that it has connected, and has not")
        self._connected = direct
        return direct.fileno(), direct.errors.fileno()

    def leave_client(self, ask_status: Callable[[], int | None]) -> int:
        """End the engine's client, see :meth:`Pipe.leave_client`."""
        if self._connected is None or not self._connected.peer:
            return 0
        self.ask_status = ask_status  # first: the end of the streams means nothing from now on
        monitor = self.process.leave(self._connected.peer)
        if not monitor:
            self.ask_status = None
        return monitor

    def shut_down(self) -> None:
        """Tell the guest that nothing more follows."""
        self.is_shut = True
        if self._direct is not None:
            self._direct.shut_down()
        self.process.close_stdin()

    def note_end(self, open_ends: Set[int]) -> None:
        """Note that nothing more comes from any descriptor but these."""
        if open_ends & {self.process.stdout, self.process.stderr}:
            return
        if self.ask_status is not None:
            self.process.close()  # of a client that was left
        elif self._direct is not None:
            # The container has ended, or its client has. What it had said before has all arrived.
            self._direct.cut()

    def discard(self, seconds: float) -> None:
        """Read to the end: a guest that is blocked in a write does not see that its pipe closed."""
        deadline = time.monotonic() + seconds
        poll = select.poll()
        direct = self._connected.fileno() if self._connected else -1
        open_ends = {self.process.stdout, direct} - {-1}
        for descriptor in open_ends:
            poll.register(descriptor, select.POLLIN)
        while open_ends and (left := deadline - time.monotonic()) > 0:
            for descriptor, _ in poll.poll(1000 * left):
                if not read_chunk(descriptor):
                    poll.unregister(descriptor)
                    open_ends.discard(descriptor)

    def kill(self) -> None:
        """Kill the client, and let nobody write to the direct connection any more."""
        self.process.kill()
        if self._direct is not None:
            self._direct.cut()

    def close(self) -> None:
        """Close all descriptors."""
        self.process.close()
        if self._direct is not None:
            self._direct.close()


def read_chunk(descriptor: int) -> bytes:
    """Read. Return nothing at the end."""
    try:
        return os.read(descriptor, wire.CHUNK)
    except (BlockingIOError, ConnectionError):
        return b""
