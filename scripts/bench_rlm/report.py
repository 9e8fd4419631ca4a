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
  `add_context`, `cleanup`. Every result is checked: no error, and as many model calls as were
  made.
- `llm_query` goes to rlms's real LM Handler, whose client answers at once. So only the way there
  and back is measured. On both sides it leads over HTTP through a proxy; rlms asks its handler over
  a socket, and our side calls it in the same process.
- `x = 1` assigns another number each time, and every query has another prompt and answer.
  Otherwise our side would be faster, because it does not save a state twice (see the row "nothing
  to save").
- rlms saves the variables before it answers, so there one cell is one sample. Our side answers
  first and saves afterwards. So `x = 1` and the queries are measured as the time per cell of
  {batch} cells run back to back: each cell waits for the checkpoint of the one before, and the
  last for its own. `x = 1` after a pause is the time until the answer of a single cell.
- Loading a context includes the checkpoint. Each sample has a session of its own, since rlms reads
  and writes everything that a session has at each cell. The lists of dicts are smaller than the
  string, because rlms pickles them anew at each cell, in Python, several times. Our side does so
  only with what cells have made; a context that no cell has changed stays in its own file.
- The memory of an idle sandbox is the proportional set size (PSS) of all processes in its container
  and of the engine's client and shim for it, after one query, while five are there.
- A container that waits is taken from a full pool of two, 0.2 s after it was filled, and its
  sandbox has a model. The children of a batch are environments as rlms makes them, each with a
  context and one cell, without the RLM around. They find as many containers as `pool` says; the
  others are started meanwhile. Of the steps of a start, the first four are the engine's alone: each
  does what the one before it does, and something more.
- States that cells have made are measured on our side only, as the time of one cell until it is
  saved. A "C pickle" is one `pickle.Pickler.dump` in the same container, written to nowhere.
- Host memory is the largest growth of the resident memory of the process that drives both sides.
- Start is the time until the constructor returns and a cell can be sent. At that time the
  container of our side still imports what saving needs, and a first cell that comes at once waits
  for that. So both times are listed.
- rlms runs `pip install` at every start, even if nothing is missing. How long that takes depends
  on the image. If packages are missing and the container reaches no index, rlms cannot start.
- rlms knows docker only. Its clean-up takes ten seconds on podman because `podman rm -f` waits for
  its `tail -f`, which ignores SIGTERM as PID 1. docker kills it at once.
- The target for start is a multiple of the bare run. The others are fractions of rlms's figure.
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
