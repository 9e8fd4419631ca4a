"""Writes frames to a guest, whoever interrupts that and whether or not it reads them."""

from __future__ import annotations

import os
import select
import threading
import time
from dataclasses import dataclass, field
from typing import Self

from rlm_containers.errors import SandboxBusyError, SandboxLostError
from rlm_containers.guest import wire
from rlm_containers.interpreter.reader import Reader
from rlm_containers.interpreter.streams import Streams

#: Seconds for the other side to read what is written. It normally reads at once.
_WRITE_TIMEOUT = 60.0

#: Milliseconds between two checks whether a blocked write is still wanted.
_WRITE_CHECK = 100


@dataclass(eq=False)
class Frame:
    """A frame to be written.

    Attributes:
        data: all of its bytes.
        written: how many of them each write took.
    """

    data: memoryview
    written: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, kind: int, payload: bytes = b"") -> Self:
        """Make one.

        Raises:
            guest.wire.FrameError: the payload is too large for one frame.
        """
        return cls(memoryview(wire.encode(kind, payload)))

    @property
    def count(self) -> int:
        """How many bytes were written."""
        return sum(self.written)


class FrameWriter:
    """Writes one frame at a time, for any thread and any signal handler.

    Args:
        streams: lead to the guest.
        reader: reads what the guest says.

    Attributes:
        is_hung_up: whether no more is to be written.
        reason: why; empty if there is no reason to be told.
    """

    def __init__(self, streams: Streams, reader: Reader) -> None:
        self.is_hung_up = False
        self.reason = ""
        self._streams = streams
        self._reader = reader
        self._last = Frame(memoryview(b""))
        # A signal handler may hang up while the code below it writes: the first lock lets it in,
        # and the second one tells that code's state.
        self._lock = threading.RLock()
        self._writing = threading.Lock()

    def write(self, frame: Frame, timeout: float | None = None) -> None:
        """Write a frame, see :meth:`Pipe.write`."""
        with self._lock:
            if self._writing.locked():
                raise SandboxBusyError(
                    "This call was made in the middle of another one's message to the container.",
                    remedy="Make it later: in a thread, or once the other has returned.",
                    container=self._streams.process.name,
                )
            try:
                with self._writing:
                    if timeout is None:
                        # Where others wait to be read, nobody waits.
                        timeout = 0 if self._reader.is_this_thread() else _WRITE_TIMEOUT
                    deadline = time.monotonic() + timeout
                    self._complete(self._last, deadline)
                    self._last = frame
                    self._complete(frame, deadline)
            finally:
                if self.is_hung_up:
                    self._streams.shut_down()

    def try_write(self, frame: Frame) -> bool:
        """Write a frame, unless another is being written. Return whether it was written."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._writing.locked():
                return False
            self.write(frame)
        finally:
            self._lock.release()
        return True

    def has_begun(self, frame: Frame) -> bool:
        """Whether a frame was written, or is going to be completed."""
        return frame is self._last or bool(frame.written)

    def hang_up(self, reason: str) -> None:
        """Close the guest's input, now or at the end of the write that this interrupts."""
        self.reason = self.reason or reason
        self.is_hung_up = True  # else a write to a guest that does not read would hold the lock
        with self._lock:
            if not self._writing.locked():  # else this thread closes it when it has written
                self._streams.shut_down()

    def close(self) -> None:
        """Close the guest's input, also in the middle of a write that this interrupts."""
        self.is_hung_up = True
        with self._lock:
            self._streams.shut_down()

    def _complete(self, frame: Frame, deadline: float) -> None:
        streams = self._streams
        while (count := frame.count) < len(frame.data):
            if streams.is_shut or streams.input < 0:
                raise self._lost("its pipe is closed")
            try:
                # In one step: an exception of a signal handler must not come between a write and
                # the note of how much it took.
                frame.written.extend(map(os.write, (streams.input,), (frame.data[count:],)))
            except BlockingIOError:
                if self.is_hung_up:
                    raise self._lost("it was closed") from None
                if time.monotonic() > deadline:
                    # Half a frame is in the pipe, so nothing else can be sent after it.
                    self.reason = self.reason or "it does not read any more"
                    streams.shut_down()
                    raise self._lost(self.reason) from None
                writable = select.poll()
                writable.register(streams.input, select.POLLOUT)
                writable.poll(_WRITE_CHECK)
            except OSError:
                raise self._lost("its pipe is broken") from None
        frame.data = frame.data[:0]  # it may be large

    def _lost(self, how: str) -> SandboxLostError:
        stderr = self._streams.stderr.strip()
        return SandboxLostError(
            f"The container cannot be reached: {self.reason or how}."
            + (f" It said: {stderr}" if stderr else ""),
            remedy="Make a new Sandbox.",
            container=self._streams.process.name,
        )
