"""Files that go into a sandbox's workspace, and come out of it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, overload

from rlm_containers.errors import OptionError, SandboxError, WorkspaceError
from rlm_containers.guest import wire
from rlm_containers.interpreter import WorkspaceFile
from rlm_containers.state import (
    CHUNK,
    Workspace,
    copy_contents,
    free_space,
    relative_parts,
    replace_file,
)

#: Bytes that :meth:`FileMethods.get_file` returns at most unless told otherwise.
MAX_SIZE = 256 * 1024**2

#: What the guest keeps the variables in, beside the files of the cells.
_STATE = frozenset(
    (".blobs", *(f"{wire.STATE}{end}" for end in ("", ".new", ".previous", ".previous.new")))
)


class FileMethods:
    """What :class:`~rlm_containers.sandbox.sandbox.Sandbox` has for files.

    The workspace is a directory of this host, so none of this waits for a cell that runs.
    """

    if TYPE_CHECKING:
        name: str
        _workspace: Workspace | None
        _closed: bool

        def _not_open(self, how: str) -> SandboxError: ...

    def put_file(
        self, source: bytes | str | os.PathLike[str], name: str | PurePosixPath | None = None
    ) -> str:
        """Put a file into the workspace, where cells find it under its name.

        Args:
            source: the path of a file of this host, or the contents.
            name: its path in the workspace, such as ``"data/table.csv"``; directories are made.
                ``None`` for the last part of ``source``. A file that has the name is replaced.

        Returns:
            The path, relative to the workspace.

        Raises:
            OptionError: there is no such file here, or no name for it.
            WorkspaceError: the name cannot be used, or there is no room.
            SandboxClosedError: the sandbox is not running.
        """
        if isinstance(source, str | os.PathLike):
            name = Path(source).name if name is None else name
        elif not isinstance(source, bytes | bytearray | memoryview):
            raise OptionError(f"source must be a path or bytes, not {type(source).__name__}.")
        elif name is None:
            raise OptionError("Bytes have no name of their own: give name=….")
        parts = relative_parts(name)
        if parts[0] in _STATE:
            raise WorkspaceError(
                f"{parts[0]!r} belongs to the session's saved state.",
                remedy="Give the file another name.",
                container=self.name,
            )
        with _opened_source(source) as chunks:
            self._open_workspace().write("/".join(parts), chunks, mode=0o644)
        return "/".join(parts)

    @overload
    def get_file(self, name: str | PurePosixPath, *, max_size: int = MAX_SIZE) -> bytes: ...

    @overload
    def get_file(self, name: str | PurePosixPath, to: str | os.PathLike[str]) -> Path: ...

    def get_file(
        self,
        name: str | PurePosixPath,
        to: str | os.PathLike[str] | None = None,
        *,
        max_size: int = MAX_SIZE,
    ) -> bytes | Path:
        """Fetch a file from the workspace.

        Args:
            name: its path in the workspace, relative or below ``/workspace``.
            to: a path of this host to copy it to, or a directory. A file there is replaced.
            max_size: bytes that are returned at most; what is copied is bounded by the disk.

        Returns:
            The contents, or the path that it was copied to. A file that grows meanwhile is cut
            off where it ended at first.

        Raises:
            WorkspaceError: there is no such file, it is a link, a FIFO or the like, or it is too
                large.
            SandboxClosedError: the sandbox is not running.
        """
        parts = relative_parts(name)
        with self._open_workspace().read(name) as file:
            size = os.fstat(file.fileno()).st_size
            if to is not None:
                return self._copy(file.fileno(), size, parts, Path(to))
            if size > max_size:
                raise WorkspaceError(
                    f"{'/'.join(parts)} is {size:,} bytes long, and no more than {max_size:,} "
                    "are taken at once.",
                    remedy="Copy it to a file, with get_file(name, to=…), or raise max_size.",
                    container=self.name,
                )
            return file.read(size)

    def list_files(self) -> tuple[WorkspaceFile, ...]:
        """The regular files in the workspace, in all its directories, sorted by their names.

        Contexts are among them; the session's saved state is not.

        Raises:
            WorkspaceError: a directory cannot be read, or there are more than 200,000 files, or
                directories more than 100 deep.
            SandboxClosedError: the sandbox is not running.
        """
        return tuple(
            WorkspaceFile(name=node.path, size=node.size, modified=node.modified / 1e9)
            for node in self._open_workspace().nodes()
            if node.kind == "file" and node.path.partition("/")[0] not in _STATE
        )

    def _copy(self, descriptor: int, size: int, parts: tuple[str, ...], target: Path) -> Path:
        if target.is_dir():
            target /= parts[-1]
        try:
            with replace_file(target) as copy:
                if size > free_space(copy.fileno()):
                    raise WorkspaceError(
                        f"{'/'.join(parts)} is {size:,} bytes long, and {target.parent} has no "
                        "room for it.",
                        container=self.name,
                    )
                copy_contents(descriptor, copy.fileno(), size)
        except OSError as error:
            raise WorkspaceError(
                f"{'/'.join(parts)} could not be copied to {target}: {error.strerror}.",
                container=self.name,
            ) from error
        return target

    def _open_workspace(self) -> Workspace:
        if self._closed:
            raise self._not_open("was closed")
        if self._workspace is None:
            raise self._not_open("has not been started")
        return self._workspace


@contextlib.contextmanager
def _opened_source(source: bytes | str | os.PathLike[str]) -> Iterator[Iterator[bytes]]:
    """The pieces of what is to be put."""
    if not isinstance(source, str | os.PathLike):
        yield iter((source,))
        return
    try:
        # Not to wait for a FIFO, nor read a device for ever.
        descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise OptionError(f"{str(source)!r} cannot be read: {error}.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OptionError(
            f"{str(source)!r} is not a file.", remedy="A directory is put file by file."
        )
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        yield iter(lambda: file.read(CHUNK), b"")
