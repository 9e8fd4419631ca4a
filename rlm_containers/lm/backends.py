"""The ways on from the broker: the LM Handler of rlms, or any Python callable."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from rlm_containers.interpreter import LMCall, Prompt

#: Answers a prompt. May also take the model's name, as ``model``; may be a coroutine function.
LMCallable = Callable[..., Any]

#: Prompts of one batch that are asked at the same time; as rlms's LM Handler does it.
_BATCH_CONCURRENCY = 16

#: Threads of one callable. As many as all ways to it can ask for at once; more only if it hangs.
_MAX_THREADS = 64 * _BATCH_CONCURRENCY

#: Seconds that such a thread waits for another call. To start one takes 0.1 ms.
_IDLE = 2.0


class HandlerBackend:
    """Asks the LM Handler of rlms over its socket.

    The protocol is that of ``rlm.core.comms_utils`` in rlms 0.1.3: one connection for each
    request; 4 bytes of length, big-endian, and that many bytes of JSON, both ways. Written anew
    here so that the container side works without rlms.

    Args:
        address: the handler's host and port.
        depth: the depth of the environment, by which the handler chooses the model.
        timeout: seconds to wait for any one answer, to a prompt or to a batch.
    """

    def __init__(self, address: tuple[str, int], depth: int, timeout: float) -> None:
        self.address = address
        self.depth = depth
        self.timeout = timeout

    def query(self, prompt: Prompt, model: str | None) -> LMCall:
        answer = self._exchange({"prompt": prompt, "model": model})
        completion = answer.get("chat_completion")
        if answer.get("error") or not isinstance(completion, dict):
            return _failed(prompt, model, answer.get("error") or "no completion was returned")
        return _call(prompt, completion)

    def query_batch(self, prompts: Sequence[Prompt], model: str | None) -> list[LMCall]:
        if not prompts:
            return []
        answer = self._exchange({"prompts": list(prompts), "model": model})
        completions = answer.get("chat_completions")
        if answer.get("error") or not isinstance(completions, list):
            error = answer.get("error") or "no completions were returned"
            return [_failed(prompt, model, error) for prompt in prompts]
        if len(completions) != len(prompts):
            error = f"{len(completions)} completions were returned for {len(prompts)} prompts"
            return [_failed(prompt, model, error) for prompt in prompts]
        return [_call(prompt, done) for prompt, done in zip(prompts, completions, strict=True)]

    def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        request = {key: value for key, value in request.items() if value is not None}
        payload = json.dumps({**request, "depth": self.depth}).encode()
        where = f"the LM Handler at {self.address[0]}:{self.address[1]}"
        deadline = time.monotonic() + self.timeout
        try:
            with socket.create_connection(self.address, self.timeout) as connection:
                connection.sendall(struct.pack(">I", len(payload)) + payload)
                (length,) = struct.unpack(">I", _receive(connection, 4, deadline))
                answer = json.loads(_receive(connection, length, deadline))
        except TimeoutError:
            return {"error": f"Request failed: {where} did not answer in {self.timeout:g} s"}
        except (OSError, ValueError) as error:
            return {"error": f"Request failed: {where}: {error}"}
        if not isinstance(answer, dict):
            return {"error": f"Request failed: {where} sent no JSON object"}
        return answer


def _receive(connection: socket.socket, count: int, deadline: float) -> bytes:
    parts = []
    while count:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        part = connection.recv(min(count, 1 << 20))
        if not part:
            raise ConnectionError("it hung up before its answer was complete")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _call(prompt: Prompt, completion: dict[str, Any]) -> LMCall:
    error = completion.get("error")
    return LMCall(
        prompt=prompt,
        response=str(completion.get("response") or ""),
        model=completion.get("root_model"),
        execution_time=float(completion.get("execution_time") or 0.0),
        error=str(error) if error else None,
        completion=completion,
    )


def _failed(prompt: Prompt, model: str | None, error: object) -> LMCall:
    return LMCall(prompt=prompt, response="", model=model, execution_time=0.0, error=str(error))


class CallableBackend:
    """Asks a Python callable, in this process.

    Args:
        function: called as ``function(prompt)``, or ``function(prompt, model=model)`` if it
            takes a model. Returns the answer as a string, or an awaitable of one. Called in
            threads of its own, many at once.
        timeout: seconds to wait for any one answer, to a prompt or to a batch; ``None`` to wait for
            ever. What the function still returns after that is dropped; a coroutine is cancelled.
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
        # Threads of our own: those of a pool are waited for when this process ends, and one that
        # hangs would hang that, too.
        self._threads = 0
        self._idle = 0
        self._work: queue.SimpleQueue[Iterator[_Question]] = queue.SimpleQueue()
        self._lock = threading.Lock()

    def query(self, prompt: Prompt, model: str | None) -> LMCall:
        return self.query_batch([prompt], model)[0]

    def query_batch(self, prompts: Sequence[Prompt], model: str | None) -> list[LMCall]:
        deadline = None if self.timeout is None else time.monotonic() + self.timeout
        questions = [_Question(prompt, model, deadline) for prompt in prompts]
        untaken = iter(questions)  # all threads take from this one
        for _ in range(min(_BATCH_CONCURRENCY, len(questions))):
            self._start(untaken)
        return [self._answer(question) for question in questions]

    def _start(self, untaken: Iterator[_Question]) -> None:
        with self._lock:
            if self._idle:
                self._idle -= 1
            elif self._threads >= _MAX_THREADS:
                raise ConnectionError(f"{_MAX_THREADS} earlier calls of lm have not come back")
            else:
                threading.Thread(target=self._serve, name="rlm-lm", daemon=True).start()
                self._threads += 1
            self._work.put(untaken)

    def _answer(self, question: _Question) -> LMCall:
        """Wait for an answer, but no longer than until the deadline."""
        left = None if question.deadline is None else question.deadline - time.monotonic()
        try:
            return question.answer.result(None if left is None else max(0.0, left))
        except TimeoutError:
            question.answer.cancel()  # if nobody has taken it yet
            return self._late(question)

    def _late(self, question: _Question) -> LMCall:
        error = f"Request failed: lm did not answer in {self.timeout:g} s (lm_timeout)"
        return _failed(question.prompt, question.model, error)

    # In threads that nobody waits for longer than until the deadline

    def _serve(self) -> None:
        while True:
            try:
                untaken = self._work.get(timeout=_IDLE)
            except queue.Empty:
                with self._lock:
                    if self._idle:  # else there is work for this one now
                        self._idle -= 1
                        self._threads -= 1
                        return
                continue
            for question in untaken:
                if question.answer.set_running_or_notify_cancel():
                    question.answer.set_result(self._ask(question))
            with self._lock:
                self._idle += 1

    def _ask(self, question: _Question) -> LMCall:
        start = time.perf_counter()
        try:
            keywords = {"model": question.model} if self._takes_model else {}
            response = self.function(question.prompt, **keywords)
            if inspect.isawaitable(response):
                response = self._async_functions.result(_awaited(response, question.deadline))
            if not isinstance(response, str):
                raise TypeError(f"lm returned {type(response).__name__}, not str")
        except _LateError:
            return self._late(question)
        except BaseException as error:
            # SystemExit too: it must not end this thread without a word.
            return _failed(question.prompt, question.model, f"{type(error).__name__}: {error}")
        return LMCall(
            prompt=question.prompt,
            response=response,
            model=question.model,
            execution_time=time.perf_counter() - start,
        )


class _Question:
    """A prompt, and its answer once it is there."""

    def __init__(self, prompt: Prompt, model: str | None, deadline: float | None) -> None:
        self.prompt = prompt
        self.model = model
        self.deadline = deadline
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
    except (TypeError, ValueError):  # some built-in callables have no signature
        return False
    return any(p.name == "model" or p.kind is p.VAR_KEYWORD for p in parameters)


class AsyncFunctions:
    """Waits, in a thread, for what async functions of the user's return.

    While a cell is awaited they run on the loop that awaits it, which is where a client that they
    share with the rest of the program belongs; else on a loop of their own.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    @contextlib.contextmanager
    def on(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Run them on a loop, which must run in another thread meanwhile."""
        before, self._loop = self._loop, loop
        try:
            yield
        finally:
            self._loop = before

    def result(self, value: Any) -> Any:
        """The value, or what it turns out to be if it is awaitable."""
        if not inspect.isawaitable(value):
            return value
        loop = self._loop
        if loop is None:
            return asyncio.run(_returned(value))
        return asyncio.run_coroutine_threadsafe(_returned(value), loop).result()


async def _returned(value: Any) -> Any:
    return await value
