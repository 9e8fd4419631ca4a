"""The HTTP proxy on the host, by which the code in a container reaches the broker.

One proxy for one sandbox, with a token of its own, on a random port of the narrowest address that
the container can reach. It serves nothing but the broker's paths, and those only to callers with
the token: whoever else reaches the port cannot spend the user's money, nor keep the sandbox from
being served.
"""

from __future__ import annotations

import hmac
import json
import logging
import secrets
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from http import HTTPStatus
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler
from typing import Any, BinaryIO

from rlm_containers.guest.wire import MAX_FRAME
from rlm_containers.interpreter import UntrustedJSON
from rlm_containers.lm.connections import Connections
from rlm_containers.lm.gate import Gate

logger = logging.getLogger("rlm_containers.lm")

#: Bytes of a request's body. The same as over the pipe.
MAX_BODY = MAX_FRAME

#: Bytes of a request's first line and headers.
_MAX_HEAD = 16 * 1024

#: Bytes of requests that are being read or answered, parsed ones as they are in memory. The largest
#: that is taken has room.
_GATE = 512 * 1024 * 1024

#: Seconds without a byte in the middle of a request or an answer.
_TIMEOUT = 60.0

Answer = Callable[[str, object], dict[str, Any]]
Waiting = Callable[[], AbstractContextManager[None]]


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: _Server  # type: ignore[assignment]
    protocol_version = "HTTP/1.1"  # connections stay open from one query to the next
    disable_nagle_algorithm = True
    wbufsize = 65536  # headers and body in one packet
    timeout = _TIMEOUT
    server_version = "rlm-containers"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        self.head = self.rfile = _Head(self.rfile)  # type: ignore[assignment, arg-type]

    def handle_one_request(self) -> None:
        self.head.renew()
        try:
            super().handle_one_request()
        except HTTPException as error:
            self.requestline, self.request_version, self.command = "", "HTTP/1.1", ""
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, str(error))

    def do_POST(self) -> None:
        offered = self.headers.get("Authorization", "").encode("utf-8", "replace")
        if not hmac.compare_digest(offered, self.server.authorization):
            self._refuse(HTTPStatus.UNAUTHORIZED, "this proxy wants its sandbox's token")
            return
        # The caller is the sandbox. It may keep the connection without saying anything for as
        # long as it likes; a body that it begins, it must finish.
        if not self.server.connections.welcome(self.connection):
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections are open")
            return
        self.connection.settimeout(_TIMEOUT)
        digits = self.headers.get("Content-Length", "")
        if not (digits.isascii() and digits.isdigit()):
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing")
            return
        if len(digits) > 15 or int(digits) > MAX_BODY:
            self._refuse(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"a request of more than {MAX_BODY} bytes is not taken",
            )
            return
        held = int(digits)
        if not self.server.gate.wait_and_take(held):
            self.close_connection = True
            return
        try:
            body = self.rfile.read(held)
            if len(body) < held:
                self.close_connection = True
                return
            try:
                said = UntrustedJSON(body)
                if not self.server.gate.take(said.size):
                    self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too much is asked at once")
                    return
                held += said.size
                request = said.load()
            except ValueError:
                self._refuse(HTTPStatus.BAD_REQUEST, "the body is not JSON, or too much of it")
                return
            with self.server.connections.place() as served:
                if not served:
                    self.close_connection = True
                    return
                with self.server.waiting():
                    answer = self.server.answer(self.path, request)
        finally:
            self.server.gate.give_back(held)
        # Connections that are kept must leave room for callers who have none yet.
        self.close_connection |= self.server.connections.are_many()
        self._respond(HTTPStatus.OK, answer)
        self.connection.settimeout(None)

    def handle_expect_100(self) -> bool:
        self.send_response_only(HTTPStatus.CONTINUE)
        self.end_headers()
        self.wfile.flush()  # the caller waits for it
        return True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        # What the base class refuses by itself: other methods, malformed requests.
        self._refuse(HTTPStatus(code), message or "refused")

    def _refuse(self, status: HTTPStatus, error: str) -> None:
        self.close_connection = True  # a body that was not read must not pass for a request
        self._respond(status, {"error": error})

    def _respond(self, status: HTTPStatus, answer: dict[str, Any]) -> None:
        payload = json.dumps(answer).encode("ascii")
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(payload)
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        logger.debug("proxy %s: %s", self.client_address[0], format % args)


class _Head:
    """What a request is read from: at most so much of it as lines. The base class takes 6 MB."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = _MAX_HEAD
        self.read = file.read
        self.close = file.close

    def renew(self) -> None:
        """Another request begins."""
        self._left = _MAX_HEAD

    def readline(self, limit: int) -> bytes:
        line = self._file.readline(min(limit, self._left + 1))
        self._left -= len(line)
        if self._left < 0:
            raise HTTPException("the head of the request is too long")
        return line


class _Server:
    """What the handlers of one proxy share."""

    def __init__(
        self, listener: socket.socket, authorization: bytes, answer: Answer, waiting: Waiting
    ) -> None:
        self.authorization = authorization
        self.answer = answer
        self.waiting = waiting
        self.gate = Gate(_GATE)
        self.connections = Connections(listener, self._serve)

    def _serve(self, connection: socket.socket, address: str) -> None:
        _Handler(connection, (address, 0), self)  # type: ignore[arg-type]

    def close(self) -> None:
        self.gate.close()
        self.connections.close()


class LMProxy:
    """The proxy of one sandbox.

    Args:
        address: the local address to listen on.
        answer: what answers a request: the broker's ``handle``.
        waiting: entered while a request is being answered.

    Attributes:
        port: the port it listens on, chosen by the system.
        token: what a caller must show, as ``Authorization: Bearer TOKEN``.

    Raises:
        OSError: the address is not one of this machine's.
    """

    def __init__(self, address: str, answer: Answer, waiting: Waiting = nullcontext) -> None:
        self.address = address
        self.token = secrets.token_urlsafe(32)
        listener = socket.create_server((address, 0), backlog=128)
        self.port: int = listener.getsockname()[1]
        self._server = _Server(listener, f"Bearer {self.token}".encode(), answer, waiting)

    def __repr__(self) -> str:
        return f"<LMProxy {self.address}:{self.port}>"

    def close(self) -> None:
        """Stop listening and end every connection."""
        self._server.close()
