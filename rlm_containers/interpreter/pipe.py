"""The host's end of the pipe to a container.

One thread reads. All input is untrusted: the code in a cell runs as the same user as the
supervisor and can write to its descriptors. So frames are bounded, invalid JSON is expected, and
the pipe closes as soon as the bytes are no longer frames.
"""

from __future__ import annotations

import json
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rlm_containers.errors import SandboxLostError
from rlm_containers.guest import wire
from rlm_containers.interpreter.untrusted import UntrustedJSON
from runtimes import ContainerProcess

#: The exit status of a client whose container was killed by SIGKILL.
KILLED = 128 + 9

#: Seconds for the client to end after its pipe was closed.
_END_TIMEOUT = 10.0

#: Bytes to keep of the container's standard error, where the engine's client writes too.
_STDERR_KEPT = 16_384

#: Seconds for the other side to read what is written. It normally reads at once.
_WRITE_TIMEOUT = 60.0

#: Milliseconds between two checks whether a blocked write is still wanted.
_WRITE_CHECK = 100

#: Bytes in memory of the items that wait to be received. Past that the reader waits, and so does
#: the container.
_MAX_WAITING = 64 * 1024 * 1024

#: Bytes that an item takes besides its contents.
_ITEM_OVERHEAD = 500

#: Parts of a message. Reports of variables have four for each variable.
_MAX_PARTS = 200_000

#: The longest payload of each kind of frame, in bytes. A supervisor reads 64 KiB of a stream at a
#: time, and its own events are short.
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
    """A piece of a standard stream. ``stream`` is a frame kind of :mod:`guest.wire`."""

    stream: int
    data: bytes


@dataclass(frozen=True)
class Closed:
    """The end: nothing more will come.

    Attributes:
        exit_code: the client's exit status, or ``None`` if it had to be killed.
        stderr: the end of what was written to standard error.
        reason: why the host closed the pipe; empty if the container ended by itself.
    """

    exit_code: int | None
    stderr: str
    reason: str = ""


Item = Message | Event | Output | Closed


class FloodError(Exception):
    """The container sends more than anyone can answer."""


_T = TypeVar("_T")


class BoundedQueue(Generic[_T]):
    """A queue between one thread that puts and one that gets, bounded by the size of its items.

    ``queue.Queue`` bounds the number of items only, and cannot be woken.

    Args:
        limit: the total size of the waiting items. A single item may be larger.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: deque[tuple[_T, int]] = deque()
        self._size = 0
        self._woken = False
        self._closed = False
        self._lock = threading.Lock()
        self._filled = threading.Condition(self._lock)
        self._emptied = threading.Condition(self._lock)

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: _T, size: int) -> None:
        """Add an item as soon as it fits. Drop it after :meth:`close`."""
        with self._lock:
            while self._items and self._size + size > self._limit and not self._closed:
                self._emptied.wait()
            if self._closed:
                return
            self._items.append((item, size))
            self._size += size
            self._filled.notify()

    def get(self, timeout: float | None) -> _T:
        """Remove and return the next item.

        Args:
            timeout: seconds to wait for one; ``None`` to wait without a limit.

        Raises:
            TimeoutError: none came in time, or :meth:`wake` was called.
        """
        with self._lock:
            # wait_for() would allocate a lock even if there is an item, as there mostly is.
            if not self._items:
                self._filled.wait_for(lambda: self._items or self._woken, timeout)
            self._woken = False
            if not self._items:
                raise TimeoutError
            item, size = self._items.popleft()
            self._size -= size
            self._emptied.notify()
            return item

    def wake(self) -> None:
        """Make a waiting :meth:`get` return without an item. Any thread may call this."""
        with self._lock:
            self._woken = True
            self._filled.notify()

    def close(self) -> None:
        """Let no :meth:`put` wait any more: nobody will get its item."""
        with self._lock:
            self._closed = True
            self._emptied.notify()


class Pipe:
    """Frames to and from one container.

    Args:
        process: the container's program.
        on_call: called in the reader's thread with the number and payload of every call that the
            container makes over the pipe. Must not wait. Raises FloodError to end the pipe.

    Attributes:
        opened: when the pipe was opened, in seconds of ``time.monotonic()``.
        closed: how the container ended; ``None`` while it runs.
    """

    def __init__(self, process: ContainerProcess, on_call: Callable[[int, bytes], None]) -> None:
        self.process = process
        self.opened = time.monotonic()
        self.closed: Closed | None = None
        self._on_call = on_call
        self._items: BoundedQueue[Item] = BoundedQueue(_MAX_WAITING)
        self._stderr = bytearray()
        self._write_lock = threading.Lock()
        self._hung_up = False
        self._reason = ""
        # A full pipe must not block the writer without a limit, see send().
        os.set_blocking(process.stdin, False)
        self._reader = threading.Thread(
            target=self._read, name=f"rlm-pipe-{process.name}", daemon=True
        )
        self._reader.start()

    def send(self, kind: int, payload: bytes = b"") -> None:
        """Write one frame.

        Raises:
            SandboxLostError: the container is gone or does not read. What :meth:`receive` returns
                last may say more about how it ended.
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
                        # Half a frame is in the pipe, so nothing else can be sent after it.
                        self._reason = self._reason or "it does not read any more"
                        self.process.close_stdin()
                        raise self._lost(self._reason) from None
                    writable = select.poll()
                    writable.register(self.process.stdin, select.POLLOUT)
                    writable.poll(_WRITE_CHECK)
                except OSError:
                    raise self._lost("its pipe is broken") from None

    def send_message(self, **content: Any) -> None:
        """Write one JSON object for the worker."""
        self.send(wire.MESSAGE, json.dumps(content).encode("ascii"))

    def receive(self, timeout: float | None = None) -> Item:
        """Return the next item; always :class:`Closed` once the container has ended.

        Args:
            timeout: seconds to wait; ``None`` to wait without a limit. Less than 0 counts as 0.

        Raises:
            TimeoutError: nothing came in time, or :meth:`wake` was called.
        """
        if self.closed is not None and not self._items:
            return self.closed
        return self._items.get(None if timeout is None else max(0.0, timeout))

    def wake(self) -> None:
        """Wake :meth:`receive` so that its caller recomputes the timeout. Any thread may call."""
        self._items.wake()

    def pending(self) -> int:
        """Return the number of items that have come and were not received yet."""
        return len(self._items)

    def hang_up(self, reason: str = "it was closed") -> None:
        """Close the pipe, which ends the guest. Do not wait for that."""
        self._reason = self._reason or reason
        self._hung_up = True  # else a write to a guest that does not read would hold the lock
        with self._write_lock:
            self.process.close_stdin()

    def close(self, timeout: float) -> None:
        """Close the pipe, which ends the guest, and wait for the client to end.

        Args:
            timeout: seconds until the client is killed.
        """
        self._items.close()
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
            self._read_frames()
        except wire.FrameError as error:
            reason = f"the container sent what is no frame ({error})"
        except ValueError as error:
            reason = f"the container sent a frame with no JSON object in it ({error})"
        except FloodError as error:
            reason = str(error)
        # Either the container has ended, or the position of the next frame is not known.
        self._reason = self._reason or reason
        self._hung_up = True
        with self._write_lock:
            self.process.close_stdin()
        if reason:
            self._discard()
        exit_code = self.process.wait(_END_TIMEOUT)
        stderr = self._stderr.decode("utf-8", "replace")
        self.closed = Closed(exit_code, stderr, reason or self._reason)
        self._items.put(self.closed, 0)

    def _read_frames(self) -> None:
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
        """Read to the end: a guest that is blocked in a write does not see that its pipe closed."""
        deadline = time.monotonic() + _END_TIMEOUT
        poll = select.poll()
        poll.register(self.process.stdout, select.POLLIN)
        while poll.poll(1000 * max(0.0, deadline - time.monotonic())):
            if not os.read(self.process.stdout, 1 << 20):
                return

    def _dispatch(self, kind: int, payload: bytes) -> None:
        if kind in (wire.STDOUT, wire.STDERR):
            self._items.put(Output(kind, payload), _ITEM_OVERHEAD + len(payload))
        elif kind == wire.CALL:
            if len(payload) >= 4:
                self._on_call(int.from_bytes(payload[:4], "big"), payload[4:])
        elif kind in (wire.MESSAGE, wire.EVENT):
            text = UntrustedJSON(payload, _MAX_PARTS)
            content = text.load()
            if not isinstance(content, dict):
                raise ValueError("it is no object")
            item = Message(content) if kind == wire.MESSAGE else Event(content)
            self._items.put(item, _ITEM_OVERHEAD + text.size)

    def _lost(self, how: str) -> SandboxLostError:
        stderr = self._stderr.decode("utf-8", "replace").strip()
        why = self._reason or how
        return SandboxLostError(
            f"The container cannot be reached: {why}." + (f" It said: {stderr}" if stderr else ""),
            remedy="Make a new Sandbox.",
            container=self.process.name,
        )
