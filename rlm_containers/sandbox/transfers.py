"""Copies of files between this host and a sandbox's workspace."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from rlm_containers.errors import OptionError, WorkspaceError, remedy_for
from rlm_containers.sandbox.files import opened_workspace, write_file
from rlm_containers.sandbox.lifecycle import Lifecycle
from rlm_containers.state import CHUNK, OpenedFile, free_space, relative_parts, replace_file
from runtimes.text import brief, clean


def put_file(
    life: Lifecycle, source: bytes | str | os.PathLike[str], name: str | PurePosixPath | None
) -> str:
    """See :meth:`Sandbox.put_file`."""
    if isinstance(source, str | os.PathLike):
        name = Path(source).name if name is None else name
    elif not isinstance(source, bytes | bytearray | memoryview):
        raise OptionError(f"source must be a path or bytes, not {type(source).__name__}.")
    elif name is None:
        raise OptionError("Bytes have no name of their own: give name=….")
    path = "/".join(relative_parts(name))
    with _opened_source(source) as chunks:
        write_file(life, path, chunks)
    return path


def copy_file(life: Lifecycle, name: str | PurePosixPath, target: Path) -> Path:
    """Copy a file of a workspace to this host. See :meth:`Sandbox.get_file`."""
    parts = relative_parts(name)
    with opened_workspace(life) as workspace, workspace.read(name) as file:
        return _copied(file, parts, target)


def _copied(file: OpenedFile, parts: tuple[str, ...], target: Path) -> Path:
    if target.is_dir():
        target /= parts[-1]
    try:
        with replace_file(target, mode=0o666) as copy:
            if file.size > free_space(copy.fileno()):
                raise WorkspaceError(
                    f"{'/'.join(parts)} is {file.size:,} bytes long, and {target.parent} has no "
                    "room for it.",
                    remedy="Make room on the disk, or name a file on another.",
                )
            file.copy_to(copy.fileno())
    except OSError as error:
        raise WorkspaceError(
            f"{'/'.join(parts)} could not be copied to {target}: {error.strerror}.",
            remedy=remedy_for(error, "Name a directory that is writable."),
        ) from error
    return target


@contextlib.contextmanager
def _opened_source(source: bytes | str | os.PathLike[str]) -> Iterator[Iterator[bytes]]:
    """Open a file of this host, or contents, as pieces of bytes."""
    if not isinstance(source, str | os.PathLike):
        yield iter((source,))
        return
    try:
        # O_NONBLOCK: a FIFO must not make it wait.
        descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise OptionError(f"{brief(str(source))} cannot be read: {clean(error, 200)}.") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OptionError(
            f"{brief(str(source))} is not a file.",
            remedy="Put the files of a directory one by one.",
        )
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        yield iter(lambda: file.read(CHUNK), b"")
