"""The files of a sandbox's workspace, wherever they are: what a sandbox does with them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Protocol

from rlm_containers.errors import WorkspaceError, remedy_for
from rlm_containers.state.space import Space
from rlm_containers.state.trees import Node

if TYPE_CHECKING:
    from rlm_containers.state.workspace import Workspace

#: What to do where something else has the name, or a directory on the path.
IN_THE_WAY = "Remove what stands in the way."

#: The path of a file, as :func:`relative_parts` and :func:`directory_parts` take it.
Name = str | PurePosixPath


class OpenedFile(Protocol):
    """A regular file that is open for reading."""

    @property
    def size(self) -> int:
        """Bytes that it had when it was opened."""

    def read(self, most: int) -> bytes:
        """Return the next bytes, fewer than ``most`` only at its end."""

    def copy_to(self, target: int) -> None:
        """Write what it had when it was opened to a file of this host.

        Args:
            target: a descriptor.

        Raises:
            OSError: that cannot be written.
        """


class WorkspaceFiles(Protocol):
    """The files of one workspace. Any thread may call.

    No link in the workspace is followed. Every method raises WorkspaceError if a path cannot be
    used, or if the operating system refuses; its ``errno`` then says why.

    Attributes:
        durable: whether what is written must survive a power failure.
        space: how much the files may take; ``None`` if nobody on this host limits them.
    """

    durable: bool
    space: Space | None

    def write(self, name: Name, chunks: Iterable[bytes], *, mode: int = 0o600) -> int:
        """Make or replace a file as a whole, and make the directories on its path.

        Args:
            name: its path.
            chunks: its contents.
            mode: the permissions of a new file. One that is replaced keeps its own.

        Returns:
            The number of bytes written.
        """

    def read(self, name: Name) -> AbstractContextManager[OpenedFile]:
        """Open a regular file for reading."""

    def nodes(self, name: Name = ".", *, deep: bool = True) -> Iterator[Node]:
        """Walk a directory in alphabetical order, each directory before its contents.

        Args:
            name: its path.
            deep: whether to go into the directories in it.
        """

    def node(self, name: Name) -> Node:
        """Return what there is of that name. A link is not followed."""

    def make_directory(self, name: Name) -> None:
        """Make a directory and those on its path, unless they are there."""

    def discard(self, name: Name) -> None:
        """Remove a file, a link, or a directory with everything in it."""

    def move(self, source: Name, target: Name) -> None:
        """Give a file, a link or a directory another name. A file of that name is replaced."""

    def has(self, name: str) -> bool:
        """Tell whether there is anything of that name at the top."""

    def held(self) -> AbstractContextManager[None]:
        """Let no other thread change the directory of this host in the ``with`` block."""

    def pull(self) -> Workspace:
        """Return the directory of this host with the files as they are now.

        Nothing should write to the workspace meanwhile.
        """

    def push(self) -> None:
        """Give the container the files of the directory of this host, in place of its own.

        No process of the container may use them meanwhile.
        """


@contextlib.contextmanager
def explained(
    parts: Sequence[str],
    what: str,
    otherwise: str = "list_files() lists what is there. Links are not followed.",
) -> Iterator[None]:
    """Explain the errors of the operating system in the block.

    Args:
        parts: the path that the block is about.
        what: says what could not be done with it, up to the name of the place.
        otherwise: the remedy for an error that may mean anything.

    Raises:
        WorkspaceError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise WorkspaceError(
            f"{'/'.join(parts) or '.'} {what}: {error.strerror}.",
            remedy=remedy_for(error, otherwise),
            errno=error.errno,
        ) from error
