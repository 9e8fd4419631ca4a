"""Contents of files, each stored once under the hash of its contents.

They are always copies. A hard link to a file of the workspace would let a cell change a snapshot
by writing to its own file. The kernel copies, and shares the blocks where the file system can.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from rlm_containers.errors import SessionStateError
from rlm_containers.state.hostfiles import (
    flush_directory,
    give_name,
    is_there,
    listed,
    make_private,
    open_regular,
    temporary_file,
)
from rlm_containers.state.nofollow import CHUNK, copy_contents
from runtimes.text import get_logger

logger = get_logger("rlm_containers")

_REMEDY = (
    "Snapshots that need it cannot be restored or exported. If a file of these contents is in the "
    "workspace, a new snapshot repairs them."
)

_DIGEST = re.compile(r"[0-9a-f]{64}")


def is_digest(value: object) -> bool:
    """Tell whether a value is the name of an object: a SHA-256 in hexadecimal."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


class ObjectStore:
    """A directory of objects, which only the host sees. Only one process may use it at a time.

    Args:
        directory: where it is; made with the first object.
        durable: whether its objects must survive a power failure once :meth:`flush` returns.
    """

    def __init__(self, directory: Path, *, durable: bool = True) -> None:
        self.directory = directory
        self._durable = durable
        self._sizes: set[int] | None = None
        # Objects that this process has written, or has compared with their digest.
        self._verified: set[str] = set()
        self._unflushed: set[Path] = set()  # directories with new names

    def path(self, digest: str) -> Path:
        """Return the path of an object, whether it exists or not."""
        return self.directory / digest[:2] / digest

    def add(self, source: int, size: int) -> tuple[str, int]:
        """Store the contents of an open file.

        An object that is there already is compared with its digest first, once in the life of
        this process. A damaged one is replaced, so that no snapshot begins with it.

        Args:
            source: its descriptor.
            size: bytes to store at most, because a cell may let the file grow for ever.

        Returns:
            The digest and the length of what was stored.

        Raises:
            OSError: it cannot be written.
        """
        if size in self._known_sizes():
            # It may be stored already. Reading it to find out is cheaper than writing it.
            digest, length = _digest(source, size)
            if self._is_whole(digest, length):
                return digest, length
            os.lseek(source, 0, os.SEEK_SET)
        with self._temporary_file() as (path, file):
            target = file.fileno()
            copy_contents(source, target, size)
            # Hash the copy: a process in the container may write to the file meanwhile.
            os.lseek(target, 0, os.SEEK_SET)
            digest, length = _digest(target, size)
            self._keep(path, file, digest)
        self._known_sizes().add(length)
        return digest, length

    def receive(self, source: BinaryIO, digest: str, size: int) -> None:
        """Store an object from a stream.

        Raises:
            SessionStateError: its contents do not have that digest and size.
            OSError: it cannot be written.
        """
        found = hashlib.sha256()
        with self._temporary_file() as (path, file):
            left = size
            while left:
                chunk = source.read(min(left, CHUNK))
                if not chunk:
                    break
                found.update(chunk)
                left -= len(chunk)
                file.write(chunk)
            if left or found.hexdigest() != digest:
                raise SessionStateError(f"The object {digest[:12]}… does not match its digest.")
            self._keep(path, file, digest)

    def flush(self) -> None:
        """Write the names of new objects to the disk. Their contents are there already.

        Raises:
            OSError: it cannot be written.
        """
        while self._unflushed:
            flush_directory(next(iter(self._unflushed)))
            self._unflushed.pop()

    def fill(self, target: int, digest: str, size: int) -> None:
        """Write an object into an open file, which is empty, and compare the copy with the digest.

        Raises:
            SessionStateError: the object is missing, damaged or cannot be read.
            OSError: the file cannot be written.
        """
        with self._opened(digest) as file:
            # One byte more than it should have, to notice if it is too long.
            copy_contents(file.fileno(), target, size + 1)
        os.lseek(target, 0, os.SEEK_SET)
        if _digest(target, size + 1) != (digest, size):
            raise self._damaged(digest)
        self._verified.add(digest)

    @contextlib.contextmanager
    def opened(self, digest: str, size: int) -> Iterator[BinaryIO]:
        """Open an object for reading, and compare it with its digest.

        Raises:
            SessionStateError: it is missing, damaged or cannot be read.
        """
        with self._opened(digest) as file:
            if _digest(file.fileno(), size + 1) != (digest, size):
                raise self._damaged(digest)
            file.seek(0)
            yield file

    @contextlib.contextmanager
    def _opened(self, digest: str) -> Iterator[BinaryIO]:
        path = self.path(digest)
        try:
            file = open_regular(path)
        except FileNotFoundError:
            raise SessionStateError(f"The file {path} is missing.", remedy=_REMEDY) from None
        except OSError as error:
            raise SessionStateError(f"The file {path} cannot be read: {error.strerror}.") from error
        with file:
            yield file

    def _damaged(self, digest: str) -> SessionStateError:
        return SessionStateError(f"The file {self.path(digest)} is damaged.", remedy=_REMEDY)

    def sweep(self, used: Collection[str]) -> None:
        """Remove all other objects, and what a crash has left.

        Raises:
            OSError: something cannot be removed.
        """
        for path in self._files():
            if path.name not in used:
                path.unlink(missing_ok=True)
        self._sizes = None
        self._verified.intersection_update(used)

    @property
    def size(self) -> int:
        """Bytes that the objects take. Another process may add and remove some meanwhile.

        Raises:
            OSError: a directory cannot be read.
        """
        total = 0
        for path in self._files():
            with contextlib.suppress(FileNotFoundError):
                total += path.lstat().st_size
        return total

    def _files(self) -> Iterator[Path]:
        for name in listed(self.directory):
            path = self.directory / name
            if stat.S_ISDIR(path.lstat().st_mode):
                yield from (path / below for below in listed(path))
            else:
                yield path

    def _is_whole(self, digest: str, size: int) -> bool:
        """Tell whether an object is there and is what it should be."""
        if digest not in self._verified:
            try:
                with open_regular(self.path(digest)) as file:
                    found = _digest(file.fileno(), size + 1)
            except FileNotFoundError:
                return False
            if found != (digest, size):
                logger.warning(
                    "the file %s was damaged; it is written again, from the workspace",
                    self.path(digest),
                )
                return False
            self._verified.add(digest)
        return is_there(self.path(digest))

    def _known_sizes(self) -> set[int]:
        if self._sizes is None:
            self._sizes = {path.lstat().st_size for path in self._files()}
        return self._sizes

    def _temporary_file(self) -> contextlib.AbstractContextManager[tuple[Path, BinaryIO]]:
        if not is_there(self.directory):
            make_private(self.directory)
            self._note_name(self.directory)
        return temporary_file(self.directory)

    def _keep(self, temporary: Path, file: BinaryIO, digest: str) -> None:
        """Give an object its name once it is on the disk: later snapshots will rely on it."""
        target = self.path(digest)
        if not is_there(target.parent):
            target.parent.mkdir(exist_ok=True, mode=0o700)
            self._note_name(target.parent)
        give_name(temporary, file, target, durable=self._durable)
        self._note_name(target)
        self._verified.add(digest)

    def _note_name(self, path: Path) -> None:
        if self._durable:
            self._unflushed.add(path.parent)


def _digest(source: int, size: int) -> tuple[str, int]:
    """Hash up to ``size`` bytes that follow in an open file; also return how many there were."""
    digest = hashlib.sha256()
    length = 0
    while length < size and (chunk := os.read(source, min(size - length, CHUNK))):
        digest.update(chunk)
        length += len(chunk)
    return digest.hexdigest(), length
