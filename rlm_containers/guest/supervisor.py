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
    PHASE,
    RUNNING,
    SAVED,
    SAVING,
)
from .link import Ends, Link, close_all, how_ended, open_channels, was_killed
from .memory import MemoryWatch, offer_to_kernel
from .relay import CallRelay, received
from .succession import HEIR, KEPT, SHARED, SLOT, Succession

if TYPE_CHECKING:
    from .branches import Branches
    from .commands import Commands

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
        # While an heir of a dead worker writes: how that died, as JSON, and until when to wait.
        self.burial: str | None = None
        # The dead worker's socket for calls, until its heir is offered its place; what that is
        # offered; and until when it may take it, 0 for none.
        self.heir_calls: socket.socket | None = None
        self.offered: Link | None = None
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
        ours, theirs = open_channels()
        # What is there now lives on in both. A collection in one would copy all of its pages.
        gc.freeze()
        pid = _fork()
        if pid == 0:
            _become_worker(theirs, mode, self.progress, self.journal, self.slots)
        close_all(theirs)
        self.took_over = False
        self.listen(Link(self.poll, ours, self.progress), pid)

    def listen(self, link: Link, pid: int) -> None:
        """Begin to listen to a new worker."""
        self.link = link
        self.from_file = False
        link.listen(pid)

    def bury_worker(self, status: int) -> None:
        """Clean up after the worker. Let its heir write what it holds before there is another."""
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
        self.burial, self.burial_ends = how, _NEVER
        self.succession.note_death(self.saved())
        self.adopt_heirs()
        self.heir_calls, self.offer_ends = link.calls, _now() + _OFFER_TIMEOUT
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
        ours, theirs = open_channels()
        self.offered = Link(self.poll, ours, self.progress)
        try:
            socket.send_fds(calls, [b"t"], theirs, socket.MSG_DONTWAIT)
        except OSError:
            pass  # it will not take them
        close_all(theirs)
        self.succession.hand_over()
        return True

    def await_successor(self) -> bool:
        """Return whether to wait on for an heir that was offered the worker's place."""
        is_able = self.succession.is_able()  # first: who goes on says so before it leaves its group
        pid, offered = self.succession.successor(), self.offered
        if pid and offered is not None:
            self.offer_ends, self.offered = 0.0, None
            saved = max(self.saved(), self.succession.take_over())
            self.announce_death(saved)
            self.took_over = True
            self.listen(offered, pid)
            return True
        if _now() < self.offer_ends and is_able:
            return True
        self.withdraw_offer()
        return False

    def withdraw_offer(self) -> None:
        """Offer the dead worker's place to nobody any more."""
        self.offer_ends = 0.0
        if self.heir_calls is not None:
            self.heir_calls.close()
        if self.offered is not None:
            self.offered.close()
        self.heir_calls = self.offered = None

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
        answered = self.link.answered or self.took_over
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

    def restart(self) -> None:
        """Kill the worker: the host does not wait for it any longer."""
        self.link.restarted = True
        if self.burial is not None:
            self.burial_ends = min(self.burial_ends, _now() + _BURIAL_TIMEOUT)
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
        self.await_checkpoint()
        if self.burial is None:
            self.end_worker()
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

    def end_worker(self) -> None:
        """Let the worker end the session, with its exit functions, unless a cell runs."""
        if self.progress[PHASE] == RUNNING:
            return
        if self.progress[PHASE] == CHECKPOINTING:
            # Nobody needs this checkpoint. A second interrupt ends the saving of all variables.
            for _ in range(2):
                self.link.interrupt(self.link.stall.step())
        self.link.control.shutdown(socket.SHUT_WR)
        poll = select.poll()
        for descriptor in (self.link.stdout, self.link.stderr, self.wake):
            poll.register(descriptor, select.POLLIN)
        left = 1000 * _END_TIMEOUT
        while left > 0:
            try:
                if os.waitpid(self.link.pid, os.WNOHANG)[0]:
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
                if os.waitpid(self.link.pid, os.WNOHANG)[0]:
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
                self.link.write(wire.encode(kind, payload))
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
        self.withdraw_offer()
        self.burial = None
        self.sweep(self.started_at, alive=False, kept=(kept.pid,))
        self.relay.drop_all()
        link.close()
        self.link, self.took_over, self.from_file = kept, False, False
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


def _kill_and_wait(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def _become_worker(
    ends: Ends, mode: str, progress: memoryview, memory: memoryview, slots: memoryview
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
        status = worker.main(control, calls, mode, progress, memory, slots)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _now() -> float:
    """Return the time on the clock by which the kernel dates the start of processes."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
