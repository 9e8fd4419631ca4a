"""LM Handlers for tests: servers of rlms's socket protocol with scripted behaviour."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

Behaviour = Callable[[socket.socket], None]


def frame(answer: object) -> bytes:
    """Encode an answer: four bytes of length, then JSON."""
    payload = json.dumps(answer).encode()
    return struct.pack(">I", len(payload)) + payload


def read_request(connection: socket.socket) -> Any:
    """Read the request of a client."""
    with connection.makefile("rb") as stream:
        (length,) = struct.unpack(">I", stream.read(4))
        payload = stream.read(length)
    assert len(payload) == length
    return json.loads(payload)


def completion(prompt: Any, response: str, **more: Any) -> dict[str, Any]:
    """Return a completion as ``RLMChatCompletion.to_dict`` of rlms 0.1.3 does."""
    usage = {"total_calls": 1, "total_input_tokens": 2, "total_output_tokens": 3}
    return {
        "root_model": "handler-model",
        "prompt": prompt,
        "response": response,
        "usage_summary": {"model_usage_summaries": {"handler-model": usage}},
        "execution_time": 0.25,
        **more,
    }


class ScriptedHandler:
    """Listens on a port of its own, and handles each connection in a thread.

    Args:
        behaviour: handles a connection.

    Attributes:
        address: the host and port that it listens on.
        connections: how many connections it has accepted.
    """

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address: tuple[str, int] = self._listener.getsockname()
        self.connections = 0
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            if self._closing:
                connection.close()
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                self._behaviour(connection)
            except OSError:
                pass  # the client hung up, as some tests want it

    def __enter__(self) -> Self:
        self._closing = False
        self._acceptor.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closing = True
        socket.create_connection(self.address).close()  # wakes accept()
        self._acceptor.join(30)
        for thread in self._threads:
            thread.join(30)
        self._listener.close()
