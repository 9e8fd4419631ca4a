"""The directory of the host behind a container's ``/workspace``.

Code that nobody trusts owns this directory, so the host never follows a name in it: files are made
under a fresh random name, relative to a descriptor of the directory, and renamed into place. A
symlink, FIFO or device that a cell has put there is replaced, not opened.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from rlm_containers.errors import WorkspaceError
from rlm_containers.state.hostfiles import workspaces_directory
from rlm_containers.state.nofollow import FileOwner, create_file, give_to
from runtimes.command import EngineCommand


def record_of(path: Path) -> Path:
    """The file beside a workspace, out of its container's reach, that says whose it is."""
    return path.with_name(f".{path.name}.owner")


def recorded_by(path: Path) -> Path | None:
    """The workspace that a file is the record of; ``None`` if it is no record."""
    name = path.name.removeprefix(".").removesuffix(".owner")
    if name in ("", ".", ".."):
        return None
    workspace = path.with_name(name)
    return workspace if record_of(workspace) == path else None


class Workspace:
    """One temporary directory, writable for one container.

    Args:
        name: the directory's name in :func:`workspaces_directory`. It must not be there yet.
        owner: the UID and GID that the container writes as, seen from the host.
        record: what the file beside it says, see :func:`record_of`; none is made if it is empty.

    Attributes:
        path: the directory.
        owner: as it was given.

    Raises:
        WorkspaceError: it cannot be made.
    """

    def __init__(self, name: str, owner: FileOwner, record: str = "") -> None:
        self.path = path = workspaces_directory() / name
        self.owner = owner
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Before the directory: that may not be there without it.
            with _recorded(path, record):
                path.mkdir(mode=0o700)
            self._open()
            give_to(owner, self._directory)
        except OSError as error:
            raise WorkspaceError(
                f"The workspace {path} could not be made: {error.strerror}.",
                remedy="Make the directory writable, or set XDG_CACHE_HOME to one that is.",
            ) from error

    def _open(self) -> None:
        self._guard = threading.Lock()
        self._directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)

    @contextlib.contextmanager
    def directory(self) -> Iterator[int]:
        """A descriptor of the directory, which stays open if another thread removes it.

        Raises:
            WorkspaceError: it has been removed.
        """
        with self._guard:
            if self._directory < 0:
                raise WorkspaceError(f"The workspace {self.path} has been removed.")
            descriptor = os.dup(self._directory)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def write(self, name: str, chunks: Iterable[bytes]) -> int:
        """Make or replace a file.

        Args:
            name: the file's name, without any directory.
            chunks: its contents.

        Returns:
            The number of bytes written.

        Raises:
            WorkspaceError: the name has a directory in it, or the disk is full.
        """
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise WorkspaceError(f"{name!r} is not the name of a file in the workspace.")
        try:
            with self.directory() as directory:
                return create_file(directory, name, chunks, self.owner)
        except OSError as error:
            raise WorkspaceError(
                f"{name} could not be written into the workspace {self.path}: {error.strerror}.",
                remedy="Make room on the disk, or remove what stands in the way.",
            ) from error

    def has(self, name: str) -> bool:
        """Whether there is anything of that name at the top."""
        try:
            with self.directory() as directory:
                os.stat(name, dir_fd=directory, follow_symlinks=False)
        except OSError:
            return False
        return True

    def remove(self) -> None:
        """Remove the directory and everything in it. The container must be gone.

        Raises:
            WorkspaceError: something in it could not be removed.
        """
        self.close()
        remove_tree(self.path)
        with contextlib.suppress(OSError):
            record_of(self.path).unlink()

    def close(self) -> None:
        """Let go of the directory, which stays. Nothing can be done with it any more."""
        with self._guard:
            if self._directory >= 0:
                os.close(self._directory)
                self._directory = -1


@contextlib.contextmanager
def _recorded(path: Path, record: str) -> Iterator[None]:
    """Make a workspace's record, and take it away again if the workspace cannot be made."""
    if record:
        with record_of(path).open("x") as file:
            file.write(record)
    try:
        yield
    except BaseException:
        if record:
            record_of(path).unlink()
        raise


def remove_tree(path: Path) -> None:
    """Remove a directory and everything in it, if it is there, whatever a cell has made of that.

    Raises:
        WorkspaceError: something in it could not be removed.
    """
    try:
        # Works along descriptors and follows no symlink, see shutil.rmtree's documentation.
        shutil.rmtree(path)
    except FileNotFoundError:
        pass
    except (OSError, RecursionError) as error:
        # Directories thousands deep are too much for rmtree, before Python 3.13, but not
        # for rm; and cells may lock theirs. Neither command follows a symlink it meets.
        EngineCommand(("chmod", "-R", "u+rwX", "--")).run(str(path), check=False)
        EngineCommand(("rm", "-rf", "--")).run(str(path), check=False)
        if path.exists():
            raise WorkspaceError(
                f"The directory {path} could not be removed: {error}.",
                remedy="Remove it by hand.",
            ) from error
