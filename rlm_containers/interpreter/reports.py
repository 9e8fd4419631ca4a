"""What a guest reports of its cells and variables. All of it is untrusted and bounded."""

from __future__ import annotations

import re
import signal
import unicodedata
from collections.abc import Callable, Sequence, Set
from itertools import islice
from typing import Any

from rlm_containers.errors import format_size
from rlm_containers.guest import wire
from rlm_containers.interpreter.output import Reply
from rlm_containers.interpreter.results import CellStatus, UnsavedVariable
from rlm_containers.interpreter.setup import WorkerSetup
from rlm_containers.interpreter.untrusted import printable
from runtimes.text import get_logger

logger = get_logger("rlm_containers")

#: The statuses that a guest may report. The host finds out the others by itself.
_STATUSES: dict[object, CellStatus] = {
    "ok": "ok",
    "error": "error",
    "exit": "exit",
    "interrupted": "interrupted",
}

#: The most variables in a report, and the most characters of a name or reason.
_REPORT_COUNT = 10_000
_REPORT_TEXT = 2_000

#: The most short forms of variables, and the most characters of a name or form.
_LOCALS_COUNT = 1_000
_LOCALS_TEXT = 200

#: The most files that one cell has made, and the most characters of a path.
_ARTIFACTS = 500
_PATH_TEXT = 4096

#: The most variables that one sentence names, and the most characters for each.
_LISTED = 50
_LISTED_TEXT = 300

#: The most notices of one reply about processes that the kernel killed.
_NOTICES = 10

#: The part of a short form that differs between two objects that are otherwise the same.
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")

#: Whatever may be a name in Python code, including words in strings and comments. Any character
#: outside ASCII counts, because ``\w`` leaves out the combining marks of some scripts.
_WORD = re.compile(r"(?:[A-Za-z_]|[^\x00-\x7f])(?:[A-Za-z0-9_]|[^\x00-\x7f])*")

#: The most cells whose code is remembered as it is, and the most characters of each.
_KEPT_CODES = 1_000
_KEPT_CODE = 100_000

#: The most names to remember of cells whose checkpoints fail one after the other. Guests report no
#: name that is longer than :data:`_LOCALS_TEXT`.
_WORDS = 100_000


class UnsavedChanges:
    """Remembers which names cells may have changed since the last checkpoint.

    The checkpoint comes after the answer. A worker that dies between the two loses what the cell
    changed; a worker whose disk is full loses what all cells since then changed. Nobody can ask a
    dead worker what that was, so it is guessed from the code.

    Attributes:
        last_answer: the number of the last answered request; 0 if there is no state to go on from.
    """

    def __init__(self) -> None:
        self.last_answer = 0
        # The code of each request since the last checkpoint, by its number. It is searched for
        # names only when they are needed.
        self._code: dict[int, str] = {}
        # Where that would be too much, the words in it, and the last request that has them.
        self._words: set[str] = set()
        self._words_until = 0

    @property
    def count(self) -> int:
        """How many requests were answered since the last checkpoint, up to some thousand."""
        return len(self._code)

    def note_answer(self, number: int, code: object, *, saved: object) -> None:
        """Note that a request was answered.

        Args:
            number: its number.
            code: the cell's code, or the names that another request binds.
            saved: the last request whose checkpoint is written, as the guest reports it.
        """
        if isinstance(saved, int):
            self._forget(saved)
        self.last_answer = number
        text = code if isinstance(code, str) else ""
        if len(self._code) >= _KEPT_CODES or len(text) > _KEPT_CODE:
            self._keep_words()
        self._code[number] = text

    def note_death(self, saved: object) -> Set[str] | None:
        """Note that the worker died.

        Args:
            saved: the last request whose checkpoint is written, as the guest reports it.

        Returns:
            The words in the code of the cells whose changes are lost, among them the names of all
            variables that the code mentions. ``None`` if the checkpoint has all changes.
        """
        if not isinstance(saved, int) or saved >= self.last_answer:
            return None
        self._forget(saved)
        self._keep_words()
        words = frozenset(self._words)
        self.restart(saved)
        return words

    def add(self, other: UnsavedChanges, number: int) -> None:
        """Note that a request has brought what the cells of a branch have changed."""
        other._keep_words()
        self._words.update(islice(other._words, max(0, _WORDS - len(self._words))))
        self._words_until = max(self._words_until, number)

    def restart(self, number: int) -> None:
        """Note that the next worker goes on from the checkpoint of a request; 0 for none."""
        self.last_answer = number
        self._code.clear()
        self._words.clear()

    def _forget(self, saved: int) -> None:
        """Forget the code of requests that a checkpoint has the changes of."""
        for number in [number for number in self._code if number <= saved]:
            del self._code[number]
        if saved >= self._words_until:
            self._words.clear()

    def _keep_words(self) -> None:
        self._words_until = max(self._code, default=self._words_until)
        for code in self._code.values():
            # Python normalizes names this way, see "Names" in its language reference.
            for word in _WORD.finditer(unicodedata.normalize("NFKC", code)):
                if len(self._words) >= _WORDS:
                    break
                if len(word[0]) <= _LOCALS_TEXT:
                    self._words.add(word[0])
        self._code.clear()


class WorkerReports:
    """What the guest has reported of its worker so far.

    Args:
        container: the container's name.
        setup: what every worker is given at its start.

    Attributes:
        changes: the names that cells may have changed since the last checkpoint.
        route: how the guest reaches the language model: ``"http"``, ``"pipe"`` or ``"none"``.
        damage: why the worker could not go on from the last state file; empty if it could.
        locals: the short forms of the variables.
        unsaved: the variables that are not in the last checkpoint. After a start, those that were
            not restored.
        checkpoint_failed: whether the last checkpoint could not be written at all, so that the
            file is still that of an earlier one.
        on_saved: called with every report of a checkpoint, whose content may be anything.
        saved: the last request whose checkpoint is written, as the guest has reported it.
        files_lag: whether the files that were written last may be lost with a container.
        kept: returns up to which request a container that is lost loses nothing, given ``saved``.
    """

    def __init__(self, container: str, setup: WorkerSetup) -> None:
        self._container = container
        self._setup = setup
        self.changes = UnsavedChanges()
        self.route = "none"
        self.damage = ""
        self.locals: dict[str, str] = {}
        self.unsaved: tuple[UnsavedVariable, ...] = ()
        self.checkpoint_failed = False
        self.on_saved: Callable[[dict[str, Any]], None] = lambda report: None
        # The words in the code whose changes died with the worker; None if there are none.
        self._lost_words: Set[str] | None = None
        self._was_container_lost = False
        self.saved = 0
        self.files_lag = False
        self.kept: Callable[[int], int] = lambda saved: saved

    def note_result(self, content: dict[str, Any], number: int, code: object, reply: Reply) -> None:
        """Note how a request ended.

        Args:
            content: the guest's answer.
            number: the request's number.
            code: the cell's code, or the names that another request binds.
            reply: the reply to complete.
        """
        status = content.get("status")
        reply.status = _STATUSES.get(status, "error") if isinstance(status, str) else "error"
        if "locals" in content:
            self.locals = _strings(content["locals"])
        reply.locals = dict(self.locals)
        reply.artifacts = _names(content.get("artifacts"), _ARTIFACTS, _PATH_TEXT)
        answer = content.get("final_answer")
        reply.final_answer = answer if isinstance(answer, str) else None
        reply.note_exit(content.get("exit_code"))
        if content.get("skipped") is True:
            reply.notices.append("It was interrupted before it began.")
        else:
            if isinstance(saved := content.get("saved"), int):
                self.saved = min(saved, number)
            self.changes.note_answer(number, code, saved=self.kept(self.saved))
            reply.unwritten = self.changes.count - 1

    def note_settled(self, number: int) -> None:
        """Note that the guest has answered a request that waits for the checkpoint before it."""
        if not self.checkpoint_failed:
            self.saved = number

    def note_saved(self, content: dict[str, Any]) -> None:
        """Note the report of a checkpoint."""
        self.unsaved = _variables(content.get("unsaved"))
        self.on_saved(content)
        self.checkpoint_failed = bool(content.get("error"))
        if self.checkpoint_failed:
            error = printable(content["error"], _REPORT_TEXT)
            logger.warning("%s: the checkpoint failed: %s", self._container, error)
            self.unsaved = (UnsavedVariable("*", "", error),)

    def note_death(self, event: dict[str, Any], reply: Reply) -> None:
        """Note that the worker died, and say so in the reply."""
        if event.get("event") != "died":
            return
        if "lost" in event:
            self._note_loss(event, reply)
            return
        how = death(event)
        logger.info("%s: the worker %s", self._container, how)
        reply.notices.append(
            f"The Python process of this sandbox {how}. A new one goes on with the variables "
            "as they were after the last cell that ended."
        )
        words = self.changes.note_death(event.get("saved"))
        if words is None:
            return
        self._lost_words = words
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

    def _note_loss(self, event: dict[str, Any], reply: Reply) -> None:
        """Note that the container was lost with its worker."""
        reply.notices.append(
            f"{event['lost']} Another one goes on with what was saved of the session."
        )
        if self.files_lag:
            reply.notices.append("Files that were written just before may be missing, or older.")
        self._lost_words = self.changes.note_death(event["saved"])
        self._was_container_lost = True
        if self._lost_words is not None:
            reply.notices.append(
                "What the last cells changed may not have been saved: their variables may be as "
                "they were before them."
            )

    def note_kill(self, event: dict[str, Any], reply: Reply) -> None:
        """Note that the kernel killed a process that a cell or a command started, and say so."""
        notice = f"A process that a cell or a command started {memory_death(event.get('memory'))}."
        if notice not in reply.notices and len(reply.notices) < _NOTICES:
            reply.notices.append(notice)

    def note_ready(self, content: dict[str, Any]) -> None:
        """Note that a worker is ready."""
        self.route = printable(content.get("route"), 20)
        if self._setup.proxy is not None and self.route == "pipe":
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
        self._lost_words = None
        self._was_container_lost = False

    def note_restored(self, content: dict[str, Any], reply: Reply) -> None:
        """Note that a worker has replaced a dead one, and say what happened to the variables."""
        before, words = self.locals, self._lost_words
        is_certain = not self._was_container_lost
        self.note_ready(content)
        names = _names(content.get("names"))
        there = set(names)
        reply.older = tuple(_names(content.get("older")))
        everything = any(variable.name == "*" for variable in self.unsaved)
        unreadable = bool(self.damage) or everything
        fell_back = bool(self.damage) and not everything
        if unreadable or words is not None:
            # Only the last answer still has the names of variables that are in no file, or in one
            # that cannot be read.
            reported = {variable.name for variable in self.unsaved}
            reason = "it was in no other file" if unreadable else "it was not saved yet"
            self.unsaved += tuple(
                UnsavedVariable(name, "", reason)
                for name in before
                if name not in reported and name not in there
            )
        if words is not None:
            known = set(reply.older)
            reply.older += tuple(
                name
                for name in names
                if name not in known
                and (
                    (name in words and (is_certain or not self._is_same(name, before)))
                    or self._differs(name, before)
                )
            )
        if fell_back:
            reply.notices.append(
                f"The checkpoint state.dill could not be used: {self.damage}. The variables are "
                "those of the one before it."
            )
        if fell_back or reply.older:
            older = listed(reply.older) if reply.older else "none"
            reply.notices.append(f"These may be older than they were: {older}.")
        if self.unsaved:
            lost = listed([str(variable) for variable in self.unsaved], "; ")
            reply.notices.append(f"These variables are lost: {lost}.")
        reply.lost = tuple(variable.name for variable in self.unsaved)
        reply.locals = dict(self.locals)

    def _differs(self, name: str, before: dict[str, str]) -> bool:
        """Return whether a variable's short form has changed. Not all variables have one."""
        form = self.locals.get(name)
        if form is None:
            return False
        if name not in before:
            return len(before) < wire.MAX_FORMS
        return _ADDRESS.sub("", before[name]) != _ADDRESS.sub("", form)

    def _is_same(self, name: str, before: dict[str, str]) -> bool:
        """Return whether a variable's short form shows that it has not changed."""
        form = self.locals.get(name)
        is_whole = form is not None and "..." not in form and "<" not in form
        return is_whole and before.get(name) == form


#: What most often is behind a signal that does not say much.
_CAUSES: dict[int, str] = {
    signal.SIGBUS: ": most often because /dev/shm is full (shm_size=…), or because a file that was "
    "mapped into memory became shorter",
    signal.SIGSEGV: ": a fault in native code, or a recursion too deep for the stack",
}


def death(event: dict[str, Any]) -> str:
    """Return a clause that says how a worker died."""
    if event.get("stalled") is True:
        return (
            "was killed because it could not be interrupted: code of an object that a cell has "
            "left, such as a __repr__ or __reduce__, did not end"
        )
    if "memory" in event:
        return memory_death(event["memory"])
    number = event.get("signal")
    if isinstance(number, int):
        try:
            return f"was killed by {signal.Signals(number).name}" + _CAUSES.get(number, "")
        except ValueError:
            return f"was killed by signal {number}"
    status = event.get("exit")
    return f"ended itself with status {status if isinstance(status, int) else 'unknown'}"


def memory_death(report: object) -> str:
    """Return a clause that says how a process died of SIGKILL.

    Args:
        report: what the guest knows of the kernel's reason, untrusted: ``{"limit": bytes}`` if
            the process was killed for its memory, where the limit is ``None`` if the machine had
            none left; ``None`` if the guest cannot find out.
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


def listed(words: Sequence[str], separator: str = ", ") -> str:
    """Join the first of many words, followed by the number of the others."""
    shown = separator.join(word[:_LISTED_TEXT] for word in words[:_LISTED])
    return shown + (f"{separator}and {len(words) - _LISTED} more" if len(words) > _LISTED else "")


def _names(value: object, count: int = _REPORT_COUNT, length: int = _LOCALS_TEXT) -> list[str]:
    names = value[:count] if isinstance(value, list) else ()
    return [printable(name, length) for name in names]


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
