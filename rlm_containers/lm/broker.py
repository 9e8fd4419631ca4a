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

import contextvars
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Protocol

from rlm_containers.errors import SandboxError, describe, message_of
from rlm_containers.interpreter import LMCall, Prompt, start_thread
from rlm_containers.lm.budget import CallBudget

#: Bytes of memory for prompts and answers that are kept of one cell's calls. Later ones are cut to
#: _CUT characters each.
_KEPT = 128 * 1024 * 1024
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

    def branch(self, waiting: Callable[[], AbstractContextManager[None]]) -> LMBroker:
        """Return a broker for a branch of the sandbox, with the same models and the same budget.

        Args:
            waiting: as for :meth:`join`.
        """
        made = LMBroker(self.backend, self.subcall, self.max_concurrent_subcalls)
        made.join(self._budget.branch(), waiting)
        return made

    def answering(self) -> AbstractContextManager[None]:
        """Make sandboxes that are started in the ``with`` block share this one's budget."""
        return self._budget.answering()

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

        At most 100,000 calls are kept. Once their prompts and answers take 128 MiB in all, those of
        later calls are cut.
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
            return {"error": describe(error)}

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
                self._kept += _size(call.response) + _size(call.prompt)
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
                response=str.__str__(response),  # without the methods of a subclass
                model=getattr(completion, "root_model", None),
                execution_time=getattr(completion, "execution_time", None) or 0.0,
                completion=completion,
            )
        except BaseException as error:
            return failed_call(prompt, model, f"RLM query failed - {message_of(error)}")

    def _run_subcalls(
        self, subcall: SubcallFunction, prompts: list[Prompt], model: str | None
    ) -> list[LMCall]:
        answers = [_Subcall(prompt) for prompt in prompts]
        remaining = iter(answers)  # shared by all threads

        def serve() -> None:
            for answer in remaining:
                call = answer.context.run(self._run_subcall, subcall, answer.prompt, model)
                answer.call.set_result(call)

        # Not a pool, for whose threads this process would wait at its end, even if they hang.
        for number in range(max(1, min(self.max_concurrent_subcalls, len(prompts)))):
            try:
                start_thread(serve, "rlm-subcall")
            except SandboxError:
                if number == 0:  # else there are others that work on them
                    raise
                break
        return [answer.call.result() for answer in answers]


class _Subcall:
    """A prompt of a batch of subcalls, and its future answer."""

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt
        self.call: Future[LMCall] = Future()
        self.context = contextvars.copy_context()


def _size(prompt: object) -> int:
    """Return how many bytes of memory a prompt takes."""
    if isinstance(prompt, dict):
        return sys.getsizeof(prompt) + sum(map(_size, (*prompt, *prompt.values())))
    if isinstance(prompt, list):
        return sys.getsizeof(prompt) + sum(map(_size, prompt))
    return sys.getsizeof(prompt)


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
