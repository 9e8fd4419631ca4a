"""Figures that cells make: fetched to where they can be looked at, since the workspace goes."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

import click

from rlm_containers import CellResult, ContainersError, Sandbox
from rlm_containers.cli.messages import say, show_error
from rlm_containers.errors import format_size

figures_option = click.option(
    "--figures",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where figures go that cells save or show. [default: a new temporary directory]",
)


class Figures:
    """Fetches the figures of one sandbox.

    Args:
        box: the sandbox.
        directory: where they go; ``None`` for a directory that is made for the first.
    """

    def __init__(self, box: Sandbox, directory: Path | None) -> None:
        self._box = box
        self._directory = directory

    def fetch(self, result: CellResult) -> list[dict[str, Any]]:
        """Fetch those of a cell, and describe each as JSON has it; those that fail are named."""
        fetched = []
        for artifact in result.artifacts:
            try:
                path = self._box.get_file(artifact.path, self._free(artifact.path))
            except ContainersError as error:
                show_error(error)
                continue
            fetched.append(
                {
                    "path": str(path),
                    "name": artifact.path,
                    "mime_type": artifact.mime_type,
                    "size": artifact.size,
                }
            )
        return fetched

    def tell(self, result: CellResult) -> None:
        """Fetch those of a cell, and say where they are."""
        for figure in self.fetch(result):
            say(f"figure: {figure['path']} ({figure['mime_type']}, {format_size(figure['size'])})")

    def _free(self, name: str) -> Path:
        """A path that nothing has yet: a later cell may save under the same name."""
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="rlm-figures-"))
        self._directory.mkdir(parents=True, exist_ok=True)
        wanted = PurePosixPath(name)
        for number in itertools.count(1):
            path = self._directory / (
                wanted.name if number == 1 else f"{wanted.stem}-{number}{wanted.suffix}"
            )
            if not path.exists() and not path.is_symlink():
                return path
        raise AssertionError
