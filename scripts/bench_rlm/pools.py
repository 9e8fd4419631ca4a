"""Containers that wait: how fast they are handed out; starts, and many sandboxes at once."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from bench_rlm.report import Row, Target
from bench_rlm.series import Series, in_turns, megabytes, seconds_of
from bench_rlm.sides import Bench, BenchError
from rlm_containers import ContainerREPL, Sandbox, SandboxPool
from rlm_containers.container import (
    Container,
    SandboxImage,
    close_pools,
    new_name,
    shared_pool,
)
from rlm_containers.options import SandboxOptions
from runtimes.timelimit import TimeLimit

#: Children of one batch, and how many of them run at once.
_CHILDREN = 16
_AT_ONCE = 4

_BATCH = (
    f"told = rlm_query_batched([str(n) for n in range({_CHILDREN})])\n"
    f"assert told == [str(2 * n) for n in range({_CHILDREN})], told"
)


def measure_pools(bench: Bench) -> list[Row]:
    """The steps of a start, handing out a container, the children of a batch, many sandboxes."""
    many = [row for pooled in (False, True) for row in _many(bench, pooled=pooled)]
    return [*_steps(bench), *_hand_over(bench), *_children(bench), *many]


def _steps(bench: Bench) -> list[Row]:
    """What a start consists of. Each row contains those before it, but for the last two."""
    client, created, nothing, python = Series(), Series(), Series(), Series()
    hello, imported, first_cell = Series(), Series(), Series()
    ask, runtime = bench.engine.ask, bench.engine.name
    options = SandboxOptions(image=bench.image, runtime=runtime)
    image = SandboxImage(options)

    def create() -> None:
        with created.timed():
            made = ask("create", "--interactive", bench.image, "/bin/true")
        ask("rm", "--force", made)

    def start() -> None:
        limit = TimeLimit(60.0, "the start")
        container = Container(new_name(), options, image)
        try:
            with hello.timed():
                container.start(limit)
            with imported.timed():
                container.prepare(limit)
        finally:
            container.end()
            container.remove()

    def run_cell() -> None:
        with Sandbox(bench.image, runtime=runtime) as box, first_cell.timed():
            box.execute("x = 1")

    in_turns(
        bench.runs,
        lambda: client.add(seconds_of(lambda: ask("version"))),
        create,
        lambda: nothing.add(seconds_of(lambda: ask("run", "--rm", bench.image, "/bin/true"))),
        lambda: python.add(seconds_of(lambda: bench.engine.bare_run(bench.image))),
        start,
        run_cell,
        note=lambda text: bench.note(f"steps of a start, {text}"),
    )
    every = {
        "the client, which asks the engine for its version": client,
        "the engine makes a container (`create`)": created,
        "the runtime runs and removes it (`run --rm IMAGE /bin/true`)": nothing,
        "Python in it (`python -c pass`)": python,
        "ours, until the guest says hello": hello,
        "after that: what a pool has it import": imported,
        "after a start: the first cell": first_cell,
    }
    for series in every.values():
        series.drop_warm_up()
    return [Row(f"a start's steps: {what}", "", series) for what, series in every.items()]


def _hand_over(bench: Bench) -> list[Row]:
    bare, first_cell, acquired = Series(), Series(), Series()
    with SandboxPool(bench.image, runtime=bench.engine.name, size=2) as pool:

        def take() -> None:
            _await_waiting(pool, 2)
            time.sleep(0.2)  # the engine has work of its own after a start
            began = time.perf_counter()
            box = pool.acquire(lm=lambda prompt: f"re: {prompt}")
            acquired.add(time.perf_counter() - began)
            result = box.execute("print(6 * 7)")
            first_cell.add(time.perf_counter() - began)
            if result.stdout != "42\n":
                raise BenchError(f"the first cell said: {result.stderr}")
            box.close()

        in_turns(
            2 * bench.runs,
            lambda: bare.add(seconds_of(lambda: bench.engine.bare_run(bench.image))),
            take,
            note=lambda text: bench.note(f"hand-over, {text}"),
        )
        for number in range(bench.many - len(first_cell.samples)):
            bench.note(f"{bench.many} hand-overs, {number}")
            take()
    for series in (bare, first_cell, acquired):
        series.drop_warm_up()
    count = len(first_cell.samples)
    late = Series(sorted(first_cell.samples)[math.ceil(0.99 * count) - 1 :][:1])
    return [
        Row("bare `run`, beside hand-overs", "", bare),
        Row("acquire a container that waits", "", acquired),
        Row("acquire and first cell", "", first_cell, Target(1 / 12, bare, "≤ 1/12 of bare run")),
        Row(f"that, p99 of {count}", "", late, Target(1 / 4, bare, "≤ 1/4 of bare run")),
    ]


def _children(bench: Bench) -> list[Row]:
    """A batch of recursive calls whose children run one cell each, as those of rlms do."""
    kinds: tuple[int | None, ...] = (None, 4, _CHILDREN)
    series = {pool: Series() for pool in kinds}

    def batch(pool: int | None) -> None:
        options: dict[str, Any] = {"image": bench.image, "runtime": bench.engine.name, "pool": pool}

        def child(prompt: str, model: str | None) -> Any:
            with ContainerREPL(**options, context_payload=prompt) as repl:
                told = repl.execute_code("print(2 * int(context))").stdout
            return SimpleNamespace(response=told.strip())

        with ContainerREPL(**options, subcall_fn=child, max_concurrent_subcalls=_AT_ONCE) as parent:
            if pool is not None:
                _await_waiting(shared_pool(parent.sandbox.options), pool)
            with series[pool].timed():
                result = parent.execute_code(_BATCH)
            if result.status != "ok":
                raise BenchError(f"the children said: {result.stderr}")
        close_pools()

    in_turns(
        bench.few,
        *(lambda pool=pool: batch(pool) for pool in kinds),  # type: ignore[misc]
        note=lambda text: bench.note(f"children, {text}"),
    )
    for each in series.values():
        each.drop_warm_up()
    what = f"`rlm_query_batched` of {_CHILDREN} children, {_AT_ONCE} at once"
    fifth = Target(1 / 5, series[None], "≤ 1/5 of no pool")
    return [
        Row(what, "", series[None]),
        Row(f"{what}, `pool=4`", "", series[4], fifth),
        Row(f"{what}, `pool={_CHILDREN}`", "", series[_CHILDREN], fifth),
    ]


@dataclass(frozen=True)
class _Host:
    """What this process has."""

    threads: int
    descriptors: int

    @classmethod
    def now(cls) -> _Host:
        """Count them."""
        return cls(threading.active_count(), len(os.listdir("/proc/self/fd")))


def _many(bench: Bench, *, pooled: bool) -> list[Row]:
    """Many sandboxes at once: what each takes, a cell in each, and closing them.

    Args:
        bench: what is measured, and how.
        pooled: whether they are of a pool.
    """
    options: dict[str, Any] = {"image": bench.image, "runtime": bench.engine.name}
    cell = Series()
    memory: defaultdict[str, Series] = defaultdict(lambda: Series(unit=megabytes))
    before = _Host.now()
    with ExitStack() as stack:
        pool = stack.enter_context(SandboxPool(**options, size=2)) if pooled else None
        boxes = []
        for number in range(bench.many):
            bench.note(f"{bench.many} sandboxes{' of a pool' if pooled else ''}, {number}")
            if pool is not None:
                _await_waiting(pool, 1)
            box = Sandbox(**options) if pool is None else pool.sandbox()
            boxes.append(stack.enter_context(box))
        for box in boxes:
            box.execute("x = 1")
        held = _Host.now()
        threads = Series([(held.threads - before.threads) / bench.many], unit=_number)
        descriptors = Series([(held.descriptors - before.descriptors) / bench.many], unit=_number)
        for number, box in enumerate(boxes):
            cell.add(seconds_of(lambda box=box, number=number: box.execute(f"x = {number}")))
        for box in boxes[:: max(1, bench.many // 10)]:
            parts = bench.engine.memory_by_part(box.name)
            for part, size in parts.items():
                memory[part].add(size)
            memory[""].add(sum(parts.values()))
        closing = Series()
        with closing.timed(share=bench.many):
            stack.close()
    what = f"{bench.many} sandboxes{' of a pool' if pooled else ''} at once"
    return [
        Row(f"{what}: memory of each", "", memory.pop("")),
        *(Row(f"{what}: of it {part}", "", memory[part]) for part in sorted(memory)),
        Row(f"{what}: a cell in each", "", cell),
        Row(f"{what}: close each", "", closing),
        Row(f"{what}: threads of this process for each", "", threads),
        Row(f"{what}: descriptors of this process for each", "", descriptors),
    ]


def _number(value: float) -> str:
    return f"{value:.1f}"


def _await_waiting(pool: Any, count: int) -> None:
    deadline = time.monotonic() + 120
    while pool.waiting < count:
        if time.monotonic() > deadline:
            raise BenchError("the pool is not filled")
        time.sleep(0.02)
