"""A whole directory tree that belongs to code which nobody trusts: walked, given away, exchanged.

Like :mod:`rlm_containers.state.nofollow`, relative to descriptors and following nothing.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from rlm_containers.errors import WorkspaceError
from rlm_containers.state.nofollow import FileOwner, free_space, open_regular

#: Directories inside of each other. The way down is held open, one descriptor each.
MAX_DEPTH = 100

#: Files, directories and links in a workspace.
MAX_NODES = 200_000

#: A cell can give a file any time; one that every file system can hold is kept.
_LATEST = 1 << 61

#: How to open a directory that is not to be a link.
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, kw_only=True)
class Node:
    """Something in a tree.

    Attributes:
        path: where, relative to the top, with ``/`` between the components.
        kind: ``"other"`` is a FIFO, a socket or a device.
        mode: the permissions of its owner, group and others.
        size: bytes.
        holes: how many of them take no room on the disk.
        modified: nanoseconds of the epoch.
        owner: its user's and its group's id.
    """

    path: str
    kind: Literal["file", "directory", "symlink", "other"]
    mode: int
    size: int
    holes: int
    modified: int
    owner: FileOwner

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


def walk(top: int) -> Iterator[tuple[Node, int]]:
    """Everything below a directory, each directory before what is in it, in alphabetical order.

    Args:
        top: a descriptor.

    Yields:
        A node, and a descriptor of the directory that it is in, which is closed later.

    Raises:
        WorkspaceError: a directory cannot be read, or there are too many or too deep.
    """
    count = 0
    stack: list[tuple[int, str, list[str]]] = []
    try:
        stack.append(_opened(top, ".", ""))
        while stack:
            directory, prefix, names = stack[-1]
            if not names:
                os.close(stack.pop()[0])
                continue
            name = names.pop()
            try:
                found = os.stat(name, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:  # something in the container goes on
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
                    stack.append(_opened(directory, name, node.path + "/"))
    finally:
        for directory, _, _ in stack:
            os.close(directory)


def _opened(directory: int, name: str, prefix: str) -> tuple[int, str, list[str]]:
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
        # No set-user-id and the like: nothing here is worth that.
        mode=stat.S_IMODE(mode) & 0o777,
        size=found.st_size,
        holes=max(0, found.st_size - found.st_blocks * 512) if stat.S_ISREG(mode) else 0,
        modified=min(max(0, found.st_mtime_ns), _LATEST),
        owner=(found.st_uid, found.st_gid),
    )


def _unreadable(path: str, error: OSError) -> WorkspaceError:
    return WorkspaceError(
        f"{path!r} in the workspace cannot be read: {error.strerror}.",
        remedy="Did a cell lock it? os.chmod() in a cell can unlock it again.",
    )


@contextlib.contextmanager
def opened(node: Node, directory: int) -> Iterator[int]:
    """A file of a tree, to be read.

    Raises:
        WorkspaceError: it cannot be, or says that it is larger than the disk has room for.
    """
    try:
        descriptor = open_regular(directory, node.name)
    except OSError as error:
        raise _unreadable(node.path, error) from error
    try:
        if node.holes > free_space(descriptor):
            raise WorkspaceError(
                f"{node.path!r} in the workspace is {node.size:,} bytes long, of which "
                f"{node.holes:,} are holes; a copy would not find so much room.",
                remedy="Remove it.",
            )
        yield descriptor
    finally:
        os.close(descriptor)


def give_tree_to(top: int, owner: FileOwner) -> None:
    """Have somebody else own a directory and all in it, where root asks; the directory last."""
    if os.getuid() != 0:
        return
    for node, directory in walk(top):
        if node.owner != owner:
            os.chown(node.name, *owner, dir_fd=directory, follow_symlinks=False)
    os.chown(top, *owner)


def exchange(workspace: int, staged: int, discarded: int, keep: Collection[str]) -> None:
    """Move what is in a directory away, and what is in another there in its place.

    All three are on one file system, so this is a rename for each name at the top, and takes no
    room.

    Args:
        workspace: a descriptor of the directory.
        staged: one of that with the new contents.
        discarded: one of that which gets the old.
        keep: names at the top that stay as they are.
    """
    for name in os.listdir(workspace):
        if name not in keep:
            _move(name, workspace, discarded)
    for name in os.listdir(staged):
        if name not in keep:
            _move(name, staged, workspace)


def _move(name: str, source: int, target: int) -> None:
    try:
        os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
    except PermissionError:
        # A directory can only be moved by those who may write to it, and its owner need not be.
        descriptor = os.open(name, DIRECTORY, dir_fd=source)
        try:
            mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
            os.fchmod(descriptor, mode | 0o700)
            os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
            os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)
