"""Saves the variables after each request, in the way that takes least time."""

from __future__ import annotations

import sys
from _thread import _count as count_threads
from collections.abc import Callable
from time import sleep
from typing import TYPE_CHECKING, Any

from .cells import OwnCode
from .hooks import CellHooks
from .interrupts import BEGUN, CHECKPOINTING, PHASE, SAVED, SAVING, Interrupts, monotonic
from .journal import Journal
from .namespace import Namespace
from .paths import SearchPath
from .shortforms import error_text
from .statefile import StateFile, unwritten
from .streams import StandardStreams
from .succession import HELD, WAITING
from .trivial import LONGEST, is_plain

if TYPE_CHECKING:
    from .heirs import Heirs

#: The most seconds that something is only in the journal; the same where to save takes little.
_JOURNAL_AGE = 2.0
_AGE_CHEAP = 0.1

#: Seconds without another cell after which it is saved where that takes little.
_QUIET_CHEAP = 0.005

#: The most characters of a cell that is looked at where to save takes little: to parse more would
#: take as long.
_SHORT = 200

#: Seconds between two looks at heirs that write, and while the host waits for them.
_LOOK = 0.05
_LOOK_AWAITED = 0.001

#: The most variables that a message names, and the most characters of a name. The host reads
#: little more.
_REPORTED = 10_000
_NAME = 200


class Saving:
    """Saves the variables of a worker.

    What a trivial cell has bound is noted in the journal. All else is written to the state file, by
    an heir (:mod:`rlm_guest.heirs`) or here. A branch saves nothing. For heirs and writers this is
    the :class:`rlm_guest.heir.Owner`.

    Args:
        file: the state file.
        journal: the journal.
        namespace: the variables.
        streams: knows whether code of the cells may run at any time.
        hooks: knows whether a fork runs code of the cells.
        own_code: keeps it from running between two requests.
        interrupts: allowed while a variable is saved.
        send: sends a message to the host.

    Attributes:
        bound: what the last cell has bound, if it was trivial.
    """

    def __init__(
        self,
        file: StateFile,
        journal: Journal,
        namespace: Namespace,
        streams: StandardStreams,
        hooks: CellHooks,
        own_code: OwnCode,
        interrupts: Interrupts,
        send: Callable[[dict[str, Any]], None],
    ) -> None:
        self._file = file
        self._journal = journal
        self._namespace = namespace
        self._streams = streams
        self._hooks = hooks
        self._own_code = own_code
        self._interrupts = interrupts
        self._send = send
        self._heirs: Heirs | None = None
        # In a branch: the heirs of the worker, whose place it may take.
        self._heirs_of_worker: Heirs | None = None
        # The last request whose variables were saved as a whole; None if that has failed.
        self._base: int | None = None
        self._failed = 0  # the last request whose checkpoint has failed, 0 if there is a later one
        self.bound: set[str] | None = None
        self._journaled_since = 0.0  # by monotonic()
        # The last `saved`. Without one, the host assumes of the first worker that all is saved.
        is_first = not interrupts.progress[BEGUN]
        self._reported: dict[str, Any] = {"unsaved": [], "error": None} if is_first else {}

    # The start

    def restore(self, search_path: SearchPath, *, last: bool) -> dict[str, Any]:
        """Restore the variables: see :meth:`StateFile.restore`. Then apply the journal."""
        report = self._file.restore(search_path, last=last)
        self._reported = {}  # the host assumes nothing: report the next checkpoint in any case
        saved = self._interrupts.progress[SAVED]
        self._journal.apply(self._namespace.values, saved, exact=False)
        if last and not report["damage"]:
            self._base = saved
        return report

    def open_heirs(self, seconds: float) -> None:
        """Prepare to save by heirs. As far as known, that takes as long as to restore took."""
        from .heirs import Heirs

        own = {*range(5), *self._streams.saved}
        self._heirs = Heirs(self._interrupts.progress, self, own)
        self._heirs.note_saved(seconds)

    # In another process

    def begin_branch(self) -> None:
        """Save nothing from now on: this process is a branch."""
        self._heirs_of_worker, self._heirs = self._heirs, None
        self._base = None

    def begin_again(self) -> None:
        """Begin as the worker's, in the process that was an heir or a branch."""
        if self._heirs_of_worker is not None:
            self._heirs, self._heirs_of_worker = self._heirs_of_worker, None
            self._heirs.forget_reports()
        if self._heirs is not None:
            self._heirs.begin_again()
        self._base = None
        self._reported = {}

    def resume(self) -> None:
        """Have an heir, in the process that was one itself, and that has all variables."""
        progress = self._interrupts.progress
        self._base = progress[HELD]
        # The cell that has ended the worker may have damaged the file.
        written = progress[SAVED] >= self._base and self._file.checkpoint.is_untouched()
        self._fork_heir(self._base, wanted=True, written=written)

    # After a request

    def save(self, number: int, interrupts: Interrupts | None = None) -> None:
        """Save the variables: in the journal, by an heir, or here, whichever takes least time.

        Args:
            number: the request that they are as of.
            interrupts: allowed meanwhile; ``None`` for those of this process.
        """
        try:
            self._save(number, interrupts or self._interrupts)
        except Exception as error:
            # A cell can break any module that saving needs. Go on without a checkpoint.
            self._base, self._failed = None, number
            self._report(unwritten(error_text(error)))

    def _save(self, number: int, interrupts: Interrupts) -> None:
        bound, self.bound = self.bound, None
        if bound is not None and self._note_in_journal(number, bound):
            return
        heirs = self._heirs
        if heirs is None:
            self._save_here(number, interrupts)
            return
        wanted = self._file.checkpoint.is_deadly or self._is_heir_wanted()
        if self._fork_heir(number, wanted=wanted):
            self._interrupts.progress[SAVING] = 0
            return
        drop = False
        try:
            heirs.hold()
            self._save_here(number, interrupts)
            drop = self._base == number and not (
                self._is_heir_wanted() and self._fork_heir(number, wanted=True, written=True)
            )
        finally:
            heirs.release(drop=drop)

    def _is_heir_wanted(self) -> bool:
        """Return whether an heir would keep what a file cannot have, such as a generator."""
        return bool(self._reported.get("unsaved")) and self._is_replaceable()

    def _is_replaceable(self) -> bool:
        """Return whether an heir could go on in the place of this process."""
        heirs = self._heirs
        return heirs is not None and not self._hooks.handlers() and heirs.may_be_able()

    def _fork_heir(self, number: int, *, wanted: bool = False, written: bool = False) -> bool:
        """Have an heir save, if that takes less time than to do it here. Return whether it does.

        Args:
            number: the request that the variables are as of.
            wanted: whether it is better in any case.
            written: whether there is a checkpoint already.
        """
        heirs = self._heirs
        if heirs is None or self._hooks.runs_at_fork or self._streams.is_watched:
            return False  # code of a cell's would run
        try:
            variables = self._namespace.saved()
            checkpoint = self._file.checkpoint
            if not heirs.is_better(checkpoint.unwritten(variables), wanted=wanted):
                return False
            checkpoint.lend(variables, number)
            if not heirs.fork(number, able=self._is_replaceable(), written=written):
                return False
        except Exception:
            return False  # a cell can break any module; _save_here() tells
        self._base = number
        self._journal.clear()
        return True

    def _save_here(self, number: int, interrupts: Interrupts) -> None:
        """Write the checkpoint in this process."""
        report = self._file.write(number, interrupts)
        if self._heirs is not None:
            self._heirs.note_saved(self._file.seconds)
        self._base, self._failed = (number, 0) if report["error"] is None else (None, number)
        if self._base is not None:
            self._journal.clear()
        self._interrupts.progress[SAVING] = 0
        self._report(report)

    def _report(self, report: dict[str, Any]) -> None:
        """Tell the host how a checkpoint ended, if that was otherwise than the last time."""
        if report != self._reported:
            self._reported = report
            self._send({"op": "saved", **bounded(report)})

    @property
    def has_failed(self) -> bool:
        """Whether the last checkpoint that was reported has failed."""
        return self._reported.get("error") is not None

    # Trivial cells

    def may_journal(self, code: str) -> bool:
        """Return whether a cell may be trivial, and it is worth it to look."""
        return (
            self._base is not None
            and self._heirs is not None
            and len(code) <= (_SHORT if self._is_cheap() else LONGEST)
            and not self._streams.is_watched
            and not self._streams.is_changed()
            and count_threads() == 0
            and sys.gettrace() is None
            and sys.getprofile() is None
            and not self._hooks.handlers()
        )

    def _is_cheap(self) -> bool:
        """Return whether to save takes little more time than to answer."""
        # Where something is in no file, to save means to fork.
        heirs = self._heirs
        return heirs is not None and not self._reported.get("unsaved") and heirs.is_cheap()

    def _note_in_journal(self, number: int, bound: set[str]) -> bool:
        """Save what a trivial cell has bound. Return whether it was."""
        values = self._namespace.values
        found = {name: values[name] for name in bound if name in values}
        if self._base is None or not is_plain(found):
            return False
        now = monotonic()
        if not self._is_journal_needed():
            self._journaled_since = now
        elif now > self._journaled_since + (_AGE_CHEAP if self._is_cheap() else _JOURNAL_AGE):
            return False
        return self._journal.note(number, self._base, found)

    def _is_journal_needed(self) -> bool:
        """Return whether the journal has something that is not on disk."""
        return self._base is not None and self._journal.last > self._interrupts.progress[SAVED]

    def give_to_heir(self) -> None:
        """Before a cell that may take long, have what is only in the journal written."""
        heirs = self._heirs
        if heirs is not None and self._is_journal_needed() and not heirs.is_pending():
            self._own_code.begin()
            if self._file.kept:
                # The interrupts that come now are for the cell.
                self.save(self._journal.last, Interrupts())
            else:
                self._fork_heir(self._journal.last)
            heirs.reap()
            self._own_code.end()
        self._interrupts.progress[SAVING] = 0

    # Between requests

    def reap(self) -> None:
        """Collect the children that have forked heirs, so that no cell sees them."""
        if self._heirs is not None:
            self._heirs.reap()

    def look(self) -> float | None:
        """See to what is left to write.

        Returns:
            The seconds after which to see to it again; ``None`` if nothing is left.
        """
        pending = self._look_at_heirs()
        if self._is_journal_needed():
            return _QUIET_CHEAP if self._is_cheap() else _LOOK
        return _LOOK if pending else None

    def save_quiet(self) -> None:
        """Have what is only in the journal written, as no cell comes."""
        if self._heirs is not None and not self._heirs.is_pending():
            self.save_journal()

    def save_journal(self) -> None:
        """Have what is only in the journal written."""
        if self._is_journal_needed():
            self._save_idle(self._journal.last)

    def await_disk(self) -> None:
        """Wait until the checkpoint of the last request is written."""
        self._await_heirs()
        if self._is_journal_needed():
            self.save_journal()
            self._await_heirs()

    def _await_heirs(self) -> None:
        """Wait until no heir has anything left to write."""
        progress, heirs = self._interrupts.progress, self._heirs
        phase = progress[PHASE]
        progress[PHASE] = CHECKPOINTING
        if heirs is not None and self._look_at_heirs():
            progress[WAITING] = 1
            heirs.hurry()
            while self._look_at_heirs():
                sleep(_LOOK_AWAITED)
            progress[WAITING] = 0
        progress[PHASE] = phase

    def _look_at_heirs(self) -> bool:
        """Return whether an heir has something left to write. Save what a killed one has held."""
        heirs = self._heirs
        if heirs is None:
            return False
        if heirs.look():
            return True
        if heirs.is_orphaned():
            # Somebody has killed it.
            number = max(heirs.held, self._journal.last)
            heirs.hold()
            heirs.release(drop=True)
            self._base = None
            self._save_idle(number)
        return False

    def _save_idle(self, number: int) -> None:
        """Save the variables as of the last request, between two requests."""
        progress = self._interrupts.progress
        phase = progress[PHASE]
        progress[PHASE] = CHECKPOINTING
        progress[SAVING] = self._file.kept
        self._own_code.begin()
        self.save(number)
        self._own_code.end()
        progress[PHASE] = phase

    # For heirs, see `Owner`

    def write(
        self, number: int, interrupts: Interrupts, note_attempt: Callable[[int], None]
    ) -> dict[str, Any]:
        self._streams.interrupts = interrupts
        number = self.apply_journal(number)
        names = {name: place for place, (name, _) in enumerate(self._namespace.saved(), 1)}
        checkpoint = self._file.checkpoint
        checkpoint.find_files()
        checkpoint.attempting = lambda name: note_attempt(names.get(name, 0))
        report = self._file.write(number, interrupts)
        return {
            "report": report,
            "checkpoint": checkpoint.export(),
            "seconds": self._file.seconds,
        }

    def apply_journal(self, number: int) -> int:
        return self._journal.apply(self._namespace.values, number, exact=True)

    def note_death(self, place: int, reason: str) -> bool:
        for found, (name, value) in enumerate(self._namespace.saved(), 1):
            if found == place:
                self._file.checkpoint.note_deadly(name, value, "saving it " + reason)
                return True
        return False

    def fail(self, reason: str) -> dict[str, Any]:
        return {"report": unwritten(reason)}

    def adopt(self, number: int, news: dict[str, Any]) -> None:
        if "checkpoint" in news:
            self._file.checkpoint.adopt(news["checkpoint"], number)
            if self._heirs is not None:
                self._heirs.note_saved(news["seconds"], by_writer=True)

    def tell(self, number: int, news: dict[str, Any]) -> None:
        if number >= self._failed:
            self._report(news["report"])


def bounded(report: dict[str, Any]) -> dict[str, Any]:
    """Bound a message about variables. Cells may make any number of them, with any names."""
    found = dict(report)
    for key in ("unsaved", "lost", "variables"):
        if key in report:
            found[key] = [[entry[0][:_NAME], *entry[1:]] for entry in report[key][:_REPORTED]]
    for key in ("older", "names"):
        if key in report:
            found[key] = [name[:_NAME] for name in report[key][:_REPORTED]]
    return found
