"""The files in a sandbox's workspace."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from rlm_containers.errors import OptionError, WorkspaceError, host_errors
from rlm_containers.guest import wire
from rlm_containers.interpreter import Artifact, WorkspaceFile
from rlm_containers.sandbox.awaiting import in_thread
from rlm_containers.sandbox.lifecycle import Lifecycle
from rlm_containers.state import Node, WorkspaceFiles, directory_parts, relative_parts

#: Bytes that :meth:`Files.read` returns at most, unless told otherwise.
MAX_SIZE = 256 * 1024**2

#: The types of what matplotlib writes, by the end of a file's name. No other file is reported.
#: :mod:`mimetypes` would not do: it reads what is installed on this machine.
_MIME_TYPES = {
    ".avif": "image/avif",
    ".eps": "application/postscript",
    ".gif": "image/gif",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".pdf": "application/pdf",
    ".png": "image/png",
    ".ps": "application/postscript",
    ".svg": "image/svg+xml",
    ".svgz": "image/svg+xml",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".webp": "image/webp",
}


class Files:
    """The files in one sandbox's workspace, as :attr:`Sandbox.files`.

    A path is relative to the workspace, such as ``"data/table.csv"``, or below ``/workspace``. No
    link is followed, whatever cells have put there. Nothing here waits for a cell or a command that
    runs, and a tool or ``on_output`` may use it. Each method has an async twin whose name begins
    with ``a``.

    Every method raises WorkspaceError if the path leads elsewhere, or if the operating system
    refuses; its ``errno`` then says why: ``errno.ENOENT`` for what is missing, and so on. It raises
    SandboxClosedError if the sandbox is not running.
    """

    def __init__(self, life: Lifecycle) -> None:
        self._life = life

    def read(self, path: str | PurePosixPath, *, max_size: int = MAX_SIZE) -> bytes:
        """Return the contents of a file.

        Args:
            path: its path.
            max_size: the most bytes to return.

        Raises:
            WorkspaceError: there is no such file, it is a directory, a link, a FIFO or the like, or
                it is too large.
        """
        with opened_workspace(self._life) as workspace, workspace.read(path) as file:
            if file.size > max_size:
                raise WorkspaceError(
                    f"{'/'.join(relative_parts(path))} is {file.size:,} bytes long, and at most "
                    f"{max_size:,} are returned.",
                    remedy="Copy it to a file, with get_file(name, to=…), or raise max_size.",
                )
            return file.read(file.size)

    aread = in_thread(read)

    def read_text(self, path: str | PurePosixPath, *, max_size: int = MAX_SIZE) -> str:
        """Return the contents of a file of UTF-8 text. Ends of lines stay as they are.

        Args:
            path: its path.
            max_size: the most bytes to read.

        Raises:
            WorkspaceError: it is no UTF-8, or as for :meth:`read`.
        """
        content = self.read(path, max_size=max_size)
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise WorkspaceError(
                f"{'/'.join(relative_parts(path))} is no UTF-8 text: {error.reason} at byte "
                f"{error.start:,}.",
                remedy="read() returns its bytes.",
                container=self._life.name,
            ) from None

    aread_text = in_thread(read_text)

    def write(self, path: str | PurePosixPath, data: bytes | str) -> None:
        """Make or replace a file as a whole. One that is replaced keeps its permissions.

        Args:
            path: its path. The directories on it are made.
            data: its contents; a string is encoded as UTF-8.

        Raises:
            OptionError: ``data`` is neither.
            WorkspaceError: the path cannot be used, or there is no room.
        """
        if isinstance(data, str):
            try:
                data = data.encode("utf-8")
            except UnicodeEncodeError as error:
                raise OptionError(f"data cannot be encoded as UTF-8: {error.reason}.") from None
        elif not isinstance(data, bytes | bytearray | memoryview):
            raise OptionError(f"data must be bytes or a string, not {type(data).__name__}.")
        write_file(self._life, path, (data,))

    awrite = in_thread(write)

    def list(
        self, path: str | PurePosixPath = ".", *, recursive: bool = False
    ) -> tuple[WorkspaceFile, ...]:
        """List a directory, sorted by name. The session's saved state is not shown.

        Args:
            path: its path.
            recursive: whether to list the directories in it, too.

        Raises:
            WorkspaceError: it is no directory, cannot be read, or has more than 200,000 files, or
                directories more than 100 deep.
        """
        with opened_workspace(self._life) as workspace:
            return tuple(
                _described(node)
                for node in workspace.nodes(path, deep=recursive)
                if node.path.partition("/")[0] not in wire.RESERVED
            )

    alist = in_thread(list)  # noqa: A003 - it is this method that is meant

    def stat(self, path: str | PurePosixPath) -> WorkspaceFile:
        """Return what there is of that name: a file, a directory, or a link itself.

        Raises:
            WorkspaceError: there is nothing.
        """
        with opened_workspace(self._life) as workspace:
            return _described(workspace.node(path))

    astat = in_thread(stat)

    def mkdir(self, path: str | PurePosixPath) -> None:
        """Make a directory and those above it. Do nothing if it is there.

        Raises:
            WorkspaceError: something else has the name, or there is no room.
        """
        if parts := directory_parts(path):
            _check_name(self._life, parts)
        with changed_workspace(self._life) as workspace:
            workspace.make_directory(path)

    amkdir = in_thread(mkdir)

    def remove(self, path: str | PurePosixPath) -> None:
        """Remove a file, a link, or a directory with all that is in it.

        Raises:
            WorkspaceError: there is nothing of that name, or it cannot be removed.
        """
        _check_name(self._life, relative_parts(path))
        with changed_workspace(self._life) as workspace:
            workspace.discard(path)

    aremove = in_thread(remove)

    def move(self, source: str | PurePosixPath, target: str | PurePosixPath) -> None:
        """Give a file, a link or a directory another path. A file there is replaced.

        Args:
            source: its path.
            target: the new one. The directories on it are made.

        Raises:
            WorkspaceError: there is nothing at ``source``, or a directory at ``target``.
        """
        for path in (source, target):
            _check_name(self._life, relative_parts(path))
        with changed_workspace(self._life) as workspace:
            workspace.move(source, target)

    amove = in_thread(move)


@contextlib.contextmanager
def opened_workspace(life: Lifecycle) -> Iterator[WorkspaceFiles]:
    """Yield a sandbox's workspace, and name the container in its errors, which it does not know."""
    workspace = life.running.workspace
    try:
        with host_errors(WorkspaceError, "The workspace cannot be used"):
            yield workspace
    except WorkspaceError as error:
        error.name_container(life.name)
        raise


@contextlib.contextmanager
def changed_workspace(life: Lifecycle) -> Iterator[WorkspaceFiles]:
    """Yield a sandbox's workspace as :func:`opened_workspace` does, to change something in it."""
    with opened_workspace(life) as workspace:
        yield workspace
    life.running.note_changes()


def write_file(life: Lifecycle, path: str | PurePosixPath, chunks: Iterable[bytes]) -> None:
    """Write a file as :meth:`Files.write` does."""
    _check_name(life, relative_parts(path))
    with changed_workspace(life) as workspace:
        workspace.write(path, chunks, mode=0o644)


def _check_name(life: Lifecycle, parts: tuple[str, ...]) -> None:
    if parts[0] in wire.RESERVED:
        raise WorkspaceError(
            f"{parts[0]!r} belongs to the saved state.",
            remedy="Use another name.",
            container=life.name,
        )


def _described(node: Node) -> WorkspaceFile:
    return WorkspaceFile(
        name=node.path,
        size=node.size,
        modified=node.modified / 1e9,
        kind=node.kind,
        mode=node.mode,
    )


def find_artifacts(names: Iterable[str], workspace: WorkspaceFiles) -> tuple[Artifact, ...]:
    """Return the figures among the files that a guest has named.

    Args:
        names: paths from the guest, which may be anything.
        workspace: where the files should be. Only regular files in it are returned.
    """
    found = []
    for name in dict.fromkeys(names):
        mime_type = _MIME_TYPES.get(os.path.splitext(name)[1].lower())
        if mime_type is None:
            continue
        try:
            parts = relative_parts(name)
        except WorkspaceError:
            continue
        try:
            node = workspace.node(name)
        except WorkspaceError as error:
            if error.errno is None:
                break  # nobody answers, and it would take as long for each of the others
            continue
        if node.kind == "file":
            found.append(Artifact(path="/".join(parts), mime_type=mime_type, size=node.size))
    return tuple(found)
