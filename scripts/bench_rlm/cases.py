"""Cases that both sides have: start and clean-up, short cells and queries, large data."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bench_rlm.report import Row, Target
from bench_rlm.series import Series, host_memory, in_turns, megabytes, seconds_of
from bench_rlm.sides import Bench, Contender, Live


@dataclass(frozen=True)
class Life:
    """The times of the parts of one side's lives."""

    start: Series = field(default_factory=Series)
    first_cell: Series = field(default_factory=Series)
    end: Series = field(default_factory=Series)

    def live(self, contender: Contender, image: str) -> None:
        """Start an environment, run a cell, and clean up."""
        lives = []
        start = seconds_of(lambda: lives.append(contender.start(image)))
        (live,) = lives
        try:
            cell = seconds_of(lambda: live.run("x = 1"))
        except BaseException:
            live.environment.cleanup()
            raise
        self.start.add(start)
        self.first_cell.add(start + cell)
        with self.end.timed():
            live.environment.cleanup()

    def drop_warm_up(self) -> None:
        """Forget the first life."""
        for series in (self.start, self.first_cell, self.end):
            series.drop_warm_up()


def measure_lives(bench: Bench) -> list[Row]:
    """Start to usable, the first cell, and clean-up, with and without the packages in the image."""
    their_side, our_side = bench.sides()
    bare, their_life, our_life = Series(), Life(), Life()
    in_turns(
        bench.runs,
        lambda: bare.add(seconds_of(lambda: bench.engine.bare_run(bench.image))),
        lambda: their_life.live(their_side, bench.image),
        lambda: our_life.live(our_side, bench.image),
        note=lambda text: bench.note(f"start and clean-up, {text}"),
    )
    for series in (bare, their_life, our_life):
        series.drop_warm_up()
    as_bare = Target(1.5, bare, "≤ 1.5 × bare run")
    third = Target.part(3, their_life.end)
    return [
        Row("bare `run --rm IMAGE python -c pass`, no REPL", "", bare),
        Row("start, until constructed", their_life.start, our_life.start, as_bare),
        Row("start and first cell", their_life.first_cell, our_life.first_cell, as_bare),
        Row("clean-up", their_life.end, our_life.end, third),
        *_without_packages(bench, bare),
    ]


def _without_packages(bench: Bench, bare: Series) -> list[Row]:
    image = bench.plain_image
    if image is None:
        return []
    their_side, our_side = bench.sides()
    their_life, our_life = Life(), Life()
    refusal = ""

    def theirs() -> None:
        nonlocal refusal
        if not refusal:
            try:
                their_life.live(their_side, image)
            except RuntimeError:
                # Each of its starts needs a package index that the container can reach.
                refusal = "fails: pip reaches no index"

    in_turns(
        bench.runs,
        theirs,
        lambda: our_life.live(our_side, image),
        note=lambda text: bench.note(f"start without dill and requests in the image, {text}"),
    )
    their_life.drop_warm_up()
    our_life.drop_warm_up()
    as_bare = Target(1.5, bare, "≤ 1.5 × bare run")
    what = "start, no dill or requests in the image"
    then = "start and first cell, no dill or requests"
    return [
        Row(what, refusal or their_life.start, our_life.start, as_bare),
        Row(then, refusal or their_life.first_cell, our_life.first_cell, as_bare),
    ]


ONE_CELL = "x = {n}"
KILL = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
ONE_QUERY = "answer = llm_query('ping {n}')\nassert answer == 're: ping {n}', answer"
_HUNDRED = (
    "answers = [llm_query(f'ping {n} {i}') for i in range(100)]\n"
    "assert answers == [f're: ping {n} {i}' for i in range(100)], answers"
)
_BATCH = (
    "answers = llm_query_batched([f'ping {n} {i}' for i in range(16)])\n"
    "assert answers == [f're: ping {n} {i}' for i in range(16)], answers"
)


def measure_cells(bench: Bench) -> list[Row]:
    """``x = 1``, one query, a hundred, a batch of sixteen."""
    rows = []
    their_side, our_side = bench.sides()
    with their_side.live(bench.image) as their_live, our_side.live(bench.image) as our_live:
        for what, code, calls, part in (
            ("`x = 1`", ONE_CELL, 0, 200),
            ("one `llm_query`", ONE_QUERY, 1, 40),
            ("100 × `llm_query` in one cell", _HUNDRED, 100, 15),
            ("`llm_query_batched` of 16", _BATCH, 16, None),
        ):
            theirs, ours = Series(), Series()
            in_turns(
                bench.runs,
                _timed(theirs, their_side, their_live, code, calls),
                _timed(ours, our_side, our_live, code, calls),
                note=_noted(bench, what),
            )
            theirs.drop_warm_up()
            ours.drop_warm_up()
            rows.append(Row(what, theirs, ours, Target.part(part, theirs) if part else None))
    return rows


def _timed(
    series: Series, side: Contender, live: Live, code: str, calls: int
) -> Callable[[], None]:
    count = side.batch if calls <= 1 else 1

    def sample() -> None:
        with series.timed(share=count):
            live.run_many(code, count, calls=calls)

    return sample


def _noted(bench: Bench, what: str) -> Callable[[str], None]:
    return lambda text: bench.note(f"{what}, {text}")


#: Lists of dicts are this much smaller than the string, because each of rlms's cells pickles them
#: five times, in Python.
_SMALLER = 10

_WORDS = "It was the best of times, it was the worst of times. "

# Typical records for a model: an id, a text, a number, a few tags.
_RECORDS = (
    f'data = [{{"id": i, "text": str(i) + {_WORDS!r} * 4, "score": i / 7, '
    '"tags": ["a", f"b{i}"]} for i in range(%d)]\n'
)


@dataclass
class Visit:
    """What one side needs for some data, in a new session each time."""

    fill: Series = field(default_factory=Series)
    cell: Series = field(default_factory=Series)
    peak: Series = field(default_factory=lambda: Series(unit=megabytes))

    def visit(self, contender: Contender, image: str, fill: Callable[[Live], None]) -> None:
        """Load the data and run cells beside it."""
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
    rows = _as_context(bench, f"{bench.megabytes} MB str", text, 40)
    del text
    code, records = _records(size // _SMALLER)
    what = f"{size // _SMALLER / 1e6:g} MB (as JSON) list of dicts"
    rows += _as_context(bench, what, records, 15)
    del records
    theirs, ours = _measure(bench, f"{what} of a cell's", lambda live: live.run(code))
    rows.append(Row(f"make a {what} in a cell", theirs.fill, ours.fill))
    rows.append(Row("`x = 1` beside that", theirs.cell, ours.cell))
    return rows


def _as_context(bench: Bench, what: str, context: Any, part: int) -> list[Row]:
    def fill(live: Live) -> None:
        live.environment.add_context(context)

    theirs, ours = _measure(bench, f"context: {what}", fill)
    rows = [
        Row(f"load {what}", theirs.fill, ours.fill, Target.part(part, theirs.fill)),
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
