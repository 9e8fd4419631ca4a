"""What answers prompts: the LM Handler of rlms, or any Python callable."""

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
from rlm_containers.lm.broker import failed_call

#: Answers a prompt. May also take the model's name, as ``model``; may be a coroutine function.
LMCallable = Callable[..., Any]

#: Prompts of one batch that are asked at the same time, as in rlms's LM Handler.
_BATCH_CONCURRENCY = 16

#: Threads of one callable: as many as requests can ask for at once. A callable needs
#: more only if it hangs.
_MAX_THREADS = 64 * _BATCH_CONCURRENCY

#: Seconds that a thread waits for another batch before it ends. To start one takes 0.1 ms.
_IDLE_TIME = 2.0


class HandlerBackend:
    """Asks the LM Handler of rlms over its socket.

    The protocol is that of ``rlm.core.comms_utils`` in rlms 0.1.3: one connection for each
    request; 4 bytes of length, big-endian, and that many bytes of JSON, both ways. It is
    implemented here, so that sandboxes work without rlms.

    Args:
        address: the handler's host and port.
        depth: the depth of the environment, by which the handler chooses the model.
        timeout: seconds to wait for an answer, to a prompt or to a batch.
    """

    def __init__(self, address: tuple[str, int], depth: int, timeout: float) -> None:
        self.address = address
        self.depth = depth
        self.timeout = timeout

    def query(self, prompt: Prompt, model: str | None) -> LMCall:
        answer = self._request({"prompt": prompt, "model": model})
        completion = answer.get("chat_completion")
        if answer.get("error") or not isinstance(completion, dict):
            return failed_call(prompt, model, answer.get("error") or "no completion was returned")
        return _call(prompt, completion)

    def query_batch(self, prompts: Sequence[Prompt], model: str | None) -> list[LMCall]:
        if not prompts:
            return []
        answer = self._request({"prompts": list(prompts), "model": model})
        completions = answer.get("chat_completions")
        if answer.get("error") or not isinstance(completions, list):
            error = answer.get("error") or "no completions were returned"
            return [failed_call(prompt, model, error) for prompt in prompts]
        if len(completions) != len(prompts):
            error = f"{len(completions)} completions were returned for {len(prompts)} prompts"
            return [failed_call(prompt, model, error) for prompt in prompts]
        return [_call(prompt, done) for prompt, done in zip(prompts, completions, strict=True)]

    def _request(self, request: dict[str, Any]) -> dict[str, Any]:
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
        # Not the threads of a pool: this process would wait for them at its end, even for one
        # that hangs.
        self._threads = 0
        self._idle = 0
        self._batches: queue.SimpleQueue[Iterator[_Question]] = queue.SimpleQueue()
        self._lock = threading.Lock()

    def query(self, prompt: Prompt, model: str | None) -> LMCall:
        return self.query_batch([prompt], model)[0]

    def query_batch(self, prompts: Sequence[Prompt], model: str | None) -> list[LMCall]:
        deadline = None if self.timeout is None else time.monotonic() + self.timeout
        questions = [_Question(prompt, model, deadline) for prompt in prompts]
        remaining = iter(questions)  # shared by all threads that work on this batch
        for _ in range(min(_BATCH_CONCURRENCY, len(questions))):
            self._start(remaining)
        return [self._answer(question) for question in questions]

    def _start(self, remaining: Iterator[_Question]) -> None:
        """Let one more thread work on a batch."""
        with self._lock:
            if self._idle:
                self._idle -= 1
            elif self._threads >= _MAX_THREADS:
                raise ConnectionError(f"{_MAX_THREADS} earlier calls of lm have not returned")
            else:
                threading.Thread(target=self._serve, name="rlm-lm", daemon=True).start()
                self._threads += 1
            self._batches.put(remaining)

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

    def _serve(self) -> None:
        while True:
            try:
                remaining = self._batches.get(timeout=_IDLE_TIME)
            except queue.Empty:
                with self._lock:
                    if self._idle:  # otherwise a batch was just put for this thread
                        self._idle -= 1
                        self._threads -= 1
                        return
                continue
            for question in remaining:
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
            # SystemExit too: it must not end this thread silently.
            return failed_call(question.prompt, question.model, f"{type(error).__name__}: {error}")
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
    """

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
    """Runs async functions of the user from threads that are not async.

    While a cell is awaited, they run on the loop that awaits it: a client that they share with the
    rest of the program belongs to that loop. At any other time each has a loop of its own.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    @contextlib.contextmanager
    def on(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Run them on this loop, which runs in another thread, for the length of the block."""
        before, self._loop = self._loop, loop
        try:
            yield
        finally:
            self._loop = before

    def result(self, value: Any) -> Any:
        """Return the value, or its result if it is awaitable."""
        if not inspect.isawaitable(value):
            return value
        loop = self._loop
        if loop is None:
            return asyncio.run(_returned(value))
        return asyncio.run_coroutine_threadsafe(_returned(value), loop).result()


async def _returned(value: Any) -> Any:
    return await value
