"""Cases: start, first cell, clean-up."""

from __future__ import annotations

from dataclasses import dataclass, field

from bench_rlm.bench import Bench
from bench_rlm.contender import Contender
from bench_rlm.series import Series, in_turns, seconds_of
from bench_rlm.table import Row, Target

__all__ = ["measure_lives"]


@dataclass(frozen=True)
class Life:
    """How long the parts of one side's lives are."""

    start: Series = field(default_factory=Series)
    first_cell: Series = field(default_factory=Series)
    end: Series = field(default_factory=Series)

    def live(self, contender: Contender, image: str) -> None:
        """Start one, let it run a cell, end it."""
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
                # It needs a package index that the container can reach, on every start.
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
