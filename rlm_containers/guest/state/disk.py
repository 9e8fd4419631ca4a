"""Files of the workspace, which cells may have removed, replaced or written to."""

from __future__ import annotations

import io
import os
import stat
from typing import BinaryIO


def open_regular(path: str) -> io.BufferedReader:
    """Open a file for reading. Do not wait for a writer if a cell has put a FIFO there.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("{} is not a regular file".format(os.path.basename(path)))
    return os.fdopen(descriptor, "rb")


def create(path: str) -> io.BufferedRandom:
    """Create a file. Never write to what an earlier worker or a cell left under that name.

    Raises:
        OSError: it cannot be created.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except FileExistsError:
        os.unlink(path)
        descriptor = os.open(path, flags, 0o666)
    return os.fdopen(descriptor, "w+b")


def remove(path: str) -> None:
    """Remove a file, unless a cell has done so."""
    try:
        os.unlink(path)
    except OSError:
        pass


def flush_file(file: BinaryIO) -> None:
    """Write the contents of an open file to the disk, so that they survive a power failure.

    Raises:
        OSError: it cannot be written.
    """
    file.flush()
    os.fsync(file.fileno())


def flush_path(path: str) -> None:
    """Write a file's contents, or the names in a directory, to the disk.

    Raises:
        OSError: it cannot be opened or written.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
