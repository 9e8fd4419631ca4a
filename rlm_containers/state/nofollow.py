"""Single files below a directory that cells write to, which nobody trusts.

Every function works relative to a descriptor of the directory, opens one path component at a time
and follows no link. Whatever a cell has put in the way is an error or is replaced. Only regular
files are opened. Hard links are safe: a container cannot make one across its mounts.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import TypeGuard

from rlm_containers.errors import WorkspaceError
from rlm_containers.guest import wire
from runtimes.text import brief

#: The user id and group id that a file belongs to.
Ids = tuple[int, int]

#: Bytes per read.
CHUNK = 1 << 20

#: Flags that open a directory, and fail on a link to one.
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_MOUNT_POINT = PurePosixPath(wire.WORKSPACE).parts

#: The longest path that Linux takes.
_MAX_PATH = 4096

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def relative_parts(name: object) -> tuple[str, ...]:
    """Split the name of a file in the workspace into its components.

    Args:
        name: a path relative to the workspace, such as ``"data/table.csv"``, or one below
            ``/workspace``, as cells see it.

    Raises:
        WorkspaceError: it is no such path, or could lead out of the workspace.
    """
    if not isinstance(name, str | PurePosixPath):
        raise WorkspaceError(f"The name of a file must be a string, not {type(name).__name__}.")
    text = str(name)
    parts = PurePosixPath(text).parts
    if parts[:2] == _MOUNT_POINT:
        parts = parts[2:]
    if (
        not parts
        or parts[0] == "/"
        or ".." in parts
        or "\0" in text
        or text.endswith("/")
        or len(text) > _MAX_PATH
        or not _can_be_encoded(text)
    ):
        raise WorkspaceError(
            f"{brief(text)} is not the name of a file in the workspace.",
            remedy="Give a path below /workspace, or relative to it, such as 'data/table.csv', "
            "without '..'. Only commands and cells reach the container's other directories.",
        )
    return parts


def is_plain_path(path: str) -> bool:
    """Tell whether a path is relative and written in its only normal form."""
    try:
        return "/".join(relative_parts("./" + path)) == path
    except WorkspaceError:
        return False


def is_link_target(target: object) -> TypeGuard[str]:
    """Tell whether a symbolic link can have a target."""
    return (
        isinstance(target, str)
        and 0 < len(target) <= _MAX_PATH
        and "\0" not in target
        and _can_be_encoded(target)
    )


def _can_be_encoded(path: str) -> bool:
    try:
        os.fsencode(path)
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


def directory_parts(name: object) -> tuple[str, ...]:
    """Split the name of a directory in the workspace as :func:`relative_parts` does.

    Returns:
        Its components; none for the workspace itself, which is ``"."`` or ``/workspace``.
    """
    text = str(name) if isinstance(name, PurePosixPath) else name
    if isinstance(text, str) and PurePosixPath(text).parts in ((), _MOUNT_POINT):
        return ()
    return relative_parts(text.rstrip("/") if isinstance(text, str) else text)


@contextlib.contextmanager
def opened_directory(path: Path) -> Iterator[int]:
    """Open a directory for the length of the ``with`` block. The last component is not followed.

    Yields:
        A descriptor.

    Raises:
        OSError: it is missing, no directory, or a link.
    """
    descriptor = os.open(path, DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def open_below(
    directory: int, parts: Iterable[str], *, make_for: Ids | None = None
) -> Iterator[int]:
    """Open a directory below another.

    Args:
        directory: a descriptor of the upper directory.
        parts: the components of the path down; if there are none, ``directory`` is opened again.
        make_for: the owner of directories to make where one is missing; ``None`` makes none.

    Yields:
        A descriptor.

    Raises:
        OSError: a component is missing, or is no directory.
    """
    current = os.dup(directory)
    try:
        for part in parts:
            if make_for is not None:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=current)
                    give_to(make_for, part, current)
            current, above = os.open(part, DIRECTORY, dir_fd=current), current
            os.close(above)
        yield current
    finally:
        os.close(current)


def open_regular(directory: int, name: str) -> int:
    """Open a regular file for reading. Never blocks: anything but a regular file is refused.

    Returns:
        A descriptor, which the caller closes.

    Raises:
        WorkspaceError: it is something else.
        OSError: it is missing, or cannot be read.
    """
    # Check before opening too: merely opening a device can have an effect.
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
        number = errno.EISDIR if stat.S_ISDIR(found.st_mode) else errno.EINVAL
        raise WorkspaceError(f"{name!r} in the workspace is {kind} and not a file.", errno=number)


def create_file(
    directory: int,
    name: str,
    chunks: Iterable[bytes],
    ids: Ids,
    mode: int = 0o600,
    *,
    durable: bool = False,
) -> int:
    """Make or replace a file as a whole, by writing it under a random name and renaming it.

    Args:
        directory: a descriptor of its directory.
        name: its name, without any directory.
        chunks: its contents.
        ids: its owner.
        mode: the permissions of a new file. One that is replaced keeps its own.
        durable: whether it must survive a power failure once this returns.

    Returns:
        The number of bytes written.

    Raises:
        OSError: it cannot be written. If this or ``chunks`` fails, nothing of it is left.
    """
    temporary = f".{secrets.token_hex(8)}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    size = 0
    try:
        before = _regular_mode(directory, name)
        descriptor = os.open(temporary, flags, mode, dir_fd=directory)
        with os.fdopen(descriptor, "wb") as file:
            if before is not None:
                # What the host writes, the cells can read, whatever they had locked before.
                os.fchmod(descriptor, before | stat.S_IRUSR)
            give_to(ids, descriptor)
            for chunk in chunks:
                size += file.write(chunk)
            if durable:
                file.flush()
                os.fsync(descriptor)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        if durable:
            os.fsync(directory)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise
    return size


def _regular_mode(directory: int, name: str) -> int | None:
    """Return the permissions of a regular file; ``None`` if there is no such file."""
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return None
    return stat.S_IMODE(found.st_mode) & 0o777 if stat.S_ISREG(found.st_mode) else None


def give_to(ids: Ids, file: int | str, directory: int | None = None) -> None:
    """Change the owner of a file if this process is root; others cannot.

    Args:
        ids: the new owner. Nothing is changed for root's id 0, whose files they are already.
        file: a descriptor, or a name in ``directory``, which is not followed.
        directory: a descriptor.
    """
    if os.getuid() != 0 or ids[0] == 0:
        return
    if directory is None:
        os.chown(file, *ids)
    else:
        os.chown(file, *ids, dir_fd=directory, follow_symlinks=False)


def copy_contents(source: int, target: int, size: int) -> int:
    """Copy up to ``size`` bytes from one open file to another.

    The kernel copies, and shares the blocks where the file system can (Btrfs, XFS).

    Returns:
        The number of bytes copied: fewer than ``size`` if the source ends before.
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


#: What copy_file_range() says if it does not work for these files, or in this kernel.
_CANNOT_COPY = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


def free_space(file: int | Path) -> int:
    """Return how many bytes can still be written to the file system of a file."""
    found = os.statvfs(file)
    return found.f_bavail * found.f_frsize
