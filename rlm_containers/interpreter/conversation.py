"""The requests to a process that runs cells, one at a time, and what becomes of each."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

from rlm_containers.errors import OptionError, SandboxLostError, SandboxStartError
from rlm_containers.guest import wire
from rlm_containers.interpreter.channel import Channel
from rlm_containers.interpreter.deadlines import Deadlines
from rlm_containers.interpreter.items import Closed, Event, Item, Message, Output
from rlm_containers.interpreter.output import Reply
from rlm_containers.interpreter.reports import WorkerReports, listed
from rlm_containers.interpreter.request import GROWTH_KILL_TIMEOUT, Growth, Request
from rlm_containers.interpreter.results import OutputCallback
from rlm_containers.interpreter.setup import WorkerSetup
from runtimes.text import get_logger

logger = get_logger("rlm_containers")

#: The most workers that may die one after the other without any of them becoming ready.
_DEATHS = 5


class Conversation:
    """Sends one request after another to a container's worker, and waits for each to end.

    A worker process in the container runs the requests. When it dies, the supervisor there forks
    another, which this class starts from the last checkpoint.

    Args:
        pipe: leads to the process that runs the cells.
        setup: what every worker is given at its start.
        max_output: characters to keep of each output stream of a cell.
        deadlines: the time limits.
        abandon: called when the guest does not even answer to being killed. Removes the container.
        memory_loss: says how the container was killed for its memory, see :class:`Launch`.

    Attributes:
        pipe: as it was given; that of another container once :attr:`revive` was called.
        setup, max_output, deadlines, memory_loss: as they were given.
        reports: what the guest has reported of its worker.
        number: that of the last request.
        request: the one under way; ``None`` if there is none.
        revive: called with the error when the container is lost. Returns the pipe to another one
            with the same files, and the last request whose changes these have, as far as is known.
            Raises the error if there is to be none.
    """

    def __init__(
        self,
        pipe: Channel,
        setup: WorkerSetup,
        max_output: int,
        *,
        deadlines: Deadlines,
        abandon: Callable[[], None],
        memory_loss: Callable[[float], str | None] = lambda since: None,
    ) -> None:
        self.pipe = pipe
        self.setup = setup
        self.max_output = max_output
        self.deadlines = deadlines
        self.memory_loss = memory_loss
        self.reports = WorkerReports(pipe.name, setup)
        self.number = 0
        self.request: Request | None = None
        self.revive: Callable[[SandboxLostError], tuple[Channel, int]] = _raise
        self._abandon = abandon
        self._growth: Growth | None = None  # for which the worker was killed between cells
        self._answered_at = time.time()
        deadlines.clock.wake = pipe.wake

    @property
    def _container(self) -> str:
        return self.pipe.name

    # Requests

    def run(
        self, op: str, limit: float | None, on_output: OutputCallback | None = None, **content: Any
    ) -> Request:
        """Send a request and wait for it to end.

        Args:
            op: the operation, see :mod:`rlm_containers.guest.wire`.
            limit: seconds that it may take once it has begun; ``None`` for no limit.
            on_output: see :meth:`Sandbox.execute`.
            content: the rest of the request.

        Raises:
            OptionError: the request is too large. Nothing was sent.
            SandboxLostError: the container is gone.
        """
        self._finish_earlier()
        request = self._new_request(op, limit, on_output, **content)
        self._run(request)
        return request

    def replace_worker(
        self, op: Literal["kill", "take"], kind: int, payload: bytes = b""
    ) -> Request:
        """Have the supervisor end the worker, and wait until it has. :meth:`start_worker` follows.

        Args:
            op: whether the worker is killed, or a branch takes its place.
            kind: the frame that says so.
            payload: what is in that.

        Raises:
            SandboxLostError: the container is gone.
        """
        self._finish_earlier()
        self.deadlines.worker_starts()
        request = self._new_step(op)
        with self._sending(request):
            self.pipe.send(kind, payload)
        self._wait(request)
        return request

    def start_worker(self, left: float | None = None) -> Request:
        """Start the worker that the supervisor has, and wait until one is ready.

        Args:
            left: seconds that it has left of its time; ``None`` for all of them.

        Raises:
            SandboxStartError: it was not ready in time.
            SandboxLostError: the container is gone, or one worker after the other dies.
        """
        self.deadlines.worker_starts(left)
        start = self._new_step("start")
        self._send_setup(start)
        self._wait(start)
        return start

    def log_notices(self, request: Request) -> None:
        """Log the notices of a reply that nobody gets."""
        if request.reply.notices:
            logger.warning("%s: %s", self._container, " ".join(request.reply.notices))

    def interrupt(self) -> None:
        """Interrupt the request under way, from any thread or signal handler.

        See :class:`Escalation`. What cannot be sent now, the thread that waits sends.
        """
        request = self.request
        if request is not None and request.may_interrupt():
            self._interrupt(request, self.pipe.try_send)
            self.pipe.wake()

    def stop_growth(self, fact: str, remedy: str, *, far: bool, since: float) -> bool:
        """Stop what makes the files of the workspace grow. Any thread may call this.

        A cell is interrupted. If the files go on growing after that, it is killed, and so is what
        earlier cells have left running while no cell runs.

        Args:
            fact: a sentence that says how large they are, for the user.
            remedy: one that says what to do.
            far: whether they are so large that it may come to a kill.
            since: when they were smaller, in seconds of ``time.monotonic()``. A cell that began
                after that may have no part in it.

        Returns:
            Whether the user will be told.

        Raises:
            SandboxLostError: the container is gone.
        """
        growth, request = Growth(fact, remedy, time.monotonic()), self.request
        if request is not None and request.is_cell and not request.done:
            if request.made_at > since:
                return False
            if request.growth is None:
                logger.info("%s: %s The cell is interrupted.", self._container, fact)
            request.note_growth(growth, far=far)
            self.pipe.wake()
            return True
        if not far:
            return False
        if self._growth is None:
            # The supervisor forks another worker, which the next request starts.
            self._growth = growth
            logger.info("%s: %s What cells have left running is killed.", self._container, fact)
            self.pipe.send(wire.RESTART)
        elif growth.since > self._growth.since + GROWTH_KILL_TIMEOUT:
            self.give_up()
        return True

    def _new_request(
        self, op: str, limit: float | None, on_output: OutputCallback | None = None, **content: Any
    ) -> Request:
        self.number += 1
        message = {"op": op, "id": self.number, **content}
        if limit is not None or op != "cell":
            message["announce"] = True
        reply = Reply.collecting(self.max_output, on_output)
        return Request(self.number, message, reply, limit)

    def _new_step(self, op: Literal["kill", "take", "start"]) -> Request:
        """Return a request that no worker answers: it ends with news of a worker."""
        return Request(0, {"op": op}, Reply.collecting(self.max_output, None), None)

    def _finish_earlier(self) -> None:
        """End an earlier request whose caller did not wait for its end."""
        if self.request is not None:
            self._end(self.request)

    def _run(self, request: Request) -> None:
        self.request = request
        try:
            if self.deadlines.ready_by is None:  # else it is sent once the worker is ready
                self._send(request)
            self._wait(request)
        except SandboxLostError:
            self.request = None
            raise
        except wire.FrameError as error:
            self.request = None
            raise OptionError(
                f"The request is too large to be sent: {error}.",
                remedy="Send long data as a context, with Sandbox.load().",
                container=self._container,
            ) from None
        except BaseException:
            # Ctrl-C is meant for the cell as well, and a failing callback ends it, too. The next
            # request must find the guest idle in any case.
            request.reply.forget_callback()
            if self.deadlines.ready_by is None and not self._was_sent(request):
                request.done = True
            try:
                self._end(request)
            except SandboxLostError as lost:  # the first exception matters
                self.request = None
                logger.info("%s: %s", self._container, lost.what)
            self.log_notices(request)
            raise
        self.request = None
        self._answered_at = time.time()

    def _end(self, request: Request) -> None:
        """Interrupt a request that nobody waits for any more, and wait until it has ended.

        A KeyboardInterrupt meanwhile kills the worker at once. Another one leaves the rest of the
        waiting to the next request.
        """
        if not request.interrupted and not request.done:
            self._interrupt(request, self._send_frame)
        while not request.done:
            try:
                self._wait(request)
            except KeyboardInterrupt:
                if request.stop is None or request.stop.killed or request.failure is not None:
                    raise
                request.stop.skip_grace()
        self.request = None

    # Sending

    def _send_setup(self, request: Request) -> None:
        expected = self.reports.changes.last_answer > 0
        with self._sending(request):
            self.pipe.send_message(op="start", expected=expected, **self.setup.message())

    def _send(self, request: Request) -> None:
        self.deadlines.send(request)
        request.frame = self.pipe.message(request.message)
        with self._sending(request):
            self.pipe.write(request.frame)

    def _was_sent(self, request: Request) -> bool:
        """Return whether a request was sent, or will be before the next one."""
        return request.frame is not None and self.pipe.has_begun(request.frame)

    def _send_frame(self, kind: int, payload: bytes) -> bool:
        self.pipe.send(kind, payload)
        return True

    @contextlib.contextmanager
    def _sending(self, request: Request) -> Iterator[None]:
        """If the container has ended, let the read loop raise the error.

        A failing write only knows that the pipe is closed. How the container ended, and what it
        printed before, is still to be received.
        """
        try:
            yield
        except SandboxLostError as error:
            self.deadlines.send_failed(request, error)

    def _interrupt(self, request: Request, send: Callable[[int, bytes], bool]) -> None:
        request.interrupted = True
        # While a worker restores variables, an interrupt would cost the one that it is at.
        if self.deadlines.ready_by is None:
            with self._sending(request):
                request.interrupt_sent = send(wire.INTERRUPT, request.step.to_bytes(8, "big"))

    # Receiving

    def _wait(self, request: Request) -> None:
        """Handle what comes until the request is done."""
        while not request.done:
            left = self.deadlines.left(request)
            if left is None or left > 0:
                request.unread = None
            elif request.may_act(self.pipe.pending()):
                self._act(request)
                request.unread = None
                continue
            try:
                item = self.pipe.receive(left)
            except TimeoutError:
                continue
            if request.stop is not None:
                request.stop.in_time -= 1
            self._handle(item, request)

    def _handle(self, item: Item, request: Request) -> None:
        if isinstance(item, Output):
            reply = request.reply
            stream = reply.stdout if item.stream == wire.STDOUT else reply.written_stderr
            stream.feed(item.data)
        elif isinstance(item, Closed):
            self._replace_container(self.gone(item), request)
        elif isinstance(item, Event):
            event = item.content.get("event")
            if event == "killed":
                self.reports.note_kill(item.content, request.reply)
            elif event == "kept":
                request.said, request.done = item.content.get("branch"), request.op == "take"
            elif event != "ended":  # Closed follows
                self._handle_death(item.content, request)
        elif isinstance(item, Message):
            self._handle_message(item.content, request)

    def _handle_message(self, content: dict[str, Any], request: Request) -> None:
        op, number = content.get("op"), content.get("id")
        if op == "saved":
            self.reports.note_saved(content)
        elif self.deadlines.ready_by is not None:
            if op == "ready" and request.op not in ("kill", "take"):
                self._handle_ready(content, request)
        elif number != request.number:
            pass  # of an earlier request, or of a hostile guest
        elif op == "begun":
            self._handle_begun(request)
        elif op == "result":
            self._handle_result(content, request)

    def _handle_death(self, event: dict[str, Any], request: Request) -> None:
        """Handle the death of a worker. The supervisor has forked another: start it."""
        if request.op == "kill":
            if event.get("event") == "died":
                request.saved = event.get("saved")
                request.done = True
                self._growth = None
            return
        request.deaths += 1
        if request.op == "take":
            return
        if request.deaths > _DEATHS:
            raise SandboxLostError(
                "The Python process of this sandbox died "
                f"{request.deaths} times before it was ready.",
                remedy="Make a new Sandbox.",
                container=self._container,
            )
        if self.deadlines.ready_by is None and (
            event.get("begun") == request.number or request.begun
        ):
            request.died = True
            request.reply.note_death(event)
            request.killed = request.stop is not None and request.stop.killed
        self.deadlines.explain(request)
        request.stop = request.growth = None
        if self._growth is not None:
            notice = self._growth.notice("What cells had left running was killed.")
            request.reply.notices.append(notice)
            self._growth = None
        self.reports.note_death(event, request.reply)
        self._send_setup(request)
        if request.op != "start":  # whose time goes on
            self.deadlines.worker_starts()

    def _replace_container(self, error: SandboxLostError, request: Request) -> None:
        """Go on in another container, as with a worker whose predecessor has died.

        Raises:
            SandboxLostError: there is none.
        """
        if request.is_startup:
            raise error
        # What was not written has not begun. What was written may have, and is not run again.
        has_begun = request.frame is not None and bool(request.frame.written)
        self.pipe, saved = self.revive(error)
        self.deadlines.clock.wake = self.pipe.wake
        request.failure = None
        event = {
            "event": "died",
            "lost": error.what,
            "begun": request.number if has_begun else -1,
            "saved": saved,
        }
        self._handle_death(event, request)

    def _handle_ready(self, content: dict[str, Any], request: Request) -> None:
        """Handle the news that a worker is ready.

        If its predecessor died of the request, that is done. Else the predecessor died before it
        came to the request, so that this worker gets it.
        """
        self.deadlines.explain(request)
        request.stop = None
        self.deadlines.worker_is_ready()
        if request.op == "start":
            self.reports.note_ready(content)
            request.done = True
            return
        reply = request.reply
        self.reports.note_restored(content, reply)
        request.done = request.died or request.interrupted
        if request.died:
            reply.status = "killed" if request.killed else "died"
        elif request.interrupted:
            reply.status = "interrupted"
            reply.notices.append("It was interrupted before it began.")
        else:
            self._send(request)

    def _handle_begun(self, request: Request) -> None:
        """Handle the news that the guest has begun with a request."""
        if not request.begun and self.deadlines.begin(request) and self.reports.unsaved:
            reached = self.deadlines.reached("The checkpoint before this cell", "cell_timeout")
            names = listed([str(variable) for variable in self.reports.unsaved], "; ")
            request.reply.notices.append(f"{reached} Not saved: {names}.")

    def _handle_result(self, content: dict[str, Any], request: Request) -> None:
        """Handle the answer."""
        stop = request.stop
        if stop is not None and stop.killed:
            return  # too late: the news of the worker's death follows
        self.deadlines.is_fresh = False  # without a limit there was no news that it has begun
        if request.op == "branch":
            skipped = ["interrupted", ""] if content.get("skipped") is True else None
            request.said, request.done = content.get("refused", skipped), True
            return
        self.reports.note_result(content, request.number, request.code, request.reply)
        if stop is not None or request.interrupted:
            with self._sending(request):
                self.pipe.send(wire.SWEEP)
        if stop is not None and stop.cause in ("limit", "growth") and stop.in_time < 0:
            self.deadlines.explain(request)
            request.reply.status = "timeout" if stop.cause == "limit" else "full"
        elif request.growth is not None:
            self.deadlines.explain(request)
        request.done = True

    # What goes wrong

    def _act(self, request: Request) -> None:
        """Take the next action against a request that has reached a limit.

        Raises:
            SandboxStartError: a worker was not ready in time.
            SandboxLostError: nothing has any effect on the container.
        """
        if request.failure is not None:
            self.give_up()
            raise request.failure.error
        if request.is_startup:
            self._abandon()
            raise SandboxStartError(
                "The container is up, but its interpreter was not ready within "
                f"{self.deadlines.start_timeout:g} s.",
                remedy="Raise start_timeout, or see what the container is busy with.",
                container=self._container,
            )
        action, step = self.deadlines.next_action(request, self.pipe.pending())
        if action == "interrupt":
            with self._sending(request):
                self.pipe.send(wire.INTERRUPT, step.to_bytes(8, "big"))
        elif action == "kill":
            with self._sending(request):
                self.pipe.send(wire.RESTART)
        else:
            self.give_up()
            raise SandboxLostError(
                "The guest does not answer any more, not even to being killed.",
                remedy="Make a new Sandbox. The container has been removed.",
                container=self._container,
            )

    def give_up(self) -> None:
        """Remove a container whose guest does not answer any more. Any thread may call this."""
        self.pipe.hang_up("it did not answer any more")
        self._abandon()

    def gone(self, closed: Closed) -> SandboxLostError:
        """Return the error that says how the container ended. Any thread may call this."""
        return closed.error(self._container, lambda: self.memory_loss(self._answered_at))


def _raise(error: SandboxLostError) -> tuple[Channel, int]:
    raise error
