"""The program's own standard streams: closed, full, or connected to a program that has ended."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator

#: How writing to an open file fails.
_OF_WRITES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EBADF, errno.EIO)


def open_missing_streams() -> None:
    """Open those of the three standard streams that the caller has closed.

    Otherwise the next file or pipe that is opened would be taken for one of them. What is written
    to a closed standard output fails; a closed standard error swallows it.
    """
    for descriptor, name, flags in (
        (0, "stdin", os.O_RDONLY),
        (1, "stdout", os.O_RDONLY),
        (2, "stderr", os.O_WRONLY),
    ):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, flags)  # takes the lowest descriptor that is free: this one
            stream = open(descriptor, "r" if name == "stdin" else "w", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


@contextlib.contextmanager
def reporting_stream_errors() -> Iterator[None]:
    """Report an error of the operating system in one line, and end the process with status 1.

    If it is standard output that cannot be written, the line says so. If whoever reads it has ended
    there is none: ``rlm-containers … | head`` is no failure to tell of.
    """
    status: object = 0
    problem: OSError | None = None
    try:
        yield
    except SystemExit as end:
        status = end.code
    except OSError as error:
        problem = error
    try:
        sys.stdout.flush()
    except OSError as error:
        problem = error
        # Python flushes it once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if problem is not None:
        status = status or 1
        if problem.errno != errno.EPIPE:
            with contextlib.suppress(OSError):
                _tell(problem)
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    sys.exit(status)  # type: ignore[arg-type]


def _tell(error: OSError) -> None:
    from rlm_containers.cli.terminal import say

    # A failed write does not say where.
    place = error.filename or ("standard output" if error.errno in _OF_WRITES else "")
    say(f"error: {place}{': ' if place else ''}{error.strerror or error}", "bold red")
