"""Files below a directory that belongs to code which nobody trusts.

Everything here is relative to a descriptor of the directory, goes component by component, and
follows no link: what a cell has put in the way is an error, or is replaced. Only regular files are
opened. A hard link cannot lead out either: a container cannot make one across its mounts.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from rlm_containers.errors import WorkspaceError

#: Where the container sees the directory; names may begin with it.
_TARGET = ("/", "workspace")

#: A user's and a group's id.
FileOwner = tuple[int, int]

#: Bytes that are read at once.
CHUNK = 1 << 20

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def relative_parts(name: object) -> tuple[str, ...]:
    """The components of a name in the workspace.

    Args:
        name: a path relative to the workspace, such as ``"data/table.csv"``, or one below
            ``/workspace``, as cells see it.

    Raises:
        WorkspaceError: it is no such path, or could lead elsewhere.
    """
    if not isinstance(name, str | PurePosixPath):
        raise WorkspaceError(f"The name of a file must be a string, not {type(name).__name__}.")
    text = str(name)
    parts = PurePosixPath(text).parts
    if parts[:2] == _TARGET:
        parts = parts[2:]
    if not parts or parts[0] == "/" or ".." in parts or "\0" in text or text.endswith("/"):
        raise WorkspaceError(
            f"{text[:200]!r} is not the name of a file in the workspace.",
            remedy="Give a path relative to the workspace, such as 'data/table.csv'.",
        )
    return parts


@contextlib.contextmanager
def open_below(
    directory: int, parts: Iterable[str], *, make_for: FileOwner | None = None
) -> Iterator[int]:
    """A directory below another, opened component by component.

    Args:
        directory: a descriptor.
        parts: the way down; none for a second descriptor of the same directory.
        make_for: who is to own directories that are not there yet; ``None`` makes none.

    Raises:
        OSError: one is not there, or is no directory.
    """
    current = os.dup(directory)
    try:
        for part in parts:
            if make_for is not None:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=current)
                    give_to(make_for, part, current)
            current, above = os.open(part, _DIRECTORY, dir_fd=current), current
            os.close(above)
        yield current
    finally:
        os.close(current)


def open_regular(directory: int, name: str) -> int:
    """A regular file, opened to be read; any other kind is refused, and never waited for.

    Raises:
        WorkspaceError: it is something else.
        OSError: it is not there, or cannot be read.
    """
    # Looked at first: to open a device may already do something.
    _check_regular(os.stat(name, dir_fd=directory, follow_symlinks=False), name)
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=directory)
    try:
        _check_regular(os.fstat(descriptor), name)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(found: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "no file")
        raise WorkspaceError(f"{name!r} in the workspace is {kind} and not a file.")


def create_file(
    directory: int, name: str, chunks: Iterable[bytes], owner: FileOwner, mode: int = 0o600
) -> int:
    """Make a file, or replace it whole: under a fresh name first, and then renamed.

    Args:
        directory: a descriptor.
        name: its name, without any directory.
        chunks: its contents.
        owner: who is to own it.
        mode: its permissions.

    Returns:
        The number of bytes written.

    Raises:
        OSError: it cannot be written. Nothing is left of it, nor if ``chunks`` fails.
    """
    temporary = f".{secrets.token_hex(8)}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    size = 0
    try:
        descriptor = os.open(temporary, flags, mode, dir_fd=directory)
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            give_to(owner, descriptor)
            for chunk in chunks:
                view = memoryview(chunk)
                size += view.nbytes
                while view:
                    view = view[file.write(view) :]
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise
    return size


def give_to(owner: FileOwner, what: int | str, directory: int | None = None) -> None:
    """Have a file owned by somebody else, as far as this process may do that.

    Args:
        owner: whom; only root can give files away, and never needs to give them to itself.
        what: a descriptor, or a name in ``directory``, which is not followed.
        directory: a descriptor.
    """
    if os.getuid() != 0 or owner[0] == 0:
        return
    if directory is None:
        os.chown(what, *owner)
    else:
        os.chown(what, *owner, dir_fd=directory, follow_symlinks=False)


def copy_contents(source: int, target: int, size: int) -> int:
    """Copy the first ``size`` bytes from one open file to another; the number that there were.

    The kernel copies, and shares the blocks where the file system can (Btrfs, XFS).
    """
    copied = 0
    if hasattr(os, "copy_file_range"):
        try:
            while copied < size:
                count = os.copy_file_range(source, target, min(size - copied, 1 << 30))
                if not count:
                    break
                copied += count
        except OSError as error:
            if copied or error.errno not in _CANNOT_COPY:
                raise
    while copied < size:
        chunk = os.read(source, min(size - copied, CHUNK))
        if not chunk:
            break
        view = memoryview(chunk)
        while view:
            view = view[os.write(target, view) :]
        copied += len(chunk)
    return copied


#: Not between these files, or not by this kernel.
_CANNOT_COPY = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


def free_space(descriptor: int) -> int:
    """Bytes that can still be written to the file system that an open file is on."""
    found = os.fstatvfs(descriptor)
    return found.f_bavail * found.f_frsize
