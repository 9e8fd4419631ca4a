"""Runs cells in a live interpreter, and saves the variables after each cell."""

from __future__ import annotations

import gc
import json
import os
import select
import socket
import sys
from _thread import _count as count_threads
from os import getpid
from time import sleep
from typing import Any

from . import lm, sources, wire
from .account import limit_files, name_user
from .cells import Cell, OwnCode
from .hooks import CellHooks
from .interrupts import (
    ANSWERING,
    BEGUN,
    CHECKPOINTING,
    FILE,
    FILE_REQUEST,
    PHASE,
    RUNNING,
    SAVED,
    SAVING,
    Interrupts,
    monotonic,
)
from .journal import Journal
from .namespace import Namespace
from .paths import SearchPath, forget_compiled
from .settings import Settings
from .shortforms import error_text
from .streams import StandardStreams, print_exception, print_exit_code
from .succession import HELD, KEPT, WAITING, Branched, TakenOver
from .trivial import LONGEST, is_plain

#: The workspace. A name of this module's, so that tests without a container can set it.
WORKSPACE = wire.WORKSPACE


class Worker:
    """The interpreter of a session.

    :mod:`rlm_guest.wire` describes the requests and messages. The next request is read only after
    the variables of the last one are saved: in a checkpoint, or by an heir that writes it (see
    :mod:`rlm_guest.heirs`). So a cell cannot lose what an earlier one was answered for.

    Args:
        control: frames from and to the supervisor.
        calls: for calls to the host over the pipe, see :mod:`rlm_guest.lm`.
        mode: ``"restore"`` to restore the last checkpoint, ``"previous"`` the one before it,
            ``"fresh"`` to start without variables.
        progress: the numbers shared with the supervisor, see :mod:`rlm_guest.interrupts`.
        journal: memory shared with the supervisor, see :mod:`rlm_guest.journal`.
        slots: the numbers of branches, shared with the supervisor, see :mod:`rlm_guest.branching`.
    """

    def __init__(
        self,
        control: socket.socket,
        calls: socket.socket,
        mode: str,
        progress: memoryview,
        journal: memoryview,
        slots: memoryview,
    ) -> None:
        self.control = control
        self.calls = calls
        self.mode = mode
        self.progress = progress
        self.slots = slots
        # In a branch: the numbers and the heirs of the worker, whose place it may take.
        self.parent: tuple[memoryview, Any] | None = None
        self.pid = getpid()
        self.interrupts = Interrupts(progress)
        self.started = False
        self.took_over = False  # whether this process was an heir
        self.exit_code = 0
        # Whether the session outlives the container. Then tell the host what is saved.
        self.kept = False
        self.durable = False
        self.checkpoint: Any = None
        self.heirs: Any = None
        self.journal = Journal(progress, journal)
        self.journaled_since = 0.0  # by monotonic()
        # The last request whose variables were saved as a whole; None if that has failed.
        self.base: int | None = None
        self.failed = 0  # the last request whose checkpoint has failed, 0 if there is a later one
        self.bound: set[str] | None = None  # what the last cell has bound, if it was trivial
        self.figures: Any = None
        self.own_code = OwnCode()
        self.hooks = CellHooks()
        self.search_path = SearchPath()
        self.settings: Settings | None = None
        # The last `saved`. Without one, the host assumes of the first worker that all is saved.
        is_first = not progress[BEGUN]
        self.reported: dict[str, Any] = {"unsaved": [], "error": None} if is_first else {}
        self.namespace = Namespace()
        self.streams = StandardStreams(self.interrupts)
        self.interrupts.install()

    # Frames

    def serve(self) -> int:
        """Answer requests until the supervisor closes its end. Return the exit status."""
        while True:
            try:
                return self.serve_requests()
            except TakenOver:
                self.begin_again()
            except Branched as branched:
                self.begin_branch(branched.progress)

    def begin_again(self) -> None:
        """Begin as the worker, in the process that was an heir."""
        self.pid = getpid()
        self.took_over, self.started = True, False
        self.interrupts = self.streams.interrupts = Interrupts(self.progress)
        self.interrupts.install()
        self.own_code.end()
        if self.heirs is not None:
            self.heirs.begin_again()
        self.bound = None
        self.reported = {}
        self.progress[PHASE] = self.progress[SAVING] = 0

    def begin_branch(self, progress: memoryview) -> None:
        """Begin as a branch, in a forked child of the worker."""
        self.parent = self.progress, self.heirs
        self.pid = getpid()
        self.progress, self.heirs = progress, None
        self.interrupts = self.streams.interrupts = Interrupts(progress)
        self.interrupts.install()
        self.base = self.bound = None
        self.own_code.end()
        lm.connect(None, self.calls, has_model=True)

    def serve_requests(self) -> int:
        """Answer requests until the supervisor closes its end. Return the exit status."""
        decoder = wire.FrameDecoder()
        while True:
            self.await_request()
            data = self.control.recv(wire.CHUNK)
            if not data and self.parent is not None:
                return 0  # nobody has kept it
            if not data:
                if self.kept and self.is_journal_needed():
                    self.save_idle(self.journal.last)
                self.end_session()
                return 0
            for _, payload in decoder.feed(data):
                self.progress[PHASE] = RUNNING
                self.handle(json.loads(payload))
                self.progress[PHASE] = 0

    def await_request(self) -> None:
        """While something is left to write, see to that until the next request comes."""
        while self.look() or self.is_journal_needed():
            quiet = _QUIET_CHEAP if self.is_journal_needed() and self.is_cheap() else _LOOK
            if select.select((self.control,), (), (), quiet)[0]:
                return
            if self.is_journal_needed() and not self.heirs.is_pending():
                self.save_idle(self.journal.last)

    def end_session(self) -> None:
        """Do what Python does at its end: run exit functions, flush and close files."""
        from .ending import end_session

        with self.search_path.of_cells():
            end_session(self.namespace.values)

    def send(self, message: dict[str, Any]) -> None:
        """Send one message to the host."""
        self.control.sendall(wire.encode(wire.MESSAGE, json.dumps(message).encode("ascii")))

    def handle(self, request: dict[str, Any]) -> None:
        """Handle a request. The host is trusted, so a malformed one may end the worker."""
        operation = request["op"]
        if operation == "start" and self.parent is not None:
            self.succeed(request)
        elif operation == "start" and self.took_over:
            self.resume(request)
        elif operation == "start":
            self.start(request)
        elif operation == "prepare":
            self.prepare(compiled=request.get("compiled", False))
        elif not self.started:
            pass  # meant for a worker that died; the host sends it again
        else:
            number = request["id"]
            if self.heirs is not None:
                self.heirs.reap()
            if operation == "sync":
                self.await_disk()
            self.interrupts.begin(2 * number)
            self.progress[BEGUN] = number
            if self.interrupts.reaches(2 * number):
                # The interrupt came while the checkpoint before this request was written.
                self.send({"op": "result", "id": number, "status": "interrupted", "skipped": True})
                return
            if request.get("announce"):
                self.send({"op": "begun", "id": number})
            self.answer(request)

    def answer(self, request: dict[str, Any]) -> None:
        """Handle a request after ``start``."""
        operation = request["op"]
        if operation == "cell":
            display = request.get("display", False)
            self.finish(request["id"], self.run_cell(request["name"], request["code"], display))
        elif operation == "load":
            self.finish(request["id"], self.load(request))
        elif operation == "sync":
            # The checkpoint before this one is written.
            if self.reported.get("error") is None:
                self.progress[SAVED] = request["id"]
            saved = self.progress[SAVED]
            self.send({"op": "result", "id": request["id"], "status": "ok", "saved": saved})
        elif operation == "branch":
            self.branch(request)
        elif operation == "save":
            self.finish(request["id"], "ok")
        elif operation == "reset_answer":
            self.namespace.reset_answer()
            self.finish(request["id"], "ok")
        elif operation == "tools":
            self.bind_tools(request["tools"])
            self.finish(request["id"], "ok")
        elif operation == "keep":
            self.namespace.keep(request["names"])
            self.finish(request["id"], "ok")
        else:
            raise ValueError("unknown operation {!r}".format(operation))

    # Start

    def prepare(self, *, compiled: bool) -> None:
        """Import what a start, the first cell and the first checkpoint need, and say so.

        With ``compiled``, also return the byte code of what had to be compiled.
        """
        import pwd  # noqa: F401
        import resource  # noqa: F401
        import site  # noqa: F401

        from . import branches, branching, figures, heirs, spawning, tools  # noqa: F401
        from .state import checkpoint  # noqa: F401

        code = ""
        if compiled:
            from base64 import b64encode

            from .bytecode import collect

            code = b64encode(collect()).decode("ascii")
        self.send({"op": "prepared", "code": code})

    def start(self, request: dict[str, Any]) -> None:
        """Connect to the language model, restore the checkpoint if there is one, and say so."""
        self.started = True
        self.own_code.begin()
        self.kept = request.get("kept_session", False)
        self.durable = request.get("durable", False)
        self.progress[KEPT] = self.kept
        route = lm.connect(request["proxy"], self.calls, has_model=request["lm"])
        os.environ.update(request["env"])
        name_user()
        os.chdir(WORKSPACE)
        try:
            os.unlink(wire.HELLO)  # the host has looked for it
        except OSError:
            pass
        self.search_path.add_image()
        limit_files(request.get("file_limit"), core_files=request.get("core_files", False))
        self.settings = Settings(self.search_path.path_of_cells, self.own_code, self.hooks)
        self.namespace.begin(request.get("scaffold", True))
        if request.get("tools"):
            self.bind_tools(request["tools"])
        report: dict[str, Any] = {"lost": [], "damage": "", "older": []}
        seconds = 0.0
        if request["expected"] or has_state():
            started = monotonic()
            report = self.restore()
            seconds = monotonic() - started
            if self.mode != "fresh":
                self.journal.apply(self.namespace.values, self.progress[SAVED], exact=False)
            if self.mode == "restore" and not report["damage"]:
                self.base = self.progress[SAVED]
        self.be_ready(request, route, report)
        # There is nothing to do until the first cell. So import what the first checkpoint needs,
        # which takes a while if the image has no compiled byte code.
        self.open_checkpoint()
        if request.get("heirs"):
            self.open_heirs(seconds)
        self.watch_figures()
        self.watch_spawning()
        forget_compiled()
        self.hooks.hold()
        self.own_code.end()

    def succeed(self, request: dict[str, Any]) -> None:
        """Become the worker, in the process of a branch. The host has it saved then."""
        assert self.parent is not None
        (self.progress, self.heirs), self.parent = self.parent, None
        self.begin_again()
        if self.heirs is not None:
            self.heirs.forget_reports()
        gc.unfreeze()
        self.own_code.begin()
        self.open_checkpoint().find_changes()
        self.base = None
        self.begin_in_place(request)
        self.own_code.end()

    def resume(self, request: dict[str, Any]) -> None:
        """Do what is new to a process that was an heir: all its variables are there."""
        self.begin_in_place(request)
        self.base = self.progress[HELD]
        # The cell that has ended the worker may have damaged the file.
        written = self.progress[SAVED] >= self.base and self.checkpoint.is_untouched()
        self.fork_heir(self.base, wanted=True, written=written)

    def begin_in_place(self, request: dict[str, Any]) -> None:
        """Begin with all variables, in the place of another worker."""
        self.took_over, self.started = False, True
        route = lm.connect(request["proxy"], self.calls, has_model=request["lm"])
        self.streams.restore()
        if request.get("tools"):
            self.bind_tools(request["tools"])
        self.journal.clear()  # it has been applied
        self.be_ready(request, route, {"lost": [], "damage": "", "older": []})

    def be_ready(
        self, request: dict[str, Any], route: dict[str, Any], report: dict[str, Any]
    ) -> None:
        """Bind what belongs to the host, and say what variables there are."""
        for item in request.get("kept", ()):
            try:
                self.load(item)
            except (OSError, ValueError) as error:
                report["lost"].append([item["name"], "", str(error)])
        self.namespace.keep(request.get("kept_names", []))
        self.namespace.restore_scaffold()
        forms = self.namespace.short_forms(self.interrupts)
        report["names"] = [name for name, _ in self.namespace.variables()]
        self.send({"op": "ready", "locals": forms, **route, **_bounded(report)})

    def bind_tools(self, tools: list[dict[str, str]]) -> None:
        """Let cells call these functions of the host."""
        from .tools import bind_tools

        self.namespace.bind_tools(bind_tools(tools, self.calls))

    def open_checkpoint(self) -> Any:
        if self.checkpoint is None:
            from .state.checkpoint import Checkpoint  # late: it takes a while

            self.checkpoint = Checkpoint(WORKSPACE, durable=self.durable)
        return self.checkpoint

    def open_heirs(self, seconds: float) -> None:
        """Prepare to save by heirs. As far as known, that takes as long as to restore took."""
        from .heirs import Heirs

        self.heirs = Heirs(self.progress, self, {*range(5), *self.streams.saved})
        self.heirs.note_saved(seconds)

    def watch_figures(self) -> None:
        """Watch for figures that matplotlib saves. Call this before matplotlib is imported."""
        if self.figures is None:
            from .figures import Figures

            self.figures = Figures(WORKSPACE)
            self.figures.watch()

    def watch_spawning(self) -> None:
        """Watch for processes that multiprocessing spawns, and for ``inspect``."""
        from .spawning import watch

        watch()
        sources.watch()

    def restore(self) -> dict[str, Any]:
        """Restore the checkpoint. Return ``lost``, ``damage`` and ``older`` of ``ready``."""
        if self.mode == "fresh":
            lost = [["*", "", "restoring the checkpoint killed the interpreter"]]
            return {"lost": lost, "damage": "", "older": []}
        checkpoint = self.open_checkpoint()
        self.watch_figures()  # restoring a variable may import matplotlib
        with self.streams.silenced(), self.search_path.of_cells():
            report: dict[str, Any] = checkpoint.load(
                self.namespace.values,
                self.interrupts,
                last=self.mode == "restore",
                settings=self.settings,
            )
        self.reported = {}  # the host assumes nothing: report the next checkpoint in any case
        return report

    # Cells

    def run_cell(self, name: str, code: str, display: bool = False) -> str:
        """Run a cell. Return its status: ``"ok"``, ``"error"``, ``"exit"`` or ``"interrupted"``.

        With ``display``, print the value of an expression at its end.
        """
        self.bound = None
        filename = sources.add(name, code)
        # Python shows a warning once for each text and line, and cells have the same lines.
        self.namespace.values.pop("__warningregistry__", None)
        try:
            with self.interrupts:
                self.interrupts.check()
                looks = not display and self.may_journal(code)
                cell = Cell(code, filename, display=display, keep_tree=looks)
            bound = self.namespace.names_bound_by(cell.tree) if looks else None
            if bound is not None:
                return self.run_trivial(cell, bound)
            self.give_to_heir()
            with self.search_path.of_cells(), self.interrupts:
                self.interrupts.check()
                self.hooks.release()
                cell.run(self.namespace.values)
                self.hooks.hold()
            return "ok"
        except TakenOver:
            raise
        except BaseException as error:
            self.own_code.begin()
            self.hooks.hold()
            self.progress[PHASE] = ANSWERING
            if getpid() == self.pid:
                # So that a traceback is seen whatever the cell did.
                self.streams.restore()
            if isinstance(error, SystemExit):
                self.exit_code = print_exit_code(error, self.interrupts)
                return "exit"
            print_exception(error, error.__traceback__, self.interrupts)
            return "interrupted" if isinstance(error, KeyboardInterrupt) else "error"

    def may_journal(self, code: str) -> bool:
        """Return whether a cell may be trivial, and it is worth it to look."""
        return (
            self.base is not None
            and self.heirs is not None
            and len(code) <= (_SHORT if self.is_cheap() else LONGEST)
            and not self.streams.is_watched
            and not self.streams.is_changed()
            and count_threads() == 0
            and sys.gettrace() is None
            and sys.getprofile() is None
            and not self.hooks.handlers()
        )

    def is_cheap(self) -> bool:
        """Return whether to save takes little more time than to answer."""
        # Where something is in no file, to save means to fork.
        return not self.reported.get("unsaved") and bool(self.heirs.is_cheap())

    def give_to_heir(self) -> None:
        """Before a cell that may take long, have what is only in the journal written."""
        if self.is_journal_needed() and not self.heirs.is_pending():
            self.own_code.begin()
            if self.kept:
                # The interrupts that come now are for the cell.
                interrupts, self.interrupts = self.interrupts, Interrupts()
                self.save(self.journal.last)
                self.interrupts = interrupts
            else:
                self.fork_heir(self.journal.last)
            self.heirs.reap()
            self.own_code.end()
        self.progress[SAVING] = 0

    def run_trivial(self, cell: Cell, bound: set[str]) -> str:
        """Run a cell that changes nothing but what it binds."""
        self.hooks.hold()  # again: a thread that has ended may have kept garbage from being held
        with self.search_path.of_cells(), self.interrupts:
            cell.run(self.namespace.values)
        self.bound = bound
        return "ok"

    def load(self, request: dict[str, Any]) -> str:
        """Bind a variable to the contents of a file that the host put into the workspace."""
        loaded = self.open_checkpoint().loaded
        name, file = request["name"], request["file"]
        value = loaded.load(request["kind"], file, request["size"], request["checksum"])
        if request.get("keep"):
            self.namespace.history_is_kept = True
            self.namespace.history = value
        # After a damaged checkpoint this may be another file than the host knows of.
        before = loaded.file_of(self.namespace.values.get(name))
        self.namespace.values[name] = value
        for superseded in {before, request["superseded"]} - {None, file}:
            loaded.superseded.add(superseded)
        return "ok"

    def finish(self, number: int, status: str) -> None:
        """Answer, then save."""
        if getpid() != self.pid:
            # This is a child that the cell forked, and that returned from the cell.
            self.streams.restore()
            os._exit(0)
        self.own_code.begin()
        self.hooks.hold()
        self.progress[PHASE] = ANSWERING
        self.interrupts.install()
        self.namespace.restore_scaffold()
        self.streams.restore()
        result: dict[str, Any] = {
            "op": "result",
            "id": number,
            "status": status,
            "locals": self.namespace.short_forms(self.interrupts),
            "final_answer": self.namespace.final_answer(self.interrupts),
            "saved": self.progress[SAVED],
        }
        if status == "exit":
            result["exit_code"] = self.exit_code
        artifacts = self.figures.saved_files()
        if artifacts:
            result["artifacts"] = artifacts
        self.streams.restore_again()  # a __repr__ may have printed
        self.interrupts.begin(2 * number + 1)
        self.progress[SAVING] = self.kept
        self.progress[PHASE] = CHECKPOINTING
        self.send(result)
        self.save(number)
        self.own_code.end()

    def branch(self, request: dict[str, Any]) -> None:
        """Fork branches, and say so, or what is in the way."""
        from . import branching

        own = frozenset((*range(5), *self.streams.saved))
        answer: dict[str, Any] = {"op": "result", "id": request["id"], "status": "ok"}
        self.own_code.begin()
        try:
            runs_code = self.hooks.runs_at_fork or self.streams.is_watched
            branching.check(own, runs_code=runs_code)
            first, count = request["first"], request["count"]
            branching.fork_branches(first, count, self.slots, self.calls, own)
        except branching.CannotBranchError as error:
            answer["refused"] = [error.obstacle, error.text]
        except Exception as error:  # a cell can break any module
            answer["refused"] = ["room", error_text(error)]
        self.own_code.end()
        self.send({**answer, "saved": self.progress[SAVED]})

    # Checkpoints

    def save(self, number: int) -> None:
        """Save the variables: in the journal, by an heir, or here, whichever takes least time."""
        try:
            self.save_somewhere(number)
        except Exception as error:
            # A cell can break any module that saving needs. Go on without a checkpoint.
            self.base, self.failed = None, number
            self.tell(unwritten(error_text(error)))

    def save_somewhere(self, number: int) -> None:
        """See :meth:`save`."""
        bound, self.bound = self.bound, None
        if self.parent is not None:
            self.progress[SAVING] = 0
            return
        if bound is not None and self.note_in_journal(number, bound):
            return
        if self.heirs is None:
            self.save_here(number)
            return
        if self.fork_heir(number, wanted=self.checkpoint.is_deadly or self.is_heir_wanted()):
            self.progress[SAVING] = 0
            return
        drop = False
        try:
            self.heirs.hold()
            self.save_here(number)
            drop = self.base == number and not (
                self.is_heir_wanted() and self.fork_heir(number, wanted=True, written=True)
            )
        finally:
            self.heirs.release(drop=drop)

    def is_heir_wanted(self) -> bool:
        """Return whether an heir would keep what a file cannot have, such as a generator."""
        return bool(self.reported.get("unsaved")) and self.is_replaceable()

    def is_replaceable(self) -> bool:
        """Return whether an heir could go on in the place of this process."""
        return not self.hooks.handlers() and bool(self.heirs.may_be_able())

    def fork_heir(self, number: int, *, wanted: bool = False, written: bool = False) -> bool:
        """Have an heir save, if that takes less time than to do it here. Return whether it does.

        Args:
            number: the request that the variables are as of.
            wanted: whether it is better in any case.
            written: whether there is a checkpoint already.
        """
        if self.hooks.runs_at_fork or self.streams.is_watched:
            return False  # code of a cell's would run
        try:
            variables = list(self.namespace.variables())
            unwritten = self.checkpoint.unwritten(variables)
            if not self.heirs.is_better(unwritten, wanted=wanted):
                return False
            self.checkpoint.lend(variables, number)
            if not self.heirs.fork(number, able=self.is_replaceable(), written=written):
                return False
        except Exception:
            return False  # a cell can break any module; save_here() tells
        self.base = number
        self.journal.clear()
        return True

    def save_here(self, number: int) -> None:
        """Write the checkpoint in this process."""
        started = monotonic()
        with self.streams.silenced():
            report = self.write_checkpoint(number, self.interrupts)
        if self.heirs is not None:
            self.heirs.note_saved(monotonic() - started - self.checkpoint.blob_seconds)
        self.base, self.failed = (number, 0) if report["error"] is None else (None, number)
        if self.base is not None:
            self.journal.clear()
        self.progress[SAVING] = 0
        self.tell(report)

    def note_in_journal(self, number: int, bound: set[str]) -> bool:
        """Save what a trivial cell has bound. Return whether it was."""
        values = self.namespace.values
        found = {name: values[name] for name in bound if name in values}
        if self.base is None or not is_plain(found):
            return False
        now = monotonic()
        if not self.is_journal_needed():
            self.journaled_since = now
        elif now > self.journaled_since + (_AGE_CHEAP if self.is_cheap() else _JOURNAL_AGE):
            return False
        return self.journal.note(number, self.base, found)

    def is_journal_needed(self) -> bool:
        """Return whether the journal has something that is not on disk."""
        is_safe = self.base is not None and self.started
        return is_safe and self.journal.last > self.progress[SAVED]

    def save_idle(self, number: int) -> None:
        """Save the variables as of the last request, between two requests."""
        phase = self.progress[PHASE]
        self.progress[PHASE] = CHECKPOINTING
        self.progress[SAVING] = self.kept
        self.own_code.begin()
        self.save(number)
        self.own_code.end()
        self.progress[PHASE] = phase

    def write_checkpoint(self, number: int, interrupts: Interrupts) -> dict[str, Any]:
        """Write the checkpoint of a request. Return what to tell the host."""
        try:
            checkpoint = self.open_checkpoint()
            variables = self.namespace.variables()
            checkpoint.replacing = lambda inode: self.note_file(number, inode)
            report: dict[str, Any] = checkpoint.save(variables, interrupts, self.settings)
        except Exception as error:
            # A cell can break any module that saving needs. Go on without a checkpoint.
            report = unwritten(error_text(error))
        if report["error"] is None:
            self.progress[SAVED] = number
            if self.kept:
                report["variables"] = checkpoint.saved
                report["state"] = state_stamp()
        return report

    def tell(self, report: dict[str, Any]) -> None:
        """Tell the host how a checkpoint ended, if that was otherwise than the last time."""
        if report != self.reported:
            self.reported = report
            self.send({"op": "saved", **_bounded(report)})

    def await_disk(self) -> None:
        """Wait until the checkpoint of the last request is written."""
        self.await_heirs()
        if self.is_journal_needed():
            self.save_idle(self.journal.last)
            self.await_heirs()

    def await_heirs(self) -> None:
        """Wait until no heir has anything left to write."""
        phase = self.progress[PHASE]
        self.progress[PHASE] = CHECKPOINTING
        if self.look():
            self.progress[WAITING] = 1
            self.heirs.hurry()
            while self.look():
                sleep(_LOOK_AWAITED)
            self.progress[WAITING] = 0
        self.progress[PHASE] = phase

    def look(self) -> bool:
        """See to the heirs. Return whether one has something left to write."""
        heirs = self.heirs
        if heirs is None or not self.started:
            return False
        if heirs.look():
            return True
        if heirs.is_orphaned():
            # Somebody has killed it.
            number = max(heirs.held, self.journal.last)
            heirs.hold()
            heirs.release(drop=True)
            self.base = None
            self.save_idle(number)
        return False

    # In the writer, see `Heirs`

    def write(self, number: int, interrupts: Interrupts) -> dict[str, Any]:
        """Write the checkpoint. Return a report that can be pickled."""
        self.interrupts = self.streams.interrupts = interrupts
        number = self.apply_journal(number)
        names = {name: place for place, (name, _) in enumerate(self.namespace.variables(), 1)}
        checkpoint = self.checkpoint
        checkpoint.find_files()
        checkpoint.attempting = lambda name: self.heirs.note_attempt(names.get(name, 0))
        started = monotonic()
        with self.streams.silenced():
            report = self.write_checkpoint(number, interrupts)
        seconds = monotonic() - started - checkpoint.blob_seconds
        return {"report": report, "checkpoint": checkpoint.export(), "seconds": seconds}

    def apply_journal(self, number: int) -> int:
        """Bind what trivial cells have bound since an heir was forked. Return the last request."""
        return self.journal.apply(self.namespace.values, number, exact=True)

    def note_death(self, place: int, reason: str) -> bool:
        """Note in the heir that a variable has ended the writer. Return whether it is known."""
        for found, (name, value) in enumerate(self.namespace.variables(), 1):
            if found == place:
                self.checkpoint.note_deadly(name, value, "saving it " + reason)
                return True
        return False

    def fail(self, reason: str) -> dict[str, Any]:
        """Return the report that there is no checkpoint."""
        return {"report": unwritten(reason)}

    def adopt(self, number: int, news: dict[str, Any]) -> None:
        """Take what a writer, or an heir without one, has reported."""
        if "checkpoint" in news:
            self.checkpoint.adopt(news["checkpoint"], number)
            self.heirs.note_saved(news["seconds"], by_writer=True)
        if getpid() == self.pid and number >= self.failed:
            self.tell(news["report"])

    def note_file(self, number: int, inode: int) -> None:
        """Note that the file with this inode has what the request with this number has changed."""
        self.progress[FILE] = 0  # a death between the next two lines must not mix up two files
        self.progress[FILE_REQUEST] = number
        self.progress[FILE] = inode


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


def unwritten(reason: str) -> dict[str, Any]:
    """Return the report of a checkpoint that could not be written."""
    return {"unsaved": [], "error": reason}


def _bounded(report: dict[str, Any]) -> dict[str, Any]:
    """Bound a message about variables. Cells may make any number of them, with any names."""
    bounded = dict(report)
    for key in ("unsaved", "lost", "variables"):
        if key in report:
            bounded[key] = [[entry[0][:_NAME], *entry[1:]] for entry in report[key][:_REPORTED]]
    for key in ("older", "names"):
        if key in report:
            bounded[key] = [name[:_NAME] for name in report[key][:_REPORTED]]
    return bounded


def has_state() -> bool:
    """Return whether an earlier sandbox has left a state file, readable or not."""
    for name in (wire.STATE, wire.PREVIOUS_STATE):
        try:
            os.stat(os.path.join(WORKSPACE, name), follow_symlinks=False)
        except FileNotFoundError:
            continue
        except OSError:  # not "there is none": a new session would overwrite it
            pass
        return True
    return False


def state_stamp() -> list[int]:
    """Return size and ``mtime_ns`` of the state file, by which the host recognizes it."""
    try:
        found = os.stat(os.path.join(WORKSPACE, wire.STATE))
    except OSError:
        return [0, 0]  # a cell has removed it
    return [found.st_size, found.st_mtime_ns]


def main(
    control: socket.socket,
    calls: socket.socket,
    mode: str,
    progress: memoryview,
    journal: memoryview,
    slots: memoryview,
) -> int:
    """Serve until the supervisor closes its end. Return the process's exit status."""
    return Worker(control, calls, mode, progress, journal, slots).serve()
