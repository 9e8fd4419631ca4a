"""The standard streams of cells, and what is printed of their exceptions."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep

#: Audit events (https://docs.python.org/3/library/audit_events.html) of starting a process, which
#: writes to the same descriptors.
_SPAWNING = frozenset(
    ("os.system", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "subprocess.Popen")
)


class StandardStreams:
    """The worker's standard streams, which are restored after every cell.

    Descriptors 1 and 2 are pipes to the supervisor, so it also gets what child processes and C code
    write. Python's buffers are flushed after each line and before a process is started, which keeps
    the output of a cell and of its children in order.
    """

    def __init__(self) -> None:
        import fcntl

        self.saved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for fd in (0, 1, 2)]
        self.stdin, self.stdout, self.stderr = _input_stream(), _text_stream(1), _text_stream(2)
        sys.addaudithook(self._before_spawn)
        self.restore()

    def restore(self) -> None:
        """Flush the buffers and undo what a cell did to the streams."""
        for stream in {
            id(s): s for s in (sys.stdout, sys.stderr, self.stdout, self.stderr)
        }.values():
            try:
                stream.flush()
            except BaseException:
                pass  # replaced by the cell, or closed by it
        for descriptor, saved in enumerate(self.saved):
            os.dup2(saved, descriptor)
        if self.stdin.closed:  # exit() and quit() do that
            self.stdin = _input_stream()
        if self.stdout.closed:
            self.stdout = _text_stream(1)
        if self.stderr.closed:
            self.stderr = _text_stream(2)
        sys.stdin = self.stdin
        sys.stdout = self.stdout
        sys.stderr = self.stderr

    @contextlib.contextmanager
    def silenced(self) -> Iterator[None]:
        """Discard output, such as what a ``__reduce__`` prints during a checkpoint."""
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            sys.stdout = sys.stderr = nowhere
            try:
                yield
            finally:
                self.restore()

    def _before_spawn(self, event: str, args: tuple[Any, ...]) -> None:
        if event in _SPAWNING:
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except Exception:
                    pass


def _input_stream() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8")


def _text_stream(descriptor: int) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(descriptor, "w", closefd=False)),
        encoding="utf-8",
        errors="backslashreplace",
        line_buffering=True,
    )


def print_exception(error: BaseException, trace: TracebackType | None) -> None:
    """Print an exception to stderr with its traceback, without the frames of this package."""
    try:
        report = traceback.TracebackException(type(error), error, trace)
        _strip(report, set())
        for line in report.format():
            sys.stderr.write(line)
    except BaseException as failure:
        # Its __str__ raises, or the recursion limit is reached.
        _write(
            "{} (its traceback cannot be shown: {})\n".format(
                type(error).__name__, type(failure).__name__
            )
        )


def print_exit_code(error: SystemExit) -> int:
    """Print the argument of ``sys.exit()`` unless it is a number, as the interpreter does.

    Returns:
        The exit status that a process would have, 0 to 255.
    """
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return int.__and__(error.code, 0xFF)  # a subclass may override the operator
    try:
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
