"""Where sessions are, and what they may be called."""

from __future__ import annotations

import re
from pathlib import Path

import platformdirs

# It is the name of a directory, and part of a path that is mounted: no colon, no comma.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def is_session_name(value: object) -> bool:
    """Whether a session may have this name: up to 64 letters, digits, ``.``, ``_`` and ``-``."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def sessions_directory() -> Path:
    """Where sessions are kept: below the user's state, which lasts, unlike a cache."""
    return platformdirs.user_state_path("rlm-containers") / "sessions"


def passing_snapshots_directory() -> Path:
    """Where those sandboxes keep snapshots whose session ends with them: in the cache."""
    return platformdirs.user_cache_path("rlm-containers") / "snapshots"
