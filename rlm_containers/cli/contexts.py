"""Contexts from files: one is a text, several are a dict of texts by their names."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from rlm_containers.sandbox import Context

context_option = click.option(
    "--context",
    "contexts",
    multiple=True,
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help="A text for the variable `context`; `-` is standard input. Given several times it is a "
    "dict, by the names of the files.",
)

_PIECE = 8 * 1024 * 1024


def read_contexts(paths: Sequence[Path]) -> Context | None:
    """What is in the files.

    Args:
        paths: of texts in UTF-8.

    Returns:
        The text of one file, or several files' by their names as they were given; ``None`` if there
        are none.

    Raises:
        click.BadParameter: a file cannot be read, or is no text.
    """
    texts = {str(path): _read(path) for path in paths}
    if len(texts) == 1:
        return next(iter(texts.values()))
    return dict(texts) or None


def _read(path: Path) -> str:
    try:
        raw = sys.stdin.buffer.read() if str(path) == "-" else _read_bytes(path)
        return raw.decode("utf-8-sig")
    except OSError as error:
        raise click.BadParameter(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise click.BadParameter(
            f"{path} is no text in UTF-8 (byte {error.start}). Convert it first."
        ) from None


def _read_bytes(path: Path) -> bytes:
    """The bytes of a file, with a bar on a terminal if it is a large one."""
    from rlm_containers.cli.terminal import console

    size = path.stat().st_size
    if size <= _PIECE or not console(stderr=True).is_terminal:
        return path.read_bytes()
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = TextColumn("reading"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    pieces = []
    with (
        Progress(*columns, console=console(stderr=True), transient=True) as progress,
        path.open("rb") as file,
    ):
        task = progress.add_task("", total=size)
        while piece := file.read(_PIECE):
            pieces.append(piece)
            progress.advance(task, len(piece))
    return b"".join(pieces)
