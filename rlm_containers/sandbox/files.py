"""Files that go into a sandbox's workspace, and come out of it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from rlm_containers.errors import OptionError, WorkspaceError
from rlm_containers.guest import wire
from rlm_containers.interpreter import Artifact, WorkspaceFile
from rlm_containers.sandbox.lifecycle import Lifecycle
from rlm_containers.state import (
    CHUNK,
    Workspace,
    copy_contents,
    free_space,
    relative_parts,
    replace_file,
)

#: Bytes that :meth:`Sandbox.get_file` returns at most, unless told otherwise.
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
    """The files in one sandbox's workspace.

    The workspace is a directory of this host, so nothing here waits for a cell that runs.

    Args:
        life: the sandbox's lifecycle.
    """

    def __init__(self, life: Lifecycle) -> None:
        self._life = life

    def put(self, source: bytes | str | os.PathLike[str], name: str | PurePosixPath | None) -> str:
        """See :meth:`Sandbox.put_file`."""
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
                container=self._life.name,
            )
        workspace = self._life.running.workspace
        with _opened_source(source) as chunks, self._naming_container():
            workspace.write("/".join(parts), chunks, mode=0o644)
        return "/".join(parts)

    def get(
        self, name: str | PurePosixPath, to: str | os.PathLike[str] | None, max_size: int
    ) -> bytes | Path:
        """See :meth:`Sandbox.get_file`."""
        parts = relative_parts(name)
        workspace = self._life.running.workspace
        with self._naming_container(), workspace.read(name) as file:
            size = os.fstat(file.fileno()).st_size
            if to is not None:
                return self._copy(file.fileno(), size, parts, Path(to))
            if size > max_size:
                raise WorkspaceError(
                    f"{'/'.join(parts)} is {size:,} bytes long, and get_file() returns at most "
                    f"{max_size:,}.",
                    remedy="Copy it to a file, with get_file(name, to=…), or raise max_size.",
                    container=self._life.name,
                )
            return file.read(size)

    def list(self) -> tuple[WorkspaceFile, ...]:
        """See :meth:`Sandbox.list_files`."""
        return tuple(
            WorkspaceFile(name=node.path, size=node.size, modified=node.modified / 1e9)
            for node in self._life.running.workspace.nodes()
            if node.kind == "file" and node.path.partition("/")[0] not in wire.RESERVED
        )

    @contextlib.contextmanager
    def _naming_container(self) -> Iterator[None]:
        """Name the container in the errors of its workspace, which does not know it."""
        try:
            yield
        except WorkspaceError as error:
            if error.container:
                raise
            raise WorkspaceError(
                error.what, remedy=error.remedy, container=self._life.name
            ) from error.__cause__

    def _copy(self, descriptor: int, size: int, parts: tuple[str, ...], target: Path) -> Path:
        if target.is_dir():
            target /= parts[-1]
        try:
            with replace_file(target) as copy:
                if size > free_space(copy.fileno()):
                    raise WorkspaceError(
                        f"{'/'.join(parts)} is {size:,} bytes long, and {target.parent} has no "
                        "room for it.",
                        container=self._life.name,
                    )
                copy_contents(descriptor, copy.fileno(), size)
        except OSError as error:
            raise WorkspaceError(
                f"{'/'.join(parts)} could not be copied to {target}: {error.strerror}.",
                container=self._life.name,
            ) from error
        return target


def find_artifacts(names: Iterable[str], workspace: Workspace) -> tuple[Artifact, ...]:
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
            with workspace.read(name) as file:
                size = os.fstat(file.fileno()).st_size
        except (OSError, WorkspaceError, UnicodeEncodeError):
            continue
        found.append(Artifact(path="/".join(parts), mime_type=mime_type, size=size))
    return tuple(found)


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
        raise OptionError(f"{str(source)!r} cannot be read: {error}.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OptionError(
            f"{str(source)!r} is not a file.", remedy="Put the files of a directory one by one."
        )
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        yield iter(lambda: file.read(CHUNK), b"")
