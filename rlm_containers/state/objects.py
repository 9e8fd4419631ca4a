"""Contents of files, each stored once under the hash of its contents.

They are always copies. A hard link to a file of the workspace would let a cell change a snapshot
by writing to its own file. The kernel copies, and shares the blocks where the file system can.
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
    """Tell whether a value is the name of an object: a SHA-256 in hexadecimal."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


class ObjectStore:
    """A directory of objects, which only the host sees. Only one process may use it at a time.

    Args:
        directory: where it is; made with the first object.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._sizes: set[int] | None = None

    def path(self, digest: str) -> Path:
        """Return the path of an object, whether it exists or not."""
        return self.directory / digest[:2] / digest

    def size(self, digest: str) -> int | None:
        """Return the length of an object in bytes; ``None`` if there is no such object."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            return None

    def add(self, source: int, size: int) -> tuple[str, int]:
        """Store the contents of an open file.

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
            if self.size(digest) == length:
                return digest, length
            os.lseek(source, 0, os.SEEK_SET)
        with self._temporary_file() as (path, file):
            target = file.fileno()
            copy_contents(source, target, size)
            # Hash the copy: a process in the container may write to the file meanwhile.
            os.lseek(target, 0, os.SEEK_SET)
            digest, length = _digest(target, size)
            self._rename(path, target, digest)
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
            file.flush()
            self._rename(path, file.fileno(), digest)

    def fill(self, target: int, digest: str, size: int) -> None:
        """Write an object into an open file.

        Raises:
            SessionStateError: the object is missing or incomplete.
            OSError: the file cannot be written.
        """
        with self.opened(digest, size) as file:
            copy_contents(file.fileno(), target, size)

    @contextlib.contextmanager
    def opened(self, digest: str, size: int) -> Iterator[BinaryIO]:
        """Open an object for reading.

        Raises:
            SessionStateError: it is missing or incomplete.
        """
        if self.size(digest) != size:
            raise SessionStateError(f"The object {self.path(digest)} is missing or damaged.")
        with self.path(digest).open("rb") as file:
            yield file

    def sweep(self, used: Collection[str]) -> None:
        """Remove all other objects, and what a crash has left."""
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

    def _temporary_file(self) -> contextlib.AbstractContextManager[tuple[Path, BinaryIO]]:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        return temporary_file(self.directory)

    def _rename(self, temporary: Path, descriptor: int, digest: str) -> None:
        """Give an object its name once it is on the disk: later snapshots will rely on it."""
        os.fsync(descriptor)
        target = self.path(digest)
        target.parent.mkdir(exist_ok=True, mode=0o700)
        temporary.replace(target)


def _digest(source: int, size: int) -> tuple[str, int]:
    """Hash up to ``size`` bytes that follow in an open file; also return how many there were."""
    digest = hashlib.sha256()
    length = 0
    while length < size and (chunk := os.read(source, min(size - length, CHUNK))):
        digest.update(chunk)
        length += len(chunk)
    return digest.hexdigest(), length
