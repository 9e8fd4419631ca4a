"""Inspect's own checks of a sandbox pass on every engine."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import Engine, on_ci

CHECKS = Path(__file__).with_name("inspect_self_check.py")


def test_the_self_check(engine: Engine) -> None:
    if importlib.util.find_spec("inspect_ai") is None and not on_ci():
        pytest.skip("inspect-ai is not installed")
    done = subprocess.run(
        (sys.executable, "-m", "pytest", "-q", CHECKS, "--engine", engine.name),
        cwd=CHECKS.parent.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert re.search(r"^44 passed in ", done.stdout, re.MULTILINE), done.stdout + done.stderr
