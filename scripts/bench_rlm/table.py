"""The rows of the result, as text and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench_rlm.series import Series

__all__ = ["Row", "Target", "as_markdown", "as_text"]

HEADINGS = ("what", "rlms", "ours", "rlms/ours", "target for ours", "reached")


@dataclass(frozen=True)
class Target:
    """What our side must not exceed: a multiple of another series' median."""

    limit: float
    against: Series
    words: str

    @classmethod
    def part(cls, of: int, theirs: Series) -> Target:
        """At most one ``of``-th of what rlms needs."""
        return cls(1 / of, theirs, f"≤ 1/{of} of rlms")

    def verdict(self, ours: Series) -> str:
        """Whether it is met, and what was measured in the same terms."""
        met = ours.median <= self.limit * self.against.median
        ratio = ours.median / self.against.median
        shown = f"{ratio:.2f} ×" if self.limit >= 1 else f"1/{_number(1 / ratio)}"
        return f"{'yes' if met else 'NO'}: {shown}"


@dataclass(frozen=True)
class Row:
    """One line. A string stands where there is no measurement, and says why."""

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
