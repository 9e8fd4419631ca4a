"""Plain data that users get: what a cell gives back, and what is in a workspace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

StreamName = Literal["stdout", "stderr"]

#: Called with the name of the stream and a piece of text while the cell runs, in the thread that
#: called ``execute``.
OutputCallback = Callable[[StreamName, str], None]

#: The same for a command, with the bytes that it wrote.
CommandCallback = Callable[[StreamName, bytes], None]

#: How a cell ended, in this order: it reached its end; it raised an exception; it called
#: ``sys.exit()``; it was interrupted; it reached ``cell_timeout``; its files reached
#: ``workspace_size``; it went on after one of these three and was killed; or the worker that ran it
#: died.
CellStatus = Literal["ok", "error", "exit", "interrupted", "timeout", "full", "killed", "died"]

#: How a command ended, in this order: with the exit code 0; with another; it reached its time limit
#: and was killed; or a signal ended it, such as the kernel's when there was no memory left.
CommandStatus = Literal["ok", "error", "timeout", "killed"]

#: Text, or JSON that the model's client takes instead, such as a list of messages.
Prompt = str | dict[str, Any] | list[Any]


@dataclass(frozen=True, kw_only=True)
class LMCall:
    """One finished call of a language model.

    Attributes:
        prompt: the prompt.
        response: the answer; empty if the call failed.
        model: the name of the model; ``None`` if the backend does not know it.
        execution_time: seconds.
        error: why the call failed, or ``None``.
        completion: the backend's own record, such as what the LM Handler of rlms sent.
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
        path: its path relative to the workspace, for :meth:`Sandbox.get_file`.
        mime_type: its MIME type, guessed from the end of its name, such as ``"image/png"``.
        size: bytes.
    """

    path: str
    mime_type: str
    size: int


@dataclass(frozen=True)
class UnsavedVariable:
    """A variable that is not in the checkpoint.

    Attributes:
        name: its name, or ``"*"`` for all variables.
        type: the name of its type; empty if it is not known.
        reason: why it is not in the checkpoint.
    """

    name: str
    type: str
    reason: str

    def __str__(self) -> str:
        kind = f" ({self.type})" if self.type else ""
        return f"{self.name}{kind}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class WorkspaceFile:
    """A file in a workspace, or something else that has a name there.

    Attributes:
        name: its path relative to the workspace, for :meth:`Sandbox.get_file`.
        size: bytes.
        modified: when it was last written, in seconds since the epoch.
        kind: what it is. A link is never followed; ``"other"`` is a FIFO, a socket or a device.
        mode: its permission bits.
    """

    name: str
    size: int
    modified: float
    kind: Literal["file", "directory", "symlink", "other"] = "file"
    mode: int = 0o644


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """What one cell printed and left.

    Attributes:
        stdout: what the cell and the processes it started wrote to standard output.
        stderr: what they wrote to standard error, such as tracebacks and warnings, followed by
            ``notices``.
        locals: maps the names of all variables to their short reprs, without names that begin with
            an underscore. At most some tens of kilobytes in all.
        execution_time: seconds from sending the cell until its answer came.
        lm_calls: the finished calls of language models that the cell made.
        final_answer: the content of ``answer`` if the cell marked it ready, else ``None``.
        status: how the cell ended.
        lost: names of variables that existed before the cell and could not be restored after its
            worker died; ``"*"`` is among them if none could be restored.
        older: names of variables that may have been restored with an older value, because the
            last state file was damaged or did not have the changes of the last cells.
        exit_code: what ``python`` would have ended with, had the cell been a program, 0 to 255:
            1 after an exception, the argument of ``sys.exit()``, 130 after an interrupt. After
            the worker's death its own exit code, or 128 plus the number of the signal.
        notices: sentences of this library about the cell, such as that its worker was killed.
            They are not passed to an output callback.
        artifacts: the images and documents that matplotlib has saved or shown, which are still in
            the workspace. Fetch them with :meth:`Sandbox.get_file`.
        unwritten: how many cells before this one were answered whose changes were not on disk when
            this one was answered. Most of these are saved all the same: they survive the death of
            the worker, but not that of the container.
    """

    stdout: str
    stderr: str
    locals: Mapping[str, str]
    execution_time: float
    lm_calls: tuple[LMCall, ...] = ()
    final_answer: str | None = None
    status: CellStatus = "ok"
    lost: tuple[str, ...] = ()
    older: tuple[str, ...] = ()
    exit_code: int = 0
    notices: tuple[str, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    unwritten: int = 0


class CommandOutput(bytes):
    """What a command wrote to one of its standard streams.

    If that was more than ``max_output`` bytes, the first and the last half of that are left, and
    between them a line that says how many bytes were cut.

    Attributes:
        cut: how many bytes were cut.
    """

    cut: int

    def __new__(cls, content: bytes = b"", cut: int = 0) -> Self:
        made = super().__new__(cls, content)
        made.cut = cut
        return made

    @property
    def text(self) -> str:
        """It as text, decoded as UTF-8. What is not UTF-8 becomes U+FFFD."""
        return self.decode("utf-8", "replace")


@dataclass(frozen=True, kw_only=True)
class CommandResult:
    """How one command ended, and what it wrote.

    Attributes:
        stdout: what it and the processes it started wrote to standard output until it ended.
        stderr: the same for standard error.
        exit_code: as shells have it: 127 if there is no such program, 126 if it cannot be executed
            (``stderr`` says why), 124 after ``timeout``, 128 plus the number of the signal that
            ended it.
        status: how it ended.
        execution_time: seconds until it ended.
        notices: sentences of this library about it, such as that the kernel killed it for its
            memory.
    """

    stdout: CommandOutput
    stderr: CommandOutput
    exit_code: int
    status: CommandStatus
    execution_time: float
    notices: tuple[str, ...] = ()
