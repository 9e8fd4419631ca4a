"""The host's half of branches: live copies of an interpreter, each with cells of its own.

``guest/branches.py`` is the half in the supervisor. All frames of a branch travel in those of its
container's pipe.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from rlm_containers.errors import BranchError, SandboxError, SandboxLostError
from rlm_containers.guest import wire
from rlm_containers.interpreter.clock import CellClock
from rlm_containers.interpreter.conversation import Conversation
from rlm_containers.interpreter.deadlines import Deadlines
from rlm_containers.interpreter.interpreter import Interpreter
from rlm_containers.interpreter.items import ITEMS, Event, Item, parsed
from rlm_containers.interpreter.pipe import FloodError, Pipe
from rlm_containers.interpreter.queue import BoundedQueue, Woken
from rlm_containers.interpreter.reports import death
from rlm_containers.interpreter.request import Request
from rlm_containers.interpreter.results import OutputCallback
from rlm_containers.interpreter.writer import Frame

#: The most that waits here of one branch: a message, what the supervisor sends besides, and what it
#: drains.
_MOST_WAITING = wire.MAX_FRAME + 8 * wire.WINDOW

#: Seconds between two looks whether the container has ended.
_CHECK = 1.0


class BranchPipe:
    """Frames to and from one branch.

    Args:
        pipe: the container's pipe.
        number: the branch's number.

    Attributes:
        name: the container's name.
        number: as it was given.
        on_call: called in the reader's thread, as :attr:`Pipe.on_call`.
        gone: set once the branch has ended.
        reason: why the host has ended it; empty if it has not.
    """

    def __init__(self, pipe: Pipe, number: int) -> None:
        self.name = pipe.name
        self.number = number
        self.on_call: Callable[[int, bytes | bytearray], None] = lambda number, payload: None
        self.gone = threading.Event()
        self.reason = ""
        self._pipe = pipe
        # What is in it is bounded below: the reader must not wait for one branch.
        self._items: BoundedQueue[tuple[Item, int]] = BoundedQueue(math.inf)
        self._arrived = 0  # in the reader's thread, counted as in guest/wire.py
        self._consumed = self._reported = 0  # in that of whoever receives

    def send(self, kind: int, payload: bytes = b"") -> None:
        self._pipe.send(wire.BRANCH, self._addressed(kind, payload))

    def try_send(self, kind: int, payload: bytes = b"") -> bool:
        return self._pipe.try_send(wire.BRANCH, self._addressed(kind, payload))

    def send_message(self, **content: Any) -> None:
        self.write(self.message(content))

    def message(self, content: dict[str, Any]) -> Frame:
        text = json.dumps(content).encode("ascii")
        return Frame.of(wire.BRANCH, self._addressed(wire.MESSAGE, text))

    def write(self, frame: Frame) -> None:
        self._pipe.write(frame)

    def has_begun(self, frame: Frame) -> bool:
        return self._pipe.has_begun(frame)

    def receive(self, timeout: float | None = None) -> Item:
        deadline = math.inf if timeout is None else time.monotonic() + max(0.0, timeout)
        while True:
            ended = self._pipe.ended()
            left = max(0.0, deadline - time.monotonic())
            try:
                item, cost = self._items.get(0 if ended is not None else min(left, _CHECK))
            except Woken:
                raise
            except TimeoutError:
                if ended is not None:
                    return ended
                if time.monotonic() >= deadline:
                    raise
                continue
            self._take(cost)
            return item

    def is_lost(self) -> bool:
        """Whether its container has ended."""
        return self._pipe.ended() is not None

    def wake(self) -> None:
        self._items.wake()

    def pending(self) -> int:
        return len(self._items)

    def hang_up(self, reason: str = "it was closed") -> None:
        self._pipe.hang_up(reason)

    def accept(self, kind: int, payload: bytes) -> None:
        """Take a frame, in the reader's thread.

        Raises:
            FloodError: more came than the guest may send.
            ValueError: it has not what such a frame has.
        """
        if kind == wire.CALL:
            self.on_call(int.from_bytes(payload[:4], "big"), payload[4:])
        if kind not in ITEMS:
            return
        cost = len(payload) + wire.FRAME_COST
        self._arrived += cost
        if self._arrived - self._consumed > _MOST_WAITING:
            raise FloodError("the container sent more of a branch than it may")
        item, size = parsed(kind, payload)
        self._items.put((item, cost), size)
        if isinstance(item, Event) and item.content.get("event") == "died":
            self.gone.set()

    def _take(self, cost: int) -> None:
        """Note that an item takes no room any more, and let the guest send on."""
        self._consumed += cost
        taken = self._consumed - self._reported
        if taken >= wire.WINDOW // 2 and not self.gone.is_set():
            self._reported = self._consumed
            try:
                self.send(wire.TAKEN, taken.to_bytes(8, "big"))
            except SandboxLostError:
                pass  # what is received next says more

    def _addressed(self, kind: int, payload: bytes) -> bytes:
        return self.number.to_bytes(4, "big") + bytes((kind,)) + payload


class BranchConversation(Conversation):
    """The requests to a branch. If its process dies, no other takes its place.

    Args:
        pipe: leads to it.
        parent: that with the interpreter that it is a copy of.
        clock: counts the time of its cells.

    Attributes:
        end: how it has ended, in words; empty while it has not.
    """

    def __init__(self, pipe: BranchPipe, parent: Conversation, clock: CellClock) -> None:
        limits = parent.deadlines
        super().__init__(
            pipe,
            parent.setup,
            parent.max_output,
            deadlines=Deadlines(
                clock,
                limits.cell_timeout,
                limits.start_timeout,
                grace=limits.grace,
                kill_timeout=limits.kill_timeout,
            ),
            abandon=parent.give_up,
            memory_loss=parent.memory_loss,
        )
        self.end = ""
        self._branch = pipe
        self.reports.locals = dict(parent.reports.locals)

    def run(
        self, op: str, limit: float | None, on_output: OutputCallback | None = None, **content: Any
    ) -> Request:
        """See :meth:`Conversation.run`.

        Raises:
            BranchError: the branch had ended, or the host has ended it.
        """
        self.check()
        request = super().run(op, limit, on_output, **content)
        if self.end and (self._branch.reason or request.reply.status == "ok"):
            self.check()
        return request

    def check(self) -> None:
        """Check that the branch has not ended.

        Raises:
            BranchError: it has.
        """
        end = self._branch.reason or self.end
        if end:
            raise BranchError(
                f"The branch has ended: {end}.",
                remedy="Use another one. The sandbox is there again when all are closed.",
                container=self.pipe.name,
            )

    def stop_growth(self, fact: str, remedy: str, *, far: bool, since: float) -> bool:
        """See :meth:`Conversation.stop_growth`."""
        if self.request is not None:
            return super().stop_growth(fact, remedy, far=far, since=since)
        if far and not self._branch.gone.is_set():
            self.end = "the files of the workspace had grown too much, perhaps by its doing"
            self._branch.send(wire.RESTART)
        return False

    def _handle_death(self, event: dict[str, Any], request: Request) -> None:
        how = death(event)
        self.end = self.end or f"its Python process {how}"
        reply = request.reply
        request.done = True
        if event.get("begun") != request.number and not request.begun:
            return  # it had ended before
        reply.note_death(event)
        reply.status = "killed" if request.stop is not None and request.stop.killed else "died"
        self.deadlines.explain(request)
        reply.notices.append(
            f"The Python process of this branch {how}. The branch has ended, the others go on."
        )


class BranchInterpreter(Interpreter):
    """The interpreter of a branch.

    Args:
        pipe: leads to it.
        parent: the interpreter that it is a copy of.
        clock: counts the time of its cells.
    """

    _conversation: BranchConversation

    def __init__(self, pipe: BranchPipe, parent: Interpreter, clock: CellClock) -> None:
        super().__init__(BranchConversation(pipe, parent._conversation, clock))
        self._cells = parent._cells

    @property
    def end(self) -> str:
        """How it has ended, in words; empty while it has not."""
        return self._conversation.end

    def check(self) -> None:
        """See :meth:`BranchConversation.check`."""
        self._conversation.check()


class BranchTable:
    """The branches of one sandbox that are open.

    Args:
        pipe: the pipe to its container.
        kill_timeout: seconds for a branch to end that was killed.

    Attributes:
        interpreters: those that run cells in place of the sandbox's own; none if there are none.
    """

    def __init__(self, pipe: Pipe, *, kill_timeout: float = 20.0) -> None:
        self.kill_timeout = kill_timeout
        self.interpreters: Sequence[Interpreter] = ()
        self._open: dict[int, BranchPipe] = {}
        self._last = 0
        self.attach(pipe)

    def attach(self, pipe: Pipe) -> None:
        """Make branches in another container from now on. Those in the last one are lost.

        Call this once nobody sets :attr:`Pipe.on_closed` any more.
        """
        self._pipe = pipe
        pipe.on_branch = self._accept
        others = pipe.on_closed

        def wake_all() -> None:
            others()
            for branch in list(self._open.values()):
                branch.wake()

        pipe.on_closed = wake_all

    def expect(self, count: int) -> list[BranchPipe]:
        """Tell the guest that the worker is about to make branches.

        Raises:
            SandboxLostError: the container is gone.
        """
        first = self._last + 1
        self._last += count
        pipes = [BranchPipe(self._pipe, number) for number in range(first, first + count)]
        self._open.update((pipe.number, pipe) for pipe in pipes)
        self._pipe.send(wire.FORK, first.to_bytes(4, "big") + count.to_bytes(4, "big"))
        return pipes

    def end(self, pipes: Sequence[BranchPipe], give_up: Callable[[], None]) -> None:
        """End branches, and wait until nothing of them runs any more. Forget them then.

        Args:
            pipes: lead to them.
            give_up: called when the guest does not even answer to that. Removes the container.
        """
        deadline = time.monotonic() + self.kill_timeout
        try:
            for pipe in pipes:
                if not pipe.gone.is_set():
                    pipe.send(wire.RESTART)
        except SandboxError:
            pass  # the container is gone, and they with it
        for pipe in pipes:
            while not (
                pipe.gone.wait(min(_CHECK, max(0.0, deadline - time.monotonic()))) or pipe.is_lost()
            ):
                if time.monotonic() > deadline:
                    give_up()
                    break
        for pipe in pipes:
            self._open.pop(pipe.number, None)

    def _accept(self, number: int, kind: int, payload: bytes) -> None:
        pipe = self._open.get(number)
        if pipe is not None:  # else it was ended
            pipe.accept(kind, payload)
