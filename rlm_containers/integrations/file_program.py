"""Works on files inside a container. The host sends the source of this module there and runs it.

    python3 -I -S -c SOURCE OPERATION PATH

It runs on Python 3.9 and later, with the rights of the container's user. Operations answer on
standard output. One that fails ends with :data:`FAILED`, and has written the name of its errno to
standard error, since the numbers differ between systems. :mod:`.container_files` is the host's
half.
"""

from __future__ import annotations

import errno
import os
import stat
import sys

#: The exit code of an operation that failed.
FAILED = 65

_CHUNK = 1 << 20


def read(path: str) -> None:
    """Write the contents of a file to standard output."""
    # O_NONBLOCK: a FIFO must not make it wait.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    _expect_file(descriptor)
    while True:
        data = os.read(descriptor, _CHUNK)
        if not data:
            return
        _answer(data)


def write(path: str) -> None:
    """Make a file of what is on standard input, or replace the contents of one."""
    data = sys.stdin.buffer.read()  # first, so that a host that gives up leaves the old contents
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, "") from None
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK, 0o666)
    _expect_file(descriptor)
    os.truncate(descriptor, 0)
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def describe(path: str) -> None:
    """Answer ``d`` for a directory or ``f`` for anything else, the bytes it has, and a space.

    Links are followed.
    """
    _answer(_described(os.stat(path)))


def listing(path: str) -> None:
    """Answer for each entry what :func:`describe` would, its name and a null byte.

    They are sorted by name. A link that leads nowhere has no number of bytes.
    """
    found = []
    for name in sorted(os.listdir(os.fsencode(path))):
        try:
            entry = _described(os.stat(os.path.join(os.fsencode(path), name)))
        except OSError:
            entry = b"f "
        found.append(entry + name + b"\0")
    _answer(b"".join(found))


def mkdir(path: str) -> None:
    """Make a directory and those above it. Do nothing if it is there."""
    os.makedirs(path, exist_ok=True)


def remove(path: str) -> None:
    """Remove a file, a link, or a directory with all that is in it.

    The directory that commands start in cannot be removed, nor can those above it.
    """
    if os.path.islink(path):
        os.unlink(path)
        return
    if os.path.isdir(path):
        here = os.getcwd()
        if os.path.commonpath((here, os.path.realpath(path))) == os.path.realpath(path):
            raise OSError(errno.EBUSY, "")
        import shutil

        shutil.rmtree(path)
        return
    os.unlink(path)


def realpath(path: str) -> None:
    """Answer the path without links. What does not exist stays as it is written."""
    _answer(os.fsencode(os.path.realpath(path)))


_OPERATIONS = (read, write, describe, listing, mkdir, remove, realpath)


def main(operation: str, path: str) -> int:
    """Do one operation. Return the exit code."""
    try:
        next(known for known in _OPERATIONS if known.__name__ == operation)(path)
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "EIO")
        os.write(2, name.encode())
        return FAILED
    return 0


def _described(status: os.stat_result) -> bytes:
    return b"%c%d " % (b"fd"[stat.S_ISDIR(status.st_mode)], status.st_size)


def _expect_file(descriptor: int) -> None:
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "")
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "")


def _answer(data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(1, left) :]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
