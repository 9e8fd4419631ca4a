"""Runs cells, one after the other, in a live interpreter, and saves its variables after each."""

from __future__ import annotations

import contextlib
import json
import linecache
import mmap
import os
import socket
import sys
from collections.abc import Iterator
from typing import Any

from . import lm, wire
from .interrupts import Interrupts
from .namespace import Namespace
from .shortforms import error_text
from .streams import StandardStreams, print_exception, print_exit_code

#: Where the workspace of the host is mounted.
WORKSPACE = wire.WORKSPACE


class Worker:
    """The interpreter of a session.

    Every request of the host is answered with exactly one ``result`` (or ``ready``). Then the
    checkpoint is written; a ``saved`` follows when it turned out otherwise than the last one. The
    next request is read only after that: no cell can lose what an earlier one was acknowledged
    for.

    Args:
        control: frames from and to the supervisor.
        calls: for calls to the host over the pipe, see :mod:`rlm_guest.lm`.
        mode: ``"restore"`` to go on from the checkpoint, ``"previous"`` from the one before it,
            ``"fresh"`` to begin with nothing.
        progress: memory that the supervisor sees too, see there.
    """

    def __init__(
        self, control: socket.socket, calls: socket.socket, mode: str, progress: mmap.mmap
    ) -> None:
        self.control = control
        self.calls = calls
        self.mode = mode
        self.progress = progress
        self.pid = os.getpid()
        self.interrupts = Interrupts(progress)
        self.started = False
        self.exit_code = 0
        #: Whether the session outlives the container: then the host is told what is saved.
        self.kept = False
        self.checkpoint: Any = None
        self.figures: Any = None
        # What the host takes for granted; of what another worker has left behind, nothing.
        is_first = not int.from_bytes(progress[8:16], "big")
        self.reported: dict[str, Any] = {"unsaved": [], "error": None} if is_first else {}
        self.namespace = Namespace()
        self.streams = StandardStreams()
        self.interrupts.install()

    # Frames

    def serve(self) -> int:
        """Answer requests until the supervisor closes its end; the exit status."""
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
        """Do what a request says. The host is trusted, so a malformed one may end the worker."""
        operation = request["op"]
        if operation == "start":
            self.start(request)
        elif not self.started:
            pass  # meant for a predecessor that died in the meantime; the host sends it again
        else:
            number = request["id"]
            self.interrupts.begin(2 * number)
            self.progress[8:16] = number.to_bytes(8, "big")
            if self.interrupts.reaches(2 * number):
                # It came while the checkpoint before this request was written.
                self.send({"op": "result", "id": number, "status": "interrupted", "skipped": True})
                return
            if request.get("announce"):
                self.send({"op": "begun", "id": number})
            self.answer(request)

    def answer(self, request: dict[str, Any]) -> None:
        """Do what a request says, which is not the first."""
        operation = request["op"]
        if operation == "cell":
            display = request.get("display", False)
            self.finish(request["id"], self.run_cell(request["name"], request["code"], display))
        elif operation == "load":
            self.finish(request["id"], self.load(request))
        elif operation == "sync":
            # Requests are answered in turn, so the checkpoint before this one is written.
            if self.reported.get("error") is None:
                self.progress[:8] = request["id"].to_bytes(8, "big")
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
        """Connect to the host's language model and go on from the checkpoint, if there is one."""
        self.started = True
        self.kept = request.get("kept_session", False)
        route = lm.connect(request["proxy"], self.calls, has_model=request["lm"])
        os.environ.update(request["env"])
        os.chdir(WORKSPACE)
        if request.get("file_limit"):
            import resource

            # Hard, so that no cell can raise it. Python ignores the signal that comes with it.
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
        # With nothing to do until the first cell: what the first checkpoint and the first
        # query need, which takes a while where the image has no compiled byte code.
        self.open_checkpoint()
        self.watch_figures()
        if route["route"] == "http":
            import http.client  # noqa: F401

    def bind_tools(self, told: list[dict[str, str]]) -> None:
        """Let cells call these functions of the host."""
        from .tools import bind_tools

        self.namespace.bind_tools(bind_tools(told, self.calls))

    def open_checkpoint(self) -> Any:
        if self.checkpoint is None:
            from .state.checkpoint import Checkpoint  # late: dill is slow, and remembers __main__

            self.checkpoint = Checkpoint(WORKSPACE)
        return self.checkpoint

    def watch_figures(self) -> None:
        """Take note of the figures that matplotlib saves, from before it is imported."""
        if self.figures is None:
            from .figures import Figures

            self.figures = Figures(WORKSPACE)
            self.figures.watch()

    def restore(self) -> dict[str, Any]:
        """Load the checkpoint; which variables are lost or older, and why."""
        if self.mode == "fresh":
            lost = [["*", "", "restoring the checkpoint killed the interpreter"]]
            return {"lost": lost, "damage": "", "older": []}
        checkpoint = self.open_checkpoint()
        self.watch_figures()  # a variable may be matplotlib
        with self.streams.silenced(), workspace_modules():
            report: dict[str, Any] = checkpoint.load(
                self.namespace.values, self.interrupts, last=self.mode == "restore"
            )
        self.reported = {}  # what the next checkpoint has to say is news in any case
        return report

    # Cells

    def run_cell(self, name: str, code: str, display: bool = False) -> str:
        """Run a cell; ``"ok"``, ``"error"``, ``"exit"`` or ``"interrupted"``.

        With ``display`` the value of an expression at its end is printed.
        """
        filename = "<{}>".format(name)
        # Without a modification time linecache takes the entry as it is, and tracebacks as well
        # as inspect.getsource() find the cell's source lines.
        if type(linecache.cache) is not dict:  # a cell can reach this module, too
            linecache.cache = {}
        linecache.cache[filename] = (len(code), None, code.splitlines(True), filename)
        run = run_code
        if display:
            from .display import run_displaying as run  # not below: a cell may have an ast.py
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
        """Make sure that what is to be said of a cell's end is read, whatever the cell did."""
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
        # Not only what the host takes it to be: a damaged checkpoint may have brought an older one.
        before = loaded.file_of(self.namespace.values.get(name))
        self.namespace.values[name] = value
        for superseded in {before, request["superseded"]} - {None, request["file"]}:
            loaded.superseded.add(superseded)
        loaded.add(value, request["file"])
        return "ok"

    def finish(self, number: int, status: str) -> None:
        """Answer, then save."""
        if os.getpid() != self.pid:
            # A child that the cell forked has come back from it. There is one worker only.
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
        artifacts = self.figures.take()
        if artifacts:
            result["artifacts"] = artifacts
        self.streams.restore()  # a repr may have printed
        self.interrupts.begin(2 * number + 1)
        self.progress[32] = self.kept
        self.send(result)
        self.save(number)

    def save(self, number: int) -> None:
        """Write the checkpoint; tell the host only what it does not know already."""
        with self.streams.silenced():
            try:
                checkpoint = self.open_checkpoint()
                report = checkpoint.save(self.namespace.variables(), self.interrupts)
            except Exception as error:
                # A cell can break any module that saving needs. Its session goes on without.
                report = {"unsaved": [], "error": error_text(error)}
        if report["error"] is None:
            self.progress[:8] = number.to_bytes(8, "big")
            if self.kept:
                report["variables"] = checkpoint.saved
                report["state"] = state_stamp()
        self.progress[32] = 0
        if report != self.reported:
            self.reported = report
            self.send({"op": "saved", **_bounded(report)})


#: Variables that a report names, and characters of a name. The host refuses to read much more.
_REPORTED = 10_000
_NAME = 200


def _bounded(report: dict[str, Any]) -> dict[str, Any]:
    """What is said of variables, whatever names a cell has given to how many of them."""
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
    """Let modules be imported that cells have written next to their data.

    At no other time: a cell's json.py must not be what dill or this package imports.
    """
    sys.path.insert(0, "")
    try:
        yield
    finally:
        if "" in sys.path:
            sys.path.remove("")


def has_state() -> bool:
    """Whether an earlier sandbox has left anything to go on from."""
    names = (wire.STATE, wire.PREVIOUS_STATE)
    return any(os.path.lexists(os.path.join(WORKSPACE, name)) for name in names)


def state_stamp() -> list[int]:
    """The length of the state file and its time, by which the host knows what a report is about."""
    try:
        found = os.stat(os.path.join(WORKSPACE, wire.STATE))
    except OSError:
        return [0, 0]  # a cell has removed it
    return [found.st_size, found.st_mtime_ns]


def main(control: socket.socket, calls: socket.socket, mode: str, progress: mmap.mmap) -> int:
    """Serve until the supervisor hangs up; the process's exit status."""
    return Worker(control, calls, mode, progress).serve()
