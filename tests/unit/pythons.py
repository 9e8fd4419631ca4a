"""The Pythons of pyenv on this machine, for tests of what differs between versions."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

PYENV = Path.home() / ".pyenv" / "versions"


def interpreters() -> list[Path]:
    """Find the Pythons of pyenv on this machine."""
    found = {path.resolve().parent.parent for path in PYENV.glob("*/bin/python")}
    return sorted(path / "bin" / "python" for path in found)


@cache
def version(python: Path) -> tuple[int, int]:
    program = "import sys; sys.stdout.write('%d.%d' % sys.version_info[:2])"
    said = subprocess.run((python, "-c", program), capture_output=True, text=True, check=True)
    major, minor = said.stdout.split(".")
    return int(major), int(minor)
