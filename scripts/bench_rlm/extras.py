"""Cases that only our side has."""

from __future__ import annotations

import time
from collections.abc import Callable

from bench_rlm.cases import ONE_CELL, ONE_QUERY
from bench_rlm.report import Row
from bench_rlm.series import Series, in_turns, seconds_of
from bench_rlm.sides import BATCH, Bench, Live, ours
from rlm_containers.container.bundle import _plan
from runtimes import Runtime
from runtimes.command import EngineCommand

_KILL = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"


def measure_extras(bench: Bench) -> list[Row]:
    """The pipe's own speed, answers after a pause, a killed worker, no network, a cold start."""
    with ours(bench.engine, bench.handler).live(bench.image) as live:
        paused = _sampled(bench, "`x = 1` after a pause", lambda: _after_pause(live))
        same = _sampled(bench, "nothing to save", lambda: _each(live, "x = 1"))
        revived = _sampled(bench, "killed worker", lambda: _revive(live))
    with ours(bench.engine, bench.handler, network="none").live(bench.image) as live:
        piped = _sampled(bench, "`x = 1`, no network", lambda: _each(live, ONE_CELL))
        query = _sampled(bench, "query, no network", lambda: _each(live, ONE_QUERY, calls=1))
    cold = ours(bench.engine, bench.handler, runtime=lambda: _asked_anew(bench))
    first = _sampled(bench, "first start in a process", lambda: _start(bench, cold.start))
    pipe = _sampled(
        bench, "the pipe itself", lambda: bench.engine.round_trip(bench.image), few=True
    )
    return [
        Row("100 bytes through `run -i` and back, no REPL", "", pipe),
        Row("`x = 1` after a pause, until the answer", "", paused),
        Row("`x = 1` when `x` is 1 already: nothing to save", "", same),
        Row('`x = 1`, `network="none"`', "", piped),
        Row('one `llm_query` over the pipe, `network="none"`', "", query),
        Row("a killed worker: until the next cell's answer", "", revived),
        Row("start, the first in a process (asks the engine)", "", first),
    ]


def _sampled(bench: Bench, what: str, sample: Callable[[], float], *, few: bool = False) -> Series:
    series = Series()
    in_turns(
        bench.few if few else bench.runs,
        lambda: series.add(sample()),
        note=lambda text: bench.note(f"{what}, {text}"),
    )
    series.drop_warm_up()
    return series


def _after_pause(live: Live) -> float:
    live.settle()
    time.sleep(0.05)
    return seconds_of(lambda: live.run(ONE_CELL))


def _each(live: Live, code: str, calls: int = 0) -> float:
    return seconds_of(lambda: live.run_many(code, BATCH, calls=calls)) / BATCH


def _revive(live: Live) -> float:
    live.run("kept = 1")
    live.settle()

    def die_and_go_on() -> None:
        live.environment.execute_code(_KILL)
        live.run("assert kept == 1")

    return seconds_of(die_and_go_on)


def _start(bench: Bench, start: Callable[[str], Live]) -> float:
    lives: list[Live] = []
    try:
        return seconds_of(lambda: lives.append(start(bench.image)))
    finally:
        for live in lives:
            live.environment.cleanup()


def _asked_anew(bench: Bench) -> Runtime:
    """A runtime that has not asked its engine anything yet."""
    _plan.cache_clear()
    known = type(bench.engine.runtime)
    fresh: Runtime = known(EngineCommand(bench.engine.argv))  # type: ignore[call-arg]
    return fresh
