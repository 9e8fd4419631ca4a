"""Passes calls of the worker on to the host, over the pipe."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable

from . import wire


class CallRelay:
    """The calls that wait for the host's answer.

    For each call the worker sends one end of a new socket pair (``SCM_RIGHTS``, see unix(7)), and
    the request to that as a frame ``CALL`` without a number. The relay numbers it.

    Args:
        poll: registers the descriptors of waiting calls.
        send: writes a frame to the host.
    """

    def __init__(self, poll: select.poll, send: Callable[[int, bytes], None]) -> None:
        self.poll = poll
        self.send = send
        self.calls: dict[int, _Call] = {}  # by descriptor
        self.last = 0

    def accept(self, descriptors: list[int]) -> None:
        """Accept a call, by the descriptors that came with it."""
        for descriptor in descriptors:
            self.last = (self.last + 1) & 0xFFFFFFFF
            self.calls[descriptor] = _Call(self.last, socket.socket(fileno=descriptor))
            self.poll.register(descriptor, select.POLLIN)

    def read(self, descriptor: int) -> None:
        """Pass on what a caller has sent. Drop the call if the caller has hung up."""
        call = self.calls.get(descriptor)
        if call is None:
            return
        try:
            data = call.socket.recv(wire.CHUNK)
            if not data:
                self._drop(descriptor)
                return
            for _, payload in call.decoder.feed(data):
                self.send(wire.CALL, call.number.to_bytes(4, "big") + payload)
        except (OSError, wire.FrameError):
            self._drop(descriptor)

    def answer(self, number: int, payload: bytes) -> None:
        """Pass the host's answer on to the caller, unless it has hung up."""
        for descriptor, call in self.calls.items():
            if call.number == number:
                try:
                    call.socket.sendall(wire.encode(wire.CALL, payload))
                except OSError:
                    pass
                self._drop(descriptor)
                return

    def drop_all(self) -> None:
        """Drop all calls: the worker that made them is dead."""
        for descriptor in list(self.calls):
            self._drop(descriptor)

    def _drop(self, descriptor: int) -> None:
        self.poll.unregister(descriptor)
        self.calls.pop(descriptor).socket.close()


def received(source: socket.socket) -> tuple[bytes, list[int]]:
    """Return what waits at a worker's socket for calls, and its descriptors; or nothing.

    The socket must not block: ``recv_fds()`` of Python 3.11 ignores flags, for one.
    """
    try:
        message, descriptors, _, _ = socket.recv_fds(source, 16, 4)
    except OSError:
        return b"", []
    return message, descriptors


class _Call:
    """One call, until it is answered."""

    def __init__(self, number: int, connection: socket.socket) -> None:
        self.number = number
        self.socket = connection
        self.decoder = wire.FrameDecoder()
