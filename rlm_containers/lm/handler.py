"""The ways on from the broker: the LM Handler of rlms, or any Python callable."""

from __future__ import annotations

import inspect
import json
import socket
import struct
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rlm_containers.awaitables import AsyncFunctions
from rlm_containers.lm.broker import LMCall, Prompt

__all__ = ["CallableBackend", "HandlerBackend", "LMCallable"]

#: Answers a prompt. May also take the model's name, as ``model``; may be a coroutine function.
LMCallable = Callable[..., Any]

#: Prompts of one batch that are asked at the same time; as rlms's LM Handler does it.
_BATCH_CONCURRENCY = 16


class HandlerBackend:
    """Asks the LM Handler of rlms over its socket.

    The protocol is that of ``rlm.core.comms_utils`` in rlms 0.1.3: one connection for each
    request; 4 bytes of length, big-endian, and that many bytes of JSON, both ways. Written anew
    here so that the container side works without rlms.

    Args:
        address: the handler's host and port.
        depth: the depth of the environment, by which the handler chooses the model.
        timeout: seconds to wait for any one answer.
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
        try:
            with socket.create_connection(self.address, self.timeout) as connection:
                connection.sendall(struct.pack(">I", len(payload)) + payload)
                (length,) = struct.unpack(">I", _receive(connection, 4))
                answer = json.loads(_receive(connection, length))
        except TimeoutError:
            return {"error": f"Request failed: {where} did not answer in {self.timeout:g} s"}
        except (OSError, ValueError) as error:
            return {"error": f"Request failed: {where}: {error}"}
        if not isinstance(answer, dict):
            return {"error": f"Request failed: {where} sent no JSON object"}
        return answer


def _receive(connection: socket.socket, count: int) -> bytes:
    parts = []
    while count:
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
            takes a model. Returns the answer as a string, or an awaitable of one.
        async_functions: waits for the latter.
    """

    def __init__(self, function: LMCallable, async_functions: AsyncFunctions | None = None) -> None:
        self.function = function
        self._async_functions = async_functions or AsyncFunctions()
        self._takes_model = _takes_model(function)

    def query(self, prompt: Prompt, model: str | None) -> LMCall:
        start = time.perf_counter()
        try:
            keywords = {"model": model} if self._takes_model else {}
            response = self._async_functions.result(self.function(prompt, **keywords))
            if not isinstance(response, str):
                raise TypeError(f"lm returned {type(response).__name__}, not str")
        except Exception as error:
            return _failed(prompt, model, f"{type(error).__name__}: {error}")
        return LMCall(
            prompt=prompt,
            response=response,
            model=model,
            execution_time=time.perf_counter() - start,
        )

    def query_batch(self, prompts: Sequence[Prompt], model: str | None) -> list[LMCall]:
        if not prompts:
            return []
        workers = min(_BATCH_CONCURRENCY, len(prompts))
        with ThreadPoolExecutor(workers, thread_name_prefix="rlm-lm") as pool:
            return list(pool.map(lambda prompt: self.query(prompt, model), prompts))


def _takes_model(function: LMCallable) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some built-in callables have no signature
        return False
    return any(p.name == "model" or p.kind is p.VAR_KEYWORD for p in parameters)
