"""Operations on the files of a container, for a host that has no directory with them.

The host's half of ``guest/files.py``. All input is untrusted, as everything from the container is.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from rlm_containers.errors import SandboxLostError, WorkspaceError
from rlm_containers.guest import wire
from rlm_containers.interpreter.commands import Command, Commands, Piece
from rlm_containers.interpreter.pipe import Pipe
from rlm_containers.interpreter.untrusted import UntrustedJSON
from runtimes.text import clean

#: Seconds without any news of an operation, until it is given up. That a node is gone is noticed
#: sooner.
_IDLE_TIMEOUT = 120.0

#: The fewest bytes per second that an operation must make of its time beyond these seconds. Else a
#: guest could keep the host waiting with one byte a minute.
_SLOWEST = 16 * 1024

#: Seconds to remove what an operation that was given up has not finished.
_UNDO_TIMEOUT = 5.0

#: Seconds between two looks whether the container has ended.
_CHECK = 1.0

#: Bytes of input in one frame: a whole piece of a file.
_INPUT_CHUNK = wire.HEADER + wire.BLOCK

#: Parts of the JSON in one record: a batch of nodes.
_PARTS = 5000

#: The most bytes of what an operation writes to standard error.
_MOST_SAID = 2000


class FileCalls:
    """Works on the files of one container. Any thread may call.

    Args:
        commands: the container's commands.

    Attributes:
        closed: set by :meth:`close`.
    """

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self.closed = threading.Event()

    @property
    def pipe(self) -> Pipe:
        """The pipe to the container, which stands for it: another container has another."""
        return self._commands.pipe

    def close(self) -> None:
        """Let no call wait any more: the container is about to be ended."""
        self.closed.set()

    @contextlib.contextmanager
    def call(self, op: str, **arguments: Any) -> Iterator[FileCall]:
        """Begin an operation. It is given up unless it has ended when the ``with`` block does.

        Args:
            op: which, see :mod:`guest.wire`.
            arguments: its arguments.

        Raises:
            SandboxLostError: the container is gone.
        """
        command = Command(is_users=False)
        with self._commands.admitted(command) as number:
            call = FileCall(self._commands, command, number, self.closed)
            try:
                call.begin({"op": op, **arguments})
                yield call
            finally:
                call.give_up()


class FileCall:
    """One operation, in the thread that has begun it."""

    def __init__(
        self, commands: Commands, command: Command, number: int, closed: threading.Event
    ) -> None:
        self._closed = closed
        self._commands = commands
        self._command = command
        self._number = number
        self._decoder = wire.FrameDecoder(wire.RECORDS)
        self._records: deque[tuple[int, bytes]] = deque()
        self._said = b""
        self._sent = 0
        self._is_put = False
        self._waited = 0.0  # seconds
        self._progress = 0  # bytes that have come

    def begin(self, operation: dict[str, Any]) -> None:
        """Tell the guest to begin."""
        self._is_put = operation["op"] == "put"
        content = {"files": operation, "input": self._is_put or operation["op"] == "get"}
        self._commands.send(
            self._command, wire.RUN, self._number, json.dumps(content).encode("ascii")
        )

    def send(self, kind: int, payload: bytes | memoryview = b"") -> None:
        """Send a record, as soon as the guest has room for it.

        Raises:
            OSError: the operation has failed meanwhile.
            WorkspaceError, SandboxLostError: as for :meth:`receive`.
        """
        record = wire.encode(kind, bytes(payload))
        while self._sent - self._command.taken > wire.WINDOW - len(record):
            if self._sent == self._command.taken:
                break  # a record that is longer than all that may be under way
            self._await_news()
            self._check_failure()
        for start in range(0, len(record), _INPUT_CHUNK):
            self._commands.send(
                self._command, wire.INPUT, self._number, record[start : start + _INPUT_CHUNK]
            )
        self._sent += len(record)

    def send_node(self, **node: Any) -> None:
        """Send the description of a file, as :meth:`send` does."""
        self.send(wire.NODES, json.dumps(node).encode("ascii"))

    def receive(self) -> tuple[int, bytes] | None:
        """Return the guest's next record; ``None`` if it has ended well.

        Raises:
            OSError: it has failed.
            WorkspaceError: it has ended in another way, or sends what is no record.
            SandboxLostError: the container is gone.
        """
        while not self._records:
            ended = self._command.ended
            if ended is not None and self._command.items.empty():
                if ended.get("exit") == 0:
                    return None
                said = clean(self._said.decode("utf-8", "replace"), 300)
                raise self.broken(f"It said: {said}" if said else "")
            self._await_news()
        self._check_failure()
        return self._records.popleft()

    def finish(self) -> None:
        """Wait until the guest has done it.

        Raises:
            As :meth:`receive`.
        """
        while self.receive() is not None:
            pass

    def load(self, payload: bytes) -> Any:
        """Return the value of a record of JSON.

        Raises:
            WorkspaceError: it is no JSON.
        """
        try:
            return UntrustedJSON(payload, _PARTS).load()
        except ValueError:
            raise self.broken("It is no JSON.") from None

    def failure(self, payload: bytes) -> OSError:
        """Return the error that a record ``FAILED`` stands for."""
        match self.load(payload):
            case [int(number), str(path)] if 0 < number < 200:
                return OSError(number, os.strerror(number), clean(path, 200) or None)
        raise self.broken("It is no error.")

    def give_up(self) -> None:
        """End it, unless it has ended."""
        with contextlib.suppress(SandboxLostError):  # then nothing of it is left
            if self._is_put and self._command.ended is None:
                # It then removes what it has not finished.
                self._commands.send(self._command, wire.INPUT, self._number)
                self._await_end(_UNDO_TIMEOUT)
            if self._command.ended is None:
                self._commands.send(self._command, wire.KILL, self._number)
                if not self._await_end(self._commands.kill_timeout) and not self._closed.is_set():
                    raise self._commands.give_up()

    def _await_end(self, seconds: float) -> bool:
        """Drop what it still sends until it ends. Return whether it does so in time."""
        deadline = time.monotonic() + seconds
        while self._command.ended is None:
            if time.monotonic() > deadline or self._closed.is_set():
                return False
            self._next_piece()
        return True

    def _check_failure(self) -> None:
        if self._records and self._records[0][0] == wire.FAILED:
            raise self.failure(self._records.popleft()[1])

    def note_progress(self, count: int) -> None:
        """Note that the host got bytes of a file without their being sent."""
        self._progress += count

    def _await_news(self) -> None:
        """Wait for anything to come.

        Raises:
            WorkspaceError: nothing comes, too little in all that time, or what is no record.
            SandboxLostError: the container is gone.
        """
        begun = time.monotonic()
        progress = self._progress + min(self._command.taken, self._sent)
        left = min(_IDLE_TIMEOUT, _IDLE_TIMEOUT + progress / _SLOWEST - self._waited)
        while left < 0 or not self._take_item():
            if self._command.ended is not None:
                break
            if self._closed.is_set():
                raise SandboxLostError(
                    "The container is about to be ended.", container=self._commands.container
                )
            if time.monotonic() > begun + left:
                raise WorkspaceError(
                    "The container has answered nothing, or too little, for more than "
                    f"{_IDLE_TIMEOUT:g} s when its files were asked for.",
                    remedy="Are all of its processes stopped, or its machine overloaded?",
                    container=self._commands.container,
                )
        self._waited += time.monotonic() - begun

    def _take_item(self) -> bool:
        """Take one item. Return whether there was one."""
        is_there, piece = self._next_piece()
        if piece is not None and piece.stream == "stderr":
            self._said = (self._said + piece.data)[:_MOST_SAID]
        elif piece is not None:
            self._progress += len(piece.data)
            try:
                self._records.extend(self._decoder.feed(piece.data))
            except wire.FrameError:
                raise self.broken("It is no record.") from None
        return is_there

    def _next_piece(self) -> tuple[bool, Piece | None]:
        """Wait a moment for news. Return whether there are any, and the output among them."""
        try:
            piece = self._command.items.get(timeout=_CHECK)
        except queue.Empty:
            is_there, piece = False, None
        else:
            is_there = True
        if piece is not None:
            self._commands.take(self._command, self._number, piece)
        elif self._command.ended is None:
            self._commands.check(self._command)
        return is_there, piece

    def broken(self, what: str) -> WorkspaceError:
        """Return the error for an answer that is none."""
        return WorkspaceError(
            f"The container did not answer as it should when its files were asked for. {what}",
            remedy="Did a cell kill processes, or use up the memory or the processes that it may "
            "have? Try it again.",
            container=self._commands.container,
        )
