"""Files that only the host writes: where they are, and how several processes share them."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import platformdirs

from runtimes.text import get_logger

logger = get_logger("rlm_containers")

# The name is that of a directory that is mounted: a colon or a comma would split the path.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def is_session_name(value: object) -> bool:
    """Tell whether a session may have this name: 1-64 letters, digits, ``.``, ``_`` and ``-``."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def cache_directory() -> Path:
    """Return the directory for what can be made again. Virtual machines of engines share it too."""
    return platformdirs.user_cache_path("rlm-containers")


def workspaces_directory() -> Path:
    """Return the directory of the workspaces that end with their sandbox."""
    return cache_directory() / "workspaces"


def passing_snapshots_directory() -> Path:
    """Return the directory of the snapshots that end with their sandbox."""
    return cache_directory() / "snapshots"


def sessions_directory() -> Path:
    """Return the directory of named sessions: in the user's state, which nobody clears."""
    return platformdirs.user_state_path("rlm-containers") / "sessions"


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read it. Do not wait for anything else, such as a FIFO.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(number, os.strerror(number), str(path))
    return os.fdopen(descriptor, "rb")


#: How the names of temporary files end.
_UNFINISHED = ".new"


def make_private(directory: Path) -> None:
    """Make a directory that only this user can enter, and those above it that are missing.

    It does not depend on the umask. A directory that is there already stays as it is, but others
    may no longer write to it.

    Raises:
        OSError: it cannot be made.
    """
    missing = []
    while not is_there(directory):
        missing.append(directory)
        directory = directory.parent
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
    if not missing:
        found = directory.stat()
        if found.st_uid == os.geteuid() and found.st_mode & 0o022:
            directory.chmod(stat.S_IMODE(found.st_mode) & ~0o022)


@contextlib.contextmanager
def replace_file(path: Path, *, mode: int = 0o600, durable: bool = False) -> Iterator[BinaryIO]:
    """Write a file that appears under its name whole, or not at all.

    If the ``with`` block fails, ``path`` is as it was before and nothing is left beside it.

    Args:
        path: the file to make or replace. Its directory must exist and belong to the host: for one
            that cells write to there is :func:`~rlm_containers.state.create_file`.
        mode: its permissions, less the umask.
        durable: whether it must survive a power failure once this returns.

    Yields:
        The file to write to, open for reading too.

    Raises:
        OSError: it cannot be written, or a directory has its name.
    """
    with temporary_file(path.parent, mode) as (temporary, file):
        yield file
        give_name(temporary, file, path, durable=durable)
    if durable:
        flush_directory(path.parent)


def give_name(temporary: Path, file: BinaryIO, path: Path, *, durable: bool) -> None:
    """Give a file of :func:`temporary_file` its name, once its contents are whole.

    Args:
        temporary: the file's path.
        file: the file.
        path: its name from now on. A file of that name is replaced.
        durable: whether its contents must be on the disk first. The name is there once
            :func:`flush_directory` was called for its directory.

    Raises:
        OSError: it cannot be written, or a directory has its name.
    """
    file.flush()
    if durable:
        os.fsync(file.fileno())
    if os.fstat(file.fileno()).st_nlink == 0:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        source = f"/proc/self/fd/{file.fileno()}"
        try:
            # Only linkat(2) follows the link in /proc, so there must be a descriptor.
            os.link(source, path.name, dst_dir_fd=directory)
            return
        except FileExistsError:
            temporary = path.with_name(temporary.name)
            os.link(source, temporary.name, dst_dir_fd=directory)
        finally:
            os.close(directory)
    temporary.replace(path)


def remove_unfinished(directory: Path) -> None:
    """Remove what a killed process has left in the middle of :func:`replace_file`.

    Nobody else may write to the directory meanwhile.
    """
    for name in listed(directory):
        if name.startswith(".") and name.endswith(_UNFINISHED):
            (directory / name).unlink(missing_ok=True)


def flush_directory(directory: Path) -> None:
    """Write the names in a directory to the disk, so that they survive a power failure.

    Raises:
        OSError: it cannot be opened or written.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_there(path: Path) -> bool:
    """Tell whether there is a file or directory of that name.

    Raises:
        OSError: nobody can tell. Only "no such file" means that there is none.
    """
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def listed(directory: Path) -> list[str]:
    """Return the names in a directory, sorted; none if there is no such directory.

    Raises:
        OSError: it cannot be read. ``Path.glob()`` would say that it is empty.
    """
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


@contextlib.contextmanager
def temporary_file(directory: Path, mode: int = 0o600) -> Iterator[tuple[Path, BinaryIO]]:
    """Make a file for :func:`give_name`; without that it is removed.

    Where the file system can, it has no name, so that it vanishes even if this process is killed.

    Yields:
        The path for it, and the file, open for reading and writing.
    """
    path = directory / f".{secrets.token_hex(8)}{_UNFINISHED}"
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        descriptor = os.open(directory, flags | os.O_TMPFILE, mode)
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            raise
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield path, file
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


#: What open(2) says if a file system has no files without names.
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)


@contextlib.contextmanager
def locked(path: Path, note: str = "") -> Iterator[None]:
    """Hold a lock against other processes and other threads; wait for it as long as needed.

    Args:
        path: the lock's file, made if necessary. It stays, as removing it would be a race.
        note: what to log if there is a wait.
    """
    import filelock  # noqa: PLC0415  # most starts of a sandbox need no lock

    make_private(path.parent)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if note:
            logger.info("%s", note)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
