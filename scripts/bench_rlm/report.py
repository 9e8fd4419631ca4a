"""The result as text for the terminal and as Markdown for ``docs/benchmarks.md``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench_rlm.series import Series

HEADINGS = ("what", "rlms", "ours", "rlms/ours", "target for ours", "reached")


@dataclass(frozen=True)
class Target:
    """A limit for our side: a multiple of another series' median."""

    limit: float
    against: Series
    words: str

    @classmethod
    def part(cls, of: int, theirs: Series) -> Target:
        """At most one ``of``-th of rlms's figure."""
        return cls(1 / of, theirs, f"≤ 1/{of} of rlms")

    def verdict(self, ours: Series) -> str:
        """Whether the limit is met, and the measured ratio."""
        met = ours.median <= self.limit * self.against.median
        ratio = ours.median / self.against.median
        shown = f"{ratio:.2f} ×" if self.limit >= 1 else f"1/{_number(1 / ratio)}"
        return f"{'yes' if met else 'NO'}: {shown}"


@dataclass(frozen=True)
class Row:
    """One line. A string stands for a missing measurement and says why it is missing."""

    what: str
    theirs: Series | str
    ours: Series | str
    target: Target | None = None

    def cells(self) -> tuple[str, ...]:
        """The line's texts, one for each heading."""
        ratio = ""
        if isinstance(self.theirs, Series) and isinstance(self.ours, Series) and self.ours.median:
            ratio = _number(self.theirs.median / self.ours.median)
        words = verdict = ""
        if self.target and isinstance(self.ours, Series) and self.target.against.samples:
            words, verdict = self.target.words, self.target.verdict(self.ours)
        return (self.what, str(self.theirs), str(self.ours), ratio, words, verdict)


def as_text(rows: Sequence[Row]) -> str:
    """For a terminal."""
    lines = [HEADINGS, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    ruler = tuple("-" * width for width in widths)
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in (lines[0], ruler, *lines[1:])
    )


def as_markdown(rows: Sequence[Row]) -> str:
    """For a document."""
    lines = [HEADINGS, ("---",) * len(HEADINGS), *(row.cells() for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}" if ratio >= 1 else f"{ratio:.2f}"


_INTRODUCTION = """\
# Benchmarks

What RLM's own `DockerREPL` needs and what this project's environment needs for the same, measured
in one run, on the same engine and image, in turns (rlms, ours, ours, rlms, …). Written by

    {command}

Each figure is the median of its samples, with the quartiles in brackets; a warm-up is not counted.
`rlms/ours` divides the medians.
"""

_NOTES = """\
## How it is measured

- Both sides are driven through what `rlm.RLM` calls: the constructor, `execute_code`,
  `add_context`, `cleanup`. Every result is checked: no error, and as many model calls as were made.
- `llm_query` goes to rlms's real LM Handler, whose client answers at once: it is the way there and
  back that is measured, on our side over HTTP through the proxy, as on theirs.
- `x = 1` assigns another number each time, and every query has another prompt and answer: our side
  does not save a state that is saved already, so the very same cell again would cost it less (see
  the row for that).
- Our side answers a cell first and saves its variables afterwards, while the host thinks. So
  `x = 1` and the queries are measured as the time per cell of {batch} cells run back to back, in
  which every cell waits for the checkpoint of the one before, and the last for its own. rlms has
  saved when it answers, so there one cell is one sample. `x = 1` after a pause is what a single
  cell takes until its answer.
- Loading a context includes the checkpoint, too. Each sample has a session of its own, since rlms
  reads and writes all that it has at each cell. The lists of dicts are smaller than the string
  because there each of rlms's cells pickles everything anew, in Python, several times. Ours does so
  with what cells have made, too; a context that no cell has changed stays in its own file.
- Host memory is by how much the resident memory of the process that drives both grows at most.
- Start is until the constructor returns and a cell can be sent. The container of our side has
  less then: it imports what saving needs while the host goes on, and a first cell that comes at
  once waits for that, which is why both are listed.
- rlms runs `pip install` at every start, also where nothing is missing; what that takes depends on
  the image. Where the packages are missing, and the container reaches no index, it cannot start.
- rlms knows docker only. That its clean-up takes ten seconds on podman is `podman rm -f` waiting
  for its `tail -f`, which ignores SIGTERM as PID 1; docker's kills at once.
- The target for start is a multiple of the bare run, the others are parts of rlms's figure.
"""


@dataclass(frozen=True)
class Report:
    """One engine's result."""

    engine: str
    facts: Mapping[str, str]
    rows: Sequence[Row]

    def text(self) -> str:
        """For a terminal."""
        width = max(map(len, self.facts))
        facts = "\n".join(f"{name.ljust(width)}  {value}" for name, value in self.facts.items())
        return f"{facts}\n\n{as_text(self.rows)}\n"

    def markdown(self) -> str:
        """A section of the document."""
        facts = "\n".join(f"| {name} | {value} |" for name, value in self.facts.items())
        return f"## {self.engine}\n\n{as_markdown(self.rows)}\n\n| | |\n| --- | --- |\n{facts}\n"


def document(reports: Sequence[Report], command: str, batch: int) -> str:
    """The whole document."""
    introduction = _INTRODUCTION.format(command=command)
    sections = [report.markdown() for report in reports]
    return "\n".join([introduction, *sections, _NOTES.format(batch=batch)])
