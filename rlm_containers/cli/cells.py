"""What the commands that run cells share: a sandbox, contexts, one cell, and its figures."""

from __future__ import annotations

import itertools
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import click

from rlm_containers.cli.terminal import (
    OutputWriter,
    activity,
    console,
    engine_progress,
    say,
    show_error,
)
from rlm_containers.errors import ContainersError, format_size
from runtimes.text import clean

if TYPE_CHECKING:
    from rlm_containers import CellResult, Sandbox, SandboxOptions
    from rlm_containers.sandbox import Context

context_option = click.option(
    "--context",
    "contexts",
    multiple=True,
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help="The text for the variable `context`; `-` is standard input. May be given several times: "
    "then `context` is a dict of texts by file name.",
)

figures_option = click.option(
    "--figures",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where to put the figures that cells save or show. [default: a new temporary directory]",
)

#: Bytes that are read at a time. Only larger files get a progress bar.
_CHUNK = 8 * 1024 * 1024


# Start


def start_sandbox(options: Mapping[str, Any], context: Context | None) -> Sandbox:
    """Start a sandbox, and bind its variable ``context`` unless it is ``None``.

    Raises:
        ContainersError: it could not be started. Nothing of it is left.
    """
    from rlm_containers import Sandbox

    box = Sandbox(**{**options, "pool": None})  # no other is started after it
    prepare_image(box.options)
    with activity("starting a container"):
        box.start()
    if context is not None:
        try:
            with activity("sending the context"):
                box.load("context", context)
        except BaseException:
            box.close()
            raise
    return box


def prepare_image(options: SandboxOptions) -> None:
    """Pull or build the image with a progress bar, if there is a terminal to show it.

    Otherwise the sandbox does the same when it starts, with one call of the engine less.
    """
    if not console(stderr=True).is_terminal:
        return
    from rlm_containers.images import warm_image

    with engine_progress(f"preparing {options.image}") as on_line:
        warm_image(options, on_line=on_line)


# Contexts


def read_contexts(paths: Sequence[Path]) -> Context | None:
    """Read texts from files.

    Args:
        paths: files in UTF-8; ``-`` is standard input.

    Returns:
        The text of a single file, or a dict of several texts by the paths as given; ``None`` if
        there are no paths.

    Raises:
        click.BadParameter: a file cannot be read, or is not UTF-8.
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
    """Read a file, with a progress bar on a terminal if it is large."""
    size = path.stat().st_size
    if size <= _CHUNK or not console(stderr=True).is_terminal:
        return path.read_bytes()
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = TextColumn("reading"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    chunks = []
    with (
        Progress(*columns, console=console(stderr=True), transient=True) as progress,
        path.open("rb") as file,
    ):
        task = progress.add_task("", total=size)
        while chunk := file.read(_CHUNK):
            chunks.append(chunk)
            progress.advance(task, len(chunk))
    return b"".join(chunks)


# Cells


class CellPrinter:
    """Prints a cell's output as it comes, to this program's own streams."""

    def __init__(self) -> None:
        self._writers = {"stdout": OutputWriter(sys.stdout), "stderr": OutputWriter(sys.stderr)}

    def __call__(self, stream: str, text: str) -> None:
        self._writers[stream].write(text)

    def reset(self) -> None:
        """End the colours that the cell has left set. Call it however the cell has ended."""
        for writer in self._writers.values():
            writer.reset()

    def finish(self, result: CellResult) -> None:
        """Print the notices about a cell that has ended, on lines of their own."""
        if not result.notices:
            return
        for writer in self._writers.values():
            if writer.in_line:
                writer.write("\n")
        for notice in result.notices:
            say(clean(notice, lines=True))

    def end_line(self) -> None:
        """Start a new line if the cell has not ended its last one."""
        if self._writers["stdout"].in_line:
            self._writers["stdout"].write("\n")


def run_cell(box: Sandbox, code: str, printer: CellPrinter | None, **more: Any) -> CellResult:
    """Run a cell. Ctrl-C interrupts it; the third Ctrl-C gives up the sandbox.

    Args:
        box: the sandbox.
        code: Python source.
        printer: prints the output, in another thread; ``None`` prints nothing.
        more: further arguments of :meth:`Sandbox.execute`.

    Raises:
        KeyboardInterrupt: the sandbox was given up.
        ContainersError: as :meth:`Sandbox.execute`.
    """
    results: list[CellResult | BaseException] = []
    over = threading.Event()

    def run() -> None:
        try:
            results.append(box.execute(code, on_output=printer, **more))
        except BaseException as error:
            results.append(error)
        finally:
            over.set()

    # The cell gets a thread of its own: in this one Ctrl-C would end the waiting, and what the cell
    # prints about its interrupt would be lost.
    threading.Thread(target=run, name="rlm-cell", daemon=True).start()
    presses = 0
    try:
        while not over.is_set():
            try:
                over.wait()  # before 3.13 an interrupted Thread.join() forgets the thread
            except KeyboardInterrupt:
                presses += 1
                if presses > 2:
                    box.close()
                    raise
                if presses == 2:
                    say("The cell has been interrupted. Press Ctrl-C again to give up the sandbox.")
                box.interrupt()
    finally:
        if printer is not None:
            printer.reset()
    result = results[0]
    if isinstance(result, BaseException):
        raise result
    return result


def describe_result(result: CellResult) -> dict[str, Any]:
    """Return a result as ``--json`` prints it."""
    return {
        "status": result.status,
        "exit_code": result.exit_code,
        "stdout": result.stdout,
        "stderr": result.stderr,
        "locals": dict(result.locals),
        "execution_time": round(result.execution_time, 6),
        "final_answer": result.final_answer,
        "lost": list(result.lost),
        "lm_calls": [
            {
                "model": call.model,
                "prompt": call.prompt,
                "response": call.response,
                "execution_time": round(call.execution_time, 6),
            }
            for call in result.lm_calls
        ],
    }


# Figures


class Figures:
    """Copies the figures of one sandbox to this machine, since the workspace is removed.

    Args:
        box: the sandbox.
        directory: where to put them; ``None`` for a temporary directory, made for the first one.
    """

    def __init__(self, box: Sandbox, directory: Path | None) -> None:
        self._box = box
        self._directory = directory

    def fetch(self, result: CellResult) -> list[dict[str, Any]]:
        """Fetch a cell's figures, and describe each as ``--json`` prints it.

        A figure that cannot be fetched is reported on standard error and left out.
        """
        fetched = []
        for artifact in result.artifacts:
            try:
                path = self._box.get_file(artifact.path, self._unused_path(artifact.path))
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

    def report(self, result: CellResult) -> None:
        """Fetch a cell's figures, and say where they are."""
        for figure in self.fetch(result):
            say(f"figure: {figure['path']} ({figure['mime_type']}, {format_size(figure['size'])})")

    def _unused_path(self, name: str) -> Path:
        """Return a path with no file: a later cell may save a figure under the same name."""
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
