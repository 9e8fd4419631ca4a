"""What a cell gives back."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

StreamName = Literal["stdout", "stderr"]

#: Called with the name of the stream and a piece of text, while the cell runs, in the thread that
#: called ``execute``.
OutputCallback = Callable[[StreamName, str], None]

#: How a cell ended: to its end, with an exception, by ``sys.exit()``, by an interrupt, at its limit
#: (``cell_timeout``), killed because it went on after an interrupt or its limit, or with the death
#: of the worker that ran it.
CellStatus = Literal["ok", "error", "exit", "interrupted", "timeout", "killed", "died"]

#: The exit codes of cells that ended in one of these ways, as shells and ``python`` have them.
EXIT_CODES: Mapping[str, int] = {
    "ok": 0,
    "error": 1,
    "timeout": 124,
    "interrupted": 130,
    "killed": 137,
}


#: Text, or the JSON that the model's client takes in place of it, such as a list of messages.
Prompt = str | dict[str, Any] | list[Any]


@dataclass(frozen=True, kw_only=True)
class LMCall:
    """One call of a language model that was answered, or that failed.

    Attributes:
        prompt: what was asked.
        response: the answer; empty when it failed.
        model: the name of the model, as far as the backend knows it.
        execution_time: seconds.
        error: why it failed, or ``None``.
        completion: the backend's own record: what the LM Handler of rlms sent, say.
    """

    prompt: Prompt
    response: str
    model: str | None
    execution_time: float
    error: str | None = None
    completion: Any = None


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """An image or document in the workspace that a cell has made.

    Attributes:
        path: its path relative to the workspace, as :meth:`Sandbox.get_file` takes it.
        mime_type: its kind, by the end of its name, such as ``"image/png"``.
        size: bytes.
    """

    path: str
    mime_type: str
    size: int


@dataclass(frozen=True)
class UnsavedVariable:
    """A variable that is not in the checkpoint: its name, its type's name, and why."""

    name: str
    type: str
    reason: str

    def __str__(self) -> str:
        kind = f" ({self.type})" if self.type else ""
        return f"{self.name}{kind}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class WorkspaceFile:
    """A file in a workspace.

    Attributes:
        name: its path relative to the workspace, as :meth:`Sandbox.get_file` takes it.
        size: bytes.
        modified: when it was last written to, in seconds of the epoch.
    """

    name: str
    size: int
    modified: float


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """The outcome of one cell.

    Attributes:
        stdout: what the cell and the processes it started wrote to standard output.
        stderr: the same for standard error: tracebacks, warnings, and what this library has to
            say of the cell, such as that its worker was killed.
        locals: name to short repr of the session's variables, those with a leading underscore
            left out. At most some tens of kilobytes in all, whatever the variables are.
        execution_time: seconds from sending the cell until its answer was here.
        lm_calls: the calls of language models that the cell made and that were answered.
        final_answer: the content of ``answer`` if the cell left it marked ready.
        status: how the cell ended.
        lost: names of variables that were there before the cell and could not be restored after
            its worker died; with ``"*"`` among them where nothing could be.
        older: names of variables that were restored with what may be an older value, because the
            last state file was damaged, or did not have what the last cells had changed.
        exit_code: what ``python`` would have ended with, had the cell been a program, 0 to 255:
            1 after an exception, what ``sys.exit()`` was given, 130 after an interrupt, and
            after the worker's death its own exit code, or 128 and the number of the signal.
        notices: what this library has to say of the cell, sentences. They end ``stderr``, too, but
            are not given to an output callback.
        artifacts: the images and documents that matplotlib has saved or shown, still in the
            workspace: for :meth:`Sandbox.get_file` to fetch.
    """

    stdout: str
    stderr: str
    locals: Mapping[str, str]
    execution_time: float
    lm_calls: tuple[LMCall, ...] = ()
    final_answer: str | None = None
    status: CellStatus = "ok"
    lost: tuple[str, ...] = field(default=())
    older: tuple[str, ...] = field(default=())
    exit_code: int = 0
    notices: tuple[str, ...] = ()
    artifacts: tuple[Artifact, ...] = field(default=())


#: Pieces of output that are kept apart, until they are needed as one.
_PIECES = 1000


class OutputCollector:
    """Decodes one stream as it arrives and keeps a bounded part of it.

    Args:
        name: the stream's name, for the callback.
        limit: characters to keep. Of longer output the first and the last half of that stay.
        callback: given every piece as it arrives, whether it is kept or not.
    """

    def __init__(self, name: StreamName, limit: int, callback: OutputCallback | None) -> None:
        self.name = name
        self.limit = limit
        self.callback = callback
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._head: list[str] = []
        self._head_room = limit // 2
        self._tail: list[str] = []
        self._tail_length = 0
        self._cut = 0

    def feed(self, data: bytes, *, final: bool = False) -> None:
        """Add bytes as read; with ``final`` whatever half a character is left over."""
        text = self._decode(data, final)
        if not text:
            return
        if self.callback is not None:
            self.callback(self.name, text)
        if self._head_room:
            piece = text[: self._head_room]
            _append(self._head, piece)
            self._head_room -= len(piece)
            text = text[len(piece) :]
        if text:
            # A single piece may be as long as a container makes it.
            self._cut += max(0, len(text) - self.limit)
            text = text[-self.limit :]
            _append(self._tail, text)
            self._tail_length += len(text)
            if self._tail_length > 2 * self.limit:
                self._trim()

    def text(self) -> str:
        """Everything, or the head and the tail with a line between that counts what was cut."""
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
    """Add a piece; many that are short would take much more than what is in them."""
    pieces.append(piece)
    if len(pieces) > _PIECES:
        pieces[:] = ["".join(pieces)]
