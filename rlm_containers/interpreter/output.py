"""What a cell prints and leaves, collected while it comes in."""

from __future__ import annotations

import codecs
from dataclasses import dataclass, field
from typing import Any

from rlm_containers.interpreter.results import (
    CellResult,
    CellStatus,
    LMCall,
    OutputCallback,
    StreamName,
)

#: The exit codes of cells that ended in one of these ways, as shells and ``python`` have them.
#: Cells that ended in another way have an exit code of their own.
_EXIT_CODES = {"ok": 0, "error": 1, "timeout": 124, "interrupted": 130, "killed": 137}

#: The most pieces of output to keep apart before they are joined.
_PIECES = 1000


class OutputCollector:
    """Decodes one stream as it arrives and keeps a bounded part of it.

    Args:
        name: the stream's name, for the callback.
        limit: characters to keep. Of longer output the first and the last half of that stay.
        callback: called with every piece as it arrives, whether the piece is kept or not.
    """

    def __init__(self, name: StreamName, limit: int, callback: OutputCallback | None) -> None:
        self.name = name
        self.limit = limit
        self.callback = callback
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._head: list[str] = []
        self._head_left = limit // 2
        self._tail: list[str] = []
        self._tail_length = 0
        self._cut = 0

    def feed(self, data: bytes, *, final: bool = False) -> None:
        """Add bytes as read; with ``final`` also an incomplete character at the end."""
        text = self._decode(data, final)
        if not text:
            return
        if self.callback is not None:
            self.callback(self.name, text)
        if self._head_left:
            piece = text[: self._head_left]
            _append(self._head, piece)
            self._head_left -= len(piece)
            text = text[len(piece) :]
        if text:
            # The container decides how long a single piece is.
            self._cut += max(0, len(text) - self.limit)
            text = text[-self.limit :]
            _append(self._tail, text)
            self._tail_length += len(text)
            if self._tail_length > 2 * self.limit:
                self._trim()

    def text(self) -> str:
        """Return all output, or its head and tail and between them the number of cut characters."""
        self.feed(b"", final=True)
        self._trim()
        head, tail = "".join(self._head), "".join(self._tail)
        if not self._cut:
            return head + tail
        return f"{head}\n[... {self._cut} characters cut ...]\n{tail}"

    def _trim(self) -> None:
        keep = self.limit - self.limit // 2
        tail = "".join(self._tail)
        if len(tail) > keep:
            self._cut += len(tail) - keep
            tail = tail[-keep:]
        self._tail = [tail] if tail else []
        self._tail_length = len(tail)


def _append(pieces: list[str], piece: str) -> None:
    """Add a piece. Join them when there are many: short strings take much more than their text."""
    pieces.append(piece)
    if len(pieces) > _PIECES:
        pieces[:] = ["".join(pieces)]


@dataclass
class Reply:
    """The guest's reply to one request, while it comes in.

    Attributes:
        stdout: what was written to standard output.
        written_stderr: what was written to standard error.
        artifacts: paths that the guest says it has made. They may not exist.

    The other attributes are those of :class:`CellResult`.
    """

    stdout: OutputCollector
    written_stderr: OutputCollector
    status: CellStatus = "ok"
    locals: dict[str, str] = field(default_factory=dict)
    final_answer: str | None = None
    notices: list[str] = field(default_factory=list)
    lost: tuple[str, ...] = ()
    older: tuple[str, ...] = ()
    exit_code: int = 0
    artifacts: list[str] = field(default_factory=list)

    @classmethod
    def collecting(cls, limit: int, on_output: OutputCallback | None) -> Reply:
        """Return an empty reply that keeps ``limit`` characters of each stream."""
        return cls(
            OutputCollector("stdout", limit, on_output),
            OutputCollector("stderr", limit, on_output),
        )

    @property
    def stderr(self) -> str:
        """What was written to standard error, followed by the notices."""
        text = self.written_stderr.text()
        notices = "".join(f"{notice}\n" for notice in self.notices)
        if notices and text and not text.endswith("\n"):
            text += "\n"
        return text + notices

    def result(self, elapsed: float, calls: tuple[LMCall, ...]) -> CellResult:
        """Return the reply as users get it.

        Args:
            elapsed: seconds that the cell took.
            calls: the calls of language models that the cell made.
        """
        return CellResult(
            stdout=self.stdout.text(),
            stderr=self.stderr,
            locals=self.locals,
            execution_time=elapsed,
            lm_calls=calls,
            final_answer=self.final_answer,
            status=self.status,
            lost=self.lost,
            older=self.older,
            exit_code=_EXIT_CODES.get(self.status, self.exit_code),
            notices=tuple(self.notices),
        )

    def note_exit(self, code: object) -> None:
        """Note the exit code that the guest reports, which may be anything."""
        self.exit_code = code if isinstance(code, int) and 0 <= code <= 255 else 1

    def note_death(self, event: dict[str, Any]) -> None:
        """Note the exit code of the worker that died with the cell."""
        number = event.get("signal")
        self.note_exit(128 + number if isinstance(number, int) else event.get("exit"))

    def forget_callback(self) -> None:
        """Call the output callback no more."""
        self.stdout.callback = self.written_stderr.callback = None
