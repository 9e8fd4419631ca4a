"""The branches of a worker, for the supervisor: processes that run cells beside it.

:mod:`rlm_guest.branching` forks them, and :mod:`rlm_guest.wire` describes their frames.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

from . import wire
from .interrupts import BEGUN, PHASE
from .link import Link, close_all, how_ended, was_killed
from .memory import MemoryWatch
from .processes import sweep, sweep_newer
from .relay import CallRelay, received
from .succession import SLOT


class _Branch:
    """One branch.

    Attributes:
        number: the host's number of it.
        link: leads to its process.
        relay: passes its calls on.
        untaken: how much of what it has sent the host has not taken.
        kills: how many processes the kernel had killed for their memory before its last request.
        requested_at: when that came.
    """

    def __init__(self, number: int, link: Link, relay: CallRelay) -> None:
        self.number = number
        self.link = link
        self.relay = relay
        self.untaken = 0
        self.kills: int | None = None
        self.requested_at = 0.0


class Branches:
    """The branches that are open.

    Args:
        poll: registers their descriptors.
        send: writes a frame to the host.
        memory: knows whether the kernel has killed a process.
        slots: the numbers that are shared with each.
        spared: returns the processes that survive all branches, and the heirs.

    Attributes:
        expected: the numbers of those that the worker may make.
    """

    def __init__(
        self,
        poll: select.poll,
        send: Callable[[int, bytes], None],
        memory: MemoryWatch,
        slots: memoryview,
        spared: Callable[[], tuple[set[int], dict[int, int]]],
    ) -> None:
        self._poll = poll
        self._send = send
        self._memory = memory
        self._slots = slots
        self._spared = spared
        self._open: dict[int, _Branch] = {}  # by number
        self._ends: dict[int, _Branch] = {}  # by descriptor
        self._since = 0.0
        self._first = 0
        self.expected: set[int] = set()

    def expect(self, first: int, count: int) -> None:
        """Note that the worker is about to make branches."""
        self._first = first
        self._since = time.clock_gettime(time.CLOCK_BOOTTIME)
        self.expected = set(range(first, first + min(count, wire.MAX_BRANCHES)))

    def take(self, message: bytes, ends: list[int]) -> None:
        """Take a branch that the worker has made: its number, its process, and its channels."""
        number, pid = int.from_bytes(message[:4], "big"), int.from_bytes(message[4:8], "big")
        if number not in self.expected or len(ends) != 4:
            close_all(ends)
            return
        self.expected.discard(number)
        start = SLOT * (number - self._first)
        control, calls, stdout, stderr = ends
        slot = self._slots[start : start + SLOT]
        link = Link(self._poll, (control, calls, stdout, stderr), slot)

        def say(kind: int, payload: bytes) -> None:
            self._say(branch, kind, payload)

        branch = _Branch(number, link, CallRelay(self._poll, say))
        self._open[number] = branch
        for descriptor in ends:
            self._ends[descriptor] = branch
        link.listen(pid)

    def pids(self) -> set[int]:
        """Return their process ids."""
        return {branch.link.pid for branch in self._open.values()}

    # Frames

    def handle_frame(self, number: int, kind: int, payload: bytes) -> None:
        """Handle a frame of the host."""
        branch = self._open.get(number)
        if branch is None:
            if kind == wire.RESTART:  # the host may not know that it has ended, or never was
                head = number.to_bytes(4, "big") + bytes((wire.EVENT,))
                self._send(wire.BRANCH, head + b'{"event": "died", "signal": 9, "begun": 0}')
            return
        link = branch.link
        if kind == wire.MESSAGE:
            branch.kills = self._memory.count()
            branch.requested_at = time.clock_gettime(time.CLOCK_BOOTTIME)
            link.write(wire.encode(kind, payload))
        elif kind == wire.INTERRUPT:
            step = int.from_bytes(payload, "big")
            link.interrupt(step, to_children=step == 2 * link.progress[BEGUN])
        elif kind == wire.SWEEP:
            self._sweep(branch, branch.requested_at, alive=True)
        elif kind == wire.RESTART:
            link.restarted = True
            self._kill(branch)
        elif kind == wire.CALL:
            branch.relay.answer(int.from_bytes(payload[:4], "big"), payload[4:])
        elif kind == wire.TAKEN:
            branch.untaken -= int.from_bytes(payload, "big")
            self._watch_output(branch)

    def handle_event(self, descriptor: int, happened: int) -> bool:
        """Read or write what can be. Return whether the descriptor is that of a branch."""
        branch = self._ends.get(descriptor)
        if branch is None:
            for other in self._open.values():
                if descriptor in other.relay.calls:
                    other.relay.read(descriptor)
                    return True
            return False
        link = branch.link
        if descriptor == link.control.fileno():
            if happened & select.POLLOUT:
                link.write_waiting()
            if happened & ~select.POLLOUT:
                self._read(branch)
        elif descriptor == link.calls.fileno():
            message, descriptors = received(link.calls)
            if message:
                branch.relay.accept(descriptors)
        else:
            data = link.read(descriptor)
            if data:
                self._say(branch, link.kind_of(descriptor), data)
        return True

    def _read(self, branch: _Branch) -> None:
        """Pass on what a branch has sent. End it if a cell has got in between."""
        self._pass_on(branch)
        if branch.link.is_broken:
            self._kill(branch)

    def _pass_on(self, branch: _Branch) -> None:
        link = branch.link
        try:
            for kind, payload in link.frames():
                self._drain(branch)  # a cell's output comes before its result
                if self._memory.new_kills():
                    report = self._memory.report()
                    text = '{{"event": "killed", "memory": {}}}'.format(report)
                    self._say(branch, wire.EVENT, text.encode())
                self._say(branch, kind, payload)
        except wire.FrameError:
            link.is_broken = True  # it is too long to be passed on

    def _drain(self, branch: _Branch) -> None:
        if branch.untaken > 2 * wire.WINDOW:
            return  # a cell has sent many messages
        for descriptor, data in branch.link.drain():
            self._say(branch, branch.link.kind_of(descriptor), data)

    def _say(self, branch: _Branch, kind: int, payload: bytes) -> None:
        head = branch.number.to_bytes(4, "big") + bytes((kind,))
        self._send(wire.BRANCH, head + payload)
        if kind != wire.CALL:
            branch.untaken += len(payload) + wire.FRAME_COST
            self._watch_output(branch)

    def _watch_output(self, branch: _Branch) -> None:
        """Read its output and messages while the host takes them."""
        link = branch.link
        reads = branch.untaken < wire.WINDOW
        if link.control.fileno() in self._ends and not link.is_broken:
            link.watch_control(reads=reads)
        for descriptor in {link.stdout, link.stderr} - link.ended:
            if descriptor in self._ends and reads:
                self._poll.register(descriptor, select.POLLIN)
            elif descriptor in self._ends:
                link.stop_polling(descriptor)

    # Their end

    def watch(self) -> bool:
        """Once a second, interrupt code that does not get on. Return whether any runs."""
        busy = False
        for branch in self._open.values():
            branch.link.look()
            busy = busy or branch.link.progress[PHASE] != 0
        return busy

    def note_end(self, pid: int, status: int) -> bool:
        """Note that a process has ended. Tell the host, if it was a branch, and return whether."""
        for branch in self._open.values():
            if branch.link.pid == pid:
                break
        else:
            return False
        link = branch.link
        killed, count = was_killed(status), self._memory.count()
        self._pass_on(branch)  # an answer that it gave before
        self._drain(branch)
        self._sweep(branch, 0.0, alive=False)
        self._forget(branch)
        how = how_ended(status)
        if killed and link.stalled:
            how += ', "stalled": true'
        elif (
            killed
            and not link.restarted
            and (count is None or (branch.kills is not None and count > branch.kills))
        ):
            self._memory.new_kills()  # else the next answer of a cell would report it
            how += ', "memory": ' + self._memory.report()
        if not self._open:
            self._sweep_newer()
        text = '{{"event": "died", {}, "begun": {}}}'.format(how, link.progress[BEGUN])
        self._say(branch, wire.EVENT, text.encode())
        link.close()
        return True

    def release(self, number: int) -> Link | None:
        """Forget a branch, which lives on, and return what leads to it; ``None`` if it is gone."""
        branch = self._open.get(number)
        if branch is None:
            return None
        self._forget(branch)
        for descriptor in branch.link.descriptors():
            self._poll.register(descriptor, select.POLLIN)
        return branch.link

    def kill_all(self, *, tell: bool = True) -> None:
        """End all branches, and tell the host unless it is gone."""
        if not self._open:
            return
        if not tell:
            self._send = lambda kind, payload: None
        for branch in list(self._open.values()):
            branch.link.restarted = True
            self._kill(branch)
            try:
                _, status = os.waitpid(branch.link.pid, 0)
            except ChildProcessError:
                continue  # it was never this process's child
            self.note_end(branch.link.pid, status)
        self._sweep_newer()

    def _kill(self, branch: _Branch) -> None:
        self._sweep(branch, 0.0, alive=True)  # while it can be seen what descends from it
        branch.link.kill_group()

    def _forget(self, branch: _Branch) -> None:
        del self._open[branch.number]
        for descriptor in branch.link.descriptors():
            self._ends.pop(descriptor, None)
        branch.relay.drop_all()

    def _sweep(self, branch: _Branch, since: float, *, alive: bool) -> None:
        try:
            sweep(branch.link.pid, alive, since, (), {}, everywhere=False)
        except OSError:
            pass  # there is no /proc; what is left ends with the container

    def _sweep_newer(self) -> None:
        """Kill what branches have left that does not show whose it is."""
        try:
            sweep_newer(self._since, *self._spared())
        except OSError:
            pass
