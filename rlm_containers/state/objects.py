"""Contents of files, each kept once under the hash of what it is.

Always copies, and never hard links to the files of a workspace: those are one file under two names,
and a cell that writes to its own would change the snapshot. A copy by the kernel shares the blocks
where the file system can do that safely.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from rlm_containers.errors import SessionStateError
from rlm_containers.state.hostfiles import temporary_file
from rlm_containers.state.nofollow import CHUNK, copy_contents

_DIGEST = re.compile(r"[0-9a-f]{64}")


def is_digest(value: object) -> bool:
    """Whether this is the name of an object: the SHA-256 of its contents."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


class ObjectStore:
    """A directory of objects, which only the host sees. One process uses it at a time.

    Args:
        directory: where; made when the first object comes.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._sizes: set[int] | None = None

    def path(self, digest: str) -> Path:
        return self.directory / digest[:2] / digest

    def size(self, digest: str) -> int | None:
        """The length of an object in bytes; ``None`` if there is none."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            return None

    def add(self, source: int, size: int) -> tuple[str, int]:
        """Keep the contents of an open file.

        Args:
            source: its descriptor.
            size: bytes of it to keep at most: a file that grows must end somewhere.

        Returns:
            The digest and the length of what was kept.

        Raises:
            OSError: there is no room.
        """
        if size in self._known_sizes():
            # Perhaps here already: to find out it is read, but nothing is written.
            digest, length = _digest(source, size)
            if self.size(digest) == length:
                return digest, length
            os.lseek(source, 0, os.SEEK_SET)
        with self._temporary() as (path, file):
            target = file.fileno()
            copy_contents(source, target, size)
            # Of the copy, since a process in the container may write to the file meanwhile.
            os.lseek(target, 0, os.SEEK_SET)
            digest, length = _digest(target, size)
            self._settle(path, target, digest)
        self._known_sizes().add(length)
        return digest, length

    def receive(self, source: BinaryIO, digest: str, size: int) -> None:
        """Take an object from a stream.

        Raises:
            SessionStateError: it is not what it should be.
            OSError: there is no room.
        """
        found = hashlib.sha256()
        with self._temporary() as (path, file):
            left = size
            while left:
                chunk = source.read(min(left, CHUNK))
                if not chunk:
                    break
                found.update(chunk)
                left -= len(chunk)
                file.write(chunk)
            if left or found.hexdigest() != digest:
                raise SessionStateError(f"The object {digest[:12]}… is not what it should be.")
            file.flush()
            self._settle(path, file.fileno(), digest)

    def fill(self, target: int, digest: str, size: int) -> None:
        """Write an object into an open file.

        Raises:
            SessionStateError: the object is not there, or not whole.
            OSError: there is no room.
        """
        with self.opened(digest, size) as file:
            copy_contents(file.fileno(), target, size)

    @contextlib.contextmanager
    def opened(self, digest: str, size: int) -> Iterator[BinaryIO]:
        """An object, to be read.

        Raises:
            SessionStateError: it is not there, or not whole.
        """
        if self.size(digest) != size:
            raise SessionStateError(f"The object {self.path(digest)} is missing or damaged.")
        with self.path(digest).open("rb") as file:
            yield file

    def sweep(self, used: Collection[str]) -> None:
        """Remove the objects that nothing refers to any more, and what a crash has left."""
        for folder, _, names in os.walk(self.directory):
            for name in names:
                if name not in used:
                    Path(folder, name).unlink()
        self._sizes = None

    def _known_sizes(self) -> set[int]:
        if self._sizes is None:
            self._sizes = {
                Path(folder, name).stat().st_size
                for folder, _, names in os.walk(self.directory)
                for name in names
            }
        return self._sizes

    def _temporary(self) -> contextlib.AbstractContextManager[tuple[Path, BinaryIO]]:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        return temporary_file(self.directory)

    def _settle(self, temporary: Path, descriptor: int, digest: str) -> None:
        """Give an object its name, once it is on the disk: later ones will rely on it."""
        os.fsync(descriptor)
        target = self.path(digest)
        target.parent.mkdir(exist_ok=True, mode=0o700)
        temporary.replace(target)


def _digest(source: int, size: int) -> tuple[str, int]:
    """The digest of what follows in an open file, and its length, up to ``size`` bytes."""
    digest = hashlib.sha256()
    length = 0
    while length < size and (chunk := os.read(source, min(size - length, CHUNK))):
        digest.update(chunk)
        length += len(chunk)
    return digest.hexdigest(), length
