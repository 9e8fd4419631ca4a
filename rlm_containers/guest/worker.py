"""Runs cells in a live interpreter, and saves the variables after each cell."""

from __future__ import annotations

import contextlib
import json
import linecache
import os
import socket
import sys
from collections.abc import Iterator
from typing import Any

from . import lm, wire
from .interrupts import BEGUN, SAVED, SAVING, Interrupts
from .namespace import Namespace
from .shortforms import error_text
from .streams import StandardStreams, print_exception, print_exit_code

#: The workspace. A name of this module's, so that tests without a container can set it.
WORKSPACE = wire.WORKSPACE


class Worker:
    """The interpreter of a session.

    :mod:`rlm_guest.wire` describes the requests and messages. The next request is read only after
    the checkpoint of the last one is written, so a cell cannot lose what an earlier one was
    answered for.

    Args:
        control: frames from and to the supervisor.
        calls: for calls to the host over the pipe, see :mod:`rlm_guest.lm`.
        mode: ``"restore"`` to restore the last checkpoint, ``"previous"`` the one before it,
            ``"fresh"`` to start without variables.
        progress: the numbers shared with the supervisor, see :mod:`rlm_guest.interrupts`.
    """

    def __init__(
        self, control: socket.socket, calls: socket.socket, mode: str, progress: memoryview
    ) -> None:
        self.control = control
        self.calls = calls
        self.mode = mode
        self.progress = progress
        self.pid = os.getpid()
        self.interrupts = Interrupts(progress)
        self.started = False
        self.exit_code = 0
        # Whether the session outlives the container. Then tell the host what is saved.
        self.kept = False
        self.checkpoint: Any = None
        self.figures: Any = None
        # The last `saved`. Without one, the host assumes of the first worker that all is saved.
        is_first = not progress[BEGUN]
        self.reported: dict[str, Any] = {"unsaved": [], "error": None} if is_first else {}
        self.namespace = Namespace()
        self.streams = StandardStreams()
        self.interrupts.install()

    # Frames

    def serve(self) -> int:
        """Answer requests until the supervisor closes its end. Return the exit status."""
        decoder = wire.FrameDecoder()
        while True:
            data = self.control.recv(1 << 20)
            if not data:
                return 0
            for _, payload in decoder.feed(data):
                self.handle(json.loads(payload))

    def send(self, message: dict[str, Any]) -> None:
        """Send one message to the host."""
        self.control.sendall(wire.encode(wire.MESSAGE, json.dumps(message).encode("ascii")))

    def handle(self, request: dict[str, Any]) -> None:
        """Handle a request. The host is trusted, so a malformed one may end the worker."""
        operation = request["op"]
        if operation == "start":
            self.start(request)
        elif not self.started:
            pass  # meant for a worker that died; the host sends it again
        else:
            number = request["id"]
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
            # Requests are handled in turn, so the checkpoint before this one is written.
            if self.reported.get("error") is None:
                self.progress[SAVED] = request["id"]
            self.send({"op": "result", "id": request["id"], "status": "ok"})
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

    def start(self, request: dict[str, Any]) -> None:
        """Connect to the language model, restore the checkpoint if there is one, and say so."""
        self.started = True
        self.kept = request.get("kept_session", False)
        route = lm.connect(request["proxy"], self.calls, has_model=request["lm"])
        os.environ.update(request["env"])
        os.chdir(WORKSPACE)
        if request.get("file_limit"):
            import resource

            # The hard limit too, so that no cell can raise it. Python ignores SIGXFSZ.
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"],) * 2)
        self.namespace.begin(request.get("scaffold", True))
        if request.get("tools"):
            self.bind_tools(request["tools"])
        report: dict[str, Any] = {"lost": [], "damage": "", "older": []}
        if request["expected"] or has_state():
            report = self.restore()
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
        # There is nothing to do until the first cell. So import what the first checkpoint and the
        # first query need, which takes a while if the image has no compiled byte code.
        self.open_checkpoint()
        self.watch_figures()
        if route["route"] == "http":
            import http.client  # noqa: F401

    def bind_tools(self, tools: list[dict[str, str]]) -> None:
        """Let cells call these functions of the host."""
        from .tools import bind_tools

        self.namespace.bind_tools(bind_tools(tools, self.calls))

    def open_checkpoint(self) -> Any:
        if self.checkpoint is None:
            from .state.checkpoint import Checkpoint  # late: dill is slow, and remembers __main__

            self.checkpoint = Checkpoint(WORKSPACE)
        return self.checkpoint

    def watch_figures(self) -> None:
        """Watch for figures that matplotlib saves. Call this before matplotlib is imported."""
        if self.figures is None:
            from .figures import Figures

            self.figures = Figures(WORKSPACE)
            self.figures.watch()

    def restore(self) -> dict[str, Any]:
        """Restore the checkpoint. Return ``lost``, ``damage`` and ``older`` of ``ready``."""
        if self.mode == "fresh":
            lost = [["*", "", "restoring the checkpoint killed the interpreter"]]
            return {"lost": lost, "damage": "", "older": []}
        checkpoint = self.open_checkpoint()
        self.watch_figures()  # restoring a variable may import matplotlib
        with self.streams.silenced(), workspace_modules():
            report: dict[str, Any] = checkpoint.load(
                self.namespace.values, self.interrupts, last=self.mode == "restore"
            )
        self.reported = {}  # the host assumes nothing: report the next checkpoint in any case
        return report

    # Cells

    def run_cell(self, name: str, code: str, display: bool = False) -> str:
        """Run a cell. Return its status: ``"ok"``, ``"error"``, ``"exit"`` or ``"interrupted"``.

        With ``display``, print the value of an expression at its end.
        """
        filename = "<{}>".format(name)
        # Tracebacks and inspect.getsource() find the cell's source here. An entry without a
        # modification time is never checked against a file.
        if type(linecache.cache) is not dict:  # a cell has replaced it
            linecache.cache = {}
        linecache.cache[filename] = (len(code), None, code.splitlines(True), filename)
        run = run_code
        if display:
            from .display import run_displaying as run  # not later: a cell may have an ast.py
        try:
            with workspace_modules(), self.interrupts:
                self.interrupts.check()
                run(code, filename, self.namespace.values)
            return "ok"
        except SystemExit as error:
            self.mend_streams()
            self.exit_code = print_exit_code(error)
            return "exit"
        except KeyboardInterrupt as error:
            self.mend_streams()
            print_exception(error, error.__traceback__)
            return "interrupted"
        except BaseException as error:
            self.mend_streams()
            print_exception(error, error.__traceback__)
            return "error"

    def mend_streams(self) -> None:
        """Restore the standard streams, so that a traceback is seen whatever the cell did."""
        if os.getpid() == self.pid:
            self.streams.restore()

    def load(self, request: dict[str, Any]) -> str:
        """Bind a variable to the contents of a file that the host put into the workspace."""
        loaded = self.open_checkpoint().loaded
        raw = loaded.read(request["file"])
        text = raw.decode("utf-8", "surrogatepass")
        value = text if request["kind"] == "text" else json.loads(text)
        name = request["name"]
        if request.get("keep"):
            self.namespace.history_is_kept = True
            self.namespace.history = value
        # After a damaged checkpoint this may be another file than the host knows of.
        before = loaded.file_of(self.namespace.values.get(name))
        self.namespace.values[name] = value
        for superseded in {before, request["superseded"]} - {None, request["file"]}:
            loaded.superseded.add(superseded)
        loaded.add(value, request["file"])
        return "ok"

    def finish(self, number: int, status: str) -> None:
        """Answer, then save."""
        if os.getpid() != self.pid:
            # This is a child that the cell forked, and that returned from the cell.
            self.streams.restore()
            os._exit(0)
        self.interrupts.install()
        self.namespace.restore_scaffold()
        self.streams.restore()
        result: dict[str, Any] = {
            "op": "result",
            "id": number,
            "status": status,
            "locals": self.namespace.short_forms(self.interrupts),
            "final_answer": self.namespace.final_answer(self.interrupts),
        }
        if status == "exit":
            result["exit_code"] = self.exit_code
        artifacts = self.figures.saved_files()
        if artifacts:
            result["artifacts"] = artifacts
        self.streams.restore()  # a __repr__ may have printed
        self.interrupts.begin(2 * number + 1)
        self.progress[SAVING] = self.kept
        self.send(result)
        self.save(number)

    def save(self, number: int) -> None:
        """Write the checkpoint. Tell the host only if that ended otherwise than the last time."""
        with self.streams.silenced():
            try:
                checkpoint = self.open_checkpoint()
                report = checkpoint.save(self.namespace.variables(), self.interrupts)
            except Exception as error:
                # A cell can break any module that saving needs. Go on without a checkpoint.
                report = {"unsaved": [], "error": error_text(error)}
        if report["error"] is None:
            self.progress[SAVED] = number
            if self.kept:
                report["variables"] = checkpoint.saved
                report["state"] = state_stamp()
        self.progress[SAVING] = 0
        if report != self.reported:
            self.reported = report
            self.send({"op": "saved", **_bounded(report)})


#: The most variables that a message names, and the most characters of a name. The host reads
#: little more.
_REPORTED = 10_000
_NAME = 200


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


def run_code(code: str, filename: str, namespace: dict[str, Any]) -> None:
    """Run a cell."""
    exec(compile(code, filename, "exec", dont_inherit=True), namespace)


@contextlib.contextmanager
def workspace_modules() -> Iterator[None]:
    """Let imports find the modules that cells have written to the workspace.

    At no other time: dill and this package must not import a cell's ``json.py``.
    """
    sys.path.insert(0, "")
    try:
        yield
    finally:
        if "" in sys.path:
            sys.path.remove("")


def has_state() -> bool:
    """Return whether an earlier sandbox has left a state file."""
    names = (wire.STATE, wire.PREVIOUS_STATE)
    return any(os.path.lexists(os.path.join(WORKSPACE, name)) for name in names)


def state_stamp() -> list[int]:
    """Return size and ``mtime_ns`` of the state file, by which the host recognizes it."""
    try:
        found = os.stat(os.path.join(WORKSPACE, wire.STATE))
    except OSError:
        return [0, 0]  # a cell has removed it
    return [found.st_size, found.st_mtime_ns]


def main(control: socket.socket, calls: socket.socket, mode: str, progress: memoryview) -> int:
    """Serve until the supervisor closes its end. Return the process's exit status."""
    return Worker(control, calls, mode, progress).serve()
