"""The host's end of the pipe to a container.

One thread reads. Whatever comes is untrusted: the code in a cell runs as the same user as the
supervisor and can write to its descriptors. Frames are bounded, JSON is parsed with errors
expected, and a stream that is no longer frames closes the channel.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rlm_containers.errors import SandboxLostError
from rlm_containers.guest import wire
from runtimes import ContainerProcess

__all__ = ["Channel", "Closed", "Event", "Message", "Output"]

#: Bytes of the container's standard error, where the engine's client speaks too, that are kept.
_STDERR_KEPT = 16_384

#: Seconds for the other side to take what is written. It reads at once, always.
_WRITE_TIMEOUT = 60.0

#: Frames waiting to be taken. Past it the reader waits, and so does the container.
_BACKLOG = 256


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
        reason: why the channel gave up, where it was not the container that ended.
    """

    exit_code: int | None
    stderr: str
    reason: str = ""


Item = Message | Event | Output | Closed


@dataclass
class Channel:
    """Frames to and from one container.

    Args:
        process: the container's program.
        on_call: given the number and the payload of every call that comes over the pipe, in the
            reader's thread; must not wait.

    Attributes:
        opened: when, as ``time.monotonic()`` has it.
        closed: how it ended, once it has.
    """

    process: ContainerProcess
    on_call: Callable[[int, bytes], None]
    closed: Closed | None = None
    _stderr: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self._items: queue.Queue[Item | None] = queue.Queue(_BACKLOG)
        self.opened = time.monotonic()
        self._write_lock = threading.Lock()
        self._stopping = False
        self._reason = ""
        # A full pipe must not hold the writer for ever, see send().
        os.set_blocking(self.process.stdin, False)
        self._reader = threading.Thread(
            target=self._read, name=f"rlm-channel-{self.process.name}", daemon=True
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
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise self._lost("it does not read any more") from None
                    select.select((), (self.process.stdin,), (), left)
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
        if self.closed is not None and self._items.empty():
            return self.closed
        try:
            item = self._items.get(timeout=None if timeout is None else max(0.0, timeout))
        except queue.Empty:
            raise TimeoutError from None
        if item is None:
            raise TimeoutError
        return item

    def wake(self) -> None:
        """Let whoever waits in :meth:`receive` look again how long to wait. In any thread."""
        with contextlib.suppress(queue.Full):  # then nobody waits
            self._items.put_nowait(None)

    def hang_up(self, reason: str = "it was closed") -> None:
        """Close the pipe, upon which the guest ends, and wait for nothing."""
        self._reason = self._reason or reason
        with self._write_lock:
            self.process.close_stdin()

    def close(self, timeout: float) -> None:
        """Close the pipe, upon which the guest ends, and wait for the client to.

        Args:
            timeout: seconds until the client is killed.
        """
        self._stopping = True
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
        except (ValueError, RecursionError) as error:
            reason = f"the container sent a frame with no JSON object in it ({error})"
        if reason:
            # Nothing that follows can be trusted to be in step.
            self._reason = reason
            with self._write_lock:
                self.process.close_stdin()
        exit_code = self.process.wait(10.0)
        stderr = self._stderr.decode("utf-8", "replace")
        self.closed = Closed(exit_code, stderr, reason or self._reason)
        self._put(self.closed)

    def _pump(self) -> None:
        decoder = wire.FrameDecoder()
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

    def _dispatch(self, kind: int, payload: bytes) -> None:
        if kind in (wire.STDOUT, wire.STDERR):
            self._put(Output(kind, payload))
        elif kind == wire.CALL:
            if len(payload) >= 4:
                self.on_call(int.from_bytes(payload[:4], "big"), payload[4:])
        elif kind in (wire.MESSAGE, wire.EVENT):
            content = json.loads(payload)
            if not isinstance(content, dict):
                raise ValueError("it is no object")
            self._put(Message(content) if kind == wire.MESSAGE else Event(content))

    def _put(self, item: Item) -> None:
        while not self._stopping:  # then nobody takes anything any more
            try:
                self._items.put(item, timeout=0.2)
                return
            except queue.Full:
                pass

    def _lost(self, how: str) -> SandboxLostError:
        said = self._stderr.decode("utf-8", "replace").strip()
        why = self._reason or how
        return SandboxLostError(
            f"The container cannot be reached: {why}." + (f" It said: {said}" if said else ""),
            remedy="Make a new Sandbox.",
            container=self.process.name,
        )
