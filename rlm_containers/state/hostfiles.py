"""Files that only the host writes: where they are, and how several processes share them."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import platformdirs

logger = logging.getLogger("rlm_containers")

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


@contextlib.contextmanager
def replace_file(path: Path, *, mode: int = 0o666, durable: bool = False) -> Iterator[BinaryIO]:
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
        file.flush()
        if durable:
            os.fsync(file.fileno())
        file.close()
        temporary.replace(path)
    if durable:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)  # the new name is an entry of the directory
        finally:
            os.close(directory)


@contextlib.contextmanager
def temporary_file(directory: Path, mode: int = 0o600) -> Iterator[tuple[Path, BinaryIO]]:
    """Make a file with a random name, to be renamed by the caller; else it is removed.

    Yields:
        The file's path, and the file, open for reading and writing.
    """
    path = directory / f".{secrets.token_hex(8)}.new"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield path, file
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, note: str = "") -> Iterator[None]:
    """Hold a lock against other processes and other threads; wait for it as long as needed.

    Args:
        path: the lock's file, made if necessary. It stays, as removing it would be a race.
        note: what to log if there is a wait.
    """
    import filelock  # noqa: PLC0415  # most starts of a sandbox need no lock

    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
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
