"""Commands that run in a container beside its cells. The host's half of ``guest/commands.py``."""

from __future__ import annotations

import contextlib
import itertools
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rlm_containers.errors import SandboxLostError
from rlm_containers.guest import wire
from rlm_containers.interpreter.command_request import CommandRequest
from rlm_containers.interpreter.items import Closed
from rlm_containers.interpreter.output import Excerpt
from rlm_containers.interpreter.pipe import FloodError, Pipe
from rlm_containers.interpreter.reports import memory_death
from rlm_containers.interpreter.results import (
    CommandCallback,
    CommandOutput,
    CommandResult,
    CommandStatus,
    StreamName,
)
from rlm_containers.interpreter.setup import WorkerSetup
from rlm_containers.interpreter.untrusted import UntrustedJSON

#: The most commands of one sandbox that run at once. Others wait.
AT_ONCE = 64

#: The exit code after a time limit, as that of timeout(1).
_TIMEOUT_CODE = 124

#: The most of a command's output that waits here: what the guest may send, and what it drains.
_MOST_WAITING = wire.WINDOW + 2 * (wire.DRAINED + 64 * (1024 + wire.FRAME_COST))

#: Bytes of input in one frame.
_INPUT_CHUNK = 256 * 1024

#: The most parts of the JSON that says how a command ended.
_PARTS = 20

#: Seconds between two looks whether the container has ended.
_CHECK = 1.0

_STREAMS: dict[int, StreamName] = {wire.RUN_OUT: "stdout", wire.RUN_ERR: "stderr"}


@dataclass(frozen=True)
class Piece:
    """A piece of output."""

    stream: StreamName
    data: bytes


class Command:
    """One command.

    Args:
        is_users: whether the user has asked for it. At most :data:`AT_ONCE` of these run at once.

    Attributes:
        is_users: as it was given.
        pipe: the pipe to the container that it runs in; ``None`` before it does.
        killed: whether :meth:`kill` was called.
        reason: what its result says of that, if anything.
        ended: what the guest says of its end; ``None`` while it runs.
        taken: how many bytes of its input the guest has taken.
        arrived: how much of its output has come; counted as in :mod:`guest.wire`.
        consumed: how much of that is not in ``items`` any more.
        reported: how much of that the guest knows.
        items: pieces of its output, and ``None`` for any other news.
    """

    def __init__(self, *, is_users: bool = True) -> None:
        self.is_users = is_users
        self.pipe: Pipe | None = None
        self.killed = False
        self.reason = ""
        self.ended: dict[str, Any] | None = None
        self.taken = 0
        self.arrived = 0
        self.consumed = 0
        self.reported = 0
        # A signal handler may put something into it wherever it strikes, unlike into a Queue.
        self.items: queue.SimpleQueue[Piece | None] = queue.SimpleQueue()

    def kill(self, reason: str = "") -> None:
        """Kill it and all that it has started. Returns at once.

        Any thread may call this, and a signal handler.
        """
        self.reason = self.reason or reason
        self.killed = True
        self.items.put(None)


class Commands:
    """Runs commands in one container, each in the thread that calls :meth:`run`.

    Args:
        pipe: the pipe to the container.
        setup: what every worker is given: commands have its environment and its limits.
        max_output: bytes to keep of each output stream.
        gone: returns the error that says how the container ended.
        give_up: called when the guest does not even answer to a kill. Removes the container.
        kill_timeout: seconds for that answer.
    """

    def __init__(
        self,
        pipe: Pipe,
        setup: WorkerSetup,
        max_output: int,
        *,
        gone: Callable[[Closed], SandboxLostError],
        give_up: Callable[[], None],
        kill_timeout: float = 20.0,
    ) -> None:
        self.kill_timeout = kill_timeout
        self._setup = setup
        self._max_output = max_output
        self._gone = gone
        self._give_up = give_up
        self._numbers = itertools.count()
        self._running: dict[int, Command] = {}
        self._room = threading.Condition()
        self.attach(pipe)

    @property
    def pipe(self) -> Pipe:
        """The pipe to the container that commands run in."""
        return self._pipe

    def attach(self, pipe: Pipe) -> None:
        """Run commands in another container from now on. Those in the last one are lost."""
        self._pipe = pipe
        pipe.on_command = self._accept
        pipe.on_closed = self._wake_all

    def run(
        self, command: Command, request: CommandRequest, on_output: CommandCallback | None
    ) -> CommandResult:
        """Run a command and wait for its end.

        Args:
            command: by which others can kill it.
            request: what to run.
            on_output: see :meth:`Sandbox.command`.

        Raises:
            OptionError: the request is too large. Nothing was sent.
            SandboxLostError: the container is gone.
        """
        with self.admitted(command) as number:
            run = _Run(self, command, number, request, on_output, self._max_output)
            return run.result(request.message(self._setup, self.container))

    def kill_all(self, reason: str) -> bool:
        """Kill all commands of the user that run. Any thread may call this.

        Args:
            reason: what their results say of it.

        Returns:
            Whether there are any.
        """
        running = [command for command in list(self._running.values()) if command.is_users]
        for command in running:
            command.kill(reason)
        return bool(running)

    # For the runs, and for FileCalls

    @property
    def container(self) -> str:
        """The container's name."""
        return self._pipe.process.name

    def send(self, command: Command, kind: int, number: int, payload: bytes = b"") -> None:
        """Send a frame about a command.

        Raises:
            SandboxLostError: the container is gone.
        """
        try:
            _pipe_of(command).send(kind, number.to_bytes(4, "big") + payload)
        except SandboxLostError:
            self.check(command)  # how it ended says more
            raise

    def take(self, command: Command, number: int, piece: Piece) -> None:
        """Note that a piece of output takes no room any more, and let the guest send on.

        Raises:
            SandboxLostError: the container is gone.
        """
        command.consumed += len(piece.data) + wire.FRAME_COST
        taken = command.consumed - command.reported
        if taken >= wire.WINDOW // 2 and command.ended is None:
            command.reported = command.consumed
            self.send(command, wire.TAKEN, number, taken.to_bytes(4, "big"))

    def check(self, command: Command) -> None:
        """Raise the error that says how a command's container ended, if it has ended.

        Raises:
            SandboxLostError: it has.
        """
        ended = _pipe_of(command).ended()
        if ended is not None:
            raise self._gone(ended)

    def give_up(self) -> SandboxLostError:
        """Remove a container whose guest does not answer any more. Return the error for that."""
        self._give_up()
        return SandboxLostError(
            "The guest does not answer any more, not even to the kill of a command.",
            remedy="Make a new Sandbox. The container has been removed.",
            container=self.container,
        )

    @contextlib.contextmanager
    def admitted(self, command: Command) -> Iterator[int]:
        """Wait until there is room for a command. Yield its number."""
        number = next(self._numbers) & 0xFFFFFFFF
        command.pipe = self._pipe
        try:
            with self._room:
                while command.is_users and self._are_many() and not command.killed:
                    self.check(command)
                    self._room.wait(_CHECK)
                self._running[number] = command
            yield number
        finally:
            self._running.pop(number, None)
            with self._room:
                self._room.notify()

    def _are_many(self) -> bool:
        return sum(command.is_users for command in list(self._running.values())) >= AT_ONCE

    # The reader's thread

    def _accept(self, kind: int, payload: bytes) -> None:
        number, rest = int.from_bytes(payload[:4], "big"), payload[4:]
        command = self._running.get(number)
        if command is None or command.ended is not None:
            return  # nobody waits for it any more
        if kind in _STREAMS:
            command.arrived += len(rest) + wire.FRAME_COST
            if command.arrived - command.consumed > _MOST_WAITING:
                raise FloodError("the container sent more of a command's output than it may")
            command.items.put(Piece(_STREAMS[kind], rest))
            return
        if kind == wire.TAKEN:
            command.taken += int.from_bytes(rest, "big")
            if not command.items.empty():
                return  # who waits for it is going to look anyway
        else:
            content = UntrustedJSON(rest, _PARTS).load()
            if not isinstance(content, dict):
                raise ValueError("it is no object")
            command.ended = content
        command.items.put(None)

    def _wake_all(self) -> None:
        for command in list(self._running.values()):
            command.items.put(None)


class _Run:
    """The run of one command, in the thread that waits for it."""

    def __init__(
        self,
        commands: Commands,
        command: Command,
        number: int,
        request: CommandRequest,
        on_output: CommandCallback | None,
        max_output: int,
    ) -> None:
        self._commands = commands
        self._command = command
        self._number = number
        self._request = request
        self._on_output = on_output
        self._kept = {name: Excerpt(max_output, b"") for name in _STREAMS.values()}
        self._sent = 0  # of its input
        self._timed_out = False
        self._kill_sent_at: float | None = None

    def result(self, message: bytes) -> CommandResult:
        """Start the command, and wait for its end.

        Args:
            message: tells the guest to start it.
        """
        start = time.monotonic()
        limit = self._request.timeout
        deadline = math.inf if limit is None else start + limit
        if self._command.killed:
            return self._made({"signal": 9}, 0.0)
        try:
            self._commands.send(self._command, wire.RUN, self._number, message)
            self._send_input()
            ended = self._wait(deadline)
        except BaseException:
            # Ctrl-C is meant for the command as well, and a failing callback ends it, too.
            self._on_output = None
            with contextlib.suppress(SandboxLostError):  # the first exception matters
                self._kill()  # raises this at once if the container is gone
                self._wait(math.inf)
            raise
        return self._made(ended, time.monotonic() - start)

    def _wait(self, deadline: float) -> dict[str, Any]:
        """Handle what comes until the command has ended. Return what the guest says of that."""
        command = self._command
        while True:
            if command.ended is not None and command.items.empty():
                return command.ended
            if command.killed and self._kill_sent_at is None:
                self._kill()
            now = time.monotonic()
            if self._kill_sent_at is not None:
                left = self._kill_sent_at + self._commands.kill_timeout - now
                if left <= 0 and command.items.empty():
                    raise self._commands.give_up()
            else:
                left = deadline - now
                # What came in time counts.
                if left <= 0 and command.items.empty():
                    self._timed_out = True
                    self._kill()
                    continue
            try:
                item = command.items.get(timeout=min(max(left, 0.0), _CHECK))
            except queue.Empty:
                item = None
            if item is not None:
                self._take(item)
            if command.ended is None and command.items.empty():
                self._commands.check(command)
                self._send_input()

    def _kill(self) -> None:
        self._kill_sent_at = time.monotonic()
        self._commands.send(self._command, wire.KILL, self._number)

    def _take(self, piece: Piece) -> None:
        self._kept[piece.stream].add(piece.data)
        if self._on_output is not None:
            self._on_output(piece.stream, piece.data)
        self._commands.take(self._command, self._number, piece)

    def _send_input(self) -> None:
        """Send as much of the input as the guest may hold, and its end."""
        content = self._request.input
        if content is None or self._sent > len(content) or self._command.ended is not None:
            return
        while self._sent < len(content):
            room = wire.WINDOW - (self._sent - self._command.taken)
            if room < min(_INPUT_CHUNK, len(content) - self._sent):
                return
            chunk = content[self._sent : self._sent + _INPUT_CHUNK]
            self._commands.send(self._command, wire.INPUT, self._number, chunk)
            self._sent += len(chunk)
        self._commands.send(self._command, wire.INPUT, self._number)
        self._sent += 1  # the end of it is sent

    def _made(self, ended: dict[str, Any], elapsed: float) -> CommandResult:
        """Return the result, by what the guest says, which may be anything."""
        status: CommandStatus
        number, code = ended.get("signal"), ended.get("exit")
        if isinstance(number, int) and 0 < number < 128:
            status, code = "killed", 128 + number
        else:
            code = code if isinstance(code, int) and 0 <= code <= 255 else 1
            status = "error" if code else "ok"
        notices = []
        if self._timed_out:
            status, code = "timeout", _TIMEOUT_CODE
            notices.append(
                f"The command reached its limit of {self._request.timeout:g} s (timeout) and was "
                "killed."
            )
        elif self._command.reason:
            notices.append(self._command.reason)
        elif "memory" in ended:
            notices.append(f"A process of the command {memory_death(ended['memory'])}.")
        return CommandResult(
            stdout=_output(self._kept["stdout"]),
            stderr=_output(self._kept["stderr"]),
            exit_code=code,
            status=status,
            execution_time=elapsed,
            notices=tuple(notices),
        )


def _pipe_of(command: Command) -> Pipe:
    assert command.pipe is not None
    return command.pipe


def _output(kept: Excerpt[bytes]) -> CommandOutput:
    head, tail, cut = kept.parts()
    if not cut:
        return CommandOutput(head + tail)
    return CommandOutput(head + f"\n[... {cut} bytes cut ...]\n".encode() + tail, cut)
