"""``llm_query()`` and the other query functions, as cells call them.

A call goes over HTTP to the proxy on the host. If the network does not lead there, it goes to the
supervisor, which passes it on over the container's pipe. Request and answer are the same JSON on
both ways, and the same broker on the host answers.

The paths are ``/llm_query`` and ``/rlm_query``, with ``{"prompt", "model"}`` and the answer
``{"response": str}``; and ``/llm_query_batched`` and ``/rlm_query_batched``, with ``{"prompts",
"model"}`` and ``{"responses": [str, …]}``. On failure the answer is ``{"error": str}``.

As in rlms, an error is returned as a string that starts with ``Error: ``, and not raised. Code that
a model writes seldom handles exceptions, and a batch must not fail for one prompt.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from select import POLLIN, POLLOUT, poll
from typing import Any

from . import wire

Prompt = Any  # a str, or any JSON that the model's client takes, such as a list of messages

#: Seconds to wait for a connection to the proxy.
_CONNECT_TIMEOUT = 3.0

#: How many times in a row the kernel sends the same data before a connection counts as broken: the
#: network does not lead to the proxy any more. It does so after 0.2, 0.6, 1.4 and 3 s. A proxy that
#: takes its time to read acknowledges what it has no room for, too.
_REPEATS = 4

#: Milliseconds between two looks at that.
_LOOK = 500

#: When a connection counts as broken while an answer is awaited: three keepalive probes 5 s apart
#: were not acknowledged. See tcp(7).
_SILENCE = {
    getattr(socket, name): value
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)
}


def llm_query(prompt: Prompt, model: str | None = None) -> str:
    """Ask a language model, which gets no REPL of its own.

    Args:
        prompt: the prompt.
        model: the model's name; ``None`` for the default.

    Returns:
        The model's answer, or a string that starts with ``Error: ``.
    """
    return _single("/llm_query", prompt, model)


def llm_query_batched(prompts: list[Prompt], model: str | None = None) -> list[str]:
    """Ask a language model many prompts at once. The answers have the order of the prompts."""
    return _batch("/llm_query_batched", prompts, model)


def rlm_query(prompt: Prompt, model: str | None = None) -> str:
    """Ask a recursive language model, which gets a REPL of its own if the depth allows it."""
    return _single("/rlm_query", prompt, model)


def rlm_query_batched(prompts: list[Prompt], model: str | None = None) -> list[str]:
    """Ask many recursive language models. The answers have the order of the prompts."""
    return _batch("/rlm_query_batched", prompts, model)


def _single(path: str, prompt: Prompt, model: str | None) -> str:
    answer = _ask(path, {"prompt": prompt, "model": model})
    response = answer.get("response")
    return response if isinstance(response, str) else "Error: {}".format(answer.get("error"))


def _batch(path: str, prompts: list[Prompt], model: str | None) -> list[str]:
    if isinstance(prompts, (str, dict)):
        return ["Error: prompts must be a list of prompts, not one {}".format(_type(prompts))]
    prompts = list(prompts)
    if not prompts:
        return []
    answer = _ask(path, {"prompts": prompts, "model": model})
    responses = answer.get("responses")
    if isinstance(responses, list) and len(responses) == len(prompts):
        return responses
    return ["Error: {}".format(answer.get("error"))] * len(prompts)


def _ask(path: str, request: dict[str, Any]) -> dict[str, Any]:
    try:
        body = json.dumps(request).encode("ascii")
        reply = _route.send(path, body)
        answer = json.loads(reply)
        if not isinstance(answer, dict):
            raise ValueError("the answer is not an object")
        return answer
    except Exception as error:
        return {"error": "{}: {}".format(_type(error), error)}


def _type(value: object) -> str:
    return type(value).__name__


class _HttpRoute:
    """The way over the proxy on the host. Keeps one connection for each thread that asks.

    The standard library's client would take ten times as long for a request, and 3 MB for the
    modules that it imports.

    Args:
        host: the host's name.
        port: the proxy's port.
        token: sent with every request.
        pipe: takes over when the proxy cannot be reached any more.
    """

    name = "http"

    def __init__(self, host: str, port: int, token: str, pipe: PipeRoute) -> None:
        self.host = host
        self.port = port
        self.pipe = pipe
        # As bytes, since a name as text has Python import the tables for international ones.
        self.place: Any = (host.encode("ascii"), port)
        self.is_lost = False
        self.authorization = "Bearer " + token
        self.head = (
            "POST {{}} HTTP/1.1\r\nHost: {}:{}\r\nAuthorization: {}\r\n"
            "Content-Type: application/json\r\nContent-Length: {{}}\r\n\r\n"
        ).format(host, port, self.authorization)
        self.local = threading.local()

    def probe(self) -> None:
        """Raise OSError if the proxy cannot be reached."""
        socket.create_connection(self.place, _CONNECT_TIMEOUT).close()

    def send(self, path: str, body: bytes) -> bytes:
        if not self.is_lost:
            reply = self._send(path, body)
            if reply is not None:
                return reply
        # If the answer was lost, the model is asked twice. That is better than no answer.
        return self.pipe.send(path, body)

    def _send(self, path: str, body: bytes) -> bytes | None:
        """Return the answer, or ``None`` if the proxy does not answer."""
        try:
            connection = self._connection()
            _send_all(connection, self.head.format(path, len(body)).encode("ascii") + body)
            status, keeps, reply = _read_response(connection)
        except (OSError, ValueError, LookupError):
            self._close()
            self.is_lost = True
            return None
        except BaseException:
            # After KeyboardInterrupt, the answer to this request must not be taken for the answer
            # to the next one.
            self._close()
            raise
        if not keeps:
            self._close()
        # The proxy has too many connections, which the pipe does not need, or too little memory.
        return None if status == _SERVICE_UNAVAILABLE else reply

    def _connection(self) -> socket.socket:
        local = self.local
        connection: socket.socket | None = getattr(local, "connection", None)
        if connection is not None:
            # A forked child must not use its parent's connection. Between requests there is nothing
            # to read but the end of the connection.
            if local.pid == os.getpid() and not _is_readable(connection):
                return connection
            self._close()
        connection = socket.create_connection(self.place, _CONNECT_TIMEOUT)
        local.connection, local.pid = connection, os.getpid()
        _notice_silence(connection)
        return connection

    def _close(self) -> None:
        """Close this thread's connection, if it has one."""
        connection = self.local.__dict__.pop("connection", None)
        if connection is not None:
            connection.close()


#: 503 of RFC 9110.
_SERVICE_UNAVAILABLE = 503

#: The most bytes of the head of a response. The proxy sends 200.
_MAX_HEAD = 65536


def _send_all(connection: socket.socket, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[connection.send(rest, socket.MSG_DONTWAIT) :]
        except BlockingIOError:
            _wait(connection, POLLOUT)


def _receive(connection: socket.socket, most: int) -> bytes:
    _wait(connection, POLLIN)
    return connection.recv(most)


def _wait(connection: socket.socket, event: int) -> None:
    """Wait until a connection can be read or written.

    Raises:
        ConnectionError: nobody acknowledges what was sent.
    """
    waiting = poll()
    waiting.register(connection, event)
    while not waiting.poll(_LOOK):
        if _repeats(connection) >= _REPEATS:
            raise ConnectionError("nobody acknowledges what was sent")


def _repeats(connection: socket.socket) -> int:
    """Return how many times in a row the kernel has sent the same data."""
    try:
        # `tcpi_retransmits` of `struct tcp_info`, see linux/tcp.h.
        return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 3)[2]
    except OSError:  # not every kernel says so
        return 0


def _read_response(connection: socket.socket) -> tuple[int, bool, bytes]:
    """Read a response as RFC 9112 has it. The proxy gives the length of each.

    Returns:
        The status, whether the connection stays open, and the body.

    Raises:
        ValueError, LookupError: it is none, or not whole.
    """
    data = b""
    while b"\r\n\r\n" not in data:
        part = _receive(connection, _MAX_HEAD)
        data += part
        if not part or len(data) > 2 * _MAX_HEAD:
            raise ValueError("no response")
    head, _, data = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields[name.lower()] = value.strip()
    parts = [data]
    left = int(fields["content-length"]) - len(data)
    while left > 0:
        part = _receive(connection, min(left, 1 << 20))
        if not part:
            raise ValueError("the response is not whole")
        parts.append(part)
        left -= len(part)
    keeps = fields.get("connection", "").lower() != "close"
    return int(first.split(" ", 2)[1]), keeps, b"".join(parts)


def descriptors() -> set[int]:
    """Return the descriptors that this thread has open between calls."""
    connection = getattr(getattr(_route, "local", None), "connection", None)
    return set() if connection is None else {connection.fileno()}


class PipeRoute:
    """The way over the supervisor and the pipe. :mod:`rlm_guest.relay` has the other end."""

    name = "pipe"

    def __init__(self, calls: socket.socket) -> None:
        self.calls = calls

    def send(self, path: str, body: bytes) -> bytes:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                # With a new pair for every call, any thread or child process can ask without a
                # lock, and give up a call by closing it.
                socket.send_fds(self.calls, [b"c"], [theirs.fileno()])
            request = b'{"path": "' + path.encode() + b'", "request": ' + body + b"}"
            ours.sendall(wire.encode(wire.CALL, request))
            decoder = wire.FrameDecoder()
            while True:
                data = ours.recv(wire.CHUNK)
                if not data:
                    raise ConnectionError("the supervisor hung up")
                for _, payload in decoder.feed(data):
                    return payload


def _notice_silence(connection: socket.socket) -> None:
    """Wait for an answer without a limit, but notice if the host cannot be reached."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _SILENCE.items():
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _is_readable(connection: socket.socket) -> bool:
    try:
        connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return True


class _NoRoute:
    """The way of a process that has inherited none."""

    def send(self, path: str, body: bytes) -> bytes:
        raise ConnectionError(
            "a process that was spawned does not reach the host; use threads, or the start method "
            "'fork' of multiprocessing"
        )


_route: Any = _NoRoute()  # an _HttpRoute or a PipeRoute once connect() has been called


def connect(
    proxy: dict[str, Any] | None, calls: socket.socket, *, has_model: bool
) -> dict[str, Any]:
    """Choose the way to the host, once, at the start.

    Args:
        proxy: ``{"host": str, "port": int, "token": str}``, or ``None`` to use the pipe.
        calls: the socket to the supervisor.
        has_model: whether a model is connected. If not, calls go over the pipe: the host answers
            with an error until there is a model.

    Returns:
        ``{"route": "http" | "pipe" | "none", "reason": str}``; the reason says why not HTTP.
    """
    global _route
    _route = pipe = PipeRoute(calls)
    if not has_model:
        return {"route": "none", "reason": "no language model was given"}
    reason = "there is no network to the host"
    if proxy is not None:
        route = _HttpRoute(proxy["host"], proxy["port"], proxy["token"], pipe)
        try:
            route.probe()
            _route = route
            return {"route": route.name, "reason": ""}
        except OSError as error:
            reason = "{}:{} cannot be reached: {}".format(route.host, route.port, error)
    return {"route": pipe.name, "reason": reason}
