"""Files that go into a sandbox's workspace, and come out of it."""

from __future__ import annotations

import contextlib
import os
import secrets
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
    create_file,
    free_space,
    open_below,
    open_regular,
    relative_parts,
    walk,
)

#: Bytes that :meth:`FileMethods.get_file` returns at most unless told otherwise.
MAX_SIZE = 256 * 1024**2


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
        if parts[0] in wire.RESERVED:
            raise WorkspaceError(
                f"{parts[0]!r} belongs to the session's saved state.",
                remedy="Give the file another name.",
                container=self.name,
            )
        with self._opened_workspace() as (workspace, top), _opened_source(source) as chunks:
            try:
                with open_below(top, parts[:-1], make_for=workspace.owner) as directory:
                    create_file(directory, parts[-1], chunks, workspace.owner, 0o644)
            except OSError as error:
                raise self._file_error(parts, "could not be written", error) from error
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
        with self._opened_workspace() as (_, top):
            try:
                with open_below(top, parts[:-1]) as directory:
                    descriptor = open_regular(directory, parts[-1])
            except OSError as error:
                raise self._file_error(parts, "cannot be read", error) from error
            try:
                size = os.fstat(descriptor).st_size
                if to is not None:
                    return self._copy(descriptor, size, parts, Path(to))
                if size > max_size:
                    raise WorkspaceError(
                        f"{'/'.join(parts)} is {size:,} bytes long, and no more than {max_size:,} "
                        "are taken at once.",
                        remedy="Copy it to a file, with get_file(name, to=…), or raise max_size.",
                        container=self.name,
                    )
                with os.fdopen(os.dup(descriptor), "rb") as file:
                    return file.read(size)
            finally:
                os.close(descriptor)

    def list_files(self) -> tuple[WorkspaceFile, ...]:
        """The regular files in the workspace, in all its directories, sorted by their names.

        Contexts are among them; the session's saved state is not.

        Raises:
            WorkspaceError: a directory cannot be read, or there are more than 200,000 files, or
                directories more than 100 deep.
            SandboxClosedError: the sandbox is not running.
        """
        with self._opened_workspace() as (_, top):
            return tuple(
                WorkspaceFile(name=node.path, size=node.size, modified=node.modified / 1e9)
                for node, _ in walk(top)
                if node.kind == "file" and node.path.partition("/")[0] not in wire.RESERVED
            )

    def _copy(self, descriptor: int, size: int, parts: tuple[str, ...], target: Path) -> Path:
        if target.is_dir():
            target /= parts[-1]
        temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}")
        try:
            copy = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                if size > free_space(copy):
                    raise WorkspaceError(
                        f"{'/'.join(parts)} is {size:,} bytes long, and {target.parent} has no "
                        "room for it.",
                        container=self.name,
                    )
                copy_contents(descriptor, copy, size)
            finally:
                os.close(copy)
            temporary.replace(target)
        except OSError as error:
            raise WorkspaceError(
                f"{'/'.join(parts)} could not be copied to {target}: {error.strerror}.",
                container=self.name,
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
        return target

    @contextlib.contextmanager
    def _opened_workspace(self) -> Iterator[tuple[Workspace, int]]:
        if self._closed:
            raise self._not_open("was closed")
        if self._workspace is None:
            raise self._not_open("has not been started")
        with self._workspace.directory() as descriptor:
            yield self._workspace, descriptor

    def _file_error(self, parts: tuple[str, ...], what: str, error: OSError) -> WorkspaceError:
        return WorkspaceError(
            f"{'/'.join(parts)} {what} in the workspace: {error.strerror}.",
            remedy="list_files() lists what is there. Links are not followed.",
            container=self.name,
        )


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
