"""The one place where every call of a language model passes, whichever way it came.

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

or ``{"error": str}``. One failed prompt of a batch is a response that starts with ``Error: ``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Protocol

from rlm_containers.interpreter import LMCall, Prompt
from rlm_containers.lm.budget import CallBudget


class LMBackend(Protocol):
    """Whatever answers prompts. Called from many threads at once.

    A call that fails is an :class:`LMCall` with its ``error`` set. An exception is taken for the
    same.
    """

    def query(self, prompt: Prompt, model: str | None) -> LMCall:
        """Answer one prompt."""
        ...

    def query_batch(self, prompts: Sequence[Prompt], model: str | None) -> list[LMCall]:
        """Answer many; as many calls as prompts, in their order."""
        ...


#: Characters of prompts and answers that the calls of one cell are kept with. What comes after that
#: is cut to so many.
_KEPT = 256 * 1024 * 1024
_CUT = 1000

#: Calls of one cell that are kept.
_KEPT_CALLS = 100_000


#: Starts a recursive language model for a prompt and waits for it; as rlms passes it.
#: Returns an object with the attributes of rlms's ``RLMChatCompletion``.
SubcallFunction = Callable[[str, str | None], Any]


class BadRequestError(Exception):
    """What the guest sent is not a request."""


class LMBroker:
    """Between one sandbox and the language models.

    Args:
        backend: answers ``llm_query``; ``None`` when there is no model.
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
        """Belong to a sandbox from here on.

        Args:
            budget: how many calls its cells may make.
            waiting: entered while one subcall is being answered. A batch of them may take longer
                than any one request should, see :class:`CellClock`.
        """
        self._budget = budget
        self._waiting = waiting

    @property
    def connected(self) -> bool:
        """Whether there is anyone to ask."""
        return self.backend is not None or self.subcall is not None

    def begin_cell(self) -> None:
        """A cell begins: count its calls anew and forget those that nobody has taken."""
        self._budget.begin_cell()
        self.take_calls()

    def take_calls(self) -> tuple[LMCall, ...]:
        """The answered calls since the last time, in the order they were answered.

        At most the first hundred thousand. Where their prompts and answers are longer than 256
        million characters in all, those of the later ones are cut.
        """
        with self._lock:
            calls, self._calls = tuple(self._calls), []
            self._kept = 0
        return calls

    def handle(self, path: str, request: object) -> dict[str, Any]:
        """Answer one request of the guest.

        Args:
            path: what is asked, see the module's table.
            request: the parsed JSON, not checked in any way.

        Returns:
            What to send back. Never raises: every failure is an ``error``.
        """
        try:
            if path in ("/llm_query", "/rlm_query"):
                prompt, model = _parse_single(request)
                if not self._budget.take(1):
                    return {"error": self._budget.refusal()}
                ask = self._subcall if path == "/rlm_query" and self.subcall else self._query
                return _single_answer(self._record([ask(prompt, model)])[0])
            if path in ("/llm_query_batched", "/rlm_query_batched"):
                prompts, model = _parse_batch(request)
                many = (
                    self._subcall_batch
                    if path == "/rlm_query_batched" and self.subcall
                    else self._query_batch
                )
                granted = self._budget.take(len(prompts))
                refused = len(prompts) - granted
                calls = many(prompts[:granted], model) if granted else []
                if len(calls) != granted:
                    return {"error": f"{granted} prompts were answered {len(calls)} times"}
                responses = [_batch_answer(call) for call in self._record(calls)]
                if refused:
                    responses += [f"Error: {self._budget.refusal()}"] * refused
                return {"responses": responses}
            return {"error": f"there is no {path!r}"}
        except BadRequestError as error:
            return {"error": f"bad request: {error}"}
        except BaseException as error:
            # SystemExit too: a callable that raises it must not end this thread without a word.
            return {"error": f"{type(error).__name__}: {error}"}

    def _record(self, calls: list[LMCall]) -> list[LMCall]:
        with self._lock:
            for call in calls:
                if call.error is not None or len(self._calls) >= _KEPT_CALLS:
                    continue
                # A cell must not fill this process's memory by asking on and on.
                self._kept += len(call.response) + _length(call.prompt)
                self._calls.append(call if self._kept <= _KEPT else _cut(call))
        return calls

    def _query(self, prompt: Prompt, model: str | None) -> LMCall:
        if self.backend is None:
            return _failed(prompt, model, "no language model is connected to this sandbox")
        return self.backend.query(prompt, model)

    def _query_batch(self, prompts: list[Prompt], model: str | None) -> list[LMCall]:
        if self.backend is None:
            return [self._query(prompt, model) for prompt in prompts]
        return self.backend.query_batch(prompts, model)

    def _subcall(self, prompt: Prompt, model: str | None) -> LMCall:
        assert self.subcall is not None
        try:
            with self._waiting():
                completion = self.subcall(prompt, model)  # type: ignore[arg-type]
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
            return _failed(prompt, model, f"RLM query failed - {error}")

    def _subcall_batch(self, prompts: list[Prompt], model: str | None) -> list[LMCall]:
        if not prompts:
            return []
        workers = max(1, min(self.max_concurrent_subcalls, len(prompts)))
        with ThreadPoolExecutor(workers, thread_name_prefix="rlm-subcall") as pool:
            return list(pool.map(lambda prompt: self._subcall(prompt, model), prompts))


def _failed(prompt: Prompt, model: str | None, error: str) -> LMCall:
    return LMCall(prompt=prompt, response="", model=model, execution_time=0.0, error=error)


def _length(prompt: object) -> int:
    """The characters of all strings in a prompt."""
    if isinstance(prompt, str):
        return len(prompt)
    if isinstance(prompt, dict):
        return sum(_length(part) for part in prompt.values())
    return sum(_length(part) for part in prompt) if isinstance(prompt, list) else 1


def _cut(call: LMCall) -> LMCall:
    prompt = call.prompt[:_CUT] if isinstance(call.prompt, str) else "[... cut ...]"
    response = call.response[:_CUT]
    completion = call.completion
    if isinstance(completion, dict):
        completion = {**completion, "prompt": prompt, "response": response}
    return replace(call, prompt=prompt, response=response, completion=completion)


def _single_answer(call: LMCall) -> dict[str, Any]:
    return {"response": call.response} if call.error is None else {"error": call.error}


def _batch_answer(call: LMCall) -> str:
    return call.response if call.error is None else f"Error: {call.error}"


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
