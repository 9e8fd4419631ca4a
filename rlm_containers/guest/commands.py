"""Runs commands beside the cells, for the supervisor.

For each command the supervisor forks a *keeper*, which starts the command and adopts what that
leaves behind: it is a subreaper, see ``PR_SET_CHILD_SUBREAPER`` in prctl(2). So whatever a command
has started descends from its keeper, daemons too, and nothing of a cell does. A keeper ends with
the last of its processes, or is killed with all of them.
"""

from __future__ import annotations

import fcntl  # noqa: F401 - become() needs it, and would import it anew in each keeper
import json
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from . import wire
from .account import limit_files, name_user
from .descriptors import become
from .memory import MemoryWatch, offer_to_kernel
from .processes import kill_trees, subreaper

#: The directory in which commands start. A name of this module's, so that tests without a
#: container can set it.
WORKSPACE = wire.WORKSPACE

#: Exit codes of commands that could not be started, as shells have them.
_NOT_FOUND = 127
_NOT_STARTED = 126

#: The signals that the supervisor ignores, and a command must not.
_IGNORED_SIGNALS = (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ)


class _Command:
    """A command, until all that it has started is gone.

    Attributes:
        number: the host's number of it.
        keeper: the process id of its keeper.
        stdin, stdout, stderr: this process's ends of its standard streams; -1 once closed.
        report: where the keeper reports how it ended; -1 once the keeper has ended.
        waiting: input that it has not read yet.
        complete: whether no more input follows.
        untaken: how much output the host has not taken.
        kills: how many processes the kernel had killed for their memory before.
        ended: whether the host knows how it ended. What is written after that is discarded.
    """

    def __init__(self, number: int, keeper: int, ends: tuple[int, int, int, int]) -> None:
        self.number = number
        self.keeper = keeper
        self.stdin, self.stdout, self.stderr, self.report = ends
        self.waiting = bytearray()
        self.complete = False
        self.untaken = 0
        self.kills: int | None = None
        self.ended = False


class Commands:
    """The commands of a container.

    Args:
        poll: registers their descriptors.
        send: writes a frame to the host.
        memory: knows whether the kernel has killed a process.
    """

    def __init__(
        self, poll: select.poll, send: Callable[[int, bytes], None], memory: MemoryWatch
    ) -> None:
        self._poll = poll
        self._send = send
        self._memory = memory
        self._running: dict[int, _Command] = {}  # by number
        self._ends: dict[int, _Command] = {}  # by descriptor
        self._adopt = subreaper()
        name_user()

    def keepers(self) -> set[int]:
        """Return the process ids of the keepers."""
        return {command.keeper for command in self._ends.values() if command.report >= 0}

    def handle_frame(self, kind: int, payload: bytes) -> None:
        """Handle a frame of the host."""
        number, rest = int.from_bytes(payload[:4], "big"), payload[4:]
        if kind == wire.RUN:
            self._start(number, json.loads(rest))
            return
        command = self._running.get(number)
        if command is None:
            if kind == wire.KILL:  # the host may not know that it has ended, or never began
                self._say(wire.ENDED, number, json.dumps({"signal": int(signal.SIGKILL)}).encode())
        elif kind == wire.INPUT:
            self._take_input(command, rest)
        elif kind == wire.TAKEN:
            command.untaken -= int.from_bytes(rest, "big")
            for descriptor in (command.stdout, command.stderr):
                self._watch_output(command, descriptor)
        elif kind == wire.KILL:
            self._kill(command)

    def handle_event(self, descriptor: int) -> bool:
        """Read or write what can be. Return whether the descriptor is that of a command."""
        command = self._ends.get(descriptor)
        if command is None:
            return False
        if descriptor == command.stdin:
            self._write_input(command)
        elif descriptor == command.report:
            self._read_report(command)
        else:
            self._read_output(command, descriptor)
        return True

    def kill_all(self) -> None:
        """Kill all commands and what they have left."""
        _kill(self.keepers())

    # Start and end

    def _start(self, number: int, request: dict[str, Any]) -> None:
        if "files" in request:
            from . import files  # noqa: F401 - before the fork, so that it is imported once
        pipes: list[tuple[int, int]] = []
        try:
            pipes.extend(os.pipe() for _ in range(4))
            keeper = os.fork()
        except OSError as error:
            for descriptor in (end for pipe in pipes for end in pipe):
                os.close(descriptor)
            message = "rlm-containers: no process can be started: {}\n".format(error.strerror)
            self._say(wire.RUN_ERR, number, message.encode())
            self._say(wire.ENDED, number, json.dumps({"exit": _NOT_STARTED}).encode())
            return
        (stdin, to_stdin), (from_stdout, stdout), (from_stderr, stderr), (reports, report) = pipes
        if keeper == 0:
            _keep((stdin, stdout, stderr, report), request, self._adopt)
        for descriptor in (stdin, stdout, stderr, report):
            os.close(descriptor)
        ends = (to_stdin, from_stdout, from_stderr, reports)
        command = _Command(number, keeper, ends)
        command.kills = self._memory.count()
        self._running[number] = command
        for descriptor in ends:
            os.set_blocking(descriptor, False)
            self._ends[descriptor] = command
            if descriptor != to_stdin:
                self._poll.register(descriptor, select.POLLIN)
        if not request["input"]:
            self._close_input(command)

    def _read_report(self, command: _Command) -> None:
        status = self._status(command)
        if command.report < 0 and not command.ended:
            status = int(signal.SIGKILL)  # somebody has killed its keeper
        if status is not None and not command.ended:
            self._end(command, status)

    def _status(self, command: _Command) -> int | None:
        """Return the exit status as of waitpid(); ``None`` if there is no news of it."""
        try:
            data = os.read(command.report, 4) if command.report >= 0 else b""
        except BlockingIOError:
            return None
        if not data:
            command.report = self._close(command.report)
            return None
        return int.from_bytes(data, "big")

    def _kill(self, command: _Command) -> None:
        _kill({command.keeper})
        status = self._status(command)
        self._end(command, int(signal.SIGKILL) if status is None else status)

    def _end(self, command: _Command, status: int) -> None:
        """Tell the host how a command ended."""
        for descriptor in (command.stdout, command.stderr):
            left = wire.DRAINED
            while left > 0 and descriptor in self._ends:
                length = self._read_output(command, descriptor, left)
                if not length:
                    break
                left -= length
        report = (
            {"signal": os.WTERMSIG(status)}
            if os.WIFSIGNALED(status)
            else {"exit": os.WEXITSTATUS(status)}
        )
        text = json.dumps(report)
        kills = self._memory.count()
        if kills is not None and command.kills is not None and kills > command.kills:
            self._memory.new_kills()  # else the next answer of a cell would report it
            text = text[:-1] + ', "memory": ' + self._memory.report() + "}"
        self._say(wire.ENDED, command.number, text.encode())
        command.ended = True
        self._running.pop(command.number, None)
        self._close_input(command)
        for descriptor in (command.stdout, command.stderr):
            self._watch_output(command, descriptor)

    # Standard streams

    def _take_input(self, command: _Command, data: bytes) -> None:
        if not data:
            command.complete = True
        elif command.stdin < 0:
            self._take(command, len(data))
        command.waiting += data
        self._write_input(command)

    def _write_input(self, command: _Command) -> None:
        """Write what the command can take. Keep the rest until it can take more."""
        if command.stdin < 0:
            return
        taken = 0
        try:
            while command.waiting:
                count = os.write(command.stdin, command.waiting[: wire.CHUNK])
                del command.waiting[:count]
                taken += count
        except BlockingIOError:
            self._poll.register(command.stdin, select.POLLOUT)
        except OSError:  # it has closed its end
            taken += len(command.waiting)
            self._close_input(command)
        else:
            self._stop_polling(command.stdin)
            if command.complete:
                self._close_input(command)
        if taken:
            self._take(command, taken)

    def _take(self, command: _Command, count: int) -> None:
        self._say(wire.TAKEN, command.number, count.to_bytes(4, "big"))

    def _close_input(self, command: _Command) -> None:
        command.waiting.clear()
        if command.stdin >= 0:
            command.stdin = self._close(command.stdin)

    def _watch_output(self, command: _Command, descriptor: int) -> None:
        """Read a stream on once the host has taken enough of it."""
        if descriptor in self._ends and (command.ended or command.untaken < wire.WINDOW):
            self._poll.register(descriptor, select.POLLIN)

    def _read_output(self, command: _Command, descriptor: int, most: int = wire.CHUNK) -> int:
        """Pass on one chunk of a stream. Return its length, 0 if there is nothing to read."""
        try:
            data = os.read(descriptor, min(most, wire.CHUNK))
        except BlockingIOError:
            return 0
        if not data:  # the command and all its children have closed it
            if descriptor == command.stdout:
                command.stdout = self._close(descriptor)
            else:
                command.stderr = self._close(descriptor)
        elif not command.ended:
            kind = wire.RUN_OUT if descriptor == command.stdout else wire.RUN_ERR
            self._say(kind, command.number, data)
            command.untaken += len(data) + wire.FRAME_COST
            if command.untaken >= wire.WINDOW:
                self._stop_polling(descriptor)
        return len(data)

    def _say(self, kind: int, number: int, payload: bytes) -> None:
        self._send(kind, number.to_bytes(4, "big") + payload)

    def _stop_polling(self, descriptor: int) -> None:
        try:
            self._poll.unregister(descriptor)
        except KeyError:
            pass

    def _close(self, descriptor: int) -> int:
        self._stop_polling(descriptor)
        del self._ends[descriptor]
        os.close(descriptor)
        return -1


def _kill(keepers: set[int]) -> None:
    """Kill keepers and all that is below them. One that was spared might not have begun yet."""
    try:
        kill_trees(keepers)
    except OSError:
        pass  # there is no /proc; what is left ends with the container


# In the keeper


def _keep(
    ends: tuple[int, int, int, int], request: dict[str, Any], adopt: Callable[[], object]
) -> NoReturn:
    """In a keeper, start the command, report how it ends, and wait for all that it has left.

    ``ends`` are the keeper's descriptors of the command's stdin, stdout and stderr, and of the
    report.
    """
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        become(ends)
        if "files" in request:
            from . import files

            os.write(3, (files.serve(WORKSPACE, request["files"]) << 8).to_bytes(4, "big"))
            os._exit(0)
        adopt()
        pid, status = _spawn(request)
        # The keeper must hold neither the command's streams nor a directory.
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(null, descriptor)
        os.close(null)
        os.chdir("/")
        while pid:
            ended, status = os.wait()
            if ended == pid:
                os.write(3, status.to_bytes(4, "big"))
        os.write(3, (status << 8).to_bytes(4, "big"))
    except ChildProcessError:
        pass  # none is left
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(0)


def _spawn(request: dict[str, Any]) -> tuple[int, int]:
    """Start the command.

    Returns:
        Its process id, and 0; or 0 and an exit code if it cannot be started. Then the reason is
        written to standard error.
    """
    directory = WORKSPACE
    try:
        os.chdir(directory)
        if request["cwd"] is not None:
            directory = request["cwd"]
            os.chdir(_encoded(directory))
    except OSError as error:
        _complain("the directory {!r} cannot be entered".format(directory), error)
        return 0, _NOT_STARTED
    limit_files(request["file_limit"], core_files=request["core_files"])
    for name, value in request["env"].items():
        os.environb[_encoded(name)] = _encoded(value)  # with its PATH the program is looked for
    arguments = [_encoded(argument) for argument in request["argv"]]
    try:
        # Much faster than to fork: that would copy the page tables once more.
        pid = os.posix_spawnp(
            arguments[0], arguments, os.environb, setsid=True, setsigdef=_IGNORED_SIGNALS
        )
    except OSError as error:
        _complain("{!r} cannot be executed".format(request["argv"][0][:200]), error)
        return 0, _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_STARTED
    offer_to_kernel(pid)
    return pid, 0


def _complain(what: str, error: OSError) -> None:
    message = "rlm-containers: {}: {}\n".format(what, error.strerror)
    os.write(2, message.encode("utf-8", "backslashreplace"))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
