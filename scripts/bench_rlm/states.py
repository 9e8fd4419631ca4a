"""Cases of states that cells have made: what a cell costs beside them, and to save them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from bench_rlm.cases import KILL, ONE_CELL
from bench_rlm.report import Row, Target
from bench_rlm.series import Series, in_turns, seconds_of
from bench_rlm.sides import Bench, BenchError, Live, ours, sandbox_of
from rlm_containers import Sandbox


@dataclass(frozen=True)
class State:
    """What a session has.

    Attributes:
        what: in words.
        make: the code of a cell that makes it, as ``data``.
        change: the code of a cell that changes a part of it; ``None`` if it has none.
    """

    what: str
    make: str
    change: str | None


_STATES = (
    State(
        "300k dicts",
        'data = [{"id": i, "name": f"row {i}", "value": i / 7} for i in range(300_000)]',
        'data[{n}]["value"] = {n}',
    ),
    State(
        "a 10 MB list of dicts",
        'data = [{"id": i, "text": str(i) + "It was the best of times. " * 8, "score": i / 7,'
        ' "tags": ["a", f"b{i}"]} for i in range(37_000)]',
        'data[{n}]["score"] = {n}',
    ),
    State(
        "100k instances of a cell's dataclass",
        "import dataclasses\n"
        "@dataclasses.dataclass\n"
        "class Point:\n"
        "    x: int\n"
        "    label: str\n"
        "data = [Point(i, f'p{i}') for i in range(100_000)]",
        "data[{n}].x = {n}",
    ),
    State(
        "a 500 MB str",
        "data = 'x' * 500_000_000",
        None,
    ),
)

#: How many branches there are.
_COPIES = 4

_FRAME = State(
    "a pandas frame of 1M rows",
    "import pandas\n"
    "data = pandas.DataFrame({'a': range(1_000_000), 'b': [str(i) for i in range(1_000_000)]})",
    "data.loc[{n}, 'a'] = {n}",
)

#: Prints how long one C pickle takes.
_PICKLE = """\
import pickle, time
class _Nothing:
    def write(self, data): pass
_start = time.perf_counter()
pickle.Pickler(_Nothing(), 5).dump(data)
print(time.perf_counter() - _start)
del _Nothing, _start
"""


def measure_states(bench: Bench) -> list[Row]:
    """``x = 1`` beside what cells have made, a cell that changes a part of it, and a death."""
    small = 1000 if bench.megabytes < 100 else 1
    rows = []
    alone, death = Series(), Series()
    with ours(bench.engine, bench.handler).live(bench.image) as live:
        _repeat(bench, "`x = 1` alone", alone, lambda: live.run(ONE_CELL))
        _repeat(bench, "a death beside nothing", death, lambda: _die(live))
    for state in _STATES:
        rows += _measure(bench, state, bench.image, alone, death, small)
    if bench.frame_image is not None:
        rows += _measure(bench, _FRAME, bench.frame_image, alone, death, small)
    return rows + _branches(bench, small)


def _branches(bench: Bench, small: int) -> list[Row]:
    """Live copies of the interpreter, alone and beside what takes long to save."""
    rows = []
    state = _STATES[0]
    make = state.make if small == 1 else state.make.replace("00_000", "0_000")
    for what, code in (("", ONE_CELL), (f" beside {state.what}", make)):
        made, answered, kept = Series(), Series(), Series()
        with ours(bench.engine, bench.handler).live(bench.image) as live:
            live.run(code)
            live.settle()
            act = partial(_branch, sandbox_of(live), made, answered, kept)
            in_turns(bench.few, act, note=lambda text: bench.note(f"branches, {text}"))
        for series in (made, answered, kept):
            series.drop_warm_up()
        rows += [
            Row(f"`branch({_COPIES})`{what}", "", made),
            Row(f"`x = 1` in each of {_COPIES} branches{what}, one after the other", "", answered),
            Row(f"`keep()`{what}", "", kept),
        ]
    return rows


def _branch(box: Sandbox, made: Series, answered: Series, kept: Series) -> None:
    with made.timed():
        branches = box.branch(_COPIES)
    with branches:
        with answered.timed():
            for branch in branches:
                if branch.execute("x = 1").status != "ok":
                    raise BenchError("a branch's cell failed")
        with kept.timed():
            branches[0].keep()


def _measure(
    bench: Bench, state: State, image: str, alone: Series, death: Series, small: int
) -> list[Row]:
    make = state.make if small == 1 else state.make.replace("00_000", "0_000")
    beside, died = Series(), Series()
    with ours(bench.engine, bench.handler).live(image) as live:
        live.run(make)
        live.settle()
        # Each cell waits for what the one before it has left to do.
        _repeat(bench, f"`x = 1` beside {state.what}", beside, lambda: live.run(ONE_CELL))
        live.settle()
        changes = (
            [] if state.change is None else _change(bench, live, state.what, state.change, alone)
        )
        _repeat(bench, f"a death beside {state.what}", died, lambda: _die(live))
    return [
        Row(f"`x = 1` beside {state.what}", "", beside, Target(1.5, alone, "≤ 1.5 × alone")),
        *changes,
        Row(
            f"a killed worker beside {state.what}, until the next cell's answer",
            "",
            died,
            Target(3, death, "≤ 3 × beside nothing"),
        ),
    ]


def _change(bench: Bench, live: Live, what: str, change: str, alone: Series) -> list[Row]:
    changed, saved, pickled = Series(), Series(), Series()
    _repeat(bench, f"a change of {what}", changed, lambda: live.run(change))
    live.settle()
    _repeat(bench, f"a saved change of {what}", saved, lambda: live.run_many(change, 1))
    in_turns(
        bench.few,
        lambda: pickled.add(_seconds_in_cell(live, _PICKLE)),
        note=lambda text: bench.note(f"pickle {what}, {text}"),
    )
    pickled.drop_warm_up()
    target = Target(25, alone, "≤ 25 × `x = 1` alone")
    return [
        Row(f"change {what}, until the answer", "", changed, target),
        Row(
            f"change {what}, until it is on disk",
            "",
            saved,
            Target(2.5, pickled, "≤ 2.5 × one C pickle"),
        ),
    ]


def _repeat(bench: Bench, what: str, series: Series, act: Callable[[], None]) -> None:
    in_turns(
        bench.few,
        lambda: series.add(seconds_of(act)),
        note=lambda text: bench.note(f"{what}, {text}"),
    )
    series.drop_warm_up()


def _die(live: Live) -> None:
    live.environment.execute_code(KILL)
    live.run(ONE_CELL)


def _seconds_in_cell(live: Live, code: str) -> float:
    result = live.environment.execute_code(code)
    if result.stderr.strip():
        raise BenchError(f"a pickle in a cell failed: {result.stderr.strip()[-500:]}")
    live.settle()
    return float(result.stdout)
