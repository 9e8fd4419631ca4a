"""What a cell prints and leaves, collected while it comes in."""

from __future__ import annotations

import codecs
import signal
from dataclasses import dataclass, field
from typing import Any, AnyStr, Generic

from rlm_containers.interpreter.results import (
    CellResult,
    CellStatus,
    LMCall,
    OutputCallback,
    StreamName,
)

#: The exit codes of cells that ended in one of these ways, as shells and ``python`` have them.
#: Cells that ended in another way have an exit code of their own.
#: That of full ones is 128 plus SIGXFSZ, which a program gets whose file has become too large.
_EXIT_CODES = {
    "ok": 0,
    "error": 1,
    "timeout": 124,
    "interrupted": 130,
    "killed": 137,
    "full": 128 + signal.SIGXFSZ,
}

#: The most pieces of output to keep apart before they are joined.
_PIECES = 1000


class Excerpt(Generic[AnyStr]):
    """The first and the last part of what arrives in pieces, text or bytes.

    Args:
        limit: characters or bytes to keep. Of more the first and the last half of that stay.
        empty: ``""`` or ``b""``.
    """

    def __init__(self, limit: int, empty: AnyStr) -> None:
        self._limit = limit
        self._empty: AnyStr = empty
        self._head: list[AnyStr] = []
        self._head_left = limit // 2
        self._tail: list[AnyStr] = []
        self._tail_length = 0
        self._cut = 0

    def add(self, piece: AnyStr) -> None:
        """Add the next piece."""
        if self._head_left:
            first = piece[: self._head_left]
            self._append(self._head, first)
            self._head_left -= len(first)
            piece = piece[len(first) :]
        if piece:
            # The container decides how long a single piece is.
            self._cut += max(0, len(piece) - self._limit)
            piece = piece[-self._limit :]
            self._append(self._tail, piece)
            self._tail_length += len(piece)
            if self._tail_length > 2 * self._limit:
                self._trim()

    def parts(self) -> tuple[AnyStr, AnyStr, int]:
        """Return the first part, the last part, and how much was cut between them."""
        self._trim()
        return self._empty.join(self._head), self._empty.join(self._tail), self._cut

    def _append(self, pieces: list[AnyStr], piece: AnyStr) -> None:
        """Add a piece. Join them when there are many: short ones take much more than their text."""
        pieces.append(piece)
        if len(pieces) > _PIECES:
            pieces[:] = [self._empty.join(pieces)]

    def _trim(self) -> None:
        keep = self._limit - self._limit // 2
        tail = self._empty.join(self._tail)
        if len(tail) > keep:
            self._cut += len(tail) - keep
            tail = tail[-keep:]
        self._tail = [tail] if tail else []
        self._tail_length = len(tail)


class OutputCollector:
    """Decodes one stream as it arrives and keeps a bounded part of it.

    Args:
        name: the stream's name, for the callback.
        limit: characters to keep. Of longer output the first and the last half of that stay.
        callback: called with every piece as it arrives, whether the piece is kept or not.
    """

    def __init__(self, name: StreamName, limit: int, callback: OutputCallback | None) -> None:
        self.name = name
        self.callback = callback
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._kept = Excerpt(limit, "")

    def feed(self, data: bytes, *, final: bool = False) -> None:
        """Add bytes as read; with ``final`` also an incomplete character at the end."""
        text = self._decode(data, final)
        if not text:
            return
        if self.callback is not None:
            self.callback(self.name, text)
        self._kept.add(text)

    def text(self) -> str:
        """Return all output, or its head and tail and between them the number of cut characters."""
        self.feed(b"", final=True)
        head, tail, cut = self._kept.parts()
        return f"{head}\n[... {cut} characters cut ...]\n{tail}" if cut else head + tail


@dataclass
class Reply:
    """The guest's reply to one request, while it comes in.

    Attributes:
        stdout: what was written to standard output.
        written_stderr: what was written to standard error.
        is_told_of_growth: whether the notices say that files have grown too much.
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
    is_told_of_growth: bool = False
    artifacts: list[str] = field(default_factory=list)
    unwritten: int = 0

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
            unwritten=self.unwritten,
        )

    def note_exit(self, code: object) -> None:
        """Note the exit code that the guest reports, which may be anything."""
        self.exit_code = code if isinstance(code, int) and 0 <= code <= 255 else 1

    def note_death_after(self, other: Reply) -> None:
        """Note that the worker died before it had saved what the request has changed.

        Args:
            other: the reply that says so.
        """
        self.status = "died"
        self.notices += other.notices
        self.lost += other.lost
        self.older += other.older

    def note_death(self, event: dict[str, Any]) -> None:
        """Note the exit code of the worker that died with the cell."""
        number = event.get("signal")
        self.note_exit(128 + number if isinstance(number, int) else event.get("exit"))

    def forget_callback(self) -> None:
        """Call the output callback no more."""
        self.stdout.callback = self.written_stderr.callback = None
