"""Every call of a language model passes here, whichever way it came.

The broker checks what the guest sent, asks the backend, and keeps the calls of the current cell.
Requests and answers are JSON objects of the same form as those of rlms's own Docker environment:

=======================  ==========================================  ==========================
path                     request                                     answer
=======================  ==========================================  ==========================
``/llm_query``           ``{"prompt": …, "model": str | null}``      ``{"response": str}``
``/llm_query_batched``   ``{"prompts": […], "model": str | null}``   ``{"responses": [str, …]}``
``/rlm_query``           as ``/llm_query``                           as ``/llm_query``
``/rlm_query_batched``   as ``/llm_query_batched``                   as ``/llm_query_batched``
=======================  ==========================================  ==========================

or ``{"error": str}``. A prompt of a batch that failed has a response that starts with ``Error: ``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Protocol

from rlm_containers.interpreter import LMCall, Prompt

#: Characters of prompts and answers that are kept of one cell's calls. Later ones are cut to
#: _CUT characters each.
_KEPT = 256 * 1024 * 1024
_CUT = 1000

#: Calls of one cell that are kept.
_KEPT_CALLS = 100_000

#: Starts a recursive language model for a prompt and a model's name, and waits for it, as rlms has
#: it. Returns an object with the attributes of rlms's ``RLMChatCompletion``.
SubcallFunction = Callable[[Any, str | None], Any]


class BadRequestError(Exception):
    """The guest sent something that is not a valid request."""


class LMBackend(Protocol):
    """Answers prompts. Called from many threads at once.

    A call that fails is an :class:`LMCall` with its ``error`` set. An exception counts as one.
    """

    def query(self, prompt: Prompt, model: str | None) -> LMCall:
        """Answer one prompt."""
        ...

    def query_batch(self, prompts: Sequence[Prompt], model: str | None) -> list[LMCall]:
        """Answer many prompts: one call for each, in their order."""
        ...


def failed_call(prompt: Prompt, model: str | None, error: object) -> LMCall:
    """Return a call that got no response."""
    return LMCall(prompt=prompt, response="", model=model, execution_time=0.0, error=str(error))


class CallBudget:
    """Counts prompts before they are asked, whether they are answered or not.

    Args:
        per_cell: the most prompts of one cell; ``None`` for no limit.
        per_session: the most prompts of all cells together; ``None`` for no limit.
    """

    def __init__(self, per_cell: int | None = None, per_session: int | None = None) -> None:
        self.per_cell = per_cell
        self.per_session = per_session
        self._in_cell = 0
        self._in_session = 0
        self._lock = threading.Lock()

    def begin_cell(self) -> None:
        """Begin another cell. Prompts count for it, even if a thread of an earlier cell asks."""
        with self._lock:
            self._in_cell = 0

    def allow(self, wanted: int) -> int:
        """Count prompts, and return how many of them may be asked."""
        with self._lock:
            allowed = wanted
            if self.per_cell is not None:
                allowed = min(allowed, self.per_cell - self._in_cell)
            if self.per_session is not None:
                allowed = min(allowed, self.per_session - self._in_session)
            self._in_cell += allowed
            self._in_session += allowed
        return allowed

    def refusal(self) -> str:
        """Return the error of a prompt that may not be asked."""
        with self._lock:
            if self.per_session is not None and self._in_session >= self.per_session:
                return _used_up("session", self.per_session, "max_session_lm_calls")
            return _used_up("cell", self.per_cell or 0, "max_lm_calls")


def _used_up(what: str, limit: int, option: str) -> str:
    calls = "call" if limit == 1 else "calls"
    return f"this {what} has used up its {limit} language model {calls} ({option})"


class LMBroker:
    """Stands between one sandbox and the language models.

    Args:
        backend: answers ``llm_query``; ``None`` when there is no model. May be replaced.
        subcall: answers ``rlm_query``; ``None`` to answer it as ``llm_query``.
        max_concurrent_subcalls: how many subcalls of one batch may run at once.
    """

    def __init__(
        self,
        backend: LMBackend | None,
        subcall: SubcallFunction | None = None,
        max_concurrent_subcalls: int = 4,
    ) -> None:
        self.backend = backend
        self.subcall = subcall
        self.max_concurrent_subcalls = max_concurrent_subcalls
        self._calls: list[LMCall] = []
        self._kept = 0
        self._lock = threading.Lock()
        self._budget = CallBudget()
        self._waiting: Callable[[], AbstractContextManager[None]] = nullcontext

    def join(self, budget: CallBudget, waiting: Callable[[], AbstractContextManager[None]]) -> None:
        """Serve a sandbox from now on.

        Args:
            budget: how many calls its cells may make.
            waiting: entered while one subcall is being answered, besides what is entered for the
                whole request. A batch of subcalls may take longer than one request should, see
                :class:`CellClock`.
        """
        self._budget = budget
        self._waiting = waiting

    @property
    def connected(self) -> bool:
        """Whether there is anyone to ask."""
        return self.backend is not None or self.subcall is not None

    def begin_cell(self) -> None:
        """Begin another cell: count its calls anew, and forget those of the last one."""
        self._budget.begin_cell()
        self.take_calls()

    def take_calls(self) -> tuple[LMCall, ...]:
        """Return the answered calls since the last time, in the order they were answered.

        At most 100,000 calls are kept. Once their prompts and answers have 256 million characters
        in all, those of later calls are cut.
        """
        with self._lock:
            calls, self._calls = tuple(self._calls), []
            self._kept = 0
        return calls

    def handle(self, path: str, request: object) -> dict[str, Any]:
        """Answer one request of the guest.

        Args:
            path: what is asked, see the module's table.
            request: parsed JSON, not checked in any way.

        Returns:
            The answer as the module's table has it. Never raises: every failure is an ``error``.
        """
        try:
            if path in ("/llm_query", "/rlm_query"):
                return self._answer(path == "/rlm_query", *_parse_single(request))
            if path in ("/llm_query_batched", "/rlm_query_batched"):
                return self._answer_batch(path == "/rlm_query_batched", *_parse_batch(request))
            return {"error": f"there is no {path!r}"}
        except BadRequestError as error:
            return {"error": f"bad request: {error}"}
        except BaseException as error:
            # SystemExit too: a callable that raises it must not end this thread silently.
            return {"error": f"{type(error).__name__}: {error}"}

    def _answer(self, recursive: bool, prompt: Prompt, model: str | None) -> dict[str, Any]:
        if not self._budget.allow(1):
            return {"error": self._budget.refusal()}
        if recursive and self.subcall is not None:
            call = self._run_subcall(self.subcall, prompt, model)
        else:
            call = self._query(prompt, model)
        self._record([call])
        return {"response": call.response} if call.error is None else {"error": call.error}

    def _answer_batch(
        self, recursive: bool, prompts: list[Prompt], model: str | None
    ) -> dict[str, Any]:
        allowed = self._budget.allow(len(prompts))
        asked = prompts[:allowed]
        if not asked:
            calls = []
        elif recursive and self.subcall is not None:
            calls = self._run_subcalls(self.subcall, asked, model)
        else:
            calls = self._query_batch(asked, model)
        if len(calls) != allowed:
            return {"error": f"{allowed} prompts were answered {len(calls)} times"}
        self._record(calls)
        responses = [
            call.response if call.error is None else f"Error: {call.error}" for call in calls
        ]
        if refused := len(prompts) - allowed:
            responses += [f"Error: {self._budget.refusal()}"] * refused
        return {"responses": responses}

    def _record(self, calls: list[LMCall]) -> None:
        with self._lock:
            for call in calls:
                if call.error is not None or len(self._calls) >= _KEPT_CALLS:
                    continue
                # A cell that asks on and on must not fill this process's memory.
                self._kept += len(call.response) + _length(call.prompt)
                self._calls.append(call if self._kept <= _KEPT else _cut(call))

    def _query(self, prompt: Prompt, model: str | None) -> LMCall:
        if self.backend is None:
            return failed_call(prompt, model, "no language model is connected to this sandbox")
        return self.backend.query(prompt, model)

    def _query_batch(self, prompts: list[Prompt], model: str | None) -> list[LMCall]:
        if self.backend is None:
            return [self._query(prompt, model) for prompt in prompts]
        return self.backend.query_batch(prompts, model)

    def _run_subcall(self, subcall: SubcallFunction, prompt: Prompt, model: str | None) -> LMCall:
        try:
            with self._waiting():
                completion = subcall(prompt, model)
            response = completion.response
            if not isinstance(response, str):
                raise TypeError(f"its response is {type(response).__name__}, not text")
            return LMCall(
                prompt=prompt,
                response=response,
                model=getattr(completion, "root_model", None),
                execution_time=getattr(completion, "execution_time", None) or 0.0,
                completion=completion,
            )
        except Exception as error:
            return failed_call(prompt, model, f"RLM query failed - {error}")

    def _run_subcalls(
        self, subcall: SubcallFunction, prompts: list[Prompt], model: str | None
    ) -> list[LMCall]:
        workers = max(1, min(self.max_concurrent_subcalls, len(prompts)))
        with ThreadPoolExecutor(workers, thread_name_prefix="rlm-subcall") as pool:
            return list(pool.map(lambda prompt: self._run_subcall(subcall, prompt, model), prompts))


def _length(prompt: object) -> int:
    """Return how many characters all strings of a prompt have."""
    if isinstance(prompt, str):
        return len(prompt)
    if isinstance(prompt, dict):
        return sum(_length(part) for part in prompt.values())
    return sum(_length(part) for part in prompt) if isinstance(prompt, list) else 1


def _cut(call: LMCall) -> LMCall:
    """Shorten the texts of a call."""
    prompt = call.prompt[:_CUT] if isinstance(call.prompt, str) else "[... cut ...]"
    response = call.response[:_CUT]
    completion = call.completion
    if isinstance(completion, dict):
        completion = {**completion, "prompt": prompt, "response": response}
    return replace(call, prompt=prompt, response=response, completion=completion)


def _parse_single(request: object) -> tuple[Prompt, str | None]:
    if not isinstance(request, dict):
        raise BadRequestError("not an object")
    return _prompt(request.get("prompt")), _model(request.get("model"))


def _parse_batch(request: object) -> tuple[list[Prompt], str | None]:
    if not isinstance(request, dict):
        raise BadRequestError("not an object")
    prompts = request.get("prompts")
    if not isinstance(prompts, list):
        raise BadRequestError("prompts must be a list")
    return [_prompt(prompt) for prompt in prompts], _model(request.get("model"))


def _prompt(value: object) -> Prompt:
    if isinstance(value, (str, dict, list)):
        return value
    raise BadRequestError(f"a prompt must be text or messages, not {type(value).__name__}")


def _model(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise BadRequestError(f"a model must be a name, not {type(value).__name__}")
