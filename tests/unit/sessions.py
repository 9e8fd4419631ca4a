"""Sandboxes without a container, and common steps of their tests."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlm_containers import CellResult, Sandbox
from tests.unit.guests import LocalRuntime

#: A cell that ends its interpreter.
DIE = "import os\nos._exit(1)"


class Boxes:
    """Makes sandboxes on a :class:`LocalRuntime`; the fixture closes them.

    Args:
        local: the runtime.
        options: options of all sandboxes.
    """

    def __init__(self, local: LocalRuntime, options: Mapping[str, Any] | None = None) -> None:
        self.local = local
        self.options = dict(options or {})
        self.made: list[Sandbox] = []

    def __call__(self, **options: Any) -> Sandbox:
        box = Sandbox(runtime=self.local, **{**self.options, **options})
        self.made.append(box)
        return box.start()


def run(box: Sandbox, code: str) -> CellResult:
    """Run a cell, dedented, that must succeed and write nothing to stderr."""
    result = box.execute(textwrap.dedent(code))
    assert (result.status, result.stderr) == ("ok", "")
    return result


def settle(box: Sandbox) -> None:
    """Wait until the checkpoint of the last cell is on disk."""
    assert box.unsaved is not None


def revive(box: Sandbox, *lost: str) -> CellResult:
    """Kill the interpreter. Exactly these variables must be lost."""
    settle(box)
    result = box.execute(DIE)
    assert result.status == "died"
    assert sorted(result.lost) == sorted(lost), result.stderr
    return result


def workspace_of(box: Sandbox) -> Path:
    """Return the workspace of a sandbox on a :class:`LocalRuntime`."""
    runtime = box.options.runtime
    assert isinstance(runtime, LocalRuntime)
    (spec,) = [spec for spec in runtime.specs if spec.name == box.name]
    return next(mount.source for mount in spec.mounts if not mount.read_only)
