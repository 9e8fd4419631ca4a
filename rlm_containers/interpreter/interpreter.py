"""The conversation with one guest: requests, answers, and what happens in between."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from rlm_containers.errors import OptionError, SandboxLostError
from rlm_containers.guest import wire
from rlm_containers.interpreter.deadlines import Deadlines, Request
from rlm_containers.interpreter.output import Reply
from rlm_containers.interpreter.pipe import Closed, Event, Item, Message, Output, Pipe
from rlm_containers.interpreter.reports import WorkerReports, listed, memory_death
from rlm_containers.interpreter.results import OutputCallback, UnsavedVariable
from rlm_containers.interpreter.setup import WorkerSetup
from rlm_containers.interpreter.workers import Workers

logger = logging.getLogger("rlm_containers")

#: Sentences in a cell's stderr on what the kernel killed: a guest can say so without end.
_NOTICES = 10
#: Seconds between two interrupts of one request. A flood of signals interrupts its own handler,
#: until that is nested too deep.
_INTERVAL = 0.05


class Interpreter:
    """Requests to one guest, one at a time.

    Args:
        pipe: the pipe.
        setup: what every worker is given at its start.
        max_output: characters to keep of each output stream of a cell.
        deadlines: the time limits.
        abandon: called when the guest does not even answer to being killed; removes the container.
        memory_loss: says how the container was killed for its memory, see :class:`Launch`.
    """

    def __init__(
        self,
        pipe: Pipe,
        setup: WorkerSetup,
        max_output: int,
        *,
        deadlines: Deadlines,
        abandon: Callable[[], None],
        memory_loss: Callable[[float], str | None] = lambda since: None,
    ) -> None:
        self.pipe = pipe
        self._workers = Workers(pipe, setup, deadlines, abandon=abandon, memory_loss=memory_loss)
        self._max_output = max_output
        self.deadlines = deadlines
        self._abandon = abandon
        self._number = 0
        self._cells = 0
        self._request: Request | None = None
        deadlines.clock.wake = pipe.wake

    @property
    def reports(self) -> WorkerReports:
        """What the guest has told of its worker."""
        return self._workers.reports

    @property
    def _container(self) -> str:
        return self.pipe.process.name

    def start(self) -> None:
        """Tell the worker what it needs to know and wait until it is ready.

        Raises:
            SandboxStartError: it was not in time.
        """
        # It counts from when the container was started.
        deadline = self.pipe.opened + self.deadlines.start_timeout
        self._workers.await_first(deadline, self._reply(None))

    def request(self, op: str, on_output: OutputCallback | None, **content: Any) -> Reply:
        """Send one request and wait for its answer.

        Args:
            op: the operation, see ``rlm_guest.worker``.
            on_output: see :meth:`Sandbox.execute`.
            content: the rest of the request.

        Raises:
            OptionError: the request is too large. Nothing was sent.
            SandboxLostError: the container went away.
        """
        self._finish_earlier()
        self._number += 1
        message = {"op": op, "id": self._number, **content}
        limit = self.deadlines.limit(op)
        if op == "cell" and "name" not in content:
            self._cells += 1
            message["name"] = f"cell {self._cells}"  # in tracebacks
        if limit is not None or op != "cell":
            message["announce"] = True
        request = Request(self._number, message, self._reply(on_output), limit)
        self._run(request)
        return request.reply

    def _finish_earlier(self) -> None:
        """See an earlier request to its end whose caller did not wait for that."""
        if self._request is not None:
            self._end(self._request)

    def _run(self, request: Request) -> None:
        self._request = request
        try:
            self._send(request)
            self._wait(request)
        except SandboxLostError:
            self._request = None
            raise
        except wire.FrameError as error:
            self._request = None
            raise OptionError(
                f"The request is too large to be sent: {error}.",
                remedy="Send what is long as a context, with Sandbox.load().",
                container=self._container,
            ) from None
        except BaseException:
            # Ctrl-C here is meant for the cell as well; a callback that fails ends it, too. In
            # any case the session must stay in step with the guest.
            request.reply.forget_callback()
            self._end(request)
            if request.reply.notices:  # which nobody else will get to know
                notices = " ".join(request.reply.notices)
                logger.warning("%s: %s", self._container, notices)
            raise
        self._request = None
        self._workers.answered_at = time.time()

    def interrupt(self) -> None:
        """Interrupt the request that is under way, in whatever thread. See :class:`Escalation`."""
        request = self._request
        if request is None or request.done or (request.begun and not request.is_cell):
            return
        now = time.monotonic()
        if now < request.interrupted_at + _INTERVAL:
            return
        request.interrupted_at = now
        with contextlib.suppress(SandboxLostError):  # which whoever waits is told
            self._interrupt(request)
        self.pipe.wake()

    def unsaved(self) -> Sequence[UnsavedVariable]:
        """See :attr:`Sandbox.unsaved`."""
        self.request("sync", None)
        return self.reports.unsaved

    def settle(self, timeout: float) -> bool:
        """Wait for the checkpoint of the last request.

        Args:
            timeout: seconds until the variable that it is at is given up, and what it is at after
                that; ``cell_timeout`` where there is one.

        Returns:
            Whether there is one: else its worker was killed, and what the last request has changed
            is lost.

        Raises:
            SandboxLostError: the container went away.
        """
        self._finish_earlier()
        self._number += 1
        message = {"op": "sync", "id": self._number, "announce": True}
        request = Request(self._number, message, self._reply(None), timeout)
        self._run(request)
        if request.reply.notices:
            logger.warning("%s: %s", self._container, " ".join(request.reply.notices))
        return request.deaths == 0

    def restart(self, between: Callable[[], None], *, restores: bool) -> Sequence[UnsavedVariable]:
        """Kill the worker and start another, with a step in between when neither uses any file.

        Args:
            between: the step. If it fails, the worker is started all the same.
            restores: whether there is a checkpoint to go on from.

        Returns:
            The variables that it did not bring back.

        Raises:
            SandboxStartError: the next one was not ready in time.
            SandboxLostError: the container went away.
        """
        self._finish_earlier()
        number = self._number if restores else 0
        self._workers.replace(between, number, self._reply(None))
        return self.reports.unsaved

    # Answers

    def _wait(self, request: Request) -> None:
        """Take what comes until the answer is there."""
        while not request.done:
            item = self._receive(request)
            if isinstance(item, Event):
                self._workers.bury(item, request)
            elif isinstance(item, Message):
                op, number = item.content.get("op"), item.content.get("id")
                if self.deadlines.ready_by is not None:
                    if op == "ready":
                        self._workers.revive(item.content, request)
                        if not request.done:
                            self._send(request)
                elif op == "begun" and number == request.number:
                    self._begin(request)
                elif op == "result" and number == request.number:
                    self._finish(item.content, request)

    def _receive(self, request: Request) -> Item:
        """The next item that is not output. The news of a checkpoint is noted on its way."""
        while True:
            left = self.deadlines.left(request)
            if left is not None and left <= 0:
                if request.unread is None:
                    # Who is to be killed may have answered.
                    is_final = request.stop is not None and request.stop.is_final
                    request.unread = self.pipe.pending() if is_final else 0
                if request.unread <= 0:
                    self._act(request)
                    request.unread = None
                    continue
                request.unread -= 1
            try:
                item = self.pipe.receive(left)
            except TimeoutError:
                continue
            reply = request.reply
            if request.stop is not None:
                request.stop.in_time -= 1
            if isinstance(item, Output):
                stream = reply.stdout if item.stream == wire.STDOUT else reply.written_stderr
                stream.feed(item.data)
            elif isinstance(item, Closed):
                raise self._workers.gone(item)
            elif isinstance(item, Event) and item.content.get("event") == "killed":
                how = memory_death(item.content.get("memory"))
                notice = f"A process that a cell started {how}."
                if notice not in reply.notices and len(reply.notices) < _NOTICES:
                    reply.notices.append(notice)
            else:
                if isinstance(item, Message) and item.content.get("op") == "saved":
                    self.reports.note_saved(item.content)
                return item

    def _begin(self, request: Request) -> None:
        """The guest has begun with a request; nothing else is in its way any more."""
        if not request.begun and self.deadlines.begin(request) and self.reports.unsaved:
            reached = self.deadlines.reached("The checkpoint before this cell", "cell_timeout")
            names = listed([str(variable) for variable in self.reports.unsaved], "; ")
            request.reply.notices.append(f"{reached} Not saved: {names}.")

    def _finish(self, content: dict[str, Any], request: Request) -> None:
        """The answer is there."""
        stop = request.stop
        if stop is not None and stop.killed:
            return  # too late: the news of the death is on its way, and is what holds
        self.deadlines.is_fresh = False  # cells without a limit do not say that they have begun
        reply = request.reply
        code = request.message.get("code") or _bound(request.message)
        self.reports.note_result(content, request.number, code, reply)
        if stop is not None or request.interrupted:
            self.pipe.send(wire.SWEEP)
        if stop is not None and stop.cause == "limit" and stop.in_time < 0:
            self.deadlines.explain(request)
            reply.status = "timeout"
        request.done = True

    # Time

    def _act(self, request: Request) -> None:
        """Something has lasted too long: do the next thing about it."""
        action, step = self.deadlines.next_action(request, self.pipe.pending())
        if action == "interrupt":
            self.pipe.send(wire.INTERRUPT, step.to_bytes(8, "big"))
        elif action == "kill":
            self.pipe.send(wire.RESTART)
        else:
            self.pipe.hang_up("it did not answer any more")
            self._abandon()
            raise SandboxLostError(
                "The guest does not answer any more, not even to being killed.",
                remedy="Make a new Sandbox. The container has been removed.",
                container=self._container,
            )

    def _interrupt(self, request: Request) -> None:
        request.interrupted = True
        if self.deadlines.ready_by is None:  # else it would cost variables that are being restored
            self.pipe.send(wire.INTERRUPT, request.step.to_bytes(8, "big"))

    def _end(self, request: Request) -> None:
        """Interrupt a request that nobody waits for any more, and wait until it has ended.

        Another KeyboardInterrupt meanwhile has its worker killed at once, and a third one leaves
        the rest of the waiting to the next request.
        """
        if not request.interrupted and not request.done:
            self._interrupt(request)
        while not request.done:
            try:
                self._wait(request)
            except KeyboardInterrupt:
                if request.stop is None or request.stop.killed:
                    raise
                request.stop.skip_grace()
        self._request = None

    # The rest

    def _send(self, request: Request) -> None:
        self.deadlines.send(request)
        self.pipe.send_message(**request.message)

    def _reply(self, on_output: OutputCallback | None) -> Reply:
        return Reply.collecting(self._max_output, on_output)


def _bound(message: dict[str, Any]) -> str:
    """The names that a request binds which is no cell: ``context_0`` is ``context`` as well."""
    name = str(message.get("name", ""))
    return f"{name} {name.rpartition('_')[0]}"
