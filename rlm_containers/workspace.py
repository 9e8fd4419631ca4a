"""The directory of the host behind a container's ``/workspace``.

Code that nobody trusts owns this directory, so the host never follows a name in it: files are made
under a fresh random name, relative to a descriptor of the directory, and renamed into place. A
symlink, FIFO or device that a cell has put there is replaced, not opened.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path

import platformdirs

from rlm_containers.errors import WorkspaceError
from runtimes.command import EngineCommand

__all__ = ["TARGET", "Workspace", "workspaces_directory"]

#: Where the container sees it.
TARGET = "/workspace"


def workspaces_directory() -> Path:
    """Where workspaces are made: below the user's cache, which virtual machines share too."""
    return platformdirs.user_cache_path("rlm-containers") / "workspaces"


class Workspace:
    """One temporary directory, writable for one container.

    Args:
        name: the directory's name in :func:`workspaces_directory`. It must not be there yet.
        owner: the UID and GID that the container writes as, seen from the host.

    Attributes:
        path: the directory.

    Raises:
        WorkspaceError: it cannot be made.
    """

    def __init__(self, name: str, owner: tuple[int, int]) -> None:
        self.path = path = workspaces_directory() / name
        self._owner = owner
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.mkdir(mode=0o700)
            self._directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            self._own(self._directory)
        except OSError as error:
            raise WorkspaceError(
                f"The workspace {path} could not be made: {error.strerror}.",
                remedy="Make the directory writable, or set XDG_CACHE_HOME to one that is.",
            ) from error

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
        temporary = f".{secrets.token_hex(8)}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        size = 0
        try:
            descriptor = os.open(temporary, flags, 0o600, dir_fd=self._directory)
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                self._own(descriptor)
                for chunk in chunks:
                    view = memoryview(chunk)
                    size += view.nbytes
                    while view:
                        view = view[file.write(view) :]
            os.rename(temporary, name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=self._directory)
            if not isinstance(error, OSError):  # from the chunks, or KeyboardInterrupt
                raise
            raise WorkspaceError(
                f"{name} could not be written into the workspace {self.path}: {error.strerror}.",
                remedy="Make room on the disk, or remove what stands in the way.",
            ) from error
        return size

    def remove(self) -> None:
        """Remove the directory and everything in it. The container must be gone.

        Raises:
            WorkspaceError: something in it could not be removed.
        """
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1
        try:
            # Works along descriptors and follows no symlink, see shutil.rmtree's documentation.
            shutil.rmtree(self.path)
        except FileNotFoundError:
            pass
        except (OSError, RecursionError) as error:
            # Directories thousands deep are too much for rmtree, before Python 3.13, but not
            # for rm; and cells may lock theirs. Neither command follows a symlink it meets.
            EngineCommand(("chmod", "-R", "u+rwX", "--")).run(str(self.path), check=False)
            EngineCommand(("rm", "-rf", "--")).run(str(self.path), check=False)
            if self.path.exists():
                raise WorkspaceError(
                    f"The workspace {self.path} could not be removed: {error}.",
                    remedy="Remove it by hand.",
                ) from error

    def _own(self, descriptor: int) -> None:
        uid, gid = self._owner
        if os.getuid() == 0 and uid != 0:
            os.fchown(descriptor, uid, gid)
