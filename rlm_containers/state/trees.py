"""Whole directory trees that cells write to, which nobody trusts: walk, copy, swap.

As in :mod:`rlm_containers.state.nofollow`, everything is relative to descriptors and no link is
followed.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from rlm_containers.errors import WorkspaceError
from rlm_containers.state.nofollow import (
    DIRECTORY,
    Ids,
    copy_contents,
    free_space,
    give_to,
    open_regular,
)

#: Levels of directories. Walking keeps one descriptor open for each.
MAX_DEPTH = 100

#: Files, directories and links in a workspace.
MAX_NODES = 200_000

#: The latest modification time that is kept. Cells can set any, but not every file system holds it.
_LATEST = 1 << 61


@dataclass(frozen=True, kw_only=True)
class Node:
    """A file, directory or link in a tree.

    Attributes:
        path: relative to the top, with ``/`` between the components.
        kind: ``"other"`` is a FIFO, a socket or a device.
        mode: the permission bits, without set-user-id and the like.
        size: bytes.
        holes: how many of these bytes take no space on the disk.
        modified: nanoseconds since the epoch.
        ids: its owner.
    """

    path: str
    kind: Literal["file", "directory", "symlink", "other"]
    mode: int
    size: int
    holes: int
    modified: int
    ids: Ids

    @property
    def name(self) -> str:
        """The last component of the path."""
        return self.path.rpartition("/")[2]


def walk(top: int) -> Iterator[tuple[Node, int]]:
    """Walk a tree in alphabetical order, each directory before its contents.

    Args:
        top: a descriptor of the top directory, which is not part of the walk.

    Yields:
        A node and a descriptor of its directory. The descriptor is open until the next step.

    Raises:
        WorkspaceError: a directory cannot be read, or there are too many nodes or levels.
    """
    count = 0
    stack: list[tuple[int, str, list[str]]] = []
    try:
        stack.append(_listed(top, ".", ""))
        while stack:
            directory, prefix, names = stack[-1]
            if not names:
                os.close(stack.pop()[0])
                continue
            name = names.pop()
            try:
                found = os.stat(name, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:  # a cell has removed it meanwhile
                continue
            count += 1
            if count > MAX_NODES:
                raise WorkspaceError(
                    f"There are more than {MAX_NODES:,} files in the workspace.",
                    remedy="Pack them into archives, or remove what is not needed.",
                )
            node = _node(prefix + name, found)
            yield node, directory
            if node.kind == "directory":
                if len(stack) >= MAX_DEPTH:
                    raise WorkspaceError(
                        f"The directories in the workspace are more than {MAX_DEPTH} deep, at "
                        f"{node.path[:80]!r}….",
                        remedy="Remove them.",
                    )
                with contextlib.suppress(FileNotFoundError):
                    stack.append(_listed(directory, name, node.path + "/"))
    finally:
        for directory, _, _ in stack:
            os.close(directory)


def _listed(directory: int, name: str, prefix: str) -> tuple[int, str, list[str]]:
    """Open a directory and list it, the first name last."""
    try:
        descriptor = os.open(name, DIRECTORY, dir_fd=directory)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unreadable(prefix.rstrip("/"), error) from error
    try:
        return descriptor, prefix, sorted(os.listdir(descriptor), reverse=True)
    except OSError as error:
        os.close(descriptor)
        raise _unreadable(prefix.rstrip("/"), error) from error


def _node(path: str, found: os.stat_result) -> Node:
    mode = found.st_mode
    return Node(
        path=path,
        kind="file"
        if stat.S_ISREG(mode)
        else "directory"
        if stat.S_ISDIR(mode)
        else "symlink"
        if stat.S_ISLNK(mode)
        else "other",
        mode=stat.S_IMODE(mode) & 0o777,
        size=found.st_size,
        holes=max(0, found.st_size - found.st_blocks * 512) if stat.S_ISREG(mode) else 0,
        modified=min(max(0, found.st_mtime_ns), _LATEST),
        ids=(found.st_uid, found.st_gid),
    )


def _unreadable(path: str, error: OSError) -> WorkspaceError:
    return WorkspaceError(
        f"{path!r} in the workspace cannot be read: {error.strerror}.",
        remedy="If a cell has locked it, os.chmod() in a cell can unlock it.",
    )


@contextlib.contextmanager
def opened(node: Node, directory: int) -> Iterator[int]:
    """Open a file of a tree for reading.

    Raises:
        WorkspaceError: it cannot be read, or has larger holes than the disk has free space.
    """
    try:
        descriptor = open_regular(directory, node.name)
    except OSError as error:
        raise _unreadable(node.path, error) from error
    try:
        if node.holes > free_space(descriptor):
            raise WorkspaceError(
                f"{node.path!r} in the workspace is {node.size:,} bytes long, of which "
                f"{node.holes:,} are holes, and the disk has no room for a copy.",
                remedy="Remove it.",
            )
        yield descriptor
    finally:
        os.close(descriptor)


class TreeWriter:
    """Makes a tree. The calls must come in the order of :func:`walk`.

    Args:
        top: a descriptor of an empty directory.
        ids: the owner of everything in it.
    """

    def __init__(self, top: int, ids: Ids) -> None:
        self._ids = ids
        self._stack: list[tuple[int, str]] = [(os.dup(top), "")]
        # Set when a directory is left: it may be locked then, and writing to it changes its time.
        self._attributes: list[tuple[int, int, int]] = []

    def close(self) -> None:
        """Set the attributes of the directories that are still open, and close them."""
        while self._stack:
            self._leave()

    def directory(self, path: str, mode: int, modified: int) -> None:
        """Make a directory, and go into it."""
        parent, name = self._enter(path)
        os.mkdir(name, 0o700, dir_fd=parent)
        descriptor = os.open(name, DIRECTORY, dir_fd=parent)
        give_to(self._ids, descriptor)
        self._stack.append((descriptor, path + "/"))
        self._attributes.append((descriptor, mode, modified))

    def file(self, path: str, mode: int, modified: int, fill: Callable[[int], object]) -> None:
        """Make a file.

        Args:
            path: relative to the top.
            mode: its permissions.
            modified: nanoseconds since the epoch.
            fill: writes the contents to a descriptor.
        """
        parent, name = self._enter(path)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o600, dir_fd=parent)
        try:
            fill(descriptor)
            give_to(self._ids, descriptor)
            os.fchmod(descriptor, mode)
            os.utime(descriptor, ns=(modified, modified))
        finally:
            os.close(descriptor)

    def symlink(self, path: str, target: str) -> None:
        """Make a symbolic link."""
        parent, name = self._enter(path)
        os.symlink(target, name, dir_fd=parent)
        give_to(self._ids, name, parent)

    def _enter(self, path: str) -> tuple[int, str]:
        """Leave directories until the top of the stack is the one that a path is in.

        Returns:
            A descriptor of the directory, and the last component of the path.
        """
        prefix, _, name = path.rpartition("/")
        prefix += "/" if prefix else ""
        while self._stack[-1][1] != prefix:
            self._leave()
            if not self._stack:
                raise ValueError(f"the directory of {path!r} has not been made")
        return self._stack[-1][0], name

    def _leave(self) -> None:
        descriptor, _ = self._stack.pop()
        try:
            if self._attributes and self._attributes[-1][0] == descriptor:
                _, mode, modified = self._attributes.pop()
                os.fchmod(descriptor, mode)
                os.utime(descriptor, ns=(modified, modified))
        finally:
            os.close(descriptor)


def copy_tree(source: int, target: int, ids: Ids) -> None:
    """Copy everything in one directory into another, except FIFOs, sockets and devices.

    Args:
        source: a descriptor.
        target: a descriptor of an empty directory.
        ids: the owner of the copies.

    Raises:
        WorkspaceError: something cannot be read.
        OSError: something cannot be written.
    """
    with contextlib.closing(TreeWriter(target, ids)) as writer:
        for node, directory in walk(source):
            if node.kind == "directory":
                writer.directory(node.path, node.mode, node.modified)
            elif node.kind == "file":
                with opened(node, directory) as descriptor:
                    fill = partial(copy_contents, descriptor, size=node.size)
                    writer.file(node.path, node.mode, node.modified, fill)
            elif node.kind == "symlink":
                writer.symlink(node.path, os.readlink(node.name, dir_fd=directory))


def give_tree_to(top: int, ids: Ids) -> None:
    """Change the owner of a directory and everything in it, if this process is root.

    The directory itself comes last: its owner tells whether the whole tree has been changed.
    """
    if os.getuid() != 0:
        return
    for node, directory in walk(top):
        if node.ids != ids:
            os.chown(node.name, *ids, dir_fd=directory, follow_symlinks=False)
    os.chown(top, *ids)


def swap(directory: int, new: int, old: int, keep: Collection[str]) -> None:
    """Move the contents of a directory away, and new contents into their place.

    All three directories must be on one file system: each name at the top is renamed, so that
    nothing is copied.

    Args:
        directory: a descriptor of the directory.
        new: one of the directory with the new contents.
        old: one of the directory that receives the old contents.
        keep: names at the top that stay as they are.
    """
    for source, target in ((directory, old), (new, directory)):
        for name in os.listdir(source):
            if name not in keep:
                _move(name, source, target)


def _move(name: str, source: int, target: int) -> None:
    try:
        os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
    except PermissionError:
        # To move a directory its owner needs the right to write to it, for its "..".
        descriptor = os.open(name, DIRECTORY, dir_fd=source)
        try:
            mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
            os.fchmod(descriptor, mode | 0o700)
            os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
            os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)
