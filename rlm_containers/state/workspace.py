"""The directory of the host that a container has as its ``/workspace``.

Cells write to this directory, so nobody trusts what is in it. The host follows no name in it: it
holds a descriptor of the directory and works relative to that.

Other packages reach the files by the methods of :class:`Workspace` that take names and yield nodes
or contents. A workspace on another machine would have these methods, too. Only
:mod:`rlm_containers.state` itself uses descriptors of it, for snapshots.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Self

from rlm_containers.errors import SessionError, WorkspaceError
from rlm_containers.state.hostfiles import workspaces_directory
from rlm_containers.state.nofollow import (
    DIRECTORY,
    Ids,
    create_file,
    give_to,
    open_below,
    open_regular,
    relative_parts,
)
from rlm_containers.state.trees import Node, copy_tree, give_tree_to, walk
from runtimes import EngineCommand


def owner_file(workspace: Path) -> Path:
    """Return the path of the file that says which process has a workspace.

    It is beside the workspace, where the container cannot reach it.
    """
    return workspace.with_name(f".{workspace.name}.owner")


def owned_workspace(path: Path) -> Path | None:
    """Return the workspace that a file is the owner file of; ``None`` if it is no owner file."""
    name = path.name.removeprefix(".").removesuffix(".owner")
    if name in ("", ".", ".."):
        return None
    workspace = path.with_name(name)
    return workspace if owner_file(workspace) == path else None


class Workspace:
    """An open workspace. Its methods may be called from any thread.

    Args:
        path: a directory of this host.
        ids: the user and group that the container writes as, as the host sees them.

    Attributes:
        path: as it was given.
        ids: as they were given.

    Raises:
        OSError: the directory cannot be opened.
    """

    def __init__(self, path: Path, ids: Ids) -> None:
        self.path = path
        self.ids = ids
        self._guard = threading.Lock()
        self._directory = os.open(path, DIRECTORY)

    @classmethod
    def create(cls, name: str, ids: Ids, owner: str = "") -> Self:
        """Make the workspace of a sandbox that keeps nothing.

        Args:
            name: the name for the directory, in :func:`workspaces_directory`.
            ids: as for the class.
            owner: the contents of the owner file; without any, no such file is made.

        Raises:
            WorkspaceError: it cannot be made, for example because it exists.
        """
        path = workspaces_directory() / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with contextlib.ExitStack() as undo:
                # First the owner file, so that no workspace is ever without one.
                if owner:
                    with owner_file(path).open("x") as file:
                        file.write(owner)
                    undo.callback(owner_file(path).unlink)
                path.mkdir(mode=0o700)
                undo.pop_all()
            workspace = cls(path, ids)
            with workspace.directory() as directory:
                give_to(ids, directory)
        except OSError as error:
            raise WorkspaceError(
                f"The workspace {path} could not be made: {error.strerror}.",
                remedy="Make the directory writable, or set XDG_CACHE_HOME to one that is.",
            ) from error
        return workspace

    @classmethod
    def open(cls, path: Path, ids: Ids | None = None) -> Self:
        """Open a workspace that is kept, or make an empty one.

        Args:
            path: the directory.
            ids: as for the class. What belongs to others is given to them, if this process is
                root. ``None`` stands for the present owner.

        Raises:
            WorkspaceError: it cannot be opened, or belongs to another user.
        """
        try:
            path.mkdir(mode=0o700, exist_ok=True)
            found = path.lstat()
            before = (found.st_uid, found.st_gid)
            if os.getuid() not in (0, found.st_uid):
                raise WorkspaceError(
                    f"The workspace {path} belongs to the user {found.st_uid}.",
                    remedy="Use the session as that user.",
                )
            if found.st_mode & 0o700 != 0o700:  # a cell has locked it
                path.chmod(0o700)
            workspace = cls(path, ids or before)
            if workspace.ids != before:
                # An engine that runs its containers as another user has made it.
                with workspace.directory() as directory:
                    give_tree_to(directory, workspace.ids)
        except OSError as error:
            raise WorkspaceError(
                f"The workspace {path} could not be opened: {error.strerror}.",
                remedy="Make the directory writable, or set XDG_STATE_HOME to one that is.",
            ) from error
        return workspace

    @contextlib.contextmanager
    def directory(self) -> Iterator[int]:
        """Yield a descriptor of the directory, which outlives its removal by another thread.

        Raises:
            WorkspaceError: the workspace has been closed.
        """
        with self._guard:
            if self._directory < 0:
                raise WorkspaceError(f"The workspace {self.path} has been removed.")
            descriptor = os.dup(self._directory)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def write(
        self, name: str | PurePosixPath, chunks: Iterable[bytes], *, mode: int = 0o600
    ) -> int:
        """Make or replace a file as a whole, and make the directories on its path.

        Args:
            name: its path, as :func:`relative_parts` takes it.
            chunks: its contents.
            mode: its permissions.

        Returns:
            The number of bytes written.

        Raises:
            WorkspaceError: the name cannot be used, the disk is full, or the like.
        """
        *above, last = parts = relative_parts(name)
        try:
            with self.directory() as top, open_below(top, above, make_for=self.ids) as directory:
                return create_file(directory, last, chunks, self.ids, mode)
        except OSError as error:
            raise WorkspaceError(
                f"{'/'.join(parts)} could not be written into the workspace {self.path}: "
                f"{error.strerror}.",
                remedy="Make room on the disk, or remove what stands in the way.",
            ) from error

    @contextlib.contextmanager
    def read(self, name: str | PurePosixPath) -> Iterator[BinaryIO]:
        """Open a regular file for reading.

        Args:
            name: its path, as :func:`relative_parts` takes it.

        Raises:
            WorkspaceError: it is missing, cannot be read, or is no regular file.
        """
        *above, last = parts = relative_parts(name)
        try:
            with self.directory() as top, open_below(top, above) as directory:
                descriptor = open_regular(directory, last)
        except OSError as error:
            raise WorkspaceError(
                f"{'/'.join(parts)} cannot be read in the workspace {self.path}: {error.strerror}.",
                remedy="list_files() lists what is there. Links are not followed.",
            ) from error
        with os.fdopen(descriptor, "rb") as file:
            yield file

    def nodes(self) -> Iterator[Node]:
        """Walk everything in it, as :func:`walk` does.

        Raises:
            WorkspaceError: a directory cannot be read, or there are too many nodes or levels.
        """
        with self.directory() as top:
            for node, _ in walk(top):
                yield node

    def has(self, name: str) -> bool:
        """Tell whether there is anything of that name at the top."""
        try:
            with self.directory() as directory:
                os.stat(name, dir_fd=directory, follow_symlinks=False)
        except OSError:
            return False
        return True

    def copy_to(self, other: Workspace) -> None:
        """Copy everything into an empty workspace, except FIFOs, sockets and devices.

        Raises:
            WorkspaceError: something cannot be read.
            SessionError: the copy cannot be written.
        """
        try:
            with self.directory() as source, other.directory() as target:
                copy_tree(source, target, other.ids)
        except OSError as error:
            raise SessionError(
                f"The workspace could not be copied to {other.path}: {error.strerror}.",
                remedy="Make room on the disk.",
                container=other.path.name,
            ) from error

    def remove(self) -> None:
        """Remove the directory, everything in it, and the owner file. May be called again.

        The container must be gone.

        Raises:
            WorkspaceError: something could not be removed.
        """
        self.close()
        remove_tree(self.path)
        with contextlib.suppress(OSError):
            owner_file(self.path).unlink()

    def close(self) -> None:
        """Close the descriptor. The directory stays; no other method works from now on."""
        with self._guard:
            if self._directory >= 0:
                os.close(self._directory)
                self._directory = -1


def remove_tree(path: Path) -> None:
    """Remove a directory and everything in it, whatever cells have done to it.

    Does nothing if there is no such directory.

    Raises:
        WorkspaceError: something in it could not be removed.
    """
    try:
        # It works along descriptors and follows no link, see its documentation.
        shutil.rmtree(path)
    except FileNotFoundError:
        pass
    except (OSError, RecursionError) as error:
        # Before Python 3.13 rmtree fails on thousands of levels, and on directories that a cell
        # has locked. chmod and rm do not, and follow no link in the tree either.
        EngineCommand(("chmod", "-R", "u+rwX", "--")).run(str(path), check=False)
        EngineCommand(("rm", "-rf", "--")).run(str(path), check=False)
        if path.exists():
            raise WorkspaceError(
                f"The directory {path} could not be removed: {error}.",
                remedy="Remove it by hand.",
            ) from error
