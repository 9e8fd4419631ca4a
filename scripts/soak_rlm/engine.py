"""The engine that a soak runs on, and what is left on it."""

from __future__ import annotations

import os
import subprocess

from rlm_containers.state import LABEL

__all__ = ["Engine"]


class Engine:
    """A command line.

    Args:
        name: ``docker`` or ``podman``.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def call(self, *args: str) -> str:
        """Call it; what it prints, whether it fails or not."""
        done = subprocess.run(
            (self.name, *args), capture_output=True, text=True, check=False, timeout=300
        )
        return done.stdout.strip()

    def left(self) -> list[str]:
        """The containers of this process that are still there."""
        label = f"--filter=label={LABEL}={os.getpid()}"
        return self.call("ps", "--all", "--format={{.Names}}", label).split()
