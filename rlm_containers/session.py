"""The conversation with one guest: requests, answers, and what happens in between."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, cast, get_args

from rlm_containers.cell import CellResult, CellStatus, OutputCallback, OutputCollector
from rlm_containers.channel import KILLED, Channel, Closed, Event, Item, Message, Output
from rlm_containers.errors import OptionError, SandboxLostError
from rlm_containers.guest import wire
from rlm_containers.limits import memory_death
from rlm_containers.lm.broker import LMCall
from rlm_containers.untrusted import printable

__all__ = ["Outcome", "Session", "UnsavedVariable"]

logger = logging.getLogger("rlm_containers")

#: Seconds that an interrupted cell has for its end before its worker is killed.
_GRACE = 5.0

#: Variables, and characters of a name or reason, that are believed of a guest's report.
_REPORT_COUNT = 10_000
_REPORT_TEXT = 2_000

#: The same for the short forms of variables.
_LOCALS_COUNT = 1_000
_LOCALS_TEXT = 200

#: Variables that are named in one sentence of a cell's stderr, and characters for each.
_LISTED = 50
_LISTED_TEXT = 300
#: Sentences in a cell's stderr on what the kernel killed: a guest can say so without end.
_NOTICES = 10

#: Workers that may die one after the other without any of them becoming ready.
_DEATHS = 5


@dataclass(frozen=True)
class UnsavedVariable:
    """A variable that is not in the checkpoint: its name, its type's name, and why."""

    name: str
    type: str
    reason: str

    def __str__(self) -> str:
        kind = f" ({self.type})" if self.type else ""
        return f"{self.name}{kind}: {self.reason}"


@dataclass
class Outcome:
    """What came of one request, while it comes in."""

    stdout: OutputCollector
    collected_stderr: OutputCollector
    status: CellStatus = "ok"
    locals: dict[str, str] = field(default_factory=dict)
    final_answer: str | None = None
    notices: list[str] = field(default_factory=list)
    lost: tuple[str, ...] = ()
    older: tuple[str, ...] = ()

    @property
    def stderr(self) -> str:
        """What was written, and after it what this library has to say."""
        text = self.collected_stderr.text()
        notices = "".join(f"{notice}\n" for notice in self.notices)
        if notices and text and not text.endswith("\n"):
            text += "\n"
        return text + notices

    def result(self, elapsed: float, calls: tuple[LMCall, ...]) -> CellResult:
        """The same as the user gets it."""
        return CellResult(
            stdout=self.stdout.text(),
            stderr=self.stderr,
            locals=self.locals,
            execution_time=elapsed,
            lm_calls=calls,
            final_answer=self.final_answer,
            status=self.status,
            lost=self.lost,
            older=self.older,
        )


class Session:
    """Requests to one guest, one at a time.

    Args:
        channel: the pipe.
        told: what every worker is told at its start: ``{"lm": bool, "proxy": dict | None,
            "env": dict, "file_limit": int | None, "scaffold": bool, "tools": list, "kept": list,
            "kept_names": list}``: among them the most bytes of a file that cells write; the
            functions of the host; the variables that belong to the host, each as the ``load``
            request that binds it; and the names of those that are not to be bound anew.
        max_output: characters to keep of each output stream of a cell.
        memory_loss: says how the container was killed for its memory, see :class:`Launch`.

    Attributes:
        route: how the guest reaches the language model.
    """

    def __init__(
        self,
        channel: Channel,
        told: dict[str, Any],
        max_output: int,
        memory_loss: Callable[[float], str | None] = lambda since: None,
    ) -> None:
        self.channel = channel
        self._memory_loss = memory_loss
        self._answered = time.time()
        self.route = "none"
        self._told = told
        self._max_output = max_output
        self._number = 0
        self._acknowledged = 0
        self._cells = 0
        self._unsaved: tuple[UnsavedVariable, ...] = ()
        self._locals: dict[str, str] = {}

    @property
    def _container(self) -> str:
        return self.channel.process.name

    def start(self) -> None:
        """Tell the worker what it needs to know and wait until it is ready."""
        outcome = self._outcome(None)
        self._send_start()
        deaths = 0
        while True:
            item = self._receive(outcome)
            if isinstance(item, Message) and item.content.get("op") == "ready":
                self._note_ready(item.content)
                return
            if isinstance(item, Event):
                self._count(deaths := deaths + 1)
                self._died(item, outcome)
                self._send_start()

    def request(self, op: str, on_output: OutputCallback | None, **content: Any) -> Outcome:
        """Send one request and wait for its answer.

        Args:
            op: the operation, see ``rlm_guest.worker``.
            on_output: see :meth:`Sandbox.execute`.
            content: the rest of the request.

        Raises:
            OptionError: the request is too large. Nothing was sent.
            SandboxLostError: the container went away.
        """
        self._number += 1
        number = self._number
        if op == "cell" and "name" not in content:
            self._cells += 1
            content["name"] = f"cell {self._cells}"  # in tracebacks
        outcome = self._outcome(on_output)
        try:
            self.channel.send_message(op=op, id=number, **content)
            self._wait(number, outcome, {"op": op, "id": number, **content})
        except SandboxLostError:
            raise
        except wire.FrameError as error:
            raise OptionError(
                f"The request is too large to be sent: {error}.",
                remedy="Send what is long as a context, with Sandbox.load().",
                container=self._container,
            ) from None
        except BaseException:
            # Ctrl-C here is meant for the cell as well; a callback that fails ends it, too. In
            # any case the session must stay in step with the guest.
            outcome.stdout.callback = outcome.collected_stderr.callback = None
            self._stop(number, outcome)
            raise
        self._acknowledged = number
        self._answered = time.time()
        return outcome

    def unsaved(self) -> Sequence[UnsavedVariable]:
        """See :attr:`Sandbox.unsaved`."""
        self.request("sync", None)
        return self._unsaved

    # Answers

    def _wait(self, number: int, outcome: Outcome, request: dict[str, Any] | None) -> None:
        """Take what comes until the answer to ``number`` is there."""
        deaths = 0
        while True:
            item = self._receive(outcome)
            if isinstance(item, Message):
                op = item.content.get("op")
                if op == "result" and item.content.get("id") == number:
                    self._note_result(item.content, outcome)
                    return
            elif isinstance(item, Event):
                self._count(deaths := deaths + 1)
                begun = item.content.get("begun") == number
                self._revive(item, outcome)
                if begun or request is None:
                    outcome.status = "died"
                    outcome.locals = dict(self._locals)
                    return
                # The worker died before this request came to it, so nothing of it was done.
                self.channel.send_message(**request)

    def _revive(self, item: Event, outcome: Outcome) -> None:
        """A worker died and another is there: start it."""
        self._died(item, outcome)
        self._send_start()
        deaths = 1
        while True:
            item_now = self._receive(outcome)
            if isinstance(item_now, Message) and item_now.content.get("op") == "ready":
                self._note_restored(item_now.content, outcome)
                return
            if isinstance(item_now, Event):
                self._count(deaths := deaths + 1)
                self._died(item_now, outcome)
                self._send_start()

    def _stop(self, number: int, outcome: Outcome) -> None:
        """Interrupt a request, kill its worker if it goes on, and wait for either to show."""
        self.channel.send(wire.INTERRUPT)
        try:
            self._wait_briefly(outcome)
        except (TimeoutError, KeyboardInterrupt):
            self.channel.send(wire.RESTART)
            self._wait(number, outcome, None)

    def _wait_briefly(self, outcome: Outcome) -> None:
        deadline = time.monotonic() + _GRACE
        while True:
            item = self._receive(outcome, deadline)
            if isinstance(item, Message) and item.content.get("op") == "result":
                return
            if isinstance(item, Event):
                self._revive(item, outcome)
                return

    def _receive(self, outcome: Outcome, deadline: float | None = None) -> Item:
        """The next item that is not output. The news of a checkpoint is noted on its way."""
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            item = self.channel.receive(left)
            if left == 0.0 and isinstance(item, Output):
                raise TimeoutError  # a cell that goes on printing does not get more time
            if isinstance(item, Output):
                stream = outcome.stdout if item.stream == wire.STDOUT else outcome.collected_stderr
                stream.feed(item.data)
            elif isinstance(item, Closed):
                raise self._lost(item)
            elif isinstance(item, Event) and item.content.get("event") == "killed":
                how = memory_death(item.content.get("memory"))
                notice = f"A process that a cell started {how}."
                if notice not in outcome.notices and len(outcome.notices) < _NOTICES:
                    outcome.notices.append(notice)
            else:
                if isinstance(item, Message) and item.content.get("op") == "saved":
                    self._note_saved(item.content)
                return item

    # What the guest says, taken with care: it may be anything

    def _note_result(self, content: dict[str, Any], outcome: Outcome) -> None:
        status = content.get("status")
        outcome.status = cast(CellStatus, status) if status in get_args(CellStatus) else "error"
        if "locals" in content:
            self._locals = _strings(content["locals"])
        outcome.locals = dict(self._locals)
        answer = content.get("final_answer")
        outcome.final_answer = answer if isinstance(answer, str) else None

    def _note_saved(self, content: dict[str, Any]) -> None:
        self._unsaved = _variables(content.get("unsaved"))
        if content.get("error"):
            error = printable(content["error"], _REPORT_TEXT)
            logger.warning("%s: the checkpoint failed: %s", self._container, error)
            self._unsaved = (UnsavedVariable("*", "", error),)

    def _note_restored(self, content: dict[str, Any], outcome: Outcome) -> None:
        """Take note of a worker that has taken the place of another; say what became of what."""
        before = self._locals
        self._note_ready(content)
        outcome.older = tuple(_names(content.get("older")))
        damage = printable(content.get("damage") or "", _REPORT_TEXT)
        everything = any(variable.name == "*" for variable in self._unsaved)
        if damage or everything:
            # Of a file that cannot be read only the last answer still knows what was in it.
            told = {variable.name for variable in self._unsaved}
            self._unsaved += tuple(
                UnsavedVariable(name, "", "it was in no other file")
                for name in before
                if name not in told and name not in self._locals
            )
        if damage and not everything:
            older = _listed(outcome.older) if outcome.older else "none"
            outcome.notices.append(
                f"The checkpoint state.dill could not be used: {damage}. The variables are those "
                f"of the one before it. These may be older than they were: {older}."
            )
        if self._unsaved:
            lost = _listed([str(variable) for variable in self._unsaved], "; ")
            outcome.notices.append(f"These variables are lost: {lost}.")
        outcome.lost = tuple(variable.name for variable in self._unsaved)

    def _note_ready(self, content: dict[str, Any]) -> None:
        """Take note of a worker that is ready."""
        self.route = printable(content.get("route"), 20)
        if self._told["proxy"] and self.route == "pipe":
            logger.warning(
                "%s: the container does not reach the proxy (%s); llm_query goes over the pipe",
                self._container,
                printable(content.get("reason"), _REPORT_TEXT),
            )
        if content.get("damage"):
            logger.warning(
                "%s: the checkpoint state.dill could not be used: %s",
                self._container,
                printable(content["damage"], _REPORT_TEXT),
            )
        self._locals = _strings(content.get("locals"))
        self._unsaved = _variables(content.get("lost"))

    def _died(self, item: Event, outcome: Outcome) -> None:
        how = _death(item.content)
        if item.content.get("event") != "died":
            return
        logger.info("%s: the worker %s", self._container, how)
        outcome.notices.append(
            f"The Python process of this session {how}. A new one goes on with the variables "
            "as they were after the last cell that ended."
        )
        saved = item.content.get("saved")
        if isinstance(saved, int) and saved < self._acknowledged:
            # Killed from outside, in the moment between a cell's answer and its checkpoint.
            outcome.notices.append(
                "What that cell changed had not been saved yet and is lost: its variables are "
                "as they were before it."
            )

    def _count(self, deaths: int) -> None:
        if deaths > _DEATHS:
            raise SandboxLostError(
                f"The Python process of this session died {deaths} times before it was ready.",
                remedy="Make a new Sandbox.",
                container=self._container,
            )

    # The rest

    def _send_start(self) -> None:
        self.channel.send_message(op="start", expected=self._acknowledged > 0, **self._told)

    def _outcome(self, on_output: OutputCallback | None) -> Outcome:
        return Outcome(
            OutputCollector("stdout", self._max_output, on_output),
            OutputCollector("stderr", self._max_output, on_output),
        )

    def _lost(self, closed: Closed) -> SandboxLostError:
        why = closed.reason or f"its program ended with status {closed.exit_code}"
        remedy = "Make a new Sandbox. Was it removed by someone, or its engine stopped?"
        if closed.exit_code == KILLED and not closed.reason:
            loss = self._memory_loss(self._answered)
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


def _death(content: dict[str, Any]) -> str:
    if "memory" in content:
        return memory_death(content["memory"])
    number = content.get("signal")
    if isinstance(number, int):
        try:
            return f"was killed by {signal.Signals(number).name}"
        except ValueError:
            return f"was killed by signal {number}"
    status = content.get("exit")
    return f"ended itself with status {status if isinstance(status, int) else 'unknown'}"


def _names(value: object) -> list[str]:
    """A list of names as the guest told it."""
    names = value[:_REPORT_COUNT] if isinstance(value, list) else ()
    return [printable(name, _LOCALS_TEXT) for name in names]


def _listed(words: Sequence[str], separator: str = ", ") -> str:
    """The first of many words, and the number of the others."""
    shown = separator.join(word[:_LISTED_TEXT] for word in words[:_LISTED])
    return shown + (f"{separator}and {len(words) - _LISTED} more" if len(words) > _LISTED else "")


def _strings(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    entries = islice(value.items(), _LOCALS_COUNT)
    return {printable(key, _LOCALS_TEXT): printable(text, _LOCALS_TEXT) for key, text in entries}


def _variables(value: object) -> tuple[UnsavedVariable, ...]:
    if not isinstance(value, list):
        return ()
    return tuple(
        UnsavedVariable(*(printable(part, _REPORT_TEXT) for part in entry))
        for entry in value[:_REPORT_COUNT]
        if isinstance(entry, list) and len(entry) == 3
    )
