"""Exchanges the contents of a workspace for others, so that the old ones can always come back.

The new contents are made beside the workspace. Each name at the top is moved by a rename, so that
nothing is copied. The names of three directories say how far that is, whoever dies when:

* ``old``: the workspace has old contents only; some of them, or none, are in ``old``;
* ``before``: all old contents are there; the workspace has new ones only, or none;
* neither: the exchange has not begun, or is committed.

Nothing of that has to be read from a file, which might be damaged.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from rlm_containers.errors import SessionError, SessionStateError
from rlm_containers.state.hostfiles import flush_directory, is_there, listed
from rlm_containers.state.nofollow import opened_directory
from rlm_containers.state.trees import move
from rlm_containers.state.workspace import Workspace, remove_tree


class Exchange:
    """The exchange of one workspace's contents.

    Args:
        directory: a directory on the file system of the workspace, for this alone.
        workspace: the workspace. Nothing may write to it meanwhile.
    """

    def __init__(self, directory: Path, workspace: Workspace) -> None:
        self.directory = directory
        self._workspace = workspace
        self._new = directory / "new"
        self._old = directory / "old"
        self._before = directory / "before"
        self._keep = directory / "keep"
        self._durable = False

    def prepare(self, *, durable: bool = False) -> Workspace:
        """Make an empty workspace for the new contents.

        Args:
            durable: whether each step must be on the disk before the next.

        Raises:
            WorkspaceError, SessionError: it cannot be made.
        """
        self._durable = durable
        with self._or_session_error("could not be made"):
            remove_tree(self.directory)
            self._keep.mkdir(mode=0o700, parents=True)
        return Workspace.open(self._new, self._workspace.ids)

    def swap(self, keep: Collection[str] = ()) -> None:
        """Move the contents of the workspace away, and the new ones into their place.

        Args:
            keep: names at the top of the workspace that stay as they are.

        Raises:
            SessionError: something could not be moved. Everything is as it was.
        """
        try:
            for name in keep:
                (self._keep / name).touch()
            self._old.mkdir(mode=0o700)
            self._flush()
            with self._workspace.directory() as top:
                with opened_directory(self._old) as old:
                    _move_all(top, old, keep)
                self._flush(self._old)
                self._old.rename(self._before)
                self._flush()
                with opened_directory(self._new) as new:
                    _move_all(new, top, keep)
        except OSError as error:
            self.go_back()
            raise SessionError(
                f"The contents of {self._workspace.path} could not be exchanged: {error.strerror}.",
                remedy="Nothing has been changed. Make room on the disk, and try again.",
            ) from error

    def commit(self) -> None:
        """Give up the old contents. From now on nothing brings them back.

        Raises:
            SessionError: they cannot be given up.
        """
        with self._or_session_error("could not be removed"):
            if self._durable:
                flush_directory(self._workspace.path)
            self._before.rename(self.directory / "done")
            self._flush()
        remove_tree(self.directory)

    def go_back(self) -> bool:
        """Move the old contents back, if an exchange has begun and is not committed.

        Returns:
            Whether one had begun.

        Raises:
            SessionStateError: something could not be moved.
        """
        try:
            begun = is_there(self._old) or is_there(self._before)
            if begun:
                self._move_back()
        except OSError as error:
            raise SessionStateError(
                f"The files of {self._workspace.path.parent.name!r} were being exchanged for those "
                f"of a snapshot, which was interrupted, and what is in {self.directory} could not "
                f"be moved back to {self._workspace.path}: {error}.",
                remedy="Nothing is lost. Remove the cause, and open it again.",
            ) from error
        remove_tree(self.directory)
        return begun

    def _move_back(self) -> None:
        undone = self.directory / "undone"
        undone.mkdir(mode=0o700, exist_ok=True)
        keep = listed(self._keep)
        with self._workspace.directory() as top, opened_directory(undone) as away:
            if is_there(self._before):
                _move_all(top, away, keep)
                self._before.rename(self._old)
            with opened_directory(self._old) as old:
                for name in os.listdir(old):
                    # An earlier version moved new contents in while there was an "old".
                    with contextlib.suppress(FileNotFoundError):
                        move(name, top, away)
                    move(name, old, top)
        if self._durable:
            flush_directory(self._workspace.path)
        self._old.rename(self.directory / "done")

    def _flush(self, *more: Path) -> None:
        if self._durable:
            for directory in (*more, self.directory, self._workspace.path):
                flush_directory(directory)

    @contextlib.contextmanager
    def _or_session_error(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SessionError(
                f"{self.directory} {what}: {error.strerror}.",
                remedy="Make room on the disk, and make the directory writable.",
            ) from error


def _move_all(source: int, target: int, keep: Collection[str]) -> None:
    for name in os.listdir(source):
        if name not in keep:
            move(name, source, target)
