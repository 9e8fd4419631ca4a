"""Answers prompts by a Python callable."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from rlm_containers.errors import SandboxError, describe
from rlm_containers.interpreter import LMCall, Prompt
from rlm_containers.lm.broker import failed_call
from rlm_containers.lm.callthreads import call_in_background

#: Answers a prompt. May also take the model's name, as ``model``; may be a coroutine function.
LMCallable = Callable[..., Any]

#: Prompts of one batch that are asked at the same time, as in rlms's LM Handler.
_BATCH_CONCURRENCY = 16

#: Threads of one callable: as many as requests can ask for at once. A callable needs
#: more only if it hangs.
_MAX_THREADS = 64 * _BATCH_CONCURRENCY


class CallableBackend:
    """Asks a Python callable in this process.

    Args:
        function: called as ``function(prompt)``, or ``function(prompt, model=model)`` if it
            takes a model. Returns the answer as a string, or an awaitable of one. Called in
            threads of its own, many at once.
        timeout: seconds to wait for an answer, to a prompt or to a batch; ``None`` to wait for
            ever. A later answer is dropped, and a late coroutine is cancelled.
        async_functions: waits for coroutines.
    """

    def __init__(
        self,
        function: LMCallable,
        timeout: float | None = None,
        async_functions: AsyncFunctions | None = None,
    ) -> None:
        self.function = function
        self.timeout = timeout
        self._async_functions = async_functions or AsyncFunctions()
        self._takes_model = _takes_model(function)
        self._threads = 0
        self._lock = threading.Lock()

    def query(self, prompt: Prompt, model: str | None) -> LMCall:
        return self.query_batch([prompt], model)[0]

    def query_batch(self, prompts: Sequence[Prompt], model: str | None) -> list[LMCall]:
        deadline = None if self.timeout is None else time.monotonic() + self.timeout
        questions = [_Question(prompt, model, deadline) for prompt in prompts]
        remaining = iter(questions)  # shared by all threads that work on this batch
        for number in range(min(_BATCH_CONCURRENCY, len(questions))):
            try:
                self._start(remaining)
            except (ConnectionError, SandboxError):
                if number == 0:  # else there are others that work on it
                    raise
                break
        return [self._answer(question) for question in questions]

    def _start(self, remaining: Iterator[_Question]) -> None:
        """Let one more thread work on a batch."""
        with self._lock:
            if self._threads >= _MAX_THREADS:
                raise ConnectionError(f"{_MAX_THREADS} earlier calls of lm have not returned")
            call_in_background(self._serve, remaining)
            self._threads += 1

    def _answer(self, question: _Question) -> LMCall:
        """Wait for an answer until the question's deadline."""
        left = None if question.deadline is None else question.deadline - time.monotonic()
        try:
            return question.answer.result(None if left is None else max(0.0, left))
        except TimeoutError:
            question.answer.cancel()  # unless a thread works on it
            return self._late(question)

    def _late(self, question: _Question) -> LMCall:
        error = f"Request failed: lm did not answer in {self.timeout:g} s (lm_timeout)"
        return failed_call(question.prompt, question.model, error)

    # In the threads

    def _serve(self, remaining: Iterator[_Question]) -> None:
        for question in remaining:
            if question.answer.set_running_or_notify_cancel():
                question.answer.set_result(question.context.run(self._ask, question))
            del question  # this thread may ask for long, and must hold no other prompt
        with self._lock:
            self._threads -= 1

    def _ask(self, question: _Question) -> LMCall:
        start = time.perf_counter()
        try:
            keywords = {"model": question.model} if self._takes_model else {}
            response = self.function(question.prompt, **keywords)
            if inspect.isawaitable(response):
                response = self._async_functions.result(_awaited(response, question.deadline))
            if not isinstance(response, str):
                raise TypeError(f"lm returned {type(response).__name__}, not str")
            response = str.__str__(response)  # without the methods of a subclass
        except _LateError:
            return self._late(question)
        except BaseException as error:
            # SystemExit too: it must not end this thread silently.
            return failed_call(question.prompt, question.model, describe(error))
        return LMCall(
            prompt=question.prompt,
            response=response,
            model=question.model,
            execution_time=time.perf_counter() - start,
        )


class _Question:
    """A prompt and its future answer.

    Attributes:
        deadline: when nobody waits for the answer any more, in the time of ``time.monotonic()``.
        context: the context variables of the call that it is part of.
    """

    def __init__(self, prompt: Prompt, model: str | None, deadline: float | None) -> None:
        self.prompt = prompt
        self.model = model
        self.deadline = deadline
        self.context = contextvars.copy_context()
        self.answer: Future[LMCall] = Future()


class _LateError(Exception):
    """A coroutine was cancelled because it took too long."""


async def _awaited(awaitable: Any, deadline: float | None) -> Any:
    left = None if deadline is None else deadline - time.monotonic()
    try:
        async with asyncio.timeout(left) as limit:
            return await awaitable
    except TimeoutError:
        if limit.expired():
            raise _LateError from None
        raise


def _takes_model(function: LMCallable) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except Exception:  # some built-in callables have no signature, and one may be computed
        return False
    return any(p.name == "model" or p.kind is p.VAR_KEYWORD for p in parameters)


class AsyncFunctions:
    """Runs async functions of the user from threads that are not async.

    While a cell is awaited, they run on the loop that awaits it: a client that they share with the
    rest of the program belongs to that loop. At any other time each has a loop of its own.
    """

    def __init__(self) -> None:
        self._loops: list[asyncio.AbstractEventLoop] = []  # several, if branches are awaited

    @contextlib.contextmanager
    def on(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Run them on this loop, which runs in another thread, for the length of the block."""
        self._loops.append(loop)
        try:
            yield
        finally:
            self._loops.remove(loop)

    def result(self, value: Any) -> Any:
        """Return the value, or its result if it is awaitable."""
        if not inspect.isawaitable(value):
            return value
        loops = self._loops[-1:]
        if not loops:
            result, error = asyncio.run(_returned(value))
        else:
            result, error = asyncio.run_coroutine_threadsafe(_returned(value), loops[0]).result()
        if error is not None:
            raise error
        return result


async def _returned(value: Any) -> tuple[Any, BaseException | None]:
    """Await a value. Return it and an exception that would end the loop, which is the user's."""
    try:
        return await value, None
    except (SystemExit, KeyboardInterrupt) as error:
        return None, error
