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

import mmap
import os
import select
import signal
import socket
import sys
import time

from . import wire
from .interrupts import BEGUN, INTERRUPTS, SAVED, SAVING, STEP
from .memory import MemoryWatch, offer_to_kernel
from .relay import CallRelay

#: The most bytes of a standard stream that are read at once: the size of a Linux pipe.
_CHUNK = 65536

#: Before the worker's answer is passed on, at most this much is read from each of its streams. It
#: is more than a cell can have left there. A child that never stops printing must not hold the
#: answer back.
_DRAIN_LIMIT = 4 * _CHUNK

#: How a worker starts: from the last checkpoint; if restoring that kills it, from the one before;
#: if that kills it too, without variables.
_MODES = ("restore", "previous", "fresh")

#: How often to try to fork a worker, 20 times a second, while the container is at its limit of
#: processes or memory. What a dead worker used is not free at once.
_FORK_TRIES = 100

#: Seconds for the last checkpoint after the host has gone. Its reaper waits for 10.
_SAVE_TIMEOUT = 8.0


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
        # Whether the kernel has killed a process for its memory since the host's last request.
        self.kernel_killed = False
        # Workers that died, one after another, before any answer.
        self.failures = 0
        # A child that ends wakes poll() through this pipe.
        wake, waker = os.pipe()
        for descriptor in (wake, waker):
            os.set_blocking(descriptor, False)
        self.wake = wake
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        # Ctrl-C in the terminal reaches this process too. Leave it to the host.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.poll.register(host_in, select.POLLIN)
        self.poll.register(wake, select.POLLIN)
        # Shared with the worker, and still readable after its death. See interrupts.py.
        self.progress = memoryview(mmap.mmap(-1, 40)).cast("Q")
        self.started_at = self.requested_at = _now()
        self.start_worker(_MODES[0])

    # The worker

    def start_worker(self, mode: str) -> None:
        """Fork a worker. ``mode`` is one of :data:`_MODES`."""
        self.control, control = socket.socketpair()
        self.call_socket, call_socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.stdout, stdout = os.pipe()
        self.stderr, stderr = os.pipe()
        self.worker_decoder = wire.FrameDecoder()
        self.to_worker = bytearray()
        self.answered = False
        self.restarted = False  # whether the host had it killed
        self.pid = _fork()
        if self.pid == 0:
            ends = (control.fileno(), call_socket.fileno(), stdout, stderr)
            _become_worker(ends, mode, self.progress)
        control.close()
        call_socket.close()
        os.close(stdout)
        os.close(stderr)
        self.control.setblocking(False)
        for descriptor in (self.stdout, self.stderr):
            os.set_blocking(descriptor, False)
        for descriptor in self.worker_descriptors():
            self.poll.register(descriptor, select.POLLIN)

    def worker_descriptors(self) -> tuple[int, int, int, int]:
        """Return this side's descriptors of control, calls, stdout and stderr."""
        return self.control.fileno(), self.call_socket.fileno(), self.stdout, self.stderr

    def replace_worker(self, status: int) -> None:
        """Tell the host how the worker died, and fork the next one."""
        kills = self.memory.new_kills()  # first: read_worker() would read the counter too
        self.read_worker()  # an answer that it gave before
        self.drain_streams()
        self.kill_group()
        self.sweep(self.started_at, alive=False)
        self.relay.drop_all()
        for descriptor in self.worker_descriptors():
            self.stop_polling(descriptor)
        self.control.close()
        self.call_socket.close()
        os.close(self.stdout)
        os.close(self.stderr)
        how = (
            '"signal": {}'.format(os.WTERMSIG(status))
            if os.WIFSIGNALED(status)
            else '"exit": {}'.format(os.WEXITSTATUS(status))
        )
        # A worker that the host had killed did not die of its memory.
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and not self.restarted:
            if kills or self.kernel_killed or kills is None:
                how += ', "memory": ' + self.memory.report()
        elif kills:
            self.report_kill()  # of another process, before the worker died
        how += ', "saved": {}, "begun": {}'.format(self.progress[SAVED], self.progress[BEGUN])
        self.failures = 0 if self.answered else self.failures + 1
        if self.failures >= len(_MODES):
            self.send(wire.EVENT, b'{"event": "failed", ' + how.encode() + b"}")
            os._exit(71)
        self.send(wire.EVENT, b'{"event": "died", ' + how.encode() + b"}")
        # A worker that dies before its first answer died of what it restored.
        self.start_worker(_MODES[self.failures])

    def report_kill(self) -> None:
        """Tell the host that the kernel has killed a process for its memory, but not the worker."""
        self.kernel_killed = True
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
            sweep(self.pid, alive, since)
        except OSError:
            pass  # there is no /proc; what is left ends with the container

    def interrupt(self, payload: bytes) -> None:
        """Send SIGINT to the worker. Write the step that it is meant for to the shared memory."""
        current = 2 * self.progress[BEGUN]
        step = int.from_bytes(payload, "big") if payload else current
        self.progress[STEP] = step
        self.progress[INTERRUPTS] += 1
        if step == current:
            self.signal_group(signal.SIGINT)  # to its children too, as Ctrl-C in a terminal does
            return
        try:
            os.kill(self.pid, signal.SIGINT)
        except ProcessLookupError:
            pass

    def reap(self) -> None:
        """Collect ended children: the worker, and orphans if this process is PID 1."""
        try:
            while os.read(self.wake, _CHUNK):
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
                self.replace_worker(status)

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
        self.kill_group()
        os._exit(0)

    def await_checkpoint(self) -> None:
        """Let the worker of a kept session save what it has answered for.

        Do not wait for a cell that runs: nobody has got its answer.
        """
        left = _SAVE_TIMEOUT
        while self.progress[SAVING] and left > 0:
            try:
                if os.waitpid(self.pid, os.WNOHANG)[0]:
                    return
            except ChildProcessError:
                return
            select.select((), (), (), 0.01)
            left -= 0.01

    def read_host(self) -> None:
        data = os.read(self.host_in, 1 << 20)
        if not data:
            self.end()
        for kind, payload in self.host_decoder.feed(data):
            if kind == wire.MESSAGE:
                self.kernel_killed = False
                self.requested_at = _now()
                self.to_worker += wire.encode(kind, payload)
                self.write_worker()
            elif kind == wire.INTERRUPT:
                self.interrupt(payload)
            elif kind == wire.RESTART:
                self.restarted = True
                self.kill_group()
            elif kind == wire.SWEEP:
                self.sweep(self.requested_at)
            elif kind == wire.CALL:
                self.relay.answer(int.from_bytes(payload[:4], "big"), payload[4:])

    def write_worker(self) -> None:
        """Pass on what the worker's socket accepts. Keep the rest until it accepts more."""
        try:
            while self.to_worker:
                del self.to_worker[: self.control.send(self.to_worker[: 1 << 20])]
        except BlockingIOError:
            pass
        except OSError:
            self.to_worker.clear()  # it died; waitpid() will tell
        interest = select.POLLIN | (select.POLLOUT if self.to_worker else 0)
        self.poll.register(self.control.fileno(), interest)

    def read_worker(self) -> None:
        try:
            data = self.control.recv(1 << 20)
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
            data = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return 0
        if data:
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

    def run(self) -> None:
        """Serve until the host closes the pipe. Does not return."""
        while True:
            for descriptor, happened in self.poll.poll():
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
                else:
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


def _become_worker(ends: tuple[int, int, int, int], mode: str, progress: memoryview) -> None:
    """In the forked child, drop what is the supervisor's, and serve cells. Does not return.

    ``ends`` are the worker's descriptors of control, calls, stdout and stderr.
    """
    status = 70
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        offer_to_kernel()
        # Move them above 64, so that dup2() onto 0 to 4 cannot overwrite them.
        control, calls, stdout, stderr = moved = [_above_64(descriptor) for descriptor in ends]
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        os.dup2(control, 3, inheritable=False)
        os.dup2(calls, 4, inheritable=False)
        os.closerange(5, max(moved) + 1)
        from . import worker

        status = worker.main(socket.socket(fileno=3), socket.socket(fileno=4), mode, progress)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _now() -> float:
    """Return the time on the clock by which the kernel dates the start of processes."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _above_64(descriptor: int) -> int:
    import fcntl

    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 64)
