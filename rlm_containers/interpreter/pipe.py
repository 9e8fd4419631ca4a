"""The host's end of the pipe to a container.

One thread reads. Whatever comes is untrusted: the code in a cell runs as the same user as the
supervisor and can write to its descriptors. Frames are bounded, JSON is parsed with errors
expected, and a stream that is no longer frames closes the pipe.
"""

from __future__ import annotations

import json
import os
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rlm_containers.errors import SandboxLostError
from rlm_containers.guest import wire
from rlm_containers.interpreter.backlog import Backlog
from rlm_containers.interpreter.untrusted import UntrustedJSON
from runtimes import ContainerProcess

#: The exit status of a client whose container was ended by SIGKILL.
KILLED = 128 + 9
#: Seconds that the client has to end after its pipe was closed.
_END = 10.0

#: Bytes of the container's standard error, where the engine's client speaks too, that are kept.
_STDERR_KEPT = 16_384

#: Seconds for the other side to take what is written. It reads at once, always.
_WRITE_TIMEOUT = 60.0

#: Milliseconds after which a write that makes no progress looks whether it is still wanted.
_LOOK = 100

#: Bytes of what waits to be taken, as it is in memory. Past it the reader waits, and so does the
#: container.
_BACKLOG = 64 * 1024 * 1024

#: What any item takes besides its contents.
_ITEM = 500

#: Parts of a message: reports of variables have four for each.
_MAX_PARTS = 200_000

#: Bytes that a payload from the container may have: a supervisor reads 64 KiB of a stream at a
#: time, and has little to say of itself.
_LIMITS = {
    wire.MESSAGE: wire.MAX_FRAME,
    wire.CALL: wire.MAX_FRAME,
    wire.STDOUT: 1024 * 1024,
    wire.STDERR: 1024 * 1024,
    wire.EVENT: 64 * 1024,
}


@dataclass(frozen=True)
class Message:
    """A JSON object from the worker."""

    content: dict[str, Any]


@dataclass(frozen=True)
class Event:
    """A JSON object from the supervisor."""

    content: dict[str, Any]


@dataclass(frozen=True)
class Output:
    """What was written to a standard stream. ``stream`` is a kind of :mod:`guest.wire`."""

    stream: int
    data: bytes


@dataclass(frozen=True)
class Closed:
    """Nothing more will come.

    Attributes:
        exit_code: the client's exit status, if it ended.
        stderr: the last that was written to standard error.
        reason: why the pipe gave up, where it was not the container that ended.
    """

    exit_code: int | None
    stderr: str
    reason: str = ""


Item = Message | Event | Output | Closed


class FloodError(Exception):
    """The container sends more than anyone can answer."""


@dataclass
class Pipe:
    """Frames to and from one container.

    Args:
        process: the container's program.
        on_call: given the number and the payload of every call that comes over the pipe, in the
            reader's thread; must not wait. Raises FloodError to end the conversation.

    Attributes:
        opened: when, as ``time.monotonic()`` has it.
        closed: how it ended, once it has.
    """

    process: ContainerProcess
    on_call: Callable[[int, bytes], None]
    closed: Closed | None = None
    _stderr: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self._items: Backlog[Item] = Backlog(_BACKLOG)
        self.opened = time.monotonic()
        self._write_lock = threading.Lock()
        self._hung_up = False
        self._reason = ""
        # A full pipe must not hold the writer for ever, see send().
        os.set_blocking(self.process.stdin, False)
        self._reader = threading.Thread(
            target=self._read, name=f"rlm-pipe-{self.process.name}", daemon=True
        )
        self._reader.start()

    def send(self, kind: int, payload: bytes = b"") -> None:
        """Write one frame.

        Raises:
            SandboxLostError: the container is gone or does not read.
            guest.wire.FrameError: the payload is too large for one frame.
        """
        frame = memoryview(wire.encode(kind, payload))
        deadline = time.monotonic() + _WRITE_TIMEOUT
        with self._write_lock:
            while frame:
                if self.process.stdin < 0:
                    raise self._lost("its pipe is closed")
                try:
                    frame = frame[os.write(self.process.stdin, frame) :]
                except BlockingIOError:
                    if self._hung_up:
                        raise self._lost("it was closed") from None
                    if time.monotonic() > deadline:
                        # With half a frame in it nothing else can be sent through this pipe.
                        self._reason = self._reason or "it does not read any more"
                        self.process.close_stdin()
                        raise self._lost(self._reason) from None
                    room = select.poll()
                    room.register(self.process.stdin, select.POLLOUT)
                    room.poll(_LOOK)
                except OSError:
                    raise self._lost("its pipe is broken") from None

    def send_message(self, **content: Any) -> None:
        """Write one JSON object for the worker."""
        self.send(wire.MESSAGE, json.dumps(content).encode("ascii"))

    def receive(self, timeout: float | None = None) -> Item:
        """The next thing that came; :class:`Closed` for ever once the container has ended.

        Args:
            timeout: seconds to wait; ``None`` for as long as it takes. May be less than 0.

        Raises:
            TimeoutError: nothing came in time, or :meth:`wake` was called.
        """
        if self.closed is not None and not self._items:
            return self.closed
        return self._items.take(None if timeout is None else max(0.0, timeout))

    def wake(self) -> None:
        """Let whoever waits in :meth:`receive` look again how long to wait. In any thread."""
        self._items.wake()

    def waiting(self) -> int:
        """How many items have come and wait to be taken."""
        return len(self._items)

    def hang_up(self, reason: str = "it was closed") -> None:
        """Close the pipe, upon which the guest ends, and wait for nothing."""
        self._reason = self._reason or reason
        self._hung_up = True  # else a write to a guest that does not read would hold the lock
        with self._write_lock:
            self.process.close_stdin()

    def close(self, timeout: float) -> None:
        """Close the pipe, upon which the guest ends, and wait for the client to.

        Args:
            timeout: seconds until the client is killed.
        """
        self._items.abandon()
        self._hung_up = True
        with self._write_lock:
            self.process.close_stdin()
        self._reader.join(timeout)
        if self._reader.is_alive():
            self.process.kill()
            self._reader.join(timeout)
        self.process.close()

    # The reader's thread

    def _read(self) -> None:
        reason = ""
        try:
            self._pump()
        except wire.FrameError as error:
            reason = f"the container sent what is no frame ({error})"
        except ValueError as error:
            reason = f"the container sent a frame with no JSON object in it ({error})"
        except FloodError as error:
            reason = str(error)
        # Nothing that follows can be trusted to be in step, or nothing can follow.
        self._reason = self._reason or reason
        self._hung_up = True
        with self._write_lock:
            self.process.close_stdin()
        if reason:
            self._discard()
        exit_code = self.process.wait(_END)
        stderr = self._stderr.decode("utf-8", "replace")
        self.closed = Closed(exit_code, stderr, reason or self._reason)
        self._items.put(self.closed, 0)

    def _pump(self) -> None:
        decoder = wire.FrameDecoder(_LIMITS)
        poll = select.poll()
        open_ends = {self.process.stdout, self.process.stderr}
        for descriptor in open_ends:
            poll.register(descriptor, select.POLLIN)
        while open_ends:
            for descriptor, _ in poll.poll():
                data = os.read(descriptor, 1 << 20)
                if not data:
                    poll.unregister(descriptor)
                    open_ends.discard(descriptor)
                elif descriptor == self.process.stderr:
                    self._stderr += data
                    del self._stderr[:-_STDERR_KEPT]
                else:
                    for kind, payload in decoder.feed(data):
                        self._dispatch(kind, payload)

    def _discard(self) -> None:
        """Read on until the end: who cannot write does not see that it is to end."""
        deadline = time.monotonic() + _END
        poll = select.poll()
        poll.register(self.process.stdout, select.POLLIN)
        while poll.poll(1000 * max(0.0, deadline - time.monotonic())):
            if not os.read(self.process.stdout, 1 << 20):
                return

    def _dispatch(self, kind: int, payload: bytes) -> None:
        if kind in (wire.STDOUT, wire.STDERR):
            self._items.put(Output(kind, payload), _ITEM + len(payload))
        elif kind == wire.CALL:
            if len(payload) >= 4:
                self.on_call(int.from_bytes(payload[:4], "big"), payload[4:])
        elif kind in (wire.MESSAGE, wire.EVENT):
            said = UntrustedJSON(payload, _MAX_PARTS)
            content = said.load()
            if not isinstance(content, dict):
                raise ValueError("it is no object")
            item = Message(content) if kind == wire.MESSAGE else Event(content)
            self._items.put(item, _ITEM + said.size)

    def _lost(self, how: str) -> SandboxLostError:
        said = self._stderr.decode("utf-8", "replace").strip()
        why = self._reason or how
        return SandboxLostError(
            f"The container cannot be reached: {why}." + (f" It said: {said}" if said else ""),
            remedy="Make a new Sandbox.",
            container=self.process.name,
        )
