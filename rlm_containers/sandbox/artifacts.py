"""Figures that a cell has made."""

from __future__ import annotations

import os
from collections.abc import Iterable

from rlm_containers.errors import WorkspaceError
from rlm_containers.interpreter import Artifact
from rlm_containers.state import Workspace, relative_parts

#: What matplotlib writes, by the end of its name; of another kind nothing is reported. Not from
#: :mod:`mimetypes`, which reads what this machine has installed.
_MIME_TYPES = {
    ".avif": "image/avif",
    ".eps": "application/postscript",
    ".gif": "image/gif",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".pdf": "application/pdf",
    ".png": "image/png",
    ".ps": "application/postscript",
    ".svg": "image/svg+xml",
    ".svgz": "image/svg+xml",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".webp": "image/webp",
}


def found_artifacts(names: Iterable[str], workspace: Workspace) -> tuple[Artifact, ...]:
    """Those of the files that a guest has named which are there, and are regular files.

    Args:
        names: what the guest says, which may be anything.
        workspace: where they should be.
    """
    found = []
    for name in dict.fromkeys(names):
        mime_type = _MIME_TYPES.get(os.path.splitext(name)[1].lower())
        if mime_type is None:
            continue
        try:
            parts = relative_parts(name)
            with workspace.read(name) as file:
                size = os.fstat(file.fileno()).st_size
        except (OSError, WorkspaceError, UnicodeEncodeError):
            continue
        found.append(Artifact(path="/".join(parts), mime_type=mime_type, size=size))
    return tuple(found)
