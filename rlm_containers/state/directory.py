"""The directory of a session that no sandbox has: its name, its workspace, its manifest."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rlm_containers.errors import OptionError, SessionError, WorkspaceError
from rlm_containers.state.home import KeptWorkspace
from rlm_containers.state.hostfiles import is_session_name
from rlm_containers.state.manifest import Manifest, now
from rlm_containers.state.tree_writer import copy_tree
from rlm_containers.state.trees import DIRECTORY
from rlm_containers.state.workspace import Workspace


def check_name(name: str) -> None:
    """Check that a session can have this name.

    Raises:
        OptionError: it cannot.
    """
    if not is_session_name(name):
        raise OptionError(
            f"{str(name)[:80]!r} is not the name of a session.",
            remedy="It has up to 64 letters, digits, '.', '_' and '-', a letter or digit first.",
        )


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor of a workspace.

    Raises:
        WorkspaceError: it cannot be opened.
    """
    try:
        descriptor = os.open(path, DIRECTORY)
    except OSError as error:
        raise WorkspaceError(f"The workspace {path} cannot be opened: {error.strerror}.") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def kept_workspace(path: Path) -> KeptWorkspace:
    """The workspace of the session in a directory, of whoever owns it there."""
    found = (path / "workspace").stat(follow_symlinks=False)
    return KeptWorkspace(path / "workspace", (found.st_uid, found.st_gid))


def copy_workspace(source: int, top: int, target: Workspace) -> None:
    """Copy what is in one workspace to another.

    Args:
        source: a descriptor of the one.
        top: a descriptor of the other.
        target: the other, whose owner all is given to.

    Raises:
        SessionError: there is no room, or the like.
    """
    try:
        copy_tree(source, top, target.owner)
    except OSError as error:
        raise SessionError(
            f"The workspace could not be copied to {target.path}: {error.strerror}.",
            remedy="Make room on the disk.",
        ) from error


def manifest_of(path: Path) -> Manifest:
    """The manifest of the session in a directory; an empty one if it is lost."""
    try:
        return Manifest.read(path / "manifest.json")
    except ValueError:
        return Manifest.new()


def write_manifest(path: Path, manifest: Manifest, created: str) -> None:
    """Write that of a session whose state has just been put there."""
    replace(manifest, created=created, used=now()).write(path / "manifest.json")
