"""The standard streams of cells, and what is printed of their exceptions."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from _thread import get_ident
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from .interrupts import Interrupts

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep

#: Audit events (https://docs.python.org/3/library/audit_events.html) of starting a process, which
#: writes to the same descriptors.
_SPAWNING = frozenset(
    ("os.system", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "subprocess.Popen")
)

#: Audit events after which code of a cell's runs whenever something happens.
_WATCHING = frozenset(("sys.addaudithook", "sys.monitoring.register_callback"))


class StandardStreams:
    """The worker's standard streams, which are restored after every cell.

    Descriptors 1 and 2 are pipes to the supervisor, so it also gets what child processes and C code
    write. Python's buffers are flushed after each line and before a process is started, which keeps
    the output of a cell and of its children in order.

    Args:
        interrupts: allowed while a stream of the cell's own is flushed.
    """

    def __init__(self, interrupts: Interrupts) -> None:
        import fcntl

        self.interrupts = interrupts
        self.saved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for fd in (0, 1, 2)]
        self.stdin, self.stdout, self.stderr = _input_stream(), _text_stream(1), _text_stream(2)
        #: Whether code of a cell's may run at any time that nobody knows of.
        self.is_watched = False
        sys.addaudithook(self._before_spawn)
        self.restore()

    def restore(self) -> None:
        """Flush the buffers and undo what a cell did to the streams."""
        self._restore()
        for stream in (self.stdout, self.stderr):
            stream.reconfigure(**_FORM)  # a cell may have done that too
        self.interrupts.entered = False

    def is_changed(self) -> bool:
        """Return whether to print may run code of a cell's."""
        return sys.stdout is not self.stdout or bool(vars(self.stdout).keys() - {"mode"})

    def restore_again(self) -> None:
        """Do the same after code of the cells' objects, such as a ``__repr__``, if any has run."""
        if self.interrupts.entered:
            self.restore()

    def _restore(self) -> None:
        for saved in self.saved:
            os.set_blocking(saved, True)  # a child of a cell may have changed that for all
        for own in (self.stdin, self.stdout, self.stderr):
            for name in vars(own).keys() - {"mode"}:
                delattr(own, name)  # such as a `write` that the cell has set
        for stream in (getattr(sys, "stdout", None), getattr(sys, "stderr", None)):
            if stream is not self.stdout and stream is not self.stderr:
                self._flush(stream)
        self._flush(self.stdout)
        self._flush(self.stderr)
        for descriptor, saved in enumerate(self.saved):
            os.dup2(saved, descriptor)
        if not _is_open(self.stdin):  # exit() and quit() close it
            self.stdin = _input_stream()
        if not _is_open(self.stdout):
            self.stdout = _text_stream(1)
        if not _is_open(self.stderr):
            self.stderr = _text_stream(2)
        sys.stdin = self.stdin
        sys.stdout = self.stdout
        sys.stderr = self.stderr

    @contextlib.contextmanager
    def silenced(self) -> Iterator[None]:
        """Discard what this thread prints, such as a ``__reduce__`` during a checkpoint.

        Other threads are the cells', and print on.
        """
        silent = (_SilentStream(self.stdout), _SilentStream(self.stderr))
        sys.stdout, sys.stderr = silent
        try:
            yield
        finally:
            for discarding in silent:
                discarding.end()
            self._restore()
            for stream in (self.stdout, self.stderr):
                if _form(stream) != _VISIBLE_FORM:
                    stream.reconfigure(**_FORM)

    def _flush(self, stream: Any) -> None:
        try:
            with self.interrupts:
                stream.flush()
        except BaseException:
            pass  # replaced by the cell, or closed by it

    def _before_spawn(self, event: str, args: tuple[Any, ...]) -> None:
        if event in _WATCHING:
            self.is_watched = True
        if event in _SPAWNING:
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except KeyboardInterrupt:
                    raise
                except BaseException:
                    pass  # replaced by a cell: even to look for its flush() may exit


_FORM: dict[str, Any] = {
    "encoding": "utf-8",
    "errors": "backslashreplace",
    "newline": "\n",
    "line_buffering": True,
}


def _form(stream: io.TextIOWrapper) -> tuple[str, str | None, bool, bool]:
    """Return what can be seen of a stream's form: all but ``newline``."""
    return stream.encoding, stream.errors, stream.line_buffering, stream.write_through


_VISIBLE_FORM = ("utf-8", "backslashreplace", True, False)


class _SilentStream:
    """A stream that discards what one thread writes, until :meth:`end`.

    Code may keep it beyond that, so it never closes.
    """

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self._stream = stream
        self._silent: int | None = get_ident()

    def end(self) -> None:
        """Discard nothing from now on."""
        self._silent = None

    def write(self, text: str) -> int:
        """Write a text, or discard it."""
        return len(text) if get_ident() == self._silent else self._stream.write(text)

    def writelines(self, lines: Any) -> None:
        """Write texts, or discard them."""
        for line in lines:
            self.write(line)

    def reconfigure(self, **form: Any) -> None:
        """Change nothing: it costs too much to undo that after each checkpoint."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Buffer(io.BufferedWriter):
    """A buffer that stays open if a second wrapper around it is collected, which closes it."""

    def close(self) -> None:
        self.flush()


def _is_open(stream: io.TextIOWrapper) -> bool:
    """Return whether a stream is neither closed nor detached, nor its buffer."""
    try:
        return not (stream.closed or stream.buffer.closed)
    except ValueError:  # detached
        return False


def _input_stream() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8")


def _text_stream(descriptor: int) -> io.TextIOWrapper:
    return io.TextIOWrapper(_Buffer(io.FileIO(descriptor, "w", closefd=False)), **_FORM)


def print_exception(
    error: BaseException, trace: TracebackType | None, interrupts: Interrupts
) -> None:
    """Print an exception to stderr with its traceback, without the frames of this package."""
    try:
        with interrupts:
            report = traceback.TracebackException(type(error), error, trace)
            _strip(report, set())
            for line in report.format():
                sys.stderr.write(line)
    except BaseException as failure:
        # Its __str__ raises or does not end, or the recursion limit is reached.
        _write(
            "{} (its traceback cannot be shown: {})\n".format(
                type(error).__name__, type(failure).__name__
            )
        )


def print_exit_code(error: SystemExit, interrupts: Interrupts) -> int:
    """Print the argument of ``sys.exit()`` unless it is a number, as the interpreter does.

    Returns:
        The exit status that a process would have, 0 to 255.
    """
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return int.__and__(error.code, 0xFF)  # a subclass may override the operator
    try:
        with interrupts:
            sys.stderr.write("{}\n".format(error.code))
    except BaseException as failure:  # its __str__ may be the cell's own
        _write("<an exit code whose str fails: {}>\n".format(type(failure).__name__))
    return 1


def _write(text: str) -> None:
    try:
        sys.stderr.write(text)
    except BaseException:
        pass  # a forked child may have none


def _strip(report: traceback.TracebackException | None, seen: set[int]) -> None:
    """Remove the frames of this package, also from the exceptions that led to this one."""
    if report is None or id(report) in seen:
        return
    seen.add(id(report))
    report.stack[:] = [frame for frame in report.stack if not frame.filename.startswith(_HERE)]
    _strip(report.__cause__, seen)
    _strip(report.__context__, seen)
    for part in getattr(report, "exceptions", None) or ():  # exception groups, from 3.11 on
        _strip(part, seen)
