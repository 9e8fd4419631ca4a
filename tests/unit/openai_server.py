"""A server of OpenAI's protocol that answers from a script."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class OpenAIServer(ThreadingHTTPServer):
    """Answers for the model ``root`` from a script, and for every other model in capitals.

    Attributes:
        script: the messages of the model ``root``. An integer is the status of an error.
        requests: the requests so far, each with its path as ``"path"`` and its key as ``"key"``.
    """

    daemon_threads = True

    def __init__(self, *script: str | int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = list(script)
        self.requests: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def say(self, request: dict[str, Any]) -> str | int:
        self.requests.append(request)
        if request["model"] == "root":
            return self.script.pop(0) if self.script else 400
        return str(request["messages"][-1]["content"]).upper()


class _Handler(BaseHTTPRequestHandler):
    server: OpenAIServer

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers["Authorization"].removeprefix("Bearer ")
        said = self.server.say({**request, "path": self.path, "key": key})
        if isinstance(said, int):
            answer: dict[str, Any] = {"error": {"message": f"bad key {key}", "type": "bad"}}
        else:
            answer = {
                "id": "1",
                "object": "chat.completion",
                "created": 1,
                "model": request["model"],
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": "stop",
                        "message": {"role": "assistant", "content": said},
                    }
                ],
                "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
            }
        body = json.dumps(answer).encode()
        self.send_response(said if isinstance(said, int) else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None: ...


@contextmanager
def serve_openai(*script: str | int) -> Iterator[OpenAIServer]:
    """Run a server for the length of the ``with`` block."""
    with OpenAIServer(*script) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
