"""The interpreters of one guest, one after the other: how they start, and what a death costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rlm_containers.errors import SandboxLostError, SandboxStartError
from rlm_containers.guest import wire
from rlm_containers.interpreter.deadlines import Deadlines, Request
from rlm_containers.interpreter.output import Reply
from rlm_containers.interpreter.pipe import KILLED, Closed, Event, Item, Message, Pipe
from rlm_containers.interpreter.reports import WorkerReports
from rlm_containers.interpreter.setup import WorkerSetup

#: Workers that may die one after the other without any of them becoming ready.
_DEATHS = 5


class Workers:
    """One is there at a time. When it dies, the supervisor has forked another.

    Args:
        pipe: the pipe.
        setup: what every one is given at its start.
        deadlines: how long to wait for what.
        abandon: called when one does not become ready; removes the container.
        memory_loss: says how the container was killed for its memory, see :class:`Launch`.

    Attributes:
        reports: what the present one has told.
        answered_at: when the last one was, as ``time.time()`` has it.
    """

    def __init__(
        self,
        pipe: Pipe,
        setup: WorkerSetup,
        deadlines: Deadlines,
        *,
        abandon: Callable[[], None],
        memory_loss: Callable[[float], str | None],
    ) -> None:
        self.reports = WorkerReports(pipe.process.name, setup)
        self.answered_at = time.time()
        self._pipe = pipe
        self._setup = setup
        self._deadlines = deadlines
        self._abandon = abandon
        self._memory_loss = memory_loss

    @property
    def _container(self) -> str:
        return self._pipe.process.name

    # With no request on its way

    def await_first(self, deadline: float, reply: Reply) -> None:
        """Tell one what it needs to know and wait until it is ready.

        Args:
            deadline: until when, as ``time.monotonic()`` has it.
            reply: where it is said if one dies.

        Raises:
            SandboxStartError: it was not in time.
            SandboxLostError: the container went away, or one dies after the other.
        """
        self._send_start()
        deaths = 0
        while True:
            item = self._receive_by(deadline)
            if isinstance(item, Message) and item.content.get("op") == "ready":
                self._deadlines.worker_is_ready()
                self.reports.note_ready(item.content)
                return
            if isinstance(item, Event) and item.content.get("event") != "killed":
                deaths += 1
                self._count(deaths)
                self._note_death(item, reply)
                self._send_start()

    def replace(self, between: Callable[[], None], number: int, reply: Reply) -> None:
        """Kill the present one and start another, see :meth:`Interpreter.restart`.

        Args:
            between: what to do when neither uses any file.
            number: the request whose checkpoint the other goes on from; 0 if there is none.
            reply: where it is said if one dies.
        """
        self._pipe.send(wire.RESTART)
        deadline = time.monotonic() + self._deadlines.start_timeout
        while True:
            item = self._receive_by(deadline)
            if isinstance(item, Event) and item.content.get("event") == "died":
                break
        # What is not in a checkpoint is not in what is gone on from, and is not lost by that.
        saved = item.content.get("saved")
        number = min(number, saved) if isinstance(saved, int) else number
        try:
            between()
        finally:
            self.reports.changes.restart(number)
            self.await_first(time.monotonic() + self._deadlines.start_timeout, reply)

    def _receive_by(self, deadline: float) -> Item:
        """The next item while there is no worker that is ready."""
        try:
            item = self._pipe.receive(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            self._abandon()
            raise SandboxStartError(
                "The container is up, but its interpreter was not ready within "
                f"{self._deadlines.start_timeout:g} s.",
                remedy="Raise start_timeout, or see what the container is busy with.",
                container=self._container,
            ) from None
        if isinstance(item, Closed):
            raise self.gone(item)
        return item

    # In the middle of one

    def bury(self, item: Event, request: Request) -> None:
        """One died. Another is there: start it."""
        request.deaths += 1
        self._count(request.deaths)
        if self._deadlines.ready_by is None and (
            item.content.get("begun") == request.number or request.begun
        ):
            request.died = True
            request.reply.note_death(item.content)
            request.killed = request.stop is not None and request.stop.killed
        self._deadlines.explain(request)
        request.stop = None
        self._note_death(item, request.reply)
        self._send_start()
        self._deadlines.worker_starts()

    def revive(self, content: dict[str, Any], request: Request) -> None:
        """The next one is ready, with what was saved.

        The request is done if the one before died of it. Else that died before it came to it, so
        that nothing of it was done.
        """
        self._deadlines.explain(request)
        request.stop = None
        reply = request.reply
        self._deadlines.worker_is_ready()
        self.reports.note_restored(content, reply)
        request.done = request.died or request.interrupted
        if request.died:
            reply.status = "killed" if request.killed else "died"
        elif request.interrupted:
            reply.status = "interrupted"
            reply.notices.append("It was interrupted before it began.")

    def _send_start(self) -> None:
        expected = self.reports.changes.last_answer > 0
        self._pipe.send_message(op="start", expected=expected, **self._setup.message())

    def _note_death(self, item: Event, reply: Reply) -> None:
        self.reports.note_death(item.content, reply)

    def _count(self, deaths: int) -> None:
        if deaths > _DEATHS:
            raise SandboxLostError(
                f"The Python process of this session died {deaths} times before it was ready.",
                remedy="Make a new Sandbox.",
                container=self._container,
            )

    def gone(self, closed: Closed) -> SandboxLostError:
        """What to raise when the pipe has ended, and with it all of them."""
        why = closed.reason or f"its program ended with status {closed.exit_code}"
        remedy = "Make a new Sandbox. Was it removed by someone, or its engine stopped?"
        if closed.exit_code == KILLED and not closed.reason:
            loss = self._memory_loss(self.answered_at)
            if loss:
                why, remedy = loss, "Make a new Sandbox."
            elif loss is None:
                why += ", perhaps killed for its memory"
        said = closed.stderr.strip()
        return SandboxLostError(
            f"The container is gone: {why}." + (f" It said: {said}" if said else ""),
            remedy=remedy,
            container=self._container,
        )
