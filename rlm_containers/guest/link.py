"""The supervisor's link to a process that runs cells: the worker, or a branch of it."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Iterator

from . import wire
from .interrupts import CHECKPOINTING, INTERRUPTS, PHASE, RUNNING, SAVING, STEP, StallWatch

#: Before an answer is passed on, at most this much is read from each stream. It is more than a cell
#: can have left there. A child that never stops printing must not hold the answer back.
_DRAIN_LIMIT = 4 * wire.CHUNK

#: Seconds for the exit functions of cells.
_END_TIMEOUT = 1.5

#: Seconds between two looks at what is to end.
_LOOK = 0.01

#: Descriptors of control, calls, stdout and stderr.
Ends = tuple[int, int, int, int]


def open_channels() -> tuple[Ends, Ends]:
    """Make the sockets and pipes of a process that runs cells.

    Returns:
        The supervisor's ends, and those of the process.
    """
    made: list[int] = []
    try:
        pairs = []
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
            pairs.append((ours.detach(), theirs.detach()))
            made += pairs[-1]
        for _ in range(2):
            pairs.append(os.pipe())
            made += pairs[-1]
    except OSError:
        close_all(made)
        raise
    (a, e), (b, f), (c, g), (d, h) = pairs
    return (a, b, c, d), (e, f, g, h)


def close_all(descriptors: Iterator[int] | tuple[int, ...] | list[int]) -> None:
    """Close descriptors."""
    for descriptor in descriptors:
        os.close(descriptor)


class Link:
    """The supervisor's ends of the channels of a process that runs cells.

    Args:
        poll: registers them.
        ends: the descriptors. This object owns them from now on.
        progress: the numbers that are shared with the process.

    Attributes:
        pid: the process.
        control: frames to and from it.
        calls: the calls of its cells.
        stdout, stderr: its standard streams; -1 once closed.
        progress: as it was given.
        stall: notices code that does not get on.
        answered: whether it has said anything, or the worker in whose place it is.
        restarted: whether the host had it killed.
        from_file: whether the next worker must begin from the state file.
        stalled: whether code of a cell's object did not end, so that it was killed.
        ended: the streams that the process and all its children have closed.
        is_broken: whether a cell has closed the control socket, or written to it.
    """

    def __init__(self, poll: select.poll, ends: Ends, progress: memoryview) -> None:
        self.pid = 0
        self.control = socket.socket(fileno=ends[0])
        self.calls = socket.socket(fileno=ends[1])
        self.stdout, self.stderr = ends[2:]
        self.progress = progress
        self.stall = StallWatch(progress)
        self.answered = self.restarted = self.from_file = False
        self.stalled = self.is_broken = False
        self.ended: set[int] = set()
        self._poll = poll
        self._decoder = wire.FrameDecoder()
        self._waiting = bytearray()  # what the process does not accept yet
        self._waits_to_write = False

    def listen(self, pid: int) -> None:
        """Begin to listen to a process."""
        self.pid = pid
        self.control.setblocking(False)
        self.calls.setblocking(False)
        for descriptor in (self.stdout, self.stderr):
            os.set_blocking(descriptor, False)
        for descriptor in self.descriptors():
            self._poll.register(descriptor, select.POLLIN)

    def descriptors(self) -> Ends:
        """Return those of control, calls, stdout and stderr."""
        return self.control.fileno(), self.calls.fileno(), self.stdout, self.stderr

    def close(self) -> None:
        """Close all ends."""
        for descriptor in self.descriptors():
            self.stop_polling(descriptor)
        self.control.close()
        self.calls.close()
        self.close_streams()

    def close_streams(self) -> None:
        """Close the standard streams."""
        for descriptor in (self.stdout, self.stderr):
            if descriptor >= 0:
                os.close(descriptor)
        self.stdout = self.stderr = -1  # these numbers may become those of other descriptors

    def stop_polling(self, descriptor: int) -> None:
        """Unregister a descriptor. poll() would report its closed end over and over again."""
        try:
            self._poll.unregister(descriptor)
        except (KeyError, ValueError):  # closed
            pass

    # Frames

    def write(self, frame: bytes) -> None:
        """Pass on what the process accepts. Keep the rest until it accepts more."""
        self._waiting += frame
        self.write_waiting()

    def write_waiting(self) -> None:
        """Write what the process has not accepted before."""
        try:
            while self._waiting:
                del self._waiting[: self.control.send(self._waiting[: 1 << 20])]
        except BlockingIOError:
            pass
        except OSError:
            self._waiting.clear()  # it died; waitpid() will tell
        if bool(self._waiting) != self._waits_to_write:
            self._waits_to_write = not self._waits_to_write
            self.watch_control()

    def watch_control(self, *, reads: bool = True) -> None:
        """Have poll() tell when there is something to read, or room for what waits."""
        interest = select.POLLIN if reads else 0
        interest |= select.POLLOUT if self._waits_to_write else 0
        self._poll.register(self.control.fileno(), interest)

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """Yield the frames that have come."""
        try:
            data = self.control.recv(wire.CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        try:
            for frame in self._decoder.feed(data):
                self.answered = True
                yield frame
        except wire.FrameError:
            self.is_broken = True
        if not data:
            self.is_broken = True
            self.stop_polling(self.control.fileno())

    # Standard streams

    def read(self, descriptor: int) -> bytes:
        """Return one chunk of a stream; nothing if there is nothing to read."""
        try:
            data = os.read(descriptor, wire.CHUNK)
        except BlockingIOError:
            return b""
        if not data:
            self.ended.add(descriptor)
            self.stop_polling(descriptor)
        return data

    def drain(self) -> Iterator[tuple[int, bytes]]:
        """Yield what is in the streams, up to a limit, each with its descriptor."""
        for descriptor in (self.stdout, self.stderr):
            total = 0
            while total < _DRAIN_LIMIT:
                data = self.read(descriptor)
                if not data:
                    break
                total += len(data)
                yield descriptor, data

    def kind_of(self, descriptor: int) -> int:
        """Return the kind of frame for a stream."""
        return wire.STDOUT if descriptor == self.stdout else wire.STDERR

    # Signals

    def signal_group(self, number: int) -> None:
        """Send a signal to the process and to what its cells started in its session."""
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            pass

    def kill_group(self) -> None:
        """Kill the process and what its cells started in its session, which it leads."""
        self.signal_group(signal.SIGKILL)
        try:
            os.kill(self.pid, signal.SIGKILL)  # one that was just forked does not lead it yet
        except (ProcessLookupError, PermissionError):
            pass

    def interrupt(self, step: int, *, to_children: bool = False) -> None:
        """Send SIGINT. Write the step that it is meant for to the shared memory.

        Args:
            step: the step.
            to_children: whether to send it to the process's children too, as Ctrl-C in a terminal
                does.
        """
        self.progress[STEP] = step
        self.progress[INTERRUPTS] += 1
        if to_children:
            self.signal_group(signal.SIGINT)
            return
        try:
            os.kill(self.pid, signal.SIGINT)
        except ProcessLookupError:
            pass

    def look(self, *, waits: bool = False) -> None:
        """Once a second, interrupt or kill what does not get on.

        A cell itself may take any time: the host limits it.

        Args:
            waits: as for :meth:`StallWatch.action`.
        """
        action = self.stall.action(waits=waits)
        if action == "kill":
            self.stalled = True
            self.kill_group()
        elif action:
            self.interrupt(self.stall.step())

    # The end of the guest

    def await_checkpoint(self, seconds: float) -> float:
        """Let the worker of a session save what it has answered for.

        Do not wait for a cell that runs: nobody has got its answer.

        Args:
            seconds: the longest time to wait.

        Returns:
            What is left of that.
        """
        while self.progress[SAVING] and seconds > 0 and not self._has_ended():
            select.select((), (), (), _LOOK)
            seconds -= _LOOK
        return seconds

    def end(self, wake: int) -> None:
        """Let the worker end as Python does, with its exit functions, unless a cell runs.

        Args:
            wake: a descriptor that can be read when a child has ended.
        """
        if self.progress[PHASE] == RUNNING:
            return
        if self.progress[PHASE] == CHECKPOINTING:
            # Nobody needs this checkpoint. A second interrupt ends the saving of all variables.
            for _ in range(2):
                self.interrupt(self.stall.step())
        self.control.shutdown(socket.SHUT_WR)
        poll = select.poll()
        for descriptor in (self.stdout, self.stderr, wake):
            poll.register(descriptor, select.POLLIN)
        left = _END_TIMEOUT
        while left > 0 and not self._has_ended():
            for descriptor, _ in poll.poll(1000 * _LOOK):
                try:
                    if not os.read(descriptor, wire.CHUNK):  # there is nobody to pass it on to
                        poll.unregister(descriptor)
                except BlockingIOError:
                    pass
            left -= _LOOK

    def _has_ended(self) -> bool:
        try:
            return os.waitpid(self.pid, os.WNOHANG)[0] != 0
        except ChildProcessError:
            return True


def how_ended(status: int) -> str:
    """Return how a process ended, by what waitpid() says, as a part of a JSON object."""
    if os.WIFSIGNALED(status):
        return '"signal": {}'.format(os.WTERMSIG(status))
    return '"exit": {}'.format(os.WEXITSTATUS(status))


def was_killed(status: int) -> bool:
    """Return whether a process was killed by SIGKILL."""
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
