"""Holds the pipe to the host, and keeps a worker alive.

The supervisor runs no code of a cell. It passes frames between host and worker, reads what the
worker and its children write to their standard streams, and notices when the worker dies: killed by
a cell, by the kernel for its memory, or by the host because it would not stop. Then it tells the
host and forks another one. When the host closes the pipe, it ends. :mod:`rlm_guest.wire` describes
the frames.

It imports as little as it can and writes JSON by hand: official images come without compiled byte
code, so each module of the standard library costs milliseconds at every start.
"""

from __future__ import annotations

import gc
import mmap
import os
import select
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING

from . import journal, wire
from .descriptors import become
from .interrupts import (
    BEGUN,
    CHECKPOINTING,
    FILE,
    FILE_REQUEST,
    INTERRUPTS,
    PHASE,
    RUNNING,
    SAVED,
    SAVING,
    STEP,
    StallWatch,
)
from .memory import MemoryWatch, offer_to_kernel
from .relay import CallRelay
from .succession import HEIR, KEPT, SHARED, Succession

if TYPE_CHECKING:
    from .commands import Commands

#: Before the worker's answer is passed on, at most this much is read from each of its streams. It
#: is more than a cell can have left there. A child that never stops printing must not hold the
#: answer back.
_DRAIN_LIMIT = 4 * wire.CHUNK

#: How a worker starts: from the last checkpoint; if restoring that kills it, from the one before;
#: if that kills it too, without variables.
_MODES = ("restore", "previous", "fresh")

#: How often to try to fork a worker, 20 times a second, while the container is at its limit of
#: processes or memory. What a dead worker used is not free at once.
_FORK_TRIES = 100

#: Seconds for the last checkpoint after the host has gone. Its reaper waits for 10.
_SAVE_TIMEOUT = 8.0

#: Seconds for the exit functions of a session.
_END_TIMEOUT = 1.5

_NEVER = float("inf")

#: Seconds for an heir to take the place of a dead worker.
_OFFER_TIMEOUT = 5.0

#: Milliseconds between two looks at the heir of a dead worker.
_BURIAL_POLL = 2

#: Seconds for the checkpoint of a dead worker, once the host waits for no more than a new one.
_BURIAL_TIMEOUT = 8.0

#: Seconds to look after a worker that has been idle since. It may be slow to begin.
_WATCH = 3


class Supervisor:
    """The loop between host and worker.

    Args:
        host_in: descriptor to read frames of the host from.
        host_out: descriptor to write frames to the host to.
    """

    def __init__(self, host_in: int, host_out: int) -> None:
        self.host_in = host_in
        self.host_out = host_out
        self.host_decoder = wire.FrameDecoder()
        self.poll = select.poll()
        self.relay = CallRelay(self.poll, self.send)
        self.memory = MemoryWatch()
        self.commands: Commands | None = None  # made for the first one
        # Workers that died, one after another, before any answer.
        self.failures = 0
        # A child that ends wakes poll() through this pipe.
        wake, waker = os.pipe()
        for descriptor in (wake, waker):
            os.set_blocking(descriptor, False)
        self.wake = wake
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        # Whoever has started this may have blocked signals.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        # Ctrl-C in the terminal reaches this process too. Leave it to the host.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.poll.register(host_in, select.POLLIN)
        self.poll.register(wake, select.POLLIN)
        # Shared with the worker, and still readable after its death. See interrupts.py.
        memory = memoryview(mmap.mmap(-1, 8 * SHARED + journal.SIZE))
        self.progress, self.journal = memory[: 8 * SHARED].cast("Q"), memory[8 * SHARED :]
        self.stall = StallWatch(self.progress)
        self.succession = Succession(self.progress)
        self.memory.own_kills = self.succession.new_kills
        # While an heir of a dead worker writes: how that died, as JSON, and until when to wait.
        self.burial: str | None = None
        # The dead worker's socket for calls, until its heir is offered its place; and until when
        # that may take it, 0 for none.
        self.heir_calls: socket.socket | None = None
        self.offer_ends = 0.0
        self.from_file = False  # whether none may
        self.took_over = False  # whether the worker was an heir
        self.adopts = False  # whether this process is the parent of heirs
        self.burial_ends = _NEVER
        # How many more seconds to look after the worker. It needs none while it waits for requests.
        self.watching = 0
        self.started_at = self.requested_at = self.watched_at = _now()
        self.start_worker(_MODES[0])

    # The worker

    def start_worker(self, mode: str) -> None:
        """Fork a worker. ``mode`` is one of :data:`_MODES`."""
        ends = self.open_channels()
        # What is there now lives on in both. A collection in one would copy all of its pages.
        gc.freeze()
        self.pid = _fork()
        if self.pid == 0:
            _become_worker(ends, mode, self.progress, self.journal)
        self.close_ends(ends)
        self.took_over = False
        self.listen()

    def open_channels(self) -> tuple[int, int, int, int]:
        """Make the sockets and pipes of a new worker.

        Returns:
            Its ends: control, calls, stdout and stderr.
        """
        self.control, control = socket.socketpair()
        self.call_socket, call_socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.stdout, stdout = os.pipe()
        self.stderr, stderr = os.pipe()
        return control.detach(), call_socket.detach(), stdout, stderr

    def close_ends(self, ends: tuple[int, ...]) -> None:
        """Close the worker's ends, which it has."""
        for descriptor in ends:
            os.close(descriptor)

    def listen(self) -> None:
        """Begin to listen to a new worker."""
        self.worker_decoder = wire.FrameDecoder()
        self.to_worker = bytearray()
        self.waits_to_write = False  # for the worker's socket to accept more of it
        self.answered = False
        self.restarted = False  # whether the host had it killed
        self.stalled = False  # whether code of a cell's object did not end, so that it was killed
        self.from_file = False
        self.control.setblocking(False)
        for descriptor in (self.stdout, self.stderr):
            os.set_blocking(descriptor, False)
        for descriptor in self.worker_descriptors():
            self.poll.register(descriptor, select.POLLIN)

    def worker_descriptors(self) -> tuple[int, int, int, int]:
        """Return this side's descriptors of control, calls, stdout and stderr."""
        return self.control.fileno(), self.call_socket.fileno(), self.stdout, self.stderr

    def bury_worker(self, status: int) -> None:
        """Clean up after the worker. Let its heir write what it holds before there is another."""
        kills = self.memory.new_kills()  # first: read_worker() would read the counter too
        self.read_worker()  # an answer that it gave before
        self.drain_streams()
        self.kill_group()
        self.sweep(self.started_at, alive=False)
        self.relay.drop_all()
        for descriptor in self.worker_descriptors():
            self.stop_polling(descriptor)
        calls = self.call_socket
        self.control.close()
        os.close(self.stdout)
        os.close(self.stderr)
        self.stdout = self.stderr = -1  # these numbers may become those of other descriptors
        how = (
            '"signal": {}'.format(os.WTERMSIG(status))
            if os.WIFSIGNALED(status)
            else '"exit": {}'.format(os.WEXITSTATUS(status))
        )
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if killed and self.stalled:
            how += ', "stalled": true'
        # A worker that the host had killed did not die of its memory.
        elif killed and not self.restarted:
            if self.memory.noticed or kills is None:
                how += ', "memory": ' + self.memory.report()
        elif kills:
            self.report_kill()  # of another process, before the worker died
        self.burial, self.burial_ends = how, _NEVER
        self.succession.note_death()
        self.adopt_heirs()
        self.heir_calls, self.offer_ends = calls, _now() + _OFFER_TIMEOUT
        self.replace_worker()

    def offer_place(self, calls: socket.socket) -> bool:
        """Tell the heir to go on in the worker's place, if it can, or to write what it holds.

        Args:
            calls: the socket whose other end the heir has from the worker.

        Returns:
            Whether the place was offered.
        """
        if self.from_file or not self.succession.is_able():
            self.succession.hurry()
            return False
        # What a worker has.
        ends = self.open_channels()
        try:
            socket.send_fds(calls, [b"t"], ends, socket.MSG_DONTWAIT)
        except OSError:
            pass  # it will not take them
        self.close_ends(ends)
        self.succession.hand_over()
        return True

    def await_successor(self) -> bool:
        """Return whether to wait on for an heir that was offered the worker's place."""
        pid = self.succession.successor()
        if pid:
            self.offer_ends = 0.0
            self.pid = pid
            saved = max(self.saved(), self.succession.take_over())
            self.announce_death(saved)
            self.took_over = True
            self.listen()
            return True
        if _now() < self.offer_ends and self.succession.is_able():
            return True
        self.offer_ends = 0.0
        self.control.close()
        self.call_socket.close()
        os.close(self.stdout)
        os.close(self.stderr)
        self.stdout = self.stderr = -1
        return False

    def replace_worker(self) -> None:
        """Once no heir has anything left to write, tell the host, and fork the next worker."""
        if self.burial is None:
            return
        if self.heir_calls is not None:
            if self.succession.is_unready() and _now() < self.offer_ends:
                return
            with self.heir_calls as calls:
                offered = self.offer_place(calls)
            self.heir_calls = None
            self.offer_ends = _now() + _OFFER_TIMEOUT if offered else 0.0
        if self.offer_ends and self.await_successor():
            return
        if self.succession.is_pending() and _now() < self.burial_ends:
            return
        self.succession.end()
        self.progress[SAVED] = self.saved()  # the next worker applies the journal to that
        self.announce_death(self.succession.saved(self.progress[SAVED]))
        # A worker that dies before its first answer died of what it restored.
        self.start_worker(_MODES[self.failures])

    def announce_death(self, saved: int) -> None:
        """Tell the host how the worker died.

        Args:
            saved: the last request whose changes the next worker has.
        """
        answered = self.answered or self.took_over
        self.failures = 0 if answered else self.failures + 1
        how = '{}, "saved": {}, "begun": {}'.format(self.burial, saved, self.progress[BEGUN])
        self.burial = None
        if self.failures >= len(_MODES):
            self.send(wire.EVENT, b'{"event": "failed", ' + how.encode() + b"}")
            os._exit(71)
        self.send(wire.EVENT, b'{"event": "died", ' + how.encode() + b"}")

    def saved(self) -> int:
        """Return the last request whose checkpoint is written, by what the dead worker noted."""
        try:
            # This process is in the workspace from its start on.
            found = os.stat(wire.STATE, follow_symlinks=False).st_ino
        except OSError:
            found = 0
        if found and found == self.progress[FILE]:
            return max(self.progress[SAVED], self.progress[FILE_REQUEST])
        return self.progress[SAVED]

    def report_kill(self) -> None:
        """Tell the host that the kernel has killed a process for its memory, but not the worker."""
        self.send(
            wire.EVENT, b'{"event": "killed", "memory": ' + self.memory.report().encode() + b"}"
        )

    def stop_polling(self, descriptor: int) -> None:
        """Unregister a descriptor. poll() would report its closed end over and over again."""
        try:
            self.poll.unregister(descriptor)
        except KeyError:
            pass

    def kill_group(self) -> None:
        """Kill the worker and what its cells started in its session, which it leads."""
        self.signal_group(signal.SIGKILL)

    def signal_group(self, number: int) -> None:
        """Send a signal to the worker and to what its cells started in its session."""
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            pass

    def sweep(self, since: float, alive: bool = True) -> None:
        """Kill the processes that cells have started since then, daemons too."""
        from .processes import sweep

        try:
            keepers = self.commands.keepers() if self.commands else ()
            sweep(self.pid, alive, since, keepers, self.succession.groups())
        except OSError:
            pass  # there is no /proc; what is left ends with the container

    def restart(self) -> None:
        """Kill the worker: the host does not wait for it any longer."""
        self.restarted = True
        if self.burial is not None:
            self.burial_ends = min(self.burial_ends, _now() + _BURIAL_TIMEOUT)
            return
        if self.succession.is_awaited():
            self.succession.end()
        self.kill_group()

    def interrupt(self, payload: bytes) -> None:
        """Interrupt the step that the host names. Without a payload it is the present cell."""
        current = 2 * self.progress[BEGUN]
        step = int.from_bytes(payload, "big") if payload else current
        if self.succession.is_awaited() or (step % 2 and self.burial is not None):
            self.succession.interrupt(step)  # the checkpoint that the host waits for
        # To its children too, as Ctrl-C in a terminal does.
        self.send_interrupt(step, to_children=step == current)

    def send_interrupt(self, step: int, to_children: bool = False) -> None:
        """Send SIGINT to the worker. Write the step that it is meant for to the shared memory."""
        if self.burial is not None:
            return
        self.progress[STEP] = step
        self.progress[INTERRUPTS] += 1
        if to_children:
            self.signal_group(signal.SIGINT)
            return
        try:
            os.kill(self.pid, signal.SIGINT)
        except ProcessLookupError:
            pass

    def adopt_heirs(self) -> None:
        """Once there is an heir, become the parent of the next ones, to see how they end."""
        if self.progress[HEIR] and not self.adopts:
            from .processes import subreaper

            self.adopts = True
            subreaper()()

    def watch_worker(self) -> None:
        """Once a second, interrupt code of the cells' objects that does not get on."""
        writes = self.succession.watch()
        self.adopt_heirs()
        self.watching = _WATCH if self.progress[PHASE] or writes else self.watching - 1
        if self.burial is not None:
            return
        action = self.stall.action(waits=writes)
        if action == "kill":
            self.stalled = True
            self.kill_group()
        elif action:
            self.send_interrupt(self.stall.step())

    def reap(self) -> None:
        """Collect ended children: the worker, and orphans if this process is PID 1."""
        try:
            while os.read(self.wake, wire.CHUNK):
                pass
        except BlockingIOError:
            pass
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.pid:
                self.bury_worker(status)

    # Frames

    def send(self, kind: int, payload: bytes) -> None:
        """Write one frame to the host. Wait until the host has read it."""
        frame = memoryview(wire.encode(kind, payload))
        try:
            while frame:
                frame = frame[os.write(self.host_out, frame) :]
        except OSError:
            self.end()

    def end(self) -> None:
        """End the guest: the host is gone."""
        self.await_checkpoint()
        if self.burial is None:
            self.end_worker()
            self.kill_group()
        self.succession.end()
        if self.commands:
            self.commands.kill_all()
        try:
            os.set_blocking(self.host_out, False)
            os.write(self.host_out, wire.encode(wire.EVENT, b'{"event": "ended"}'))
        except OSError:
            pass  # nobody reads it
        os._exit(0)

    def end_worker(self) -> None:
        """Let the worker end the session, with its exit functions, unless a cell runs."""
        if self.progress[PHASE] == RUNNING:
            return
        if self.progress[PHASE] == CHECKPOINTING:
            # Nobody needs this checkpoint. A second interrupt ends the saving of all variables.
            for _ in range(2):
                self.send_interrupt(self.stall.step())
        self.control.shutdown(socket.SHUT_WR)
        poll = select.poll()
        for descriptor in (self.stdout, self.stderr, self.wake):
            poll.register(descriptor, select.POLLIN)
        left = 1000 * _END_TIMEOUT
        while left > 0:
            try:
                if os.waitpid(self.pid, os.WNOHANG)[0]:
                    return
            except ChildProcessError:
                return
            for descriptor, _ in poll.poll(10):
                try:
                    if not os.read(descriptor, wire.CHUNK):  # there is nobody to pass it on to
                        poll.unregister(descriptor)
                except BlockingIOError:
                    pass
            left -= 10

    def await_checkpoint(self) -> None:
        """Let the worker of a kept session save what it has answered for.

        Do not wait for a cell that runs: nobody has got its answer.
        """
        left = _SAVE_TIMEOUT
        while self.progress[SAVING] and left > 0:
            try:
                if os.waitpid(self.pid, os.WNOHANG)[0]:
                    break
            except ChildProcessError:
                break
            select.select((), (), (), 0.01)
            left -= 0.01
        if self.progress[KEPT]:
            self.succession.hurry()
            while self.succession.is_pending() and left > 0:
                select.select((), (), (), 0.01)
                left -= 0.01

    def read_host(self) -> None:
        try:
            data = os.read(self.host_in, wire.CHUNK)
        except ConnectionError:
            data = b""
        if not data:
            self.end()
        for kind, payload in self.host_decoder.feed(data):
            if kind == wire.MESSAGE and self.burial is not None:
                pass  # there is no worker; the host sends it again
            elif kind == wire.MESSAGE:
                self.memory.noticed = False  # from now on it may be of this request
                self.requested_at = _now()
                self.to_worker += wire.encode(kind, payload)
                self.write_worker()
                self.watching = _WATCH
            elif kind == wire.INTERRUPT:
                self.interrupt(payload)
            elif kind == wire.RESTART:
                self.from_file = bool(payload)
                self.restart()
            elif kind == wire.SWEEP:
                self.sweep(self.requested_at)
            elif kind == wire.CALL:
                self.relay.answer(int.from_bytes(payload[:4], "big"), payload[4:])
            else:
                self.command(kind, payload)

    def command(self, kind: int, payload: bytes) -> None:
        """Handle a frame that is about a command."""
        if self.commands is None:
            from .commands import Commands

            self.commands = Commands(self.poll, self.send, self.memory)
        self.commands.handle_frame(kind, payload)

    def write_worker(self) -> None:
        """Pass on what the worker's socket accepts. Keep the rest until it accepts more."""
        try:
            while self.to_worker:
                del self.to_worker[: self.control.send(self.to_worker[: 1 << 20])]
        except BlockingIOError:
            pass
        except OSError:
            self.to_worker.clear()  # it died; waitpid() will tell
        if bool(self.to_worker) != self.waits_to_write:
            self.waits_to_write = not self.waits_to_write
            interest = select.POLLIN | (select.POLLOUT if self.waits_to_write else 0)
            self.poll.register(self.control.fileno(), interest)

    def read_worker(self) -> None:
        try:
            data = self.control.recv(wire.CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            # A cell has closed the control socket. The worker cannot answer any more.
            self.kill_group()
            self.stop_polling(self.control.fileno())
            return
        try:
            for kind, payload in self.worker_decoder.feed(data):
                self.answered = True
                self.drain_streams()  # a cell's output comes before its result
                if self.memory.new_kills():
                    self.report_kill()
                self.send(kind, payload)
        except wire.FrameError:
            self.kill_group()  # a cell has written to the control socket

    # Standard streams

    def read_stream(self, descriptor: int) -> int:
        """Pass on one chunk of a stream. Return its length, 0 if there is nothing to read."""
        try:
            data = os.read(descriptor, wire.CHUNK)
        except BlockingIOError:
            return 0
        if data:
            if not self.answered and descriptor == self.stderr:
                os.write(2, data)  # the host quotes it if the container ends without an answer
            self.send(wire.STDOUT if descriptor == self.stdout else wire.STDERR, data)
        else:
            self.stop_polling(descriptor)  # the worker and all its children have closed it
        return len(data)

    def drain_streams(self) -> None:
        """Pass on what is in the streams, up to a limit."""
        for descriptor in (self.stdout, self.stderr):
            total = 0
            while total < _DRAIN_LIMIT:
                length = self.read_stream(descriptor)
                if not length:
                    break
                total += length

    # The loop

    def poll_timeout(self) -> int | None:
        """Return the most milliseconds until there is something to look at."""
        if self.burial is not None:
            return _BURIAL_POLL
        return 1000 if self.watching > 0 else None

    def run(self) -> None:
        """Serve until the host closes the pipe. Does not return."""
        while True:
            self.replace_worker()
            happenings = self.poll.poll(self.poll_timeout())
            if self.watching > 0 and _now() >= self.watched_at + 1:
                self.watched_at = _now()
                self.watch_worker()
            for descriptor, happened in happenings:
                if descriptor == self.host_in:
                    self.read_host()
                elif descriptor == self.wake:
                    self.reap()
                    break  # the rest of the list may be of a dead worker
                elif descriptor == self.control.fileno():
                    if happened & select.POLLOUT:
                        self.write_worker()
                    if happened & ~select.POLLOUT:
                        self.read_worker()
                elif descriptor in (self.stdout, self.stderr):
                    self.read_stream(descriptor)
                elif descriptor == self.call_socket.fileno():
                    self.relay.accept(self.call_socket)
                elif not (self.commands and self.commands.handle_event(descriptor)):
                    self.relay.read(descriptor)


def _fork() -> int:
    """Fork, and try again for a while if the container has no room for another process."""
    for _ in range(_FORK_TRIES):
        try:
            return os.fork()
        except OSError as failure:
            error = failure
        select.select((), (), (), 0.05)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass  # orphans, if this process is PID 1
        except ChildProcessError:
            pass
    # The host reports what stands on standard error when the container ends.
    os.write(2, "No new worker can be forked: {}.\n".format(error.strerror).encode())
    os._exit(71)


def _become_worker(
    ends: tuple[int, int, int, int], mode: str, progress: memoryview, memory: memoryview
) -> None:
    """In the forked child, drop what is the supervisor's, and serve cells. Does not return.

    ``ends`` are the worker's descriptors of control, calls, stdout and stderr.
    """
    status = 70
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        offer_to_kernel()
        become((os.open(os.devnull, os.O_RDONLY), *ends[2:], *ends[:2]))
        from . import worker

        control, calls = socket.socket(fileno=3), socket.socket(fileno=4)
        status = worker.main(control, calls, mode, progress, memory)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _now() -> float:
    """Return the time on the clock by which the kernel dates the start of processes."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
