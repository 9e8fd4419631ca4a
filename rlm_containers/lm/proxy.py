"""The HTTP proxy on the host, by which the code in a container reaches the broker.

One proxy serves one sandbox, with a token of its own, on a random port of the narrowest address
that the container can reach. It serves nothing but the broker's paths, and those only to callers
with the token, so that nobody else who reaches the port can spend the user's money.

Whoever can reach the port can connect: another container, any local process. Until they have shown
the token they are strangers. Strangers have little time and few places. When the places are taken,
the first whose time is over makes room, so that they cannot keep the sandbox out.
"""

from __future__ import annotations

import hmac
import io
import json
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any

from rlm_containers.errors import SandboxError
from rlm_containers.guest.wire import MAX_FRAME
from rlm_containers.interpreter import UntrustedJSON, greatest_cost, start_thread
from rlm_containers.lm.gate import (
    Gate,
    GateClosedError,
    GateFullError,
    RequestTooLargeError,
)
from runtimes.forks import drop_in_children
from runtimes.text import get_logger

logger = get_logger("rlm_containers.lm")

#: Bytes of a request's body. The same as over the pipe.
MAX_BODY = MAX_FRAME

#: Bytes of a request's first line and headers.
_MAX_HEAD = 16 * 1024

#: Seconds without a byte in the middle of a request or an answer.
_TIMEOUT = 60.0

#: Strangers that are listened to at once.
_STRANGERS = 64

#: Seconds that a stranger has, from connecting until it has shown the token.
_STRANGER_TIME = 10.0

#: Seconds that a stranger has when others want its place: enough to show a token at once. More for
#: one from an address from which the token was shown before.
_CONTESTED_TIME = 0.1
_KNOWN_TIME = 1.0

#: Addresses that are remembered. A container has one.
_ADDRESSES = 16

#: Connections of the sandbox. Each costs a thread.
_MEMBERS = 512

#: Connections of the sandbox that are kept open from one request to the next.
_KEPT_OPEN = 32

#: Seconds for the threads of connections to end once these were hung up.
_END_TIMEOUT = 10.0

#: Seconds between two checks whether to stop accepting. On Linux, close() wakes the thread at once.
_CHECK_INTERVAL = 3600.0 if sys.platform == "linux" else 0.5


@dataclass(frozen=True)
class _Stranger:
    """Who has not shown the token yet: its address, and when it connected."""

    address: str
    since: float


class LMProxy(ThreadingTCPServer):
    """The proxy of one sandbox. Accepts connections from the moment it is made.

    Args:
        address: the local IPv4 address to listen on.
        answer: answers a request, given its path and its parsed JSON.
        gate: bounds how many requests are answered at once, and their memory.

    Attributes:
        port: the port it listens on, chosen by the system.
        token: what a caller must show, as ``Authorization: Bearer TOKEN``.

    Raises:
        OSError: the address is not one of this machine's.
        SandboxError: this process can start no more threads.
    """

    daemon_threads = True  # a slow answer must not keep this process from ending
    request_queue_size = 128

    def __init__(
        self,
        address: str,
        answer: Callable[[str, object], dict[str, Any]],
        gate: Gate | None = None,
    ) -> None:
        super().__init__((address, 0), _Handler)
        self.socket.setblocking(False)
        self.address = address
        self.port: int = self.server_address[1]
        self.token = secrets.token_urlsafe(32)
        self.authorization = f"Bearer {self.token}".encode()
        self.answer = answer
        self.gate = gate or Gate()
        self._changed = threading.Condition()
        self._strangers: dict[socket.socket, _Stranger] = {}
        self._known: dict[str, None] = {}  # addresses of members, the latest last
        self._leaving: socket.socket | None = None  # the stranger that was sent away last
        self._members: set[socket.socket] = set()
        self._answering: set[socket.socket] = set()  # members whose function has not returned
        self._closing = False
        drop_in_children(self)
        try:
            self._thread = start_thread(self._accept, f"rlm-proxy-{self.port}")
        except SandboxError:
            self.server_close()
            raise

    def __repr__(self) -> str:
        return f"<LMProxy {self.address}:{self.port}>"

    def close(self) -> None:
        """Stop listening, end every connection, and wait for their threads.

        Threads whose function of the host has not returned end by themselves.
        """
        with self._changed:
            self._closing = True
            for connection in (*self._strangers, *self._members):
                _hang_up(connection)
            self._changed.notify_all()
        _hang_up(self.socket)  # wakes serve_forever()
        self.shutdown()
        self.server_close()
        self._thread.join()
        with self._changed:
            self._changed.wait_for(
                lambda: not self._strangers and self._members <= self._answering, _END_TIMEOUT
            )

    def drop(self) -> None:
        """In a forked child, close the sockets. The connections stay its parent's."""
        for connection in (self.socket, *self._strangers, *self._members):
            connection.close()

    def is_accepting_here(self) -> bool:
        """Whether this thread is the one that accepts, for which :meth:`close` waits."""
        return threading.current_thread() is self._thread

    def _accept(self) -> None:
        try:
            self.serve_forever(_CHECK_INTERVAL)
        finally:
            # Whatever ended it: a caller must be refused, not kept waiting, to go on over the pipe.
            self.server_close()

    # For the handlers

    def admit(self, connection: socket.socket) -> bool:
        """Make a stranger who has shown the token a member; ``False`` if there is no place."""
        with self._changed:
            if connection in self._members:
                return True
            if self._closing or connection is self._leaving or len(self._members) >= _MEMBERS:
                return False
            address = self._strangers.pop(connection).address
            self._known.pop(address, None)
            self._known[address] = None
            if len(self._known) > _ADDRESSES:
                del self._known[next(iter(self._known))]
            self._members.add(connection)
            self._changed.notify_all()
        return True

    @contextmanager
    def answering(self, connection: socket.socket) -> Iterator[None]:
        """Note that a function of the host answers a member, and may take its time."""
        with self._changed:
            self._answering.add(connection)
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._answering.discard(connection)

    def has_many_members(self) -> bool:
        """Whether a connection should be closed after its answer, to leave room for others."""
        with self._changed:
            return len(self._members) > _KEPT_OPEN

    # Called by socketserver: the first two in the thread that accepts, the others in any

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError:
            # Usually no descriptor is free. The connection stays in the queue, so serve_forever()
            # would try again without a pause.
            if not self._closing:
                time.sleep(0.05)
            raise

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Wait for a place among the strangers. The first whose time is over makes room."""
        with self._changed:
            while len(self._strangers) >= _STRANGERS and not self._closing:
                first = min(self._strangers, key=self._end_of)
                left = self._end_of(first) - time.monotonic()
                if left > 0:
                    self._changed.wait(left)
                    continue
                self._leaving = first
                _hang_up(first)
                # It keeps its place until its thread has ended.
                self._changed.wait_for(lambda: first not in self._strangers)  # noqa: B023
            if self._closing:
                return False
            self._strangers[request] = _Stranger(client_address[0], time.monotonic())
        return True

    def _end_of(self, connection: socket.socket) -> float:
        """Return until when a stranger has its place if others want it."""
        stranger = self._strangers[connection]
        is_known = stranger.address in self._known
        return stranger.since + (_KNOWN_TIME if is_known else _CONTESTED_TIME)

    def shutdown_request(self, request: Any) -> None:
        with self._changed:
            self._strangers.pop(request, None)
            self._members.discard(request)
            self._changed.notify_all()
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Nearly always a caller that hung up.
        logger.debug("proxy: connection from %s: %r", client_address[0], sys.exc_info()[1])


# RFC 9112, section 3. Clients of HTTP/1.0 are not needed.
_REQUEST_LINE = re.compile(r"([A-Za-z]+) (\S+) HTTP/1\.1")


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: LMProxy
    protocol_version = "HTTP/1.1"  # connections stay open from one query to the next
    disable_nagle_algorithm = True
    rbufsize = 0
    wbufsize = 65536  # headers and body in one packet
    timeout = _TIMEOUT
    server_version = "rlm-containers"
    sys_version = ""
    raw_requestline: bytes

    def setup(self) -> None:
        super().setup()
        self._stream = _Stream(self.connection, time.monotonic() + _STRANGER_TIME)
        self._requests = _Requests(self._stream)
        self.rfile = self._requests

    def handle_one_request(self) -> None:
        self._requests.begin()
        try:
            super().handle_one_request()
        except HTTPException as error:
            self.request_version = "HTTP/1.1"
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, str(error))

    def parse_request(self) -> bool:
        """Read the rest of a request's head; refuse it and return ``False`` if it is malformed.

        The base class has the email package parse it, which took a third of a query.
        """
        line = str(self.raw_requestline, "iso-8859-1").rstrip("\r\n")
        self.requestline, self.request_version, self.command = line, "HTTP/1.1", ""
        match = _REQUEST_LINE.fullmatch(line)
        if match is None:
            self._refuse(HTTPStatus.BAD_REQUEST, "this is no request of HTTP/1.1")
            return False
        self.command, self.path = match.groups()
        self._fields: dict[str, str] = {}
        while line := str(self.rfile.readline(), "iso-8859-1").rstrip("\r\n"):
            name, colon, value = line.partition(":")
            if not colon:
                self._refuse(HTTPStatus.BAD_REQUEST, "a line of the head has no colon")
                return False
            self._fields.setdefault(name.lower(), value.strip())
        self.close_connection = self._fields.get("connection", "").lower() == "close"
        if self._fields.get("expect", "").lower() == "100-continue":
            return self.handle_expect_100()
        return True

    def do_POST(self) -> None:
        offered = self._fields.get("authorization", "").encode("utf-8", "replace")
        if not hmac.compare_digest(offered, self.server.authorization):
            self._refuse(HTTPStatus.UNAUTHORIZED, "this proxy wants its sandbox's token")
            return
        # The caller is the sandbox. Between requests it may be silent for as long as it likes, but
        # it must finish a body that it begins.
        if not self.server.admit(self.connection):
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections are open")
            return
        self._stream.deadline = None
        self.connection.settimeout(_TIMEOUT)
        digits = self._fields.get("content-length", "")
        if not (digits.isascii() and digits.isdigit()):
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing")
        elif len(digits) > 15 or int(digits) > MAX_BODY:
            error = f"a request of more than {MAX_BODY} bytes is not taken"
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, error)
        else:
            try:
                self._answer(int(digits))
            except GateClosedError:
                self.close_connection = True
        self.connection.settimeout(None)

    def _answer(self, length: int) -> None:
        """Read a body of ``length`` bytes, and answer it."""
        gate = self.server.gate
        # Before it is read, it may be anything.
        with gate.wait(greatest_cost(length)) as room:
            try:
                request = room.load(UntrustedJSON(self._read(room.buffer(length))))
            except EOFError:
                self.close_connection = True
                return
            except RequestTooLargeError as error:
                self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(error))
                return
            except GateFullError as error:
                self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
                return
            except ValueError:
                self._refuse(HTTPStatus.BAD_REQUEST, "the body is not JSON, or too much of it")
                return
            with gate.turn(), self.server.answering(self.connection):
                answer = self.server.answer(self.path, request)
            del request
        self.close_connection |= self.server.has_many_members()
        self._respond(HTTPStatus.OK, answer)

    def _read(self, body: bytearray) -> bytearray:
        """Fill a buffer with the body of the request, and return it.

        Raises:
            EOFError: the caller has hung up.
        """
        with memoryview(body) as rest:
            read = 0
            while read < len(body):
                count = self.rfile.readinto(rest[read:])
                if not count:
                    raise EOFError
                read += count
        return body

    def handle_expect_100(self) -> bool:
        self.send_response_only(HTTPStatus.CONTINUE)
        self.end_headers()
        self.wfile.flush()  # the caller waits for it
        return True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        # The base class calls this to refuse other methods and malformed requests.
        self._refuse(HTTPStatus(code), message or "refused")

    def _refuse(self, status: HTTPStatus, error: str) -> None:
        self.close_connection = True  # an unread body must not be taken for the next request
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
        logger.debug(f"proxy %s: {format}", self.client_address[0], *args)


class _Stream(io.RawIOBase):
    """Reads a connection until a deadline.

    The socket's own timeout is not enough: it begins anew with each byte.

    Attributes:
        deadline: in the time of ``time.monotonic()``; ``None`` to leave it to the socket's timeout.
    """

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self.deadline: float | None = deadline
        self._connection = connection

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.deadline is not None:
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class _Requests(io.BufferedReader):
    """Reads requests with a bounded head. Without it, the base class would accept 6 MB."""

    def begin(self) -> None:
        """Begin another request."""
        self._left = _MAX_HEAD

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(self._left + 1)
        self._left -= len(line)
        if self._left < 0:
            raise HTTPException("the head of the request is too long")
        return line


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):  # it has ended already
        connection.shutdown(socket.SHUT_RDWR)
