"""Whole directory trees that cells write to, which nobody trusts: walk, copy, move.

As in :mod:`rlm_containers.state.nofollow`, everything is relative to descriptors and no link is
followed.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
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

#: Characters of all their paths, and of the targets of links. Who lists them holds that in memory.
MAX_NAMES = 64 * 1024**2

#: The latest modification time that is kept. Cells can set any, but not every file system holds it.
_LATEST = 1 << 61


Kind = Literal["file", "directory", "symlink", "other"]


def kind_of(mode: int) -> Kind:
    """Return what a file is, by its ``st_mode``."""
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "symlink" if stat.S_ISLNK(mode) else "other"


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
    kind: Kind
    mode: int
    size: int
    holes: int
    modified: int
    ids: Ids

    @property
    def name(self) -> str:
        """The last component of the path."""
        return self.path.rpartition("/")[2]


class TreeBounds:
    """Bounds how many nodes a walk may find, and how much memory their names may take."""

    def __init__(self) -> None:
        self._nodes = self._names = 0

    def add(self, *names: str) -> None:
        """Count a node.

        Args:
            names: its path, and the target of a link.

        Raises:
            WorkspaceError: there are too many, or their names are too long together.
        """
        self._nodes += 1
        self._names += sum(map(len, names))
        if self._nodes > MAX_NODES:
            raise WorkspaceError(
                f"There are more than {MAX_NODES:,} files in the workspace.",
                remedy="Pack them into archives, or remove what is not needed.",
            )
        if self._names > MAX_NAMES:
            raise WorkspaceError(
                f"The paths of the files in the workspace have more than {MAX_NAMES:,} characters "
                "together.",
                remedy="Give the directories shorter names, or remove what is not needed.",
            )


def walk(top: int, *, deep: bool = True) -> Iterator[tuple[Node, int]]:
    """Walk a tree in alphabetical order, each directory before its contents.

    Args:
        top: a descriptor of the top directory, which is not part of the walk.
        deep: whether to go into the directories in it.

    Yields:
        A node and a descriptor of its directory. The descriptor is open until the next step.

    Raises:
        WorkspaceError: a directory cannot be read, or there are too many nodes or levels.
    """
    bounds = TreeBounds()
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
            node = node_of(prefix + name, found)
            bounds.add(node.path)
            yield node, directory
            if deep and node.kind == "directory":
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


def node_of(path: str, found: os.stat_result) -> Node:
    """Return the node of a path, by what ``os.stat()`` says of it."""
    mode = found.st_mode
    return Node(
        path=path,
        kind=kind_of(mode),
        mode=stat.S_IMODE(mode) & 0o777,
        size=found.st_size,
        holes=max(0, found.st_size - found.st_blocks * 512) if stat.S_ISREG(mode) else 0,
        modified=kept_time(found.st_mtime_ns),
        ids=(found.st_uid, found.st_gid),
    )


def kept_time(modified: int) -> int:
    """Return the modification time to keep, by the one that a cell has set, in nanoseconds."""
    return min(max(0, modified), _LATEST)


def _unreadable(path: str, error: OSError) -> WorkspaceError:
    return WorkspaceError(
        f"{path!r} in the workspace cannot be read: {error.strerror}.",
        remedy="If a cell has locked it, os.chmod() in a cell can unlock it.",
        errno=error.errno,
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


def move(name: str, source: int, target: int) -> None:
    """Move a file or a directory from one directory to another on the same file system.

    Args:
        name: its name in both.
        source: a descriptor of the one directory.
        target: a descriptor of the other.

    Raises:
        OSError: it cannot be moved.
    """
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
