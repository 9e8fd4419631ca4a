"""What every case needs to know."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from bench_rlm.contender import Address, Contender, ours, theirs
from bench_rlm.engine import Engine

__all__ = ["Bench"]


@dataclass(frozen=True)
class Bench:
    """One engine's benchmark.

    Attributes:
        engine: the engine.
        image: an image with dill and requests.
        plain_image: the same without them, if there is one.
        handler: the address of rlms's LM Handler.
        runs: samples of each row; of what takes very long there are fewer.
        megabytes: the size of the contexts, in characters or bytes of JSON.
    """

    engine: Engine
    image: str
    plain_image: str | None
    handler: Address
    runs: int
    megabytes: int

    @property
    def few(self) -> int:
        """Samples of what takes many seconds each."""
        return min(self.runs, max(3, self.runs // 3))

    def sides(self) -> tuple[Contender, Contender]:
        """rlms's side and ours."""
        return theirs(self.handler), ours(self.engine, self.handler)

    def note(self, what: str) -> None:
        """Say on the terminal what is going on."""
        if sys.stderr.isatty():
            print(f"\r\033[K{self.engine.name}: {what}", end="", file=sys.stderr, flush=True)
        elif what.endswith("warm-up"):
            print(f"{self.engine.name}: {what.removesuffix(', warm-up')}", file=sys.stderr)
