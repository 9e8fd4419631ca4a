"""The host's end of the pipe to a container.

All pipes are read in one thread (``reader.py``). All input is untrusted: the code in a cell runs as
the same user as the supervisor and can write to its descriptors. So frames are bounded, invalid
JSON is expected, and the pipe closes as soon as the bytes are no longer frames.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from rlm_containers.errors import SandboxError, describe
from rlm_containers.guest import wire
from rlm_containers.interpreter.direct import DirectSocket
from rlm_containers.interpreter.items import ITEMS, Closed, Event, Item, Message, parsed
from rlm_containers.interpreter.queue import BoundedQueue, Woken
from rlm_containers.interpreter.reader import Next, Turns, hold_reader
from rlm_containers.interpreter.streams import Streams, read_chunk
from rlm_containers.interpreter.threads import start_thread
from rlm_containers.interpreter.writer import Frame, FrameWriter
from runtimes import ContainerProcess

#: Seconds for the client to end after its pipe was closed.
_END_TIMEOUT = 10.0

#: Seconds between two looks at the reader by whoever waits for it. It may have died.
_READER_CHECK = 1.0

#: Bytes in memory of the items that wait to be received. Past that nothing is read, and the
#: container waits.
_MAX_WAITING = 64 * 1024 * 1024

#: Frames that are handled before other containers have their turn.
_TURN = 64

#: Payloads of at least so many bytes are not copied. Output is always shorter.
_WHOLE = 1024 * 1024 + 1

#: The longest payload of each kind of frame, in bytes. A supervisor reads 64 KiB of a stream at a
#: time, and its own events are short.
_LIMITS = {
    wire.MESSAGE: wire.MAX_FRAME,
    wire.CALL: wire.MAX_FRAME,
    wire.STDOUT: 1024 * 1024,
    wire.STDERR: 1024 * 1024,
    wire.EVENT: 64 * 1024,
    wire.RUN_OUT: 128 * 1024,
    wire.RUN_ERR: 128 * 1024,
    wire.TAKEN: 8,
    wire.ENDED: 4096,
    wire.BRANCH: wire.MAX_FRAME,
}

#: The frames about commands.
_OF_COMMANDS = (wire.RUN_OUT, wire.RUN_ERR, wire.TAKEN, wire.ENDED)

#: Takes the kind and the payload of a frame.
FrameCallback = Callable[[int, bytes], None]


class FloodError(Exception):
    """The container sends more than anyone can answer."""


class Pipe:
    """Frames to and from one container.

    Args:
        process: the container's program.
        on_call: see below.
        direct: where the guest may connect to. This object owns it from now on.

    Attributes:
        name: the container's name.
        closed: how the container ended; ``None`` while it runs.
        on_call: called in the reader's thread with the number and payload of every call that the
            container makes over the pipe. Must not wait. Raises FloodError to end the pipe.
        on_command: called in the reader's thread with the kind and payload of every frame about a
            command. Must not wait. Raises FloodError to end the pipe.
        on_branch: called in the reader's thread with the number of a branch, and the kind and
            payload of a frame of it. Must not wait. Raises FloodError or ValueError to end the
            pipe.
        on_saved: called in the reader's thread when the guest reports a checkpoint. Must not wait.
        on_closed: called in any thread when the container has ended.

    Raises:
        SandboxError: this process has no thread or no descriptor left.
    """

    def __init__(
        self,
        process: ContainerProcess,
        on_call: Callable[[int, bytes | bytearray], None] = lambda number, payload: None,
        direct: DirectSocket | None = None,
    ) -> None:
        self.process = process
        self.name = process.name
        self.closed: Closed | None = None
        self.on_call = on_call
        self.on_command: FrameCallback = lambda kind, payload: None
        self.on_branch: Callable[[int, int, bytes], None] = lambda number, kind, payload: None
        self.on_saved: Callable[[], None] = lambda: None
        self.on_closed: Callable[[], None] = lambda: None
        self._items: BoundedQueue[Item] = BoundedQueue(_MAX_WAITING, self._resume)
        self._streams = Streams(process, direct)
        self._end_by = math.inf  # when a guest that was hung up on must have ended
        # The last of the two to be done closes the descriptors. Before, their numbers could become
        # those of another container's while the reader still reads them.
        self._ending = threading.RLock()
        self._has_read = self._is_over = False
        self._unfinished = threading.Lock()  # held until all is read and known; to wait for that
        self._unfinished.acquire()
        self._finisher: threading.Thread | None = None
        self._open_ends = {process.stdout, process.stderr}
        self._reader = hold_reader()
        self._writer = FrameWriter(self._streams, self._reader)
        self._read(process.stderr, self._last_words(process.stderr))
        self._read(process.stdout, self._frames(process.stdout))

    def send(self, kind: int, payload: bytes = b"") -> None:
        """Write one frame.

        Raises:
            SandboxLostError: the container is gone or does not read. What :meth:`receive` returns
                last may say more about how it ended.
            guest.wire.FrameError: the payload is too large for one frame.
        """
        self.write(Frame.of(kind, payload))

    def try_send(self, kind: int, payload: bytes = b"") -> bool:
        """Write one frame, unless another is being written. For signal handlers.

        Returns:
            Whether it was written.

        Raises:
            SandboxLostError: as for :meth:`send`.
        """
        return self._writer.try_write(Frame.of(kind, payload))

    def write(self, frame: Frame, timeout: float | None = None) -> None:
        """Write a frame. If that is interrupted by an exception, the next call completes it.

        Args:
            frame: the frame.
            timeout: seconds for the other side to read it; ``None`` for a minute.

        Raises:
            SandboxLostError: as for :meth:`send`.
            SandboxBusyError: this thread is in the middle of a write: this is a signal handler, or
                something like it.
        """
        self._writer.write(frame, timeout)

    def has_begun(self, frame: Frame) -> bool:
        """Whether a frame was written, or is going to be completed."""
        return self._writer.has_begun(frame)

    def send_message(self, **content: Any) -> None:
        """Write one JSON object for the worker."""
        self.write(self.message(content))

    def message(self, content: dict[str, Any]) -> Frame:
        """Return a JSON object for the worker, to be written.

        Raises:
            guest.wire.FrameError: it is too large for one frame.
        """
        return Frame.of(wire.MESSAGE, json.dumps(content).encode("ascii"))

    def receive(self, timeout: float | None = None) -> Item:
        """Return the next item; always :class:`Closed` once the container has ended.

        Args:
            timeout: seconds to wait; ``None`` to wait without a limit. Less than 0 counts as 0.

        Raises:
            TimeoutError: nothing came in time, or :meth:`wake` was called.
        """
        deadline = math.inf if timeout is None else time.monotonic() + max(0.0, timeout)
        while True:
            if self.closed is not None and not self._items:
                return self.closed
            left = max(0.0, deadline - time.monotonic())
            try:
                return self._items.get(min(left, _READER_CHECK))
            except Woken:
                raise
            except TimeoutError:
                ended = self.ended()
                if ended is not None and not self._items:
                    return ended
                if left <= _READER_CHECK and time.monotonic() >= deadline:
                    raise

    def items(self, timeout: float) -> Iterator[Item]:
        """Yield what comes in some time, however much that is, and raise TimeoutError then.

        Args:
            timeout: the seconds.
        """
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            yield self.receive(left)
        for _ in range(self.pending()):  # they came in time
            yield self.receive(0)
        raise TimeoutError

    def ended(self) -> Closed | None:
        """Return how the container ended; ``None`` while it runs.

        A guest that does not end although it was hung up on counts as ended after a while.
        """
        is_read = self._finisher is not None or self._reader.is_alive
        if self.closed is None and (not is_read or time.monotonic() > self._end_by):
            return Closed(None, "", self._writer.reason or "its reader died")
        return self.closed

    def wake(self) -> None:
        """Wake :meth:`receive` so that its caller recomputes the timeout. Any thread may call."""
        self._items.wake()

    def pending(self) -> int:
        """Return the number of items that have come and were not received yet."""
        return len(self._items)

    def hang_up(self, reason: str = "it was closed") -> None:
        """Close the pipe, which ends the guest. Do not wait for that.

        Any thread may call this, and a signal handler wherever it strikes.
        """
        self._end_by = min(self._end_by, time.monotonic() + _END_TIMEOUT)
        self._writer.hang_up(reason)

    def leave_client(self, ask_status: Callable[[], int | None]) -> int:
        """End the engine's client, if the guest is reached without it.

        Args:
            ask_status: returns the container's exit status once it has ended.

        Returns:
            The process that ends with the container; 0 if the client must stay.
        """
        return self._streams.leave_client(ask_status)

    def is_reading_here(self) -> bool:
        """Whether this thread is one for which :meth:`close` waits."""
        return self._reader.is_this_thread() or threading.current_thread() is self._finisher

    def close(self, timeout: float) -> None:
        """Close the pipe, which ends the guest, and wait for the client to end.

        Args:
            timeout: seconds until the client is killed.
        """
        self._items.close()
        self._writer.close()
        if not self._await_end(timeout):
            self._streams.kill()
            self._await_end(timeout)
        self._close_descriptors(is_over=True)

    def _await_end(self, timeout: float) -> bool:
        """Wait until all is read and known. Return whether it is. Signal handlers may, too."""
        deadline = time.monotonic() + timeout
        while not self._has_read and (left := deadline - time.monotonic()) > 0:
            if self._finisher is None and not self._reader.is_alive:
                self._has_read = True  # as far as it ever will be
            elif self._unfinished.acquire(timeout=min(left, _READER_CHECK)):
                self._unfinished.release()
        return self._has_read

    def _close_descriptors(self, *, has_read: bool = False, is_over: bool = False) -> None:
        with self._ending:
            self._has_read |= has_read
            self._is_over |= is_over
            if not (self._has_read and self._is_over):
                return
        self._streams.close()

    # Reading, in turns with other containers

    def _read(self, descriptor: int, turns: Turns) -> None:
        self._reader.add(descriptor, self._to_end(descriptor, turns))

    def _frames(self, descriptor: int) -> Turns:
        """Handle the frames that come from a descriptor."""
        decoder = wire.FrameDecoder(_LIMITS, _WHOLE)
        while data := read_chunk(descriptor):
            for count, (kind, payload) in enumerate(decoder.feed(data), 1):
                self._dispatch(kind, payload)
                del payload  # else it would be kept until the next frame
                while self._items.is_full:
                    yield Next.PAUSE
                if count % _TURN == 0:
                    yield Next.MORE
            data = b""  # likewise
            yield Next.READ

    def _last_words(self, descriptor: int) -> Turns:
        """Keep the end of standard error."""
        while data := read_chunk(descriptor):
            self._streams.keep_stderr(data)
            data = b""
            yield Next.READ

    def _to_end(self, descriptor: int, turns: Turns) -> Turns:
        """Take turns with a descriptor until it is at its end or makes no sense."""
        reason = ""
        try:
            yield from turns
        except wire.FrameError as error:
            reason = f"the container sent what is no frame ({error})"
        except ValueError as error:
            reason = f"the container sent a frame with no JSON object in it ({error})"
        except FloodError as error:
            reason = str(error)
        except MemoryError:
            reason = "this process has no memory left for what the container sent"
        except Exception as error:
            reason = f"its output could not be read ({describe(error)})"
        self._reader.remove(descriptor)
        self._open_ends.discard(descriptor)
        self._streams.note_end(self._open_ends)
        if reason or not self._open_ends:
            self._end(reason)

    def _end(self, reason: str) -> None:
        """Read no more, and leave the rest to a thread: the engine's client takes its time."""
        while self._open_ends:
            self._reader.remove(self._open_ends.pop())
        try:
            self._finisher = start_thread(self._finish, f"rlm-end-{self.process.name}", reason)
        except SandboxError:  # at the interpreter's end none starts
            self._finisher = threading.current_thread()
            self._finish(reason)
        self._reader.release()

    def _resume(self) -> None:
        for descriptor in tuple(self._open_ends):
            self._reader.resume(descriptor)

    def _dispatch(self, kind: int, payload: bytes | bytearray) -> None:
        if kind == wire.CALL:
            if len(payload) >= 4:
                number = int.from_bytes(payload[:4], "big")
                if isinstance(payload, bytearray):
                    del payload[:4]  # copies nothing
                    self.on_call(number, payload)
                else:
                    self.on_call(number, payload[4:])
        elif kind in _OF_COMMANDS:
            self.on_command(kind, bytes(payload))
        elif kind == wire.BRANCH:
            if len(payload) >= wire.BRANCH_HEADER:
                number = int.from_bytes(payload[:4], "big")
                self.on_branch(number, payload[4], bytes(payload[wire.BRANCH_HEADER :]))
        elif kind in ITEMS:
            item, size = parsed(kind, payload)
            if isinstance(item, Event) and item.content.get("direct") is True:
                self._connect()
            if isinstance(item, Message) and item.content.get("op") == "saved":
                self.on_saved()
            self._items.put(item, size)

    def _connect(self) -> None:
        """Read and write what follows by the direct connection."""
        connection, errors = self._streams.connect()
        self._open_ends |= {connection, errors}
        self._read(connection, self._frames(connection))
        self._read(errors, self._last_words(errors))

    # Once nothing is read any more

    def _finish(self, reason: str) -> None:
        """Wait for the container to end, and note how.

        Args:
            reason: why it cannot be read any more; empty if there is nothing left to read.
        """
        ask = None if self._writer.is_hung_up or reason else self._streams.ask_status
        exit_code = None
        try:
            # Either the container has ended, or the position of the next frame is not known.
            self.hang_up(reason)
            if reason:
                self._streams.discard(_END_TIMEOUT)
            exit_code = self.process.wait(_END_TIMEOUT)
            if ask is not None:
                exit_code = ask()
        except BaseException as error:
            # Whatever ends this thread, somebody may wait for its items.
            reason = reason or f"its end could not be awaited ({describe(error)})"
            self.process.kill()
        finally:
            self.closed = Closed(exit_code, self._streams.stderr, reason or self._writer.reason)
            self.on_closed()
            self._items.put(self.closed, 0)
            self._close_descriptors(has_read=True)
            self._unfinished.release()
