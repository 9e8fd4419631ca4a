"""The directory of the host that a container has as its ``/workspace``.

Cells write to this directory, so nobody trusts what is in it. The host follows no name in it: it
holds a descriptor of the directory and works relative to that.

Other packages reach the files by :class:`WorkspaceFiles`. Only :mod:`rlm_containers.state` itself
uses descriptors of it, for snapshots.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Self

from rlm_containers.errors import SessionError, WorkspaceError, remedy_for
from rlm_containers.state.files import IN_THE_WAY, explained
from rlm_containers.state.hostfiles import flush_directory, make_private, workspaces_directory
from rlm_containers.state.nofollow import (
    DIRECTORY,
    Ids,
    copy_contents,
    create_file,
    directory_parts,
    give_to,
    open_below,
    open_regular,
    relative_parts,
)
from rlm_containers.state.space import Space
from rlm_containers.state.trees import Node, copy_tree, give_tree_to, node_of, walk
from runtimes import EngineCommand
from runtimes.forks import drop_in_children

#: Seconds that chmod and rm may take to remove what rmtree could not.
_REMOVE_TIMEOUT = 60.0


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


class _SharedFile:
    """A file that is open for reading, see :class:`OpenedFile`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = os.fstat(file.fileno()).st_size

    def read(self, most: int) -> bytes:
        return self._file.read(most)

    def copy_to(self, target: int) -> None:
        copy_contents(self._file.fileno(), target, self.size)


class Workspace:
    """An open workspace of this host, see :class:`WorkspaceFiles`.

    Args:
        path: a directory of this host.
        ids: the user and group that the container writes as, as the host sees them.
        durable: whether the files of :meth:`write` must survive a power failure.

    Attributes:
        path: as it was given.
        ids: as they were given.
        durable: likewise.
        space: how much its files may take; ``None`` if they are not limited.

    Raises:
        OSError: the directory cannot be opened.
    """

    def __init__(self, path: Path, ids: Ids, *, durable: bool = False) -> None:
        self.path = path
        self.ids = ids
        self.durable = durable
        self.space: Space | None = None
        self._guard = threading.Lock()
        self._directory = os.open(path, DIRECTORY)
        drop_in_children(self)

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
            make_private(path.parent)
            with contextlib.ExitStack() as undo:
                # First the owner file, so that no workspace is ever without one.
                if owner:
                    with owner_file(path).open("x") as file:
                        undo.callback(owner_file(path).unlink)
                        file.write(owner)
                path.mkdir(mode=0o700)
                undo.callback(path.rmdir)
                workspace = cls(path, ids)
                undo.callback(workspace.close)
                with workspace.directory() as directory:
                    give_to(ids, directory)
                undo.pop_all()
        except OSError as error:
            raise WorkspaceError(
                f"The workspace {path} could not be made: {error.strerror}.",
                remedy=remedy_for(error),
            ) from error
        return workspace

    @classmethod
    def open(cls, path: Path, ids: Ids | None = None, *, durable: bool = False) -> Self:
        """Open a workspace that is kept, or make an empty one.

        Args:
            path: the directory.
            ids: as for the class. What belongs to others is given to them, if this process is
                root. ``None`` stands for the present owner.
            durable: as for the class; it holds for the directory itself, too.

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
            if durable:
                flush_directory(path.parent)
            workspace = cls(path, ids or before, durable=durable)
            if workspace.ids != before:
                # An engine that runs its containers as another user has made it.
                with workspace.directory() as directory:
                    give_tree_to(directory, workspace.ids)
        except OSError as error:
            raise WorkspaceError(
                f"The workspace {path} could not be opened: {error.strerror}.",
                remedy=remedy_for(error),
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
            mode: the permissions of a new file. One that is replaced keeps its own.

        Returns:
            The number of bytes written.

        Raises:
            WorkspaceError: the name cannot be used, the disk is full, its files would take more
                than they may, or the like.
        """
        *above, last = parts = relative_parts(name)
        if self.space is not None:
            chunks = self.space.admit("/".join(parts), chunks)
        with self._opened(parts, above, "could not be written into", IN_THE_WAY, make=True) as to:
            return create_file(to, last, chunks, self.ids, mode, durable=self.durable)

    @contextlib.contextmanager
    def read(self, name: str | PurePosixPath) -> Iterator[_SharedFile]:
        """Open a regular file for reading.

        Args:
            name: its path, as :func:`relative_parts` takes it.

        Raises:
            WorkspaceError: it is missing, cannot be read, or is no regular file.
        """
        *above, last = parts = relative_parts(name)
        with self._opened(parts, above, "cannot be read in") as directory:
            descriptor = open_regular(directory, last)
        with os.fdopen(descriptor, "rb") as file:
            yield _SharedFile(file)

    def nodes(self, name: str | PurePosixPath = ".", *, deep: bool = True) -> Iterator[Node]:
        """Walk a directory, as :func:`walk` does.

        Args:
            name: its path, as :func:`directory_parts` takes it.
            deep: whether to go into the directories in it.

        Raises:
            WorkspaceError: a directory cannot be read, or there are too many nodes or levels.
        """
        parts = directory_parts(name)
        prefix = "".join(f"{part}/" for part in parts)
        with self._opened(parts, parts, "cannot be listed in") as directory:
            for node, _ in walk(directory, deep=deep):
                yield replace(node, path=prefix + node.path)

    def node(self, name: str | PurePosixPath) -> Node:
        """Return what there is of that name. A link is not followed.

        Args:
            name: its path, as :func:`directory_parts` takes it.

        Raises:
            WorkspaceError: it is missing.
        """
        parts = directory_parts(name)
        with self._opened(parts, parts[:-1], "cannot be found in") as directory:
            if not parts:
                return node_of(".", os.fstat(directory))
            found = os.stat(parts[-1], dir_fd=directory, follow_symlinks=False)
            return node_of("/".join(parts), found)

    def make_directory(self, name: str | PurePosixPath) -> None:
        """Make a directory and those on its path, unless they are there.

        Args:
            name: its path, as :func:`directory_parts` takes it.

        Raises:
            WorkspaceError: something else has one of these names, or the disk is full.
        """
        *above, last = parts = directory_parts(name) or (".",)
        with self._opened(parts, above, "could not be made in", IN_THE_WAY, make=True) as to:
            try:
                os.mkdir(last, 0o755, dir_fd=to)
            except FileExistsError:
                if not stat.S_ISDIR(os.stat(last, dir_fd=to, follow_symlinks=False).st_mode):
                    raise
            else:
                give_to(self.ids, last, to)

    def discard(self, name: str | PurePosixPath) -> None:
        """Remove a file, a link, or a directory with everything in it.

        Args:
            name: its path, as :func:`relative_parts` takes it.

        Raises:
            WorkspaceError: it is missing, or something in it could not be removed.
        """
        *above, last = parts = relative_parts(name)
        otherwise = "A command or a cell may be able to remove it: `rm -rf`."
        with self._opened(parts, above, "could not be removed from", otherwise) as directory:
            found = os.stat(last, dir_fd=directory, follow_symlinks=False)
            if not stat.S_ISDIR(found.st_mode):
                os.unlink(last, dir_fd=directory)
                return
            try:
                # It works along descriptors and follows no link, see its documentation.
                shutil.rmtree(last, dir_fd=directory)
            except RecursionError:  # before Python 3.13
                raise OSError(errno.ELOOP, "its directories are too deep") from None

    def move(self, source: str | PurePosixPath, target: str | PurePosixPath) -> None:
        """Give a file, a link or a directory another name. A file of that name is replaced.

        Args:
            source: its path, as :func:`relative_parts` takes it.
            target: the new path. The directories on it are made.

        Raises:
            WorkspaceError: it is missing, or a directory has the new name.
        """
        *above, last = parts = relative_parts(source)
        *new_above, new_last = relative_parts(target)
        what = "could not be moved in"
        with (
            self._opened(parts, above, what, IN_THE_WAY) as directory,
            self._opened(parts, new_above, what, IN_THE_WAY, make=True) as to,
        ):
            os.rename(last, new_last, src_dir_fd=directory, dst_dir_fd=to)

    @contextlib.contextmanager
    def _opened(
        self,
        parts: Sequence[str],
        directory: Sequence[str],
        what: str,
        *otherwise: str,
        make: bool = False,
    ) -> Iterator[int]:
        """Open a directory in it, and explain the errors of the operating system in the block.

        Args:
            parts: the path that the block is about.
            directory: the directory's path.
            what: says what could not be done with ``parts``.
            otherwise: the remedy for an error that may mean anything, if there is a better one.
            make: whether to make directories that are missing.
        """
        with (
            explained(parts, f"{what} the workspace {self.path}", *otherwise),
            self.directory() as top,
            open_below(top, directory, make_for=self.ids if make else None) as opened,
        ):
            yield opened

    def take(self, name: str) -> bool:
        """Remove a file at the top. Return whether there was one.

        Raises:
            WorkspaceError: there is one, and it cannot be removed.
        """
        with self._opened((name,), (), "could not be removed from") as directory:
            try:
                os.unlink(name, dir_fd=directory)
            except FileNotFoundError:
                return False
        return True

    def has(self, name: str) -> bool:
        """Tell whether there is anything of that name at the top.

        Raises:
            WorkspaceError: nobody can tell.
        """
        try:
            with self.directory() as directory:
                os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise WorkspaceError(
                f"The workspace {self.path} cannot be read: {error.strerror}.",
                remedy="If too many files are open, raise the limit (ulimit -n).",
            ) from error
        return True

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Do nothing: no other thread exchanges its contents."""
        return contextlib.nullcontext()

    def pull(self) -> Workspace:
        """Return this object: the container writes to this very directory."""
        return self

    def push(self) -> None:
        """Do nothing: the container reads this very directory."""

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
                remedy=remedy_for(error),
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

    def drop(self) -> None:
        """In a forked child, close the descriptor. The workspace stays its parent's."""
        # The number goes first: once it is closed, another thread may get it for something else,
        # and a child of that thread would close that.
        descriptor, self._directory = self._directory, -1
        if descriptor >= 0:
            os.close(descriptor)

    def close(self) -> None:
        """Close the descriptor. The directory stays; no other method works from now on."""
        with self._guard:
            self.drop()


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
        with contextlib.suppress(OSError):  # no descriptor or process is left to start them with
            for command in (("chmod", "-R", "u+rwX", "--"), ("rm", "-rf", "--")):
                EngineCommand(command).run(str(path), timeout=_REMOVE_TIMEOUT, check=False)
        if os.path.lexists(path):
            raise WorkspaceError(
                f"The directory {path} could not be removed: {error}.",
                remedy="Remove it by hand.",
            ) from error
