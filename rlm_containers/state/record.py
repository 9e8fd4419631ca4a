"""The record of a session: whether it is still being made.

A session is made in steps: its directory, its workspace, the contents of a fork or an import, the
setup code. Whoever dies in between leaves a directory that looks like a session and is none. So the
last step writes in a file that it is ready. One write of one file is whole or does not happen,
which renames of several directories would not give.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rlm_containers.errors import SessionStateError
from rlm_containers.state.hostfiles import is_there, listed, replace_file
from rlm_containers.state.lock import FILE
from rlm_containers.state.sealed import DamagedFileError, read_sealed, seal
from rlm_containers.state.workspace import remove_tree

_FILE = "session.json"

#: ``"made"`` until it is complete, ``"ready"`` from then on.
SessionState = Literal["made", "ready"]


def read_state(directory: Path) -> SessionState | None:
    """Read how far a session is.

    Versions before this wrote no record. Their sessions, and one whose record is damaged, are ready
    if there is anything in them.

    Args:
        directory: the session's.

    Returns:
        Its state; ``None`` if there is no session.

    Raises:
        UnreadableFileError: the record cannot be read, or a later version has written it.
        OSError: the directory cannot be read.
    """
    try:
        state = read_sealed(directory / _FILE).get("state")
        if state in ("made", "ready"):
            return "made" if state == "made" else "ready"
    except (FileNotFoundError, DamagedFileError):
        pass
    filled = is_there(directory / "workspace") or listed(directory / "snapshots")
    return "ready" if filled else None


def write_state(directory: Path, state: SessionState) -> None:
    """Record how far a session is. A power failure does not undo that.

    Raises:
        OSError: it cannot be written.
    """
    with replace_file(directory / _FILE, durable=True) as file:
        file.write(seal({"state": state}))


def make_anew(directory: Path) -> None:
    """Empty the directory of a session that never became ready, and record that it is being made.

    Args:
        directory: the session's, which this process has locked.

    Raises:
        OSError, WorkspaceError: something cannot be removed or written.
    """
    # First the record: what is left beside it must not count as a session of an early version.
    write_state(directory, "made")
    for name in listed(directory):
        if name not in (FILE, _FILE):
            path = directory / name
            if path.is_dir() and not path.is_symlink():
                remove_tree(path)
            else:
                path.unlink()


def check_workspace(directory: Path, name: str) -> None:
    """Check that a session which is ready has a workspace.

    Raises:
        SessionStateError: it has none.
        OSError: the directory cannot be read.
    """
    if not is_there(directory / "workspace"):
        raise SessionStateError(
            f"The workspace of the session {name!r} is missing: {directory / 'workspace'}.",
            remedy="Nothing has been changed. Restore a snapshot of it, or remove the session.",
        )
