"""What a guest reports of its cells and variables, taken with care: it may be anything."""

from __future__ import annotations

import logging
import re
import signal
from collections.abc import Callable, Sequence, Set
from itertools import islice
from typing import Any

from rlm_containers.errors import format_size
from rlm_containers.guest import wire
from rlm_containers.interpreter.output import Reply
from rlm_containers.interpreter.results import CellStatus, UnsavedVariable
from rlm_containers.interpreter.untrusted import printable

logger = logging.getLogger("rlm_containers")

#: What a guest may say of a cell's end. The rest is for the host to find.
_STATUSES: dict[object, CellStatus] = {
    "ok": "ok",
    "error": "error",
    "exit": "exit",
    "interrupted": "interrupted",
}

#: Variables, and characters of a name or reason, that are believed of a guest's report.
_REPORT_COUNT = 10_000
_REPORT_TEXT = 2_000

#: What differs in the short forms of two objects that are the same but for their place.
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")

#: Files that one cell has made, and characters of the path of one.
_ARTIFACTS = 500
_PATH_TEXT = 4096

#: The same for the short forms of variables.
_LOCALS_COUNT = 1_000
_LOCALS_TEXT = 200

#: Variables that are named in one sentence of a cell's stderr, and characters for each.
_LISTED = 50
_LISTED_TEXT = 300


class WorkerReports:
    """What is known of the guest's worker, as far as it has told.

    Args:
        container: the container's name.

    Attributes:
        route: how the guest reaches the language model.
        damage: why the last state file was not what the worker went on from; empty if it was.
        locals: the short forms of the variables.
        unsaved: the variables that are not in the last checkpoint; after a start, what was not
            restored.
        checkpoint_failed: whether the last checkpoint could not be written as a whole, so that the
            file is that of the one before it.
        on_saved: told what the guest says of a checkpoint, which may be anything.
    """

    def __init__(self, container: str) -> None:
        self._container = container
        self.route = "none"
        self.damage = ""
        self.locals: dict[str, str] = {}
        self.unsaved: tuple[UnsavedVariable, ...] = ()
        self.checkpoint_failed = False
        self._words: Set[str] | None = None
        self.on_saved: Callable[[dict[str, Any]], None] = lambda report: None

    def note_result(self, content: dict[str, Any], reply: Reply) -> None:
        """Take note of how a request ended."""
        status = content.get("status")
        reply.status = _STATUSES.get(status, "error") if isinstance(status, str) else "error"
        if "locals" in content:
            self.locals = _strings(content["locals"])
        reply.locals = dict(self.locals)
        reply.artifacts = _names(content.get("artifacts"), _ARTIFACTS, _PATH_TEXT)
        answer = content.get("final_answer")
        reply.final_answer = answer if isinstance(answer, str) else None
        reply.note_exit(content.get("exit_code"))

    def note_saved(self, content: dict[str, Any]) -> None:
        """Take note of a checkpoint."""
        self.unsaved = _variables(content.get("unsaved"))
        self.on_saved(content)
        self.checkpoint_failed = bool(content.get("error"))
        if self.checkpoint_failed:
            error = printable(content["error"], _REPORT_TEXT)
            logger.warning("%s: the checkpoint failed: %s", self._container, error)
            self.unsaved = (UnsavedVariable("*", "", error),)

    def note_unsaved(self, words: Set[str], reply: Reply) -> None:
        """Take note that the worker died with changes that no checkpoint has.

        Args:
            words: the names in the code of the cells that made them.
            reply: where it is said.
        """
        self._words = words
        if self.checkpoint_failed:
            reply.notices.append(
                "What the cells since the last checkpoint changed could not be saved "
                f"({self.unsaved[0].reason}) and is lost: their variables are as they were then."
            )
        else:
            reply.notices.append(
                "What that cell changed had not been saved yet and is lost: its variables are "
                "as they were before it."
            )

    def note_restored(self, content: dict[str, Any], reply: Reply, *, has_proxy: bool) -> None:
        """Take note of a worker that has taken the place of another; say what became of what."""
        before, words = self.locals, self._words
        names = _names(content.get("names"))
        there = set(names)
        self.note_ready(content, has_proxy=has_proxy)
        reply.older = tuple(_names(content.get("older")))
        damage = printable(content.get("damage") or "", _REPORT_TEXT)
        everything = any(variable.name == "*" for variable in self.unsaved)
        unreadable = bool(damage) or everything
        fell_back = bool(damage) and not everything
        if unreadable or words is not None:
            # Of what was in no file, or in one that cannot be read, only the last answer still
            # knows.
            told = {variable.name for variable in self.unsaved}
            reason = "it was in no other file" if unreadable else "it was not saved yet"
            self.unsaved += tuple(
                UnsavedVariable(name, "", reason)
                for name in before
                if name not in told and name not in there
            )
        if words is not None:
            known = set(reply.older)
            reply.older += tuple(
                name
                for name in names
                if name not in known and (name in words or self._differs(name, before))
            )
        if fell_back:
            reply.notices.append(
                f"The checkpoint state.dill could not be used: {damage}. The variables are those "
                "of the one before it."
            )
        if fell_back or reply.older:
            older = listed(reply.older) if reply.older else "none"
            reply.notices.append(f"These may be older than they were: {older}.")
        if self.unsaved:
            lost = listed([str(variable) for variable in self.unsaved], "; ")
            reply.notices.append(f"These variables are lost: {lost}.")
        reply.lost = tuple(variable.name for variable in self.unsaved)

    def _differs(self, name: str, before: dict[str, str]) -> bool:
        """Whether a variable looks another way now. Not all have short forms."""
        form = self.locals.get(name)
        if form is None:
            return False
        if name not in before:
            return len(before) < wire.MAX_FORMS
        return _ADDRESS.sub("", before[name]) != _ADDRESS.sub("", form)

    def note_ready(self, content: dict[str, Any], *, has_proxy: bool) -> None:
        """Take note of a worker that is ready."""
        self.route = printable(content.get("route"), 20)
        if has_proxy and self.route == "pipe":
            logger.warning(
                "%s: the container does not reach the proxy (%s); llm_query goes over the pipe",
                self._container,
                printable(content.get("reason"), _REPORT_TEXT),
            )
        self.damage = printable(content.get("damage") or "", _REPORT_TEXT)
        if self.damage:
            logger.warning(
                "%s: the checkpoint state.dill could not be used: %s", self._container, self.damage
            )
        self.locals = _strings(content.get("locals"))
        self.unsaved = _variables(content.get("lost"))
        self.checkpoint_failed = False  # that was another worker's
        self._words = None


def death(content: dict[str, Any]) -> str:
    """How a worker died."""
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


def _names(value: object, count: int = _REPORT_COUNT, length: int = _LOCALS_TEXT) -> list[str]:
    """A list of names as the guest told it."""
    names = value[:count] if isinstance(value, list) else ()
    return [printable(name, length) for name in names]


def listed(words: Sequence[str], separator: str = ", ") -> str:
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


def memory_death(report: object) -> str:
    """How something died of SIGKILL, by what the guest knows of the kernel's reasons.

    Args:
        report: from an event of the guest's, so it may be anything. ``{"limit": bytes}``, where
            the limit is ``None`` if it was the machine that had no more memory; ``None`` if
            the guest cannot find out.
    """
    if not isinstance(report, dict):
        return "was killed by SIGKILL, perhaps for its memory: the kernel does not say"
    limit = report.get("limit")
    if isinstance(limit, int) and 0 < limit < 1 << 62:
        return (
            "was killed for its memory (SIGKILL): the container may use no more than "
            f"{format_size(limit)} (memory=…)"
        )
    return "was killed for its memory (SIGKILL): the machine had no more"
