"""What is kept on the host: workspaces, sessions, snapshots."""

from typing import TYPE_CHECKING, Any

from rlm_containers.state.files import OpenedFile, WorkspaceFiles
from rlm_containers.state.home import Home, KeptHome
from rlm_containers.state.hostfiles import (
    cache_directory,
    is_session_name,
    locked,
    make_private,
    passing_snapshots_directory,
    replace_file,
    sessions_directory,
    workspaces_directory,
)
from rlm_containers.state.manifest import Manifest
from rlm_containers.state.nofollow import (
    CHUNK,
    Ids,
    create_file,
    directory_parts,
    free_space,
    open_below,
    open_regular,
    relative_parts,
)
from rlm_containers.state.owner import LABEL, Owner
from rlm_containers.state.piped import PipedMeter, PipedWorkspace
from rlm_containers.state.sessions import SessionInfo, SessionStore
from rlm_containers.state.snapshots import Snapshot
from rlm_containers.state.space import DirectoryMeter, Excess, Meter, Space
from rlm_containers.state.trees import Node, walk
from rlm_containers.state.workspace import Workspace, owned_workspace, owner_file, remove_tree

if TYPE_CHECKING:
    from rlm_containers.state.archive import export_session, import_session

__all__ = [
    "CHUNK",
    "LABEL",
    "DirectoryMeter",
    "Excess",
    "Home",
    "Ids",
    "KeptHome",
    "Manifest",
    "Meter",
    "Node",
    "OpenedFile",
    "Owner",
    "PipedMeter",
    "PipedWorkspace",
    "SessionInfo",
    "SessionStore",
    "Snapshot",
    "Space",
    "Workspace",
    "WorkspaceFiles",
    "cache_directory",
    "create_file",
    "directory_parts",
    "export_session",
    "free_space",
    "import_session",
    "is_session_name",
    "locked",
    "make_private",
    "open_below",
    "open_regular",
    "owned_workspace",
    "owner_file",
    "passing_snapshots_directory",
    "relative_parts",
    "remove_tree",
    "replace_file",
    "sessions_directory",
    "walk",
    "workspaces_directory",
]


def __getattr__(name: str) -> Any:
    """Import tarfile and gzip only for those who need them."""
    if name in ("export_session", "import_session"):
        from rlm_containers.state import archive  # noqa: PLC0415

        return getattr(archive, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
