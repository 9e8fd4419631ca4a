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
import time
from typing import TYPE_CHECKING

from . import journal, wire
from .forking import fork_worker
from .interrupts import BEGUN, PHASE, SAVING
from .link import Link, close_all, how_ended, was_killed
from .memory import MemoryWatch
from .relay import CallRelay, received
from .succession import HEIR, KEPT, SHARED, SLOT, Succession

if TYPE_CHECKING:
    from .branches import Branches
    from .burial import Burial
    from .commands import Commands

#: How a worker starts: from the last checkpoint; if restoring that kills it, from the one before;
#: if that kills it too, without variables.
_MODES = ("restore", "previous", "fresh")

#: Seconds for the last checkpoint after the host has gone. Its reaper waits for 10.
_SAVE_TIMEOUT = 8.0

#: Milliseconds between two looks at the heir of a dead worker.
_BURIAL_POLL = 2

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
        self.branches: Branches | None = None  # likewise
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
        count = SHARED + wire.MAX_BRANCHES * SLOT
        memory = memoryview(mmap.mmap(-1, 8 * count + journal.SIZE))
        numbers, self.journal = memory[: 8 * count].cast("Q"), memory[8 * count :]
        self.progress, self.slots = numbers[:SHARED], numbers[SHARED:]
        self.succession = Succession(self.progress)
        self.memory.own_kills = self.succession.new_kills
        self.burial: Burial | None = None  # of the worker, if it is dead
        self.adopts = False  # whether this process is the parent of heirs
        # How many more seconds to look after the worker. It needs none while it waits for requests.
        self.watching = 0
        self.started_at = self.requested_at = self.watched_at = _now()
        self.link = self.new_worker(_MODES[0])

    # The worker

    def new_worker(self, mode: str) -> Link:
        """Fork a worker. ``mode`` is one of :data:`_MODES`."""
        return fork_worker(self.poll, mode, self.progress, self.journal, self.slots)

    def bury_worker(self, status: int) -> None:
        """Clean up after the worker, and begin its burial."""
        from .burial import Burial  # late: few workers die

        kills = self.memory.new_kills()  # first: read_worker() would read the counter too
        link = self.link
        self.read_worker()  # an answer that it gave before
        self.drain_streams()
        link.kill_group()
        self.sweep(self.started_at, alive=False)
        self.relay.drop_all()
        for descriptor in link.descriptors():
            link.stop_polling(descriptor)
        link.control.close()
        link.close_streams()
        how = how_ended(status)
        killed = was_killed(status)
        if killed and link.stalled:
            how += ', "stalled": true'
        # A worker that the host had killed did not die of its memory.
        elif killed and not link.restarted:
            if self.memory.noticed or kills is None:
                how += ', "memory": ' + self.memory.report()
        elif kills:
            self.report_kill()  # of another process, before the worker died
        self.burial = Burial(self.poll, link, self.progress, self.succession, how)
        self.adopt_heirs()
        self.replace_worker()

    def replace_worker(self) -> None:
        """Once the worker is buried, tell the host, and have another one."""
        burial = self.burial
        if burial is None or not burial.is_over():
            return
        self.announce_death(burial)
        self.burial = None
        if burial.successor is not None:
            self.link = burial.successor
            self.link.answered = True  # as the worker had when it forked this one
        else:
            # A worker that dies before its first answer died of what it restored.
            self.link = self.new_worker(_MODES[self.failures])

    def announce_death(self, burial: Burial) -> None:
        """Tell the host how the worker died."""
        self.failures = 0 if self.link.answered else self.failures + 1
        how = '{}, "saved": {}, "begun": {}'.format(burial.how, burial.saved, self.progress[BEGUN])
        if self.failures >= len(_MODES):
            self.send(wire.EVENT, b'{"event": "failed", ' + how.encode() + b"}")
            os._exit(71)
        self.send(wire.EVENT, b'{"event": "died", ' + how.encode() + b"}")

    def report_kill(self) -> None:
        """Tell the host that the kernel has killed a process for its memory, but not the worker."""
        self.send(
            wire.EVENT, b'{"event": "killed", "memory": ' + self.memory.report().encode() + b"}"
        )

    def sweep(self, since: float, alive: bool = True, kept: tuple[int, ...] = ()) -> None:
        """Kill the processes that cells have started since then, daemons too.

        Args:
            since: only those.
            alive: whether the worker lives on.
            kept: processes that are spared with what they have started.
        """
        from .processes import sweep

        try:
            sweep(self.link.pid, alive, since, {*kept, *self.others()}, self.succession.groups())
        except OSError:
            pass  # there is no /proc; what is left ends with the container

    def others(self) -> set[int]:
        """Return the keepers of commands, and the branches."""
        keepers = self.commands.keepers() if self.commands else set()
        return keepers | (self.branches.pids() if self.branches else set())

    def spared(self) -> tuple[set[int], dict[int, int]]:
        """Return the processes that survive all branches, and heirs as for ``sweep()``."""
        return {self.link.pid, *self.others()}, self.succession.groups()

    def restart(self, *, from_file: bool) -> None:
        """Kill the worker: the host does not wait for it any longer.

        Args:
            from_file: whether the next one must begin from the state file.
        """
        self.link.restarted, self.link.from_file = True, from_file
        if self.burial is not None:
            self.burial.hasten()
            return
        if self.succession.is_awaited():
            self.succession.end()
        self.link.kill_group()

    def interrupt(self, payload: bytes) -> None:
        """Interrupt the step that the host names. Without a payload it is the present cell."""
        current = 2 * self.progress[BEGUN]
        step = int.from_bytes(payload, "big") if payload else current
        if self.succession.is_awaited() or (step % 2 and self.burial is not None):
            self.succession.interrupt(step)  # the checkpoint that the host waits for
        if self.burial is None:
            self.link.interrupt(step, to_children=step == current)

    def adopt_heirs(self) -> None:
        """Once there is an heir, become the parent of the next ones, to see how they end."""
        if self.progress[HEIR]:
            self.adopt()

    def adopt(self) -> None:
        """Become the parent of the orphans among this process's descendants."""
        if not self.adopts:
            from .processes import subreaper

            self.adopts = True
            subreaper()()

    def watch_worker(self) -> None:
        """Once a second, interrupt code of the cells' objects that does not get on."""
        writes = self.succession.watch()
        self.adopt_heirs()
        if self.branches is not None:
            writes = self.branches.watch() or writes
        self.watching = _WATCH if self.progress[PHASE] or writes else self.watching - 1
        if self.burial is None:
            self.link.look(waits=writes)

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
            if pid == self.link.pid:
                self.bury_worker(status)
            elif self.branches is not None:
                self.branches.note_end(pid, status)

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
        if self.branches is not None:
            self.branches.kill_all(tell=False)
        left = self.link.await_checkpoint(_SAVE_TIMEOUT)
        if self.progress[KEPT]:
            self.succession.await_checkpoint(left)
        if self.burial is None:
            self.link.end(self.wake)
            self.link.kill_group()
        self.succession.end()
        if self.commands:
            self.commands.kill_all()
        try:
            os.set_blocking(self.host_out, False)
            os.write(self.host_out, wire.encode(wire.EVENT, b'{"event": "ended"}'))
        except OSError:
            pass  # nobody reads it
        os._exit(0)

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
                self.link.write(wire.encode(kind, payload))
                self.watching = _WATCH
            elif kind == wire.INTERRUPT:
                self.interrupt(payload)
            elif kind == wire.RESTART:
                self.restart(from_file=bool(payload))
            elif kind == wire.SWEEP:
                self.sweep(self.requested_at)
            elif kind == wire.CALL:
                self.relay.answer(int.from_bytes(payload[:4], "big"), payload[4:])
            elif kind in (wire.FORK, wire.BRANCH, wire.KEEP):
                self.branch(kind, payload)
            else:
                self.command(kind, payload)

    def command(self, kind: int, payload: bytes) -> None:
        """Handle a frame that is about a command."""
        if self.commands is None:
            from .commands import Commands

            self.commands = Commands(self.poll, self.send, self.memory)
        self.commands.handle_frame(kind, payload)

    def branch(self, kind: int, payload: bytes) -> None:
        """Handle a frame that is about branches."""
        number = int.from_bytes(payload[:4], "big")
        if kind == wire.FORK:
            if self.branches is None:
                from .branches import Branches

                self.branches = Branches(self.poll, self.send, self.memory, self.slots, self.spared)
            self.adopt()
            self.branches.expect(number, int.from_bytes(payload[4:], "big"))
        elif kind == wire.KEEP:
            self.keep_branch(number)
        elif self.branches is not None:  # else they were those of another container
            self.branches.handle_frame(number, payload[4], payload[wire.BRANCH_HEADER :])
            self.watching = _WATCH

    def keep_branch(self, number: int) -> None:
        """Let a branch be the worker from now on. End the worker, and the other branches."""
        kept = self.branches.release(number) if self.branches is not None else None
        if kept is None or self.branches is None:
            self.send(wire.EVENT, b'{"event": "kept", "branch": 0}')
            return
        link = self.link
        for process in {self.succession.successor(), 0 if self.burial is not None else link.pid}:
            if process:
                _kill_and_wait(process)
        self.succession.end()
        if self.burial is not None:
            self.burial.withdraw()
            self.burial = None
        self.sweep(self.started_at, alive=False, kept=(kept.pid,))
        self.relay.drop_all()
        link.close()
        self.link = kept
        kept.answered = True
        self.branches.kill_all()
        self.progress[PHASE] = self.progress[SAVING] = 0
        self.send(wire.EVENT, '{{"event": "kept", "branch": {}}}'.format(number).encode())

    def accept_calls(self) -> None:
        """Accept what the worker has sent to its socket for calls."""
        for _ in range(2 * wire.MAX_BRANCHES):  # a cell may send more and more
            message, descriptors = received(self.link.calls)
            if not message:
                return
            if message[:1] != b"b":
                self.relay.accept(descriptors)
            elif self.branches is not None:
                self.branches.take(message[1:], descriptors)
            else:
                close_all(descriptors)

    def read_worker(self) -> None:
        """Pass on what the worker has sent. Kill it if a cell has got in between."""
        for kind, payload in self.link.frames():
            self.drain_streams()  # a cell's output comes before its result
            if self.memory.new_kills():
                self.report_kill()
            if self.branches is not None and self.branches.expected:
                self.accept_calls()  # new branches come before the answer that they are there
            self.send(kind, payload)
        if self.link.is_broken:
            self.link.kill_group()

    # Standard streams

    def read_stream(self, descriptor: int) -> None:
        """Pass on one chunk of a stream."""
        data = self.link.read(descriptor)
        if data:
            self.pass_on(descriptor, data)

    def drain_streams(self) -> None:
        """Pass on what is in the streams, up to a limit."""
        for descriptor, data in self.link.drain():
            self.pass_on(descriptor, data)

    def pass_on(self, descriptor: int, data: bytes) -> None:
        """Pass on what was read from a stream."""
        if not self.link.answered and descriptor == self.link.stderr:
            os.write(2, data)  # the host quotes it if the container ends without an answer
        self.send(self.link.kind_of(descriptor), data)

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
                elif descriptor == self.link.control.fileno():
                    if happened & select.POLLOUT:
                        self.link.write_waiting()
                    if happened & ~select.POLLOUT:
                        self.read_worker()
                elif descriptor in (self.link.stdout, self.link.stderr):
                    self.read_stream(descriptor)
                elif descriptor == self.link.calls.fileno():
                    self.accept_calls()
                elif not (
                    (self.commands and self.commands.handle_event(descriptor))
                    or (self.branches and self.branches.handle_event(descriptor, happened))
                ):
                    self.relay.read(descriptor)


def _kill_and_wait(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def _now() -> float:
    """Return the time on the clock by which the kernel dates the start of processes."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
