"""The HTTP proxy on the host, by which the code in a container reaches the broker.

One proxy for one sandbox, with a token of its own, on a random port of the narrowest address that
the container can reach. It serves nothing but the broker's paths, and those only to callers with
the token: whoever else reaches the port cannot spend the user's money.
"""

from __future__ import annotations

import hmac
import json
import logging
import secrets
import socket
import socketserver
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any

from rlm_containers.guest.wire import MAX_FRAME

__all__ = ["LMProxy"]

logger = logging.getLogger("rlm_containers.lm")

#: Bytes of a request's body. The same as over the pipe.
MAX_BODY = MAX_FRAME

#: Connections served at once. Each costs a thread; a container that wants more waits its turn.
MAX_CONNECTIONS = 64

#: Seconds that a caller who has not shown the token yet may take for its request.
_STRANGER_TIMEOUT = 10.0

Answer = Callable[[str, object], dict[str, Any]]
Waiting = Callable[[], AbstractContextManager[None]]


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: _Server
    protocol_version = "HTTP/1.1"  # connections stay open from one query to the next
    disable_nagle_algorithm = True
    wbufsize = 65536  # headers and body in one packet
    timeout = _STRANGER_TIMEOUT
    server_version = "rlm-containers"
    sys_version = ""

    def do_POST(self) -> None:
        offered = self.headers.get("Authorization", "").encode("utf-8", "replace")
        if not hmac.compare_digest(offered, self.server.authorization):
            self._refuse(HTTPStatus.UNAUTHORIZED, "this proxy wants its sandbox's token")
            return
        # The caller is the sandbox. It may keep the connection without saying anything for as
        # long as it likes; a body that it begins, it must finish.
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
        length = int(digits)
        body = self.rfile.read(length)
        if len(body) < length:
            self.close_connection = True
            return
        try:
            request = json.loads(body)
        except (ValueError, RecursionError):
            self._refuse(HTTPStatus.BAD_REQUEST, "the body is not JSON")
            return
        with self.server.waiting():
            answer = self.server.answer(self.path, request)
        # Connections that are kept must leave room for callers who have none yet.
        self.close_connection |= self.server.is_crowded()
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


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    allow_reuse_address = False
    request_queue_size = 128

    def __init__(
        self, address: str, authorization: bytes, answer: Answer, waiting: Waiting
    ) -> None:
        self.authorization = authorization
        self.answer = answer
        self.waiting = waiting
        self.closing = False
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        super().__init__((address, 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        while not self._slots.acquire(timeout=0.1):
            if self.closing:
                raise ConnectionAbortedError("the proxy is closing")
        with self._open_lock:
            self._open.add(request)
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._open_lock:
                self._open.discard(request)
            self._slots.release()

    def is_crowded(self) -> bool:
        """Whether so many connections are open that no more of them should be kept."""
        with self._open_lock:
            return len(self._open) > MAX_CONNECTIONS // 2

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A caller that hangs up in the middle, nearly always.
        logger.debug("proxy: connection from %s failed", client_address, exc_info=True)

    def hang_up(self) -> None:
        """End the connections that are still open, and with them their threads."""
        with self._open_lock:
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # it is ending already


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
        self._server = _Server(address, f"Bearer {self.token}".encode(), answer, waiting)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            # How often it looks whether it should stop; stopping must not take half a second.
            kwargs={"poll_interval": 0.02},
            name=f"rlm-proxy-{self.port}",
            daemon=True,
        )
        self._thread.start()

    def __repr__(self) -> str:
        return f"<LMProxy {self.address}:{self.port}>"

    def close(self) -> None:
        """Stop listening and end every connection."""
        self._server.closing = True
        self._server.shutdown()
        self._server.server_close()
        self._server.hang_up()
        self._thread.join()
