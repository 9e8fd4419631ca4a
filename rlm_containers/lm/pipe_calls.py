"""Calls that come over the container's pipe, where no network leads to the proxy."""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from rlm_containers.errors import SandboxError
from rlm_containers.guest import wire
from rlm_containers.interpreter import FloodError, UntrustedJSON
from rlm_containers.lm.gate import Gate

logger = logging.getLogger("rlm_containers.lm")

#: Calls that are answered at once; as many as the proxy serves.
_WORKERS = 64

#: Calls that may wait for that. More than a container has processes and threads.
_WAITING = 4096

#: Calls that may wait for nothing but their refusal. A guest that is ours never has so many.
_REFUSED = 16 * _WAITING

#: Bytes of calls that wait or are being answered, parsed ones as they are in memory. The largest
#: that fits into a frame has room.
_GATE = 512 * 1024 * 1024

_TOO_MANY = b'{"error": "too much is being asked at once; ask less, or wait for answers"}'


class PipeCalls:
    """Answers the calls of one sandbox.

    Args:
        answer: what answers a request: the broker's ``handle``.
        send: writes a frame to the container.
        waiting: entered while a call is being answered, whoever answers it.
    """

    def __init__(
        self,
        answer: Callable[[str, object], dict[str, Any]],
        send: Callable[[int, bytes], None],
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._answer = answer
        self._send = send
        self._waiting = waiting
        self._gate = Gate(_GATE)
        self._changed = threading.Condition()
        self._calls: deque[tuple[int, bytes]] = deque()
        self._refused: deque[int] = deque()
        self._threads = 0
        self._idle = 0
        self._closed = False

    def take(self, number: int, payload: bytes) -> None:
        """Answer a call, in a thread of its own: the caller must go on reading.

        Args:
            number: names the call.
            payload: ``{"path": str, "request": object}`` as JSON, unchecked.

        Raises:
            FloodError: calls come without end, and faster than they can be refused.
        """
        with self._changed:
            if self._closed:
                return
            if len(self._calls) < _WAITING and self._gate.take(len(payload)):
                self._calls.append((number, payload))
            elif len(self._refused) < _REFUSED:
                # Not from here: the container may not be reading.
                self._refused.append(number)
            else:
                raise FloodError("the container sent calls faster than they could be refused")
            if len(self._calls) + len(self._refused) <= self._idle:
                self._changed.notify()
            elif self._threads < _WORKERS:
                self._threads += 1
                # Daemons: an answer that takes long must not keep this process from its end.
                threading.Thread(target=self._serve, name="rlm-call", daemon=True).start()

    def close(self) -> None:
        """Take no more calls. Those that are being answered end by themselves."""
        with self._changed:
            self._closed = True
            self._calls.clear()
            self._refused.clear()
            self._changed.notify_all()

    def _serve(self) -> None:
        """One of the threads."""
        while True:
            with self._changed:
                self._idle += 1
                self._changed.wait_for(lambda: self._calls or self._refused or self._closed)
                self._idle -= 1
                if self._closed:
                    return
                refused = self._refused.popleft() if self._refused else None
                if refused is None:
                    number, payload = self._calls.popleft()
            if refused is not None:
                self._reply(refused, _TOO_MANY)
                continue
            with self._waiting():
                reply = self._reply_to(payload)
            self._reply(number, reply)
            del payload, reply  # while this thread has nothing to do

    def _reply_to(self, payload: bytes) -> bytes:
        held = len(payload)
        try:
            said = UntrustedJSON(payload)
            if not self._gate.take(said.size):
                return _TOO_MANY
            held += said.size
            call = said.load()
            reply = self._encoded(str(call["path"]), call["request"])
        except (ValueError, KeyError, TypeError):
            return b'{"error": "bad request"}'
        finally:
            self._gate.give_back(held)
        if len(reply) > wire.MAX_FRAME - 4:
            text = f"the answer has {len(reply)} bytes, too many for the pipe"
            return json.dumps({"error": text}).encode("ascii")
        return reply

    def _encoded(self, path: str, request: object) -> bytes:
        try:
            return json.dumps(self._answer(path, request)).encode("ascii")
        except Exception as error:
            # What answers is somebody else's, and this thread has other calls to serve.
            return json.dumps({"error": f"{type(error).__name__}: {error}"}).encode("ascii")

    def _reply(self, number: int, reply: bytes) -> None:
        try:
            self._send(wire.CALL, number.to_bytes(4, "big") + reply)
        except SandboxError:
            logger.debug("the container ended before its call was answered")
