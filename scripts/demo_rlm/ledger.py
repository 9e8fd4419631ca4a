"""What every model call and every cell took, and the hooks through which the demo hears of them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import rlm.core.rlm
from rlm.clients import get_client
from rlm.clients.base_lm import BaseLM
from rlm.core.types import ModelUsageSummary, RLMIteration, UsageSummary
from rlm.logger import RLMLogger

from demo_rlm.models import SCRIPTED, Cast, redacted
from demo_rlm.scripted import ScriptedRoot


class ModelError(Exception):
    """A model call failed; the message says how, without any key."""


@dataclass(frozen=True)
class Call:
    """One model call: what was asked and said, and when, on time.perf_counter's clock."""

    asked: str
    said: str
    started: float
    ended: float
    failed: bool = False

    @property
    def seconds(self) -> float:
        return self.ended - self.started


@dataclass(frozen=True)
class Cell:
    """One cell that ran in the environment."""

    printed: str
    errors: str
    seconds: float
    sub_calls: int


class Listener(Protocol):
    """Whoever wants to know at once."""

    def clients_ready(self) -> None: ...
    def root_call(self, call: Call) -> None: ...
    def sub_call(self, call: Call) -> None: ...
    def cell(self, cell: Cell) -> None: ...


@dataclass
class Ledger:
    """All calls and cells of one run."""

    listener: Listener
    root_calls: list[Call] = field(default_factory=list)
    sub_calls: list[Call] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add_root_call(self, call: Call) -> None:
        with self._lock:
            self.root_calls.append(call)
            self.listener.root_call(call)

    def add_sub_call(self, call: Call) -> None:
        with self._lock:
            self.sub_calls.append(call)
            self.listener.sub_call(call)

    def add_cell(self, cell: Cell) -> None:
        with self._lock:
            self.cells.append(cell)
            self.listener.cell(cell)

    @property
    def seconds_in_sub_calls(self) -> float:
        """How long at least one sub-call was under way: calls of a batch overlap."""
        total, until = 0.0, 0.0
        for call in sorted(self.sub_calls, key=lambda call: call.started):
            total += max(0.0, call.ended - max(call.started, until))
            until = max(until, call.ended)
        return total


class RecordingClient(BaseLM):
    """One of RLM's own clients, with every call written into the ledger."""

    def __init__(self, client: BaseLM, record: Callable[[Call], None], at_once: int) -> None:
        super().__init__(model_name=client.model_name)
        self._client = client
        self._record = record
        # First come, first served; a call's time starts when a thread takes it out of the queue.
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="demo-calls")

    def completion(self, prompt: Any) -> str:
        return self._threads.submit(self._complete, prompt).result()

    async def acompletion(self, prompt: Any) -> str:
        # Not the client's own acompletion: RLM's handler gives every batch an event loop of its
        # own, and an async HTTP client must not outlive the loop it was first used in.
        return await asyncio.wrap_future(self._threads.submit(self._complete, prompt))

    def get_usage_summary(self) -> UsageSummary:
        return self._client.get_usage_summary()

    def get_last_usage(self) -> ModelUsageSummary:
        return self._client.get_last_usage()

    def _complete(self, prompt: Any) -> str:
        asked = prompt if isinstance(prompt, str) else ""  # a root model's history is told as turns
        started = time.perf_counter()
        try:
            said = self._client.completion(prompt) or ""
        except Exception as error:
            told = redacted(f"{type(error).__name__}: {error}")
            self._record(Call(asked, told, started, time.perf_counter(), failed=True))
            raise ModelError(told) from error
        self._record(Call(asked, said, started, time.perf_counter()))
        return said


class RecordingLogger(RLMLogger):
    """RLM's logger, which is told of every iteration as it ends (its callbacks are not called)."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def log(self, iteration: RLMIteration) -> None:
        super().log(iteration)
        for block in iteration.code_blocks:
            r = block.result
            cell = Cell(r.stdout, r.stderr, r.execution_time or 0.0, len(r.rlm_calls))
            self._ledger.add_cell(cell)


def rlm_arguments(cast: Cast, ledger: Ledger) -> dict[str, Any]:
    """The arguments of `RLM(...)` for this cast; every call will be in the ledger.

    RLM finds its clients by name through `rlm.core.rlm.get_client` and has no place to register
    one. The demo replaces that function, in this process, for two reasons: so that a script can be
    a root model, and so that calls are seen while they happen. The rest is RLM as it comes.
    """

    def demo_client(backend: Any, kwargs: dict[str, Any]) -> BaseLM:
        kwargs = dict(kwargs)
        is_root = kwargs.pop("demo_part") == "root"
        client = ScriptedRoot() if backend == SCRIPTED else get_client(backend, kwargs)
        record = ledger.add_root_call if is_root else ledger.add_sub_call
        ledger.listener.clients_ready()
        return RecordingClient(client, record, at_once=1 if cast.scripted else 8)

    vars(rlm.core.rlm)["get_client"] = demo_client
    return {
        "backend": cast.root.backend,
        "backend_kwargs": {**cast.root.kwargs, "demo_part": "root"},
        "other_backends": [cast.sub.backend],
        "other_backend_kwargs": [{**cast.sub.kwargs, "demo_part": "sub"}],
        "logger": RecordingLogger(ledger),
    }
