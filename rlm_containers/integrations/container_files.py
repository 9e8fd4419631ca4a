"""Files anywhere in a container, as the programs in it see them.

``Sandbox.files`` reaches the workspace from this host and follows no link. Agents have a shell, and
expect of their tools for files what that shows them: every path, links that are followed, and the
rights of the container's user. So a small program does it in the container, as a command.
"""

from __future__ import annotations

import errno
import inspect
import os
import posixpath
import re
from dataclasses import dataclass

from rlm_containers.errors import SandboxError
from rlm_containers.integrations import file_program
from rlm_containers.interpreter import StreamName
from rlm_containers.sandbox import Sandbox, in_thread
from runtimes.text import clean

#: Bytes that :meth:`ContainerFiles.read` returns at most, unless told otherwise.
MAX_SIZE = 256 * 1024**2

#: The most bytes of any other answer, and the most files in a directory. Each takes some hundred
#: bytes of memory here.
_MAX_ANSWER = 64 * 1024**2
_MAX_FILES = 200_000

#: The names of Python in a container. Most have both.
_INTERPRETERS = ("python3", "python")

_NOT_FOUND = 127

#: What the program says of a file: its kind, its size, and its name in a listing.
_ENTRY = re.compile(rb"([df])([0-9]{0,19}) ([^/]*)", re.DOTALL)

_NUMBERS = {name: number for number, name in errno.errorcode.items()}

_SOURCE = inspect.getsource(file_program)


@dataclass(frozen=True)
class ContainerFile:
    """A file or a directory in a container. A link is what it leads to.

    Attributes:
        path: its path.
        is_directory: whether it is a directory.
        size: bytes; ``None`` for a link that leads nowhere.
    """

    path: str
    is_directory: bool
    size: int | None


class ContainerFiles:
    """Reads and writes files anywhere in a sandbox's container.

    A path is absolute, or relative to ``/workspace``. Each method has an async twin whose name
    begins with ``a``. It takes some hundredths of a second, and raises:

    - OSError: the container's user cannot do it. The class and ``errno`` say why, as for a file of
      this host: FileNotFoundError, PermissionError and so on.
    - OptionError: the path has a null character in it.
    - SandboxClosedError, SandboxLostError: as for :meth:`Sandbox.command`.
    - SandboxError: the container's Python does not do what it is told.

    Args:
        box: the sandbox.
        python: the path of the container's Python; ``None`` for the one on its ``PATH``.
    """

    def __init__(self, box: Sandbox, *, python: str | None = None) -> None:
        self._box = box
        self._interpreters = _INTERPRETERS if python is None else (python,)

    def read(self, path: str, *, max_size: int = MAX_SIZE) -> bytes:
        """Return the contents of a file.

        Args:
            path: its path.
            max_size: the most bytes to return. A file that has more is an OSError with ``EFBIG``.
        """
        return self._run("read", path, most=max_size)

    aread = in_thread(read)

    def write(self, path: str, data: bytes) -> None:
        """Make a file or replace its contents. The directories on its path are made."""
        self._run("write", path, data)

    awrite = in_thread(write)

    def stat(self, path: str) -> ContainerFile:
        """Return what there is at a path."""
        return self._described(self._run("describe", path), path)

    astat = in_thread(stat)

    def list(self, path: str) -> tuple[ContainerFile, ...]:
        """List a directory, sorted by name. More than 200,000 files are an OSError (``EFBIG``)."""
        answer = self._run("listing", path)
        if answer.count(b"\0") > _MAX_FILES:
            raise _error("EFBIG", path)
        entries = answer.split(b"\0")
        return tuple(self._described(entry, path) for entry in entries if entry)

    alist = in_thread(list)  # noqa: A003 - it is this method that is meant

    def mkdir(self, path: str) -> None:
        """Make a directory and those above it. Do nothing if it is there."""
        self._run("mkdir", path)

    amkdir = in_thread(mkdir)

    def remove(self, path: str) -> None:
        """Remove a file, a link, or a directory with all that is in it.

        The workspace itself, and the directories above it, are an OSError with ``EBUSY``.
        """
        self._run("remove", path)

    aremove = in_thread(remove)

    def realpath(self, path: str) -> str:
        """Return a path without links. What does not exist stays as it is written."""
        return os.fsdecode(self._run("realpath", path))

    arealpath = in_thread(realpath)

    def _run(
        self, operation: str, path: str, data: bytes = b"", *, most: int = _MAX_ANSWER
    ) -> bytes:
        """Run the program. Return its answer."""
        answer = bytearray()

        def collect(stream: StreamName, piece: bytes) -> None:
            if stream == "stdout":
                answer.extend(piece)
                if len(answer) > most:
                    raise _error("EFBIG", path)

        for name in self._interpreters:
            arguments = (name, "-I", "-S", "-c", _SOURCE, operation, path)
            result = self._box.command(arguments, input=data, on_output=collect)
            if result.exit_code != _NOT_FOUND:
                break
        if result.status == "ok":
            return bytes(answer)
        if result.exit_code == file_program.FAILED:
            raise _error(result.stderr.text, path)
        raise self._strange("; ".join((*result.notices, result.stderr.text.strip())))

    def _described(self, entry: bytes, path: str) -> ContainerFile:
        """Return what the program says of a path, or of an entry of the directory there."""
        found = _ENTRY.fullmatch(entry)
        if found is None:
            raise self._strange(entry)
        kind, size, name = found.groups()
        return ContainerFile(
            path=posixpath.join(path, os.fsdecode(name)) if name else path,
            is_directory=kind == b"d",
            size=int(size) if size else None,
        )

    def _strange(self, said: object) -> SandboxError:
        return SandboxError(
            f"The container's Python did not work on the file: {clean(said, 400)}",
            remedy="Does `python3 -I -S -c 'print(1)'` work in it?",
            container=self._box.name,
        )


def _error(name: str, path: str) -> OSError:
    """Return the exception for the name of an errno, which came from a container."""
    number = _NUMBERS.get(name, errno.EIO)
    return OSError(number, os.strerror(number), path)
