"""The process that runs the cells: answers the requests of the host, one after another."""

from __future__ import annotations

import gc
import json
import os
import select
import socket
from typing import TYPE_CHECKING, Any

from . import lm, sources, wire
from .account import limit_files, name_user
from .cells import CellRunner, OwnCode
from .hooks import CellHooks
from .interrupts import (
    ANSWERING,
    BEGUN,
    CHECKPOINTING,
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
from .saving import Saving, bounded
from .settings import Settings
from .shortforms import error_text
from .statefile import StateFile
from .streams import StandardStreams
from .succession import Branched, TakenOver

if TYPE_CHECKING:
    from .figures import Figures

#: The workspace. A name of this module's, so that tests without a container can set it.
WORKSPACE = wire.WORKSPACE


class Worker:
    """The live interpreter.

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
        self.slots = slots
        # In a branch: the numbers of the worker, whose place it may take.
        self.parent: memoryview | None = None
        self.started = False
        self.took_over = False  # whether this process was an heir
        self.figures: Figures | None = None
        self.own_code = OwnCode()
        self.hooks = CellHooks()
        self.search_path = SearchPath()
        self.namespace = Namespace()
        self.interrupts = Interrupts(progress)
        self.streams = StandardStreams(self.interrupts)
        self.journal = Journal(progress, journal)
        self.state_file = StateFile(WORKSPACE, self.namespace, self.streams, self.interrupts)
        self.saving = Saving(
            self.state_file,
            self.journal,
            self.namespace,
            self.streams,
            self.hooks,
            self.own_code,
            self.interrupts,
            self.send,
        )
        self.cells = CellRunner(
            self.namespace,
            self.search_path,
            self.streams,
            self.hooks,
            self.own_code,
            self.interrupts,
            self.saving,
        )
        self.interrupts.install()

    # Requests

    def serve(self) -> int:
        """Answer requests until the supervisor closes its end. Return the exit status."""
        while True:
            try:
                return self.serve_requests()
            except TakenOver:
                self.begin_again(self.interrupts.progress)
            except Branched as branched:
                self.begin_branch(branched.progress)

    def serve_requests(self) -> int:
        """Answer requests until the supervisor closes its end. Return the exit status."""
        decoder = wire.FrameDecoder()
        while True:
            self.await_request()
            data = self.control.recv(wire.CHUNK)
            if not data and self.parent is not None:
                return 0  # nobody has kept it
            if not data:
                if self.state_file.kept:
                    self.saving.save_journal()
                self.end_session()
                return 0
            for _, payload in decoder.feed(data):
                self.interrupts.progress[PHASE] = RUNNING
                self.handle(json.loads(payload))
                self.interrupts.progress[PHASE] = 0

    def await_request(self) -> None:
        """While something is left to write, see to that until the next request comes."""
        while self.started:
            seconds = self.saving.look()
            if seconds is None or select.select((self.control,), (), (), seconds)[0]:
                return
            self.saving.save_quiet()

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
            self.saving.reap()
            if operation == "sync":
                self.saving.await_disk()
            self.interrupts.begin(2 * number)
            self.interrupts.progress[BEGUN] = number
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
            status = self.cells.run(request["name"], request["code"], display=display)
            self.finish(request["id"], status)
        elif operation == "load":
            self.load(request)
            self.finish(request["id"], "ok")
        elif operation == "sync":
            # The checkpoint before this one is written.
            progress = self.interrupts.progress
            if not self.saving.has_failed:
                progress[SAVED] = request["id"]
            saved = progress[SAVED]
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

    # The start

    def prepare(self, *, compiled: bool) -> None:
        """Import what a start, the first cell and the first checkpoint need, and say so.

        With ``compiled``, also return the byte code of what had to be compiled.
        """
        import pwd  # noqa: F401
        import resource  # noqa: F401
        import site  # noqa: F401

        # `branches` and `burial` are the supervisor's. Their byte code is wanted too.
        from . import branches, branching, burial, figures, heirs, spawning, tools  # noqa: F401
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
        settings = Settings(self.search_path.path_of_cells, self.own_code, self.hooks)
        kept, durable = request.get("kept_session", False), request.get("durable", False)
        self.state_file.begin(settings, kept=kept, durable=durable)
        self.namespace.begin(request.get("scaffold", True))
        if request.get("tools"):
            self.bind_tools(request["tools"])
        report: dict[str, Any] = {"lost": [], "damage": "", "older": []}
        seconds = 0.0
        if request["expected"] or self.state_file.exists():
            started = monotonic()
            report = self.restore()
            seconds = monotonic() - started
        self.be_ready(request, route, report)
        # There is nothing to do until the first cell. So import what the first checkpoint needs,
        # which takes a while if the image has no compiled byte code.
        self.state_file.open()
        if request.get("heirs"):
            self.saving.open_heirs(seconds)
        self.watch_figures()
        self.watch_spawning()
        forget_compiled()
        self.hooks.hold()
        self.own_code.end()

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
        self.send({"op": "ready", "locals": forms, **route, **bounded(report)})

    def bind_tools(self, tools: list[dict[str, str]]) -> None:
        """Let cells call these functions of the host."""
        from .tools import bind_tools

        self.namespace.bind_tools(bind_tools(tools, self.calls))

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
        self.watch_figures()  # restoring a variable may import matplotlib
        return self.saving.restore(self.search_path, last=self.mode == "restore")

    # In the place of another process

    def begin_again(self, progress: memoryview) -> None:
        """Begin as the worker, in the process that was an heir or a branch."""
        self.took_over, self.started = True, False
        self.interrupts.share(progress)
        self.interrupts.install()
        self.own_code.end()
        self.saving.begin_again()
        progress[PHASE] = progress[SAVING] = 0

    def begin_branch(self, progress: memoryview) -> None:
        """Begin as a branch, in a forked child of the worker."""
        self.parent = self.interrupts.progress
        self.interrupts.share(progress)
        self.interrupts.install()
        self.saving.begin_branch()
        self.own_code.end()
        lm.connect(None, self.calls, has_model=True)

    def succeed(self, request: dict[str, Any]) -> None:
        """Become the worker, in the process of a branch. The host has it saved then."""
        assert self.parent is not None
        progress, self.parent = self.parent, None
        self.begin_again(progress)
        gc.unfreeze()
        self.own_code.begin()
        self.state_file.checkpoint.find_changes()
        self.begin_in_place(request)
        self.own_code.end()

    def resume(self, request: dict[str, Any]) -> None:
        """Do what is new to a process that was an heir: all its variables are there."""
        self.begin_in_place(request)
        self.saving.resume()

    def begin_in_place(self, request: dict[str, Any]) -> None:
        """Begin with all variables, in the place of another worker."""
        self.took_over, self.started = False, True
        route = lm.connect(request["proxy"], self.calls, has_model=request["lm"])
        self.streams.restore()
        if request.get("tools"):
            self.bind_tools(request["tools"])
        self.journal.clear()  # it has been applied
        self.be_ready(request, route, {"lost": [], "damage": "", "older": []})

    # Variables and answers

    def load(self, request: dict[str, Any]) -> None:
        """Bind a variable to the contents of a file that the host put into the workspace."""
        loaded = self.state_file.checkpoint.loaded
        name, file = request["name"], request["file"]
        value = loaded.load(
            request["kind"], file, request["size"], request["checksum"], request.get("id")
        )
        if request.get("keep"):
            self.namespace.history_is_kept = True
            self.namespace.history = value
        # After a damaged checkpoint this may be another file than the host knows of.
        before = loaded.file_of(self.namespace.values.get(name))
        self.namespace.values[name] = value
        for superseded in {before, request["superseded"]} - {None, file}:
            loaded.superseded.add(superseded)

    def finish(self, number: int, status: str) -> None:
        """Answer, then save."""
        self.own_code.begin()
        self.hooks.hold()
        progress = self.interrupts.progress
        progress[PHASE] = ANSWERING
        self.interrupts.install()
        self.namespace.restore_scaffold()
        self.streams.restore()
        result: dict[str, Any] = {
            "op": "result",
            "id": number,
            "status": status,
            "locals": self.namespace.short_forms(self.interrupts, self.saving.bound),
            "final_answer": self.namespace.final_answer(self.interrupts),
            "saved": progress[SAVED],
        }
        if status == "exit":
            result["exit_code"] = self.cells.exit_code
        artifacts = self.figures.saved_files() if self.figures is not None else []
        if artifacts:
            result["artifacts"] = artifacts
        self.streams.restore_again()  # a __repr__ may have printed
        self.interrupts.begin(2 * number + 1)
        saves = self.parent is None  # a branch does not
        progress[SAVING] = saves and self.state_file.kept
        progress[PHASE] = CHECKPOINTING
        self.send(result)
        if saves:
            self.saving.save(number)
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
        self.send({**answer, "saved": self.interrupts.progress[SAVED]})


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
