"""The connections to the proxy: who may have how many of them, and for how long.

Whoever can reach the port can connect: another container, any local process. Until they have shown
the token they are strangers. Strangers have little time and few places, and when those are taken
the one that has been silent for longest makes room, so that they cannot keep the sandbox out.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

logger = logging.getLogger("rlm_containers.lm")

#: Strangers that are listened to at once.
_STRANGERS = 64

#: Seconds that a stranger has, from connecting until it has shown the token.
_STRANGER_TIME = 10.0

#: Seconds that it has when others want its place: enough for whoever says at once what it wants.
#: More for one from an address from which the token was shown before.
_UNKNOWN_TIME = 0.1
_KNOWN_TIME = 1.0

#: Connections of the sandbox, and how many of them are served at once. Each costs a thread; those
#: that are not served yet wait.
_MEMBERS = 512
_SERVED = 64

#: Addresses that are remembered. A container has one.
_ADDRESSES = 16


@dataclass
class _Stranger:
    address: str
    since: float


class Connections:
    """Takes connections and has each served in a thread of its own.

    Args:
        listener: the listening socket. Closed by :meth:`close`.
        serve: serves one connection until it ends; called with it and the other end's address.
    """

    def __init__(
        self, listener: socket.socket, serve: Callable[[socket.socket, str], None]
    ) -> None:
        self._listener = listener
        self._listener.setblocking(False)
        self._serve = serve
        self._changed = threading.Condition()
        # All in the order in which they came.
        self._strangers: dict[socket.socket, _Stranger] = {}
        self._members: set[socket.socket] = set()
        self._known: dict[str, None] = {}
        self._served = 0
        self._leaving = 0  # strangers that were sent away, whose threads are about to end
        self._closing = False
        # Sockets and no pipe: once closed, nothing else is written to under their numbers.
        self._wake, self._waker = socket.socketpair()
        for end in (self._wake, self._waker):
            end.setblocking(False)
        self._thread = threading.Thread(
            target=self._run, name=f"rlm-proxy-{listener.getsockname()[1]}", daemon=True
        )
        self._thread.start()

    # For the threads that serve

    def welcome(self, connection: socket.socket) -> bool:
        """The other end has shown the token; whether there is a place for it."""
        with self._changed:
            stranger = self._strangers.pop(connection, None)
            if stranger is None:
                return connection in self._members
            self._known[stranger.address] = None
            if len(self._known) > _ADDRESSES:
                del self._known[next(iter(self._known))]
            if self._closing or len(self._members) >= _MEMBERS:
                self._leaving += 1
                return False
            self._members.add(connection)
        self._look()
        return True

    @contextmanager
    def place(self) -> Iterator[bool]:
        """Wait for one's turn to be served; ``False`` where the proxy closes instead."""
        with self._changed:
            self._changed.wait_for(lambda: self._served < _SERVED or self._closing)
            taken = not self._closing
            self._served += taken
        try:
            yield taken
        finally:
            with self._changed:
                self._served -= taken
                self._changed.notify_all()

    def are_many(self) -> bool:
        """Whether so many are open that no more of them should be kept."""
        with self._changed:
            return len(self._members) > _SERVED // 2

    # Their life

    def close(self) -> None:
        """Stop listening and end every connection, and with them their threads."""
        with self._changed:
            self._closing = True
            for connection in (*self._strangers, *self._members):
                _hang_up(connection)
            self._changed.notify_all()
        self._look()
        self._thread.join()
        self._wake.close()
        self._waker.close()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        with self._listener:
            while True:
                with self._changed:
                    if self._closing:
                        return
                    left = self._send_away(time.monotonic())
                    is_full = len(self._strangers) + self._leaving >= _STRANGERS
                poll.register(self._listener, 0 if is_full else select.POLLIN)
                poll.poll(None if left is None else 1000 * max(0.001, left))
                with suppress(BlockingIOError):
                    self._wake.recv(4096)
                if not is_full:
                    self._accept()

    def _accept(self) -> None:
        try:
            connection, address = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # No descriptor is free, mostly. It has hung up, or will be looked at again.
            logger.debug("proxy: a connection was not accepted: %s", error.strerror)
            time.sleep(0.05)
            return
        with self._changed:
            if self._closing:
                connection.close()
                return
            self._strangers[connection] = _Stranger(address[0], time.monotonic())
        thread = threading.Thread(
            target=self._attend, args=(connection, address[0]), name="rlm-proxy-call", daemon=True
        )
        thread.start()

    def _send_away(self, now: float) -> float | None:
        """Send away who has had time enough; seconds until the next one has."""
        wanted = len(self._strangers) + self._leaving >= _STRANGERS
        left: float | None = None
        for connection, stranger in list(self._strangers.items()):
            time_limit = _STRANGER_TIME
            if wanted:
                time_limit = _KNOWN_TIME if stranger.address in self._known else _UNKNOWN_TIME
            rest = stranger.since + time_limit - now
            if rest <= 0:
                del self._strangers[connection]
                self._leaving += 1
                _hang_up(connection)
                wanted = False  # one place is enough
            else:
                left = rest if left is None else min(left, rest)
        return left

    def _attend(self, connection: socket.socket, address: str) -> None:
        try:
            self._serve(connection, address)
        except Exception:
            # A caller that hangs up in the middle, nearly always.
            logger.debug("proxy: connection from %s failed", address, exc_info=True)
        finally:
            with self._changed:
                if connection in self._members:
                    self._members.discard(connection)
                elif self._strangers.pop(connection, None) is None:
                    self._leaving -= 1
                _hang_up(connection, socket.SHUT_WR)
                connection.close()
            self._look()

    def _look(self) -> None:
        """Let the thread that takes connections see what has changed."""
        with suppress(OSError):  # it will look anyway, or has ended
            self._waker.send(b"x")


def _hang_up(connection: socket.socket, how: int = socket.SHUT_RDWR) -> None:
    with suppress(OSError):  # it has ended already
        connection.shutdown(how)
