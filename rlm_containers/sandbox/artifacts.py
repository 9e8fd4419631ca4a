"""Figures that a cell has made."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from rlm_containers.errors import WorkspaceError
from rlm_containers.state.nofollow import open_below, open_regular, relative_parts
from rlm_containers.state.workspace import Workspace

__all__ = ["Artifact", "found_artifacts"]

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


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """An image or document in the workspace that a cell has made.

    Attributes:
        path: its path relative to the workspace, as :meth:`Sandbox.get_file` takes it.
        mime_type: its kind, by the end of its name, such as ``"image/png"``.
        size: bytes.
    """

    path: str
    mime_type: str
    size: int


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
            with workspace.directory() as top, open_below(top, parts[:-1]) as directory:
                descriptor = open_regular(directory, parts[-1])
                size = os.fstat(descriptor).st_size
                os.close(descriptor)
        except (OSError, WorkspaceError, UnicodeEncodeError):
            continue
        found.append(Artifact(path="/".join(parts), mime_type=mime_type, size=size))
    return tuple(found)
