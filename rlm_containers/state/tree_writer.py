"""Making a directory tree, in the order in which one is walked."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from rlm_containers.state.nofollow import FileOwner, copy_contents, give_to
from rlm_containers.state.trees import DIRECTORY, opened, walk


class TreeWriter:
    """Makes a tree, in the order in which :func:`walk` gives one.

    Args:
        top: a descriptor of an empty directory.
        owner: who is to own everything.
    """

    def __init__(self, top: int, owner: FileOwner) -> None:
        self._owner = owner
        self._stack: list[tuple[int, str]] = [(os.dup(top), "")]
        # Only at the end: some may be locked, and to write into one changes its time.
        self._finish: list[tuple[int, int, int]] = []

    def close(self) -> None:
        """Close what is open. The permissions of directories are set by now."""
        while self._stack:
            self._leave()

    def directory(self, path: str, mode: int, modified: int) -> None:
        parent, name = self._enter(path)
        os.mkdir(name, 0o700, dir_fd=parent)
        descriptor = os.open(name, DIRECTORY, dir_fd=parent)
        give_to(self._owner, descriptor)
        self._stack.append((descriptor, path + "/"))
        self._finish.append((descriptor, mode, modified))

    def file(self, path: str, mode: int, modified: int, fill: Callable[[int], object]) -> None:
        """Make a file.

        Args:
            path: where.
            mode: its permissions.
            modified: nanoseconds of the epoch.
            fill: writes its contents, given a descriptor.
        """
        parent, name = self._enter(path)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o600, dir_fd=parent)
        try:
            fill(descriptor)
            give_to(self._owner, descriptor)
            os.fchmod(descriptor, mode)
            os.utime(descriptor, ns=(modified, modified))
        finally:
            os.close(descriptor)

    def symlink(self, path: str, target: str) -> None:
        parent, name = self._enter(path)
        os.symlink(target, name, dir_fd=parent)
        give_to(self._owner, name, parent)

    def _enter(self, path: str) -> tuple[int, str]:
        """Go to the directory that a path is in: up only, for each was made when it was named."""
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
            if self._finish and self._finish[-1][0] == descriptor:
                _, mode, modified = self._finish.pop()
                os.fchmod(descriptor, mode)
                os.utime(descriptor, ns=(modified, modified))
        finally:
            os.close(descriptor)


def copy_tree(source: int, target: int, owner: FileOwner) -> list[str]:
    """Copy everything in one directory into another.

    Args:
        source: a descriptor.
        target: a descriptor of an empty directory.
        owner: who is to own the copies.

    Returns:
        The paths of what was left out: FIFOs, sockets and devices.

    Raises:
        WorkspaceError: something cannot be read.
        OSError: something cannot be written.
    """
    skipped = []
    with contextlib.closing(TreeWriter(target, owner)) as writer:
        for node, directory in walk(source):
            if node.kind == "directory":
                writer.directory(node.path, node.mode, node.modified)
            elif node.kind == "file":
                with opened(node, directory) as descriptor:
                    writer.file(node.path, node.mode, node.modified, _copier(descriptor, node.size))
            elif node.kind == "symlink":
                writer.symlink(node.path, os.readlink(node.name, dir_fd=directory))
            else:
                skipped.append(node.path)
    return skipped


def _copier(source: int, size: int) -> Callable[[int], int]:
    return lambda target: copy_contents(source, target, size)
