"""A bar for what an engine says while it pulls or builds an image."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

from rlm_containers.cli.messages import activity
from rlm_containers.cli.terminal import console, harmless

# `Step 2/5 : RUN …` of docker's older builder, `STEP 2/5: RUN …` of podman, `#7 [2/5] RUN …` and
# `#7 [stage 2/5] …` of BuildKit.
_STEP = re.compile(r"(?:step |#\d+ \[(?:[\w.-]+ )?)\s*(\d{1,4})/(\d{1,4})\b", re.IGNORECASE)

# What docker says of each layer of a pull, and podman of each blob.
_BEGUN = re.compile(r"\b([0-9a-f]{12}): (?:pulling fs layer|already exists)", re.IGNORECASE)
_ENDED = re.compile(r"\b([0-9a-f]{12}): (?:pull complete|already exists)", re.IGNORECASE)


class Steps:
    """How far something is, by the lines of its log.

    Attributes:
        done: steps that have ended.
        total: all steps that are known of; 0 for none.
    """

    def __init__(self) -> None:
        self.done = 0
        self.total = 0
        self._begun: set[str] = set()
        self._ended: set[str] = set()

    def read(self, line: str) -> None:
        """Take note of a line."""
        if step := _STEP.search(line):
            number, total = int(step[1]), int(step[2])
            # A step that is named is being done. BuildKit does several at once.
            self.done, self.total = max(self.done, min(number, total) - 1), max(self.total, total)
            return
        if begun := _BEGUN.search(line):
            self._begun.add(begun[1])
        if ended := _ENDED.search(line):
            self._ended.add(ended[1])
        if self._begun:
            self.done, self.total = len(self._ended & self._begun), len(self._begun)


@contextlib.contextmanager
def engine_progress(what: str) -> Iterator[Callable[[str], None]]:
    """Show on a terminal how far a pull or a build is, and the last line of its log.

    Args:
        what: what goes on.

    Yields:
        A function that takes the log, line by line.
    """
    screen = console(stderr=True)
    if not screen.is_terminal:
        with activity(what) as show:
            yield show
        return
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[line]}"),
    )
    with Progress(*columns, console=screen, transient=True) as progress:
        task = progress.add_task(escape(what), total=None, line="")
        steps = Steps()
        room = max(10, screen.width - 45)

        def show(line: str) -> None:
            steps.read(line)
            text = escape(harmless(line.strip(), room))
            progress.update(task, completed=steps.done, total=steps.total or None, line=text)

        yield show
