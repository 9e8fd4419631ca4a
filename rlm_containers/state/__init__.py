"""What is kept on the host: workspaces, sessions, snapshots."""

from rlm_containers.state.home import Home, KeptHome
from rlm_containers.state.hostfiles import (
    cache_directory,
    is_session_name,
    locked,
    passing_snapshots_directory,
    replace_file,
    sessions_directory,
    workspaces_directory,
)
from rlm_containers.state.manifest import Manifest
from rlm_containers.state.nofollow import (
    CHUNK,
    copy_contents,
    create_file,
    free_space,
    open_below,
    open_regular,
    relative_parts,
)
from rlm_containers.state.owner import LABEL, Owner
from rlm_containers.state.sessions import SessionInfo, SessionStore
from rlm_containers.state.snapshots import Snapshot
from rlm_containers.state.transfer import export_session, import_session
from rlm_containers.state.tree_writer import copy_tree
from rlm_containers.state.trees import walk
from rlm_containers.state.workspace import (
    Workspace,
    record_of,
    recorded_by,
    remove_tree,
)

__all__ = [
    "CHUNK",
    "LABEL",
    "Home",
    "KeptHome",
    "Manifest",
    "Owner",
    "SessionInfo",
    "SessionStore",
    "Snapshot",
    "Workspace",
    "cache_directory",
    "copy_contents",
    "copy_tree",
    "create_file",
    "export_session",
    "free_space",
    "import_session",
    "is_session_name",
    "locked",
    "open_below",
    "open_regular",
    "passing_snapshots_directory",
    "record_of",
    "recorded_by",
    "relative_parts",
    "remove_tree",
    "replace_file",
    "sessions_directory",
    "walk",
    "workspaces_directory",
]
