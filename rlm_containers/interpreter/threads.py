"""How this process starts a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from rlm_containers.errors import SandboxError


def start_thread(
    target: Callable[..., Any], name: str, *args: Any, container: str | None = None
) -> threading.Thread:
    """Start a daemon thread: whatever it waits for must not keep this process from ending.

    Args:
        target: what it runs.
        name: its name.
        args: passed to ``target``.
        container: the container that it is for, for the error.

    Raises:
        SandboxError: the system has no thread left, or the interpreter is ending.
    """
    thread = threading.Thread(target=target, args=args, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise SandboxError(
            f"This process could not start a thread ({name}): {error}.",
            remedy="Raise the limit of its processes and threads (`ulimit -u`, the pids limit of "
            "its cgroup), or use fewer sandboxes at once. At the interpreter's end none starts.",
            container=container,
        ) from None
    return thread
