"""Cases that only our side has."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

from bench_rlm.cases import KILL, ONE_CELL, ONE_QUERY
from bench_rlm.report import Row, Target
from bench_rlm.series import Series, in_turns, megabytes, seconds_of
from bench_rlm.sides import BATCH, Bench, BenchError, Live, ours, sandbox_of
from rlm_containers.container.bundle import guest_bundle
from runtimes import Runtime
from runtimes.command import EngineCommand


def measure_extras(bench: Bench) -> list[Row]:
    """The pipe itself, answers after a pause, commands, dead workers, no network, a cold start."""
    with ours(bench.engine, bench.handler).live(bench.image) as live:
        paused = _sampled(bench, "`x = 1` after a pause", lambda: _after_pause(live))
        alone = _sampled(bench, "`x = 1`", lambda: _each(live, ONE_CELL))
        same = _sampled(bench, "nothing to save", lambda: _each(live, "x = 1"))
        commands, execs = _commands(bench, live)
        revived = _sampled(bench, "killed worker", lambda: _revive(live))
    with ours(bench.engine, bench.handler, network="none").live(bench.image) as live:
        piped = _sampled(bench, "`x = 1`, no network", lambda: _each(live, ONE_CELL))
        query = _sampled(bench, "query, no network", lambda: _each(live, ONE_QUERY, calls=1))
    cold = ours(bench.engine, bench.handler, runtime=lambda: _asked_anew(bench))
    first = _sampled(bench, "first start in a process", lambda: _start(bench, cold.start))
    idle = Series(unit=megabytes)
    with suppress(PermissionError):  # only root sees the memory of others' processes
        idle = _idle_memory(bench)
    pipe = _sampled(
        bench, "the pipe itself", lambda: bench.engine.round_trip(bench.image), few=True
    )
    return [
        Row("100 bytes through `run -i` and back, no REPL", "", pipe),
        Row("`x = 1`, against that", "", alone, Target(3, pipe, "≤ 3 × the pipe")),
        Row("`x = 1` after a pause, until the answer", "", paused),
        Row("`x = 1` when `x` is 1 already: nothing to save", "", same),
        Row('`x = 1`, `network="none"`', "", piped),
        Row('one `llm_query` over the pipe, `network="none"`', "", query),
        Row("`true` as a command; on the left by the engine's `exec`", execs, commands),
        Row("a killed worker: until the next cell's answer", "", revived),
        Row("start, the first in a process (asks the engine)", "", first),
        Row(
            "memory of an idle sandbox, one of five", "", idle if idle.samples else "for root only"
        ),
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


def _commands(bench: Bench, live: Live) -> tuple[Series, Series]:
    """One command that does nothing: ours, and the engine's ``exec`` in the same container."""
    box = live.environment.sandbox  # type: ignore[attr-defined]  # only ours has one
    of_ours, of_engine = Series(), Series()

    def our_command() -> None:
        if box.command(["true"]).status != "ok":
            raise BenchError("the command did not end well")

    in_turns(
        bench.runs,
        lambda: of_ours.add(seconds_of(our_command)),
        lambda: of_engine.add(seconds_of(lambda: bench.engine.ask("exec", box.name, "true"))),
        note=lambda text: bench.note(f"`true` as a command, {text}"),
    )
    for series in (of_ours, of_engine):
        series.drop_warm_up()
    return of_ours, of_engine


def _revive(live: Live) -> float:
    live.run("kept = 1")
    live.settle()

    def die_and_go_on() -> None:
        live.environment.execute_code(KILL)
        live.run("assert kept == 1")

    return seconds_of(die_and_go_on)


def _idle_memory(bench: Bench) -> Series:
    """What a sandbox takes that has run a cell and asked a model, with the engine's processes."""
    memory = Series(unit=megabytes)
    with ExitStack() as stack:
        side = ours(bench.engine, bench.handler)
        lives = [stack.enter_context(side.live(bench.image)) for _ in range(5)]
        for live in lives:
            live.run(ONE_QUERY, calls=1)
            live.settle()
        for live in lives:
            memory.add(bench.engine.memory_of(sandbox_of(live).name))
    return memory


def _start(bench: Bench, start: Callable[[str], Live]) -> float:
    lives: list[Live] = []
    try:
        return seconds_of(lambda: lives.append(start(bench.image)))
    finally:
        for live in lives:
            live.environment.cleanup()


def _asked_anew(bench: Bench) -> Runtime:
    """A runtime that has not asked its engine anything yet."""
    guest_bundle.cache_clear()
    known = type(bench.engine.runtime)
    fresh: Runtime = known(EngineCommand(bench.engine.argv))  # type: ignore[call-arg]
    return fresh
