"""Cases: short cells and queries in a running session."""

from __future__ import annotations

from collections.abc import Callable

from bench_rlm.bench import Bench
from bench_rlm.contender import Contender, Live
from bench_rlm.series import Series, in_turns
from bench_rlm.table import Row, Target

__all__ = ["ONE_CELL", "ONE_QUERY", "measure_cells"]

ONE_CELL = "x = {n}"
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
            ("100 × `llm_query` in one cell", _HUNDRED, 100, None),
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
