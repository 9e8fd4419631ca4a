"""Owns the pipe to the host, and the worker's life.

The supervisor runs no code of a cell. It passes frames between host and worker, reads what the
worker and its children write to their standard streams, and sees the worker die: killed by a
cell, by the kernel for its memory, or by the host because it would not stop. Then it says so and
forks another. When the pipe closes the host is gone, and so is the reason to live.

It imports as little as it can: official images come without compiled byte code, so each module of
the standard library costs milliseconds at every start.
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
from .memory import MemoryWatch, offer_to_kernel
from .relay import CallRelay

#: How much of a standard stream is read at once; the size of a Linux pipe.
_CHUNK = 65536

#: After the worker's answer at most this much more is taken from each stream before the answer is
#: passed on: all that the cell itself can have left there. A child process that never stops
#: printing must not hold the answer back.
_DRAIN = 4 * _CHUNK

#: How a worker begins: with the checkpoint or, where restoring kills it, with the one before that,
#: or with nothing.
_MODES = ("restore", "previous", "fresh")
#: How often, 20 times a second, forking a worker is tried where the container has all the processes
#: or memory that it may have: those of the dead worker take a moment to go.
_FORKS = 100
#: Seconds for the last checkpoint when the host is gone. Its reaper waits for 10.
_SAVING = 8.0


class Supervisor:
    """The loop between host and worker.

    Args:
        host_in: descriptor that frames from the host are read from.
        host_out: descriptor that frames to the host are written to.
    """

    def __init__(self, host_in: int, host_out: int) -> None:
        self.host_in = host_in
        self.host_out = host_out
        self.from_host = wire.FrameDecoder()
        self.poll = select.poll()
        self.relay = CallRelay(self.poll, self.send)
        self.failures = 0
        self.memory = MemoryWatch()
        self.kernel_killed = False  # something, for its memory, since the host's last request
        # A child that ends interrupts poll() through this pipe, whatever else is going on.
        wake, waker = os.pipe()
        for descriptor in (wake, waker):
            os.set_blocking(descriptor, False)
        self.wake = wake
        self.waker = waker
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        # Ctrl-C in the host's terminal is the host's to handle, `stop` closes the pipe.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.poll.register(host_in, select.POLLIN)
        self.poll.register(wake, select.POLLIN)
        # Shared with the worker, and there when it is not any more. Four numbers of 8 bytes: the
        # last request whose checkpoint is written and the last that was begun, by the worker; the
        # step that is to be interrupted and the count of interrupts, by this process. Then a byte:
        # whether the worker writes a checkpoint that must not be lost.
        self.progress = mmap.mmap(-1, 40)
        self.interrupts = 0
        self.born = self.requested = _now()
        self.start_worker(_MODES[0])

    # The worker

    def start_worker(self, mode: str) -> None:
        """Fork a worker. ``mode`` is how it begins, one of :data:`_MODES`."""
        self.control, control = socket.socketpair()
        self.call_socket, call_socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.stdout, stdout = os.pipe()
        self.stderr, stderr = os.pipe()
        self.from_worker = wire.FrameDecoder()
        self.to_worker = bytearray()
        self.answered = self.restarted = False
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
        for descriptor in (self.control.fileno(), self.call_socket.fileno()):
            self.poll.register(descriptor, select.POLLIN)
        self.poll.register(self.stdout, select.POLLIN)
        self.poll.register(self.stderr, select.POLLIN)

    def bury_worker(self, status: int) -> None:
        """Say how the worker died and fork its successor."""
        by_kernel = self.memory.look()  # before anything else looks
        self.read_worker()  # an answer it still gave
        self.drain()
        self.kill_group()
        self.sweep(self.born, alive=False)
        self.relay.drop_all()
        for item in (self.control.fileno(), self.call_socket.fileno(), self.stdout, self.stderr):
            self.forget(item)
        self.control.close()
        self.call_socket.close()
        os.close(self.stdout)
        os.close(self.stderr)
        how = (
            '"signal": {}'.format(os.WTERMSIG(status))
            if os.WIFSIGNALED(status)
            else '"exit": {}'.format(os.WEXITSTATUS(status))
        )
        # One that the host had killed did not die of its memory.
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and not self.restarted:
            if by_kernel or self.kernel_killed or by_kernel is None:
                how += ', "memory": ' + self.memory.report()
        elif by_kernel:
            self.tell_of_kill()  # of another process, before this one died
        how += ', "saved": {}, "begun": {}'.format(
            int.from_bytes(self.progress[:8], "big"), int.from_bytes(self.progress[8:16], "big")
        )
        self.failures = 0 if self.answered else self.failures + 1
        if self.failures >= len(_MODES):
            self.send(wire.EVENT, b'{"event": "failed", ' + how.encode() + b"}")
            os._exit(71)
        self.send(wire.EVENT, b'{"event": "died", ' + how.encode() + b"}")
        # A worker that dies before its first answer died of what it restored.
        self.start_worker(_MODES[self.failures])

    def tell_of_kill(self) -> None:
        """Say that the kernel has killed a process for its memory, while the worker lives on."""
        self.kernel_killed = True
        self.send(
            wire.EVENT, b'{"event": "killed", "memory": ' + self.memory.report().encode() + b"}"
        )

    def forget(self, descriptor: int) -> None:
        """Poll it no longer: poll() reports a closed end for ever, whatever one asks it for."""
        try:
            self.poll.unregister(descriptor)
        except KeyError:
            pass

    def kill_group(self) -> None:
        """Kill the worker and what its cells started; the worker leads a session of its own."""
        self.signal_group(signal.SIGKILL)

    def signal_group(self, number: int) -> None:
        """Send a signal to the worker and what its cells started."""
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            pass

    def sweep(self, since: float, alive: bool = True) -> None:
        """Kill what cells have started since then, in sessions of its own as well."""
        from .processes import sweep

        try:
            sweep(self.pid, alive, since)
        except OSError:
            pass  # there is no /proc: what is left ends with the container

    def interrupt(self, payload: bytes) -> None:
        """Send SIGINT to the worker, which finds in the shared memory what it is meant for."""
        begun = int.from_bytes(self.progress[8:16], "big")
        step = int.from_bytes(payload, "big") if payload else 2 * begun
        self.interrupts += 1
        self.progress[16:32] = step.to_bytes(8, "big") + self.interrupts.to_bytes(8, "big")
        if step == 2 * begun:
            self.signal_group(signal.SIGINT)  # as Ctrl-C in a terminal: its children, too
            return
        try:
            os.kill(self.pid, signal.SIGINT)
        except ProcessLookupError:
            pass

    def reap(self) -> None:
        """Collect ended children: the worker, and orphans where this process is PID 1."""
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
                self.bury_worker(status)

    # Frames

    def send(self, kind: int, payload: bytes) -> None:
        """Write one frame to the host, as slowly as it reads."""
        frame = memoryview(wire.encode(kind, payload))
        try:
            while frame:
                frame = frame[os.write(self.host_out, frame) :]
        except OSError:
            self.leave()

    def leave(self) -> None:
        """The host is gone."""
        self.await_checkpoint()
        self.kill_group()
        os._exit(0)

    def await_checkpoint(self) -> None:
        """Let the worker save what it has answered for, if that is not to end with this.

        It does not wait for a cell: that has not been answered.
        """
        left = _SAVING
        while self.progress[32] and left > 0:
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
            self.leave()
        for kind, payload in self.from_host.feed(data):
            if kind == wire.MESSAGE:
                self.kernel_killed = False
                self.requested = _now()
                self.to_worker += wire.encode(kind, payload)
                self.write_worker()
            elif kind == wire.INTERRUPT:
                self.interrupt(payload)
            elif kind == wire.RESTART:
                self.restarted = True
                self.kill_group()
            elif kind == wire.SWEEP:
                self.sweep(self.requested)
            elif kind == wire.CALL:
                self.relay.answer(int.from_bytes(payload[:4], "big"), payload[4:])

    def write_worker(self) -> None:
        """Pass on what the worker's socket takes; the rest waits until it reads again."""
        try:
            while self.to_worker:
                del self.to_worker[: self.control.send(self.to_worker[: 1 << 20])]
        except BlockingIOError:
            pass
        except OSError:
            self.to_worker.clear()  # it died; waitpid will say so
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
            # A worker without a control socket is of no use, even if it is still there.
            self.kill_group()
            self.forget(self.control.fileno())
            return
        try:
            for kind, payload in self.from_worker.feed(data):
                self.answered = True
                self.drain()  # what a cell wrote comes before the news that it ended
                if self.memory.look():
                    self.tell_of_kill()
                self.send(kind, payload)
        except wire.FrameError:
            self.kill_group()  # something in the worker writes to a descriptor that is not its own

    # Standard streams

    def read_stream(self, descriptor: int) -> int:
        """Pass on one chunk of a stream; the number of bytes, 0 for none there."""
        try:
            data = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return 0
        if data:
            self.send(wire.STDOUT if descriptor == self.stdout else wire.STDERR, data)
        else:
            self.forget(descriptor)  # closed by the worker and everyone it started
        return len(data)

    def drain(self) -> None:
        for descriptor in (self.stdout, self.stderr):
            taken = 0
            while taken < _DRAIN:
                read = self.read_stream(descriptor)
                if not read:
                    break
                taken += read

    # The loop

    def run(self) -> None:
        """Serve until the host closes the pipe. Does not return."""
        while True:
            for descriptor, happened in self.poll.poll():
                if descriptor == self.host_in:
                    self.read_host()
                elif descriptor == self.wake:
                    self.reap()
                    break  # the worker's descriptors may be others now
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
    for _ in range(_FORKS):
        try:
            return os.fork()
        except OSError as failure:
            error = failure
        select.select((), (), (), 0.05)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass  # orphans, where this process is PID 1
        except ChildProcessError:
            pass
    # The host passes on what stands here as the container's last words.
    os.write(2, "No new worker can be forked: {}.\n".format(error.strerror).encode())
    os._exit(71)


def _become_worker(ends: tuple[int, int, int, int], mode: str, progress: mmap.mmap) -> None:
    """In the forked child: leave everything of the supervisor's behind and serve cells.

    ``ends`` are the descriptors of control, calls, stdout and stderr.
    """
    status = 70
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        offer_to_kernel()
        # First out of the way of the low numbers that they are about to take.
        kept = [_high(descriptor) for descriptor in ends]
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(kept[2], 1)
        os.dup2(kept[3], 2)
        os.dup2(kept[0], 3, inheritable=False)
        os.dup2(kept[1], 4, inheritable=False)
        os.closerange(5, max(kept) + 1)
        from . import worker

        status = worker.main(socket.socket(fileno=3), socket.socket(fileno=4), mode, progress)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _now() -> float:
    """The time by which the kernel says when a process was started."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _high(descriptor: int) -> int:
    import fcntl

    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 64)
