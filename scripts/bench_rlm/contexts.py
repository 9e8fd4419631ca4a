"""Cases: large data, and short cells beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bench_rlm.bench import Bench
from bench_rlm.cells import ONE_CELL
from bench_rlm.contender import Contender, Live
from bench_rlm.memory import host_memory, megabytes
from bench_rlm.series import Series, in_turns
from bench_rlm.table import Row, Target

__all__ = ["measure_contexts"]

#: Lists of dicts are this much smaller than the string: each of rlms's cells pickles them anew,
#: in Python, five times.
_SMALLER = 10

_WORDS = "It was the best of times, it was the worst of times. "

# Records such as a model is given: an id, a text, a number, a few tags.
_RECORDS = (
    f'data = [{{"id": i, "text": str(i) + {_WORDS!r} * 4, "score": i / 7, '
    '"tags": ["a", f"b{i}"]} for i in range(%d)]\n'
)


@dataclass
class Visit:
    """What a side needs for some data, in a new session each time: it has nothing else there."""

    fill: Series = field(default_factory=Series)
    cell: Series = field(default_factory=Series)
    peak: Series = field(default_factory=lambda: Series(unit=megabytes))

    def visit(self, contender: Contender, image: str, fill: Callable[[Live], None]) -> None:
        """Get the data there, run cells beside it."""
        with contender.live(image) as live:
            live.run(ONE_CELL)
            live.settle()
            with host_memory(self.peak), self.fill.timed():
                fill(live)
                live.settle()
            with self.cell.timed(share=contender.batch):
                live.run_many(ONE_CELL, contender.batch)

    def drop_warm_up(self) -> None:
        """Forget the first visit."""
        for series in (self.fill, self.cell, self.peak):
            series.drop_warm_up()


def measure_contexts(bench: Bench) -> list[Row]:
    """A string and a list of dicts as context, and a list of dicts that a cell has made."""
    size = bench.megabytes * 1_000_000
    text = _text(size)
    rows = _as_context(bench, f"{bench.megabytes} MB str", text)
    del text
    code, records = _records(size // _SMALLER)
    what = f"{size // _SMALLER / 1e6:g} MB (as JSON) list of dicts"
    rows += _as_context(bench, what, records)
    del records
    theirs, ours = _measure(bench, f"{what} of a cell's", lambda live: live.run(code))
    rows.append(Row(f"make a {what} in a cell", theirs.fill, ours.fill))
    rows.append(Row("`x = 1` beside that", theirs.cell, ours.cell))
    return rows


def _as_context(bench: Bench, what: str, context: Any) -> list[Row]:
    def fill(live: Live) -> None:
        live.environment.add_context(context)

    theirs, ours = _measure(bench, f"context: {what}", fill)
    rows = [
        Row(f"load {what}", theirs.fill, ours.fill, Target.part(10, theirs.fill)),
        Row(f"`x = 1` beside {what}", theirs.cell, ours.cell, Target.part(200, theirs.cell)),
    ]
    if theirs.peak.samples:
        rows.append(Row(f"host memory while loading {what}", theirs.peak, ours.peak))
    return rows


def _measure(bench: Bench, what: str, fill: Callable[[Live], None]) -> tuple[Visit, Visit]:
    their_side, our_side = bench.sides()
    theirs, ours = Visit(), Visit()
    in_turns(
        bench.few,
        lambda: theirs.visit(their_side, bench.image, fill),
        lambda: ours.visit(our_side, bench.image, fill),
        note=lambda text: bench.note(f"{what}, {text}"),
    )
    theirs.drop_warm_up()
    ours.drop_warm_up()
    return theirs, ours


def _text(size: int) -> str:
    """Lines of words, each of them different."""
    length = 10 + len(_WORDS)
    return "".join(f"{i:09d} {_WORDS[:-1]}\n" for i in range(size // length + 1))[:size]


def _records(size: int) -> tuple[str, list[dict[str, Any]]]:
    """The code that makes a list of dicts, and the list."""
    one: dict[str, Any] = {}
    exec(_RECORDS % 100, one)
    count = size * 100 // len(json.dumps(one["data"]))
    made: dict[str, Any] = {}
    exec(_RECORDS % count, made)
    return _RECORDS % count, made["data"]
