"""The two sides, made to look alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol, cast

from rlm.environments.docker_repl import DockerREPL

from bench_rlm.engine import Engine
from rlm_containers.integrations.rlms import ContainerEnvironment
from runtimes import Runtime

__all__ = ["BATCH", "Address", "BenchError", "Contender", "Live", "ours", "route", "theirs"]

#: How many of our short cells are timed together.
BATCH = 20

Address = tuple[str, int]


class BenchError(Exception):
    """A side did not do what was to be timed."""


class Environment(Protocol):
    """What both are to rlms; the results are rlms's own."""

    def execute_code(self, code: str) -> Any: ...
    def add_context(self, context_payload: Any, context_index: int | None = None) -> int: ...
    def cleanup(self) -> None: ...


@dataclass(frozen=True)
class Live:
    """One running environment, whose every result is checked: an error may be fast as well."""

    environment: Environment
    finish: Callable[[Environment], None]
    numbers: Iterator[int] = field(default_factory=count)

    def run(self, code: str, *, calls: int = 0) -> None:
        """Run a cell that must succeed and make so many calls of the language model.

        ``{n}`` in it is another number each time: our side does not save what is saved already.
        """
        code = code.replace("{n}", str(next(self.numbers)))
        result = self.environment.execute_code(code)
        made = len(result.rlm_calls)
        if result.stderr.strip() or made != calls:
            raise BenchError(
                f"the cell {code[:60]!r} made {made} of {calls} calls and said: "
                f"{result.stderr.strip()[-500:]}"
            )

    def run_many(self, code: str, times: int, *, calls: int = 0) -> None:
        """Run a cell many times, each as soon as the one before has answered, to the very end."""
        for _ in range(times):
            self.run(code, calls=calls)
        self.settle()

    def settle(self) -> None:
        """Wait for what goes on after an answer: our side answers first and saves then."""
        self.finish(self.environment)


@dataclass(frozen=True)
class Contender:
    """One side.

    Attributes:
        make: starts an environment with an image.
        finish: see :meth:`Live.settle`.
        batch: how many short cells are timed together, for a side whose cells are too short
            to be timed alone; the sample is the time of one of them.
    """

    make: Callable[[str], Environment]
    finish: Callable[[Environment], None]
    batch: int

    def start(self, image: str) -> Live:
        """Start one; whoever starts it ends it."""
        return Live(self.make(image), self.finish)

    @contextmanager
    def live(self, image: str) -> Iterator[Live]:
        """One that ends with the block."""
        live = self.start(image)
        try:
            yield live
        finally:
            live.environment.cleanup()


def theirs(handler: Address) -> Contender:
    """rlms's own DockerREPL."""

    def make(image: str) -> Environment:
        return cast(Environment, DockerREPL(image=image, lm_handler_address=handler))

    return Contender(make, lambda environment: None, 1)


def ours(
    engine: Engine,
    handler: Address,
    *,
    runtime: Callable[[], Runtime] | None = None,
    **options: Any,
) -> Contender:
    """This project's environment, with the defaults except for ``options``."""

    def make(image: str) -> Environment:
        return ContainerEnvironment(
            image=image,
            runtime=runtime() if runtime else engine.name,
            lm_handler_address=handler,
            **options,
        )

    def finish(environment: Environment) -> None:
        # Reading this waits until the last checkpoint is on disk.
        _ = cast(ContainerEnvironment, environment).sandbox.unsaved

    return Contender(make, finish, BATCH)


def route(live: Live) -> str | None:
    """How ``llm_query`` travels on our side."""
    return cast(ContainerEnvironment, live.environment).sandbox.lm_route
