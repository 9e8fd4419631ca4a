"""Answers prompts by the LM Handler of rlms: over its socket, or called directly."""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from socketserver import BaseServer
from typing import Any, Protocol

from rlm_containers.interpreter import LMCall, Prompt
from rlm_containers.lm.broker import failed_call
from rlm_containers.lm.callthreads import call_in_background


class Handler(Protocol):
    """The LM Handler of rlms 0.1.3, as far as it is used here."""

    @property
    def _server(self) -> BaseServer | None:
        """The server of its socket; ``None`` once it has stopped."""


#: The handlers that were started in this process, by process and address. A forked child has its
#: parent's objects, but not the threads, and asks over the socket.
_started: weakref.WeakValueDictionary[tuple[int, str, int], Handler] = weakref.WeakValueDictionary()


def note_handler(handler: Handler, address: tuple[str, int]) -> None:
    """Let prompts for this address be answered without the socket while the handler is started.

    Args:
        handler: a handler of this process.
        address: the host and port that it listens at.
    """
    _started[os.getpid(), *address] = handler


class HandlerBackend:
    """Asks the LM Handler of rlms.

    The protocol is that of ``rlm.core.comms_utils`` in rlms 0.1.3: one connection for each
    request; 4 bytes of length, big-endian, and that many bytes of JSON, both ways. It is
    implemented here, so that sandboxes work without rlms.

    The handler serves each connection in a new thread. A handler of this process, which is noted by
    :func:`note_handler`, serves a connection in memory instead, which takes a tenth of the time. It
    runs the same code of rlms, and sees and answers the same bytes.

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
        frame = struct.pack(">I", len(payload)) + payload
        del request, payload  # they may be large, and the answer repeats the prompt
        where = f"the LM Handler at {self.address[0]}:{self.address[1]}"
        handler = _started.get((os.getpid(), *self.address))
        server = None if handler is None else handler._server
        try:
            if server is None:
                answer = _ask_socket(self.address, frame, self.timeout)
            else:
                answer = _ask_server(server, frame, self.timeout)
        except TimeoutError:
            return {"error": f"Request failed: {where} did not answer in {self.timeout:g} s"}
        except (OSError, ValueError) as error:
            return {"error": f"Request failed: {where}: {error}"}
        if not isinstance(answer, dict):
            return {"error": f"Request failed: {where} sent no JSON object"}
        return answer


def _call(prompt: Prompt, completion: dict[str, Any]) -> LMCall:
    if completion.get("prompt") == prompt:
        completion["prompt"] = prompt  # one copy is enough
    error = completion.get("error")
    return LMCall(
        prompt=prompt,
        response=str(completion.get("response") or ""),
        model=completion.get("root_model"),
        execution_time=float(completion.get("execution_time") or 0.0),
        error=str(error) if error else None,
        completion=completion,
    )


_HUNG_UP = "it hung up before its answer was complete"


def _ask_socket(address: tuple[str, int], frame: bytes, timeout: float) -> Any:
    """Send a request over the handler's socket, and return the value of the answer."""
    deadline = time.monotonic() + timeout
    with socket.create_connection(address, timeout) as connection:
        connection.sendall(frame)
        del frame
        (length,) = struct.unpack(">I", _receive(connection, 4, deadline))
        return json.loads(_receive(connection, length, deadline))


def _receive(connection: socket.socket, count: int, deadline: float) -> bytearray:
    received = bytearray()
    while count:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        part = connection.recv(min(count, 1 << 20))
        if not part:
            raise ConnectionError(_HUNG_UP)
        received += part
        count -= len(part)
    return received


def _ask_server(server: BaseServer, frame: bytes, timeout: float) -> Any:
    """Let a server of this process serve a request, and return the value of the answer."""
    answer: Future[bytearray] = Future()
    call_in_background(_serve, server, _Connection(frame), answer)
    del frame
    received = answer.result(timeout)
    if len(received) < 4 or len(received) < 4 + int.from_bytes(received[:4], "big"):
        raise ConnectionError(_HUNG_UP)
    del received[:4]  # copies nothing
    return json.loads(received)


def _serve(server: BaseServer, connection: _Connection, answer: Future[bytearray]) -> None:
    """Serve a connection, as ``process_request_thread`` of the server does in its own thread."""
    peer = ("in this process", 0)
    try:
        server.finish_request(connection, peer)  # type: ignore[arg-type]
    except Exception:
        server.handle_error(connection, peer)  # type: ignore[arg-type]
    except BaseException:
        pass
    answer.set_result(connection.sent)


class _Connection:
    """The server's end of a connection in memory: what a ``StreamRequestHandler`` uses of it.

    Attributes:
        sent: what the server has sent.
    """

    def __init__(self, request: bytes) -> None:
        self.sent = bytearray()
        self._request = io.BytesIO(request)

    def recv(self, size: int) -> bytes:
        return self._request.read(size)

    def sendall(self, data: bytes) -> None:
        self.sent += data

    def makefile(self, mode: str, buffering: int = -1) -> io.BytesIO:
        return self._request
