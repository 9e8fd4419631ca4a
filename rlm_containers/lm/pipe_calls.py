"""Calls that come over the container's pipe, where no network leads to the proxy."""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from rlm_containers.errors import SandboxError
from rlm_containers.guest import wire
from rlm_containers.interpreter import FloodError
from rlm_containers.lm.gate import Gate, GateClosedError, GateFullError

logger = logging.getLogger("rlm_containers.lm")

#: Threads that answer calls.
_THREADS = 64

#: Calls that may wait for a thread. A container has fewer processes and threads.
_MAX_WAITING = 4096

#: Calls that may wait to be refused. Our own guest never sends so many.
_MAX_REFUSED = 16 * _MAX_WAITING

_TOO_MANY = b'{"error": "too much is being asked at once; ask less, or wait for answers"}'


class PipeCalls:
    """Answers the calls of one sandbox in threads of its own.

    Args:
        answer: answers a request, given its path and its parsed JSON.
        gate: bounds how many are answered at once, and their memory.

    Attributes:
        send: writes a frame to the container, given its kind and its payload. Until it is set,
            answers are dropped.
    """

    def __init__(self, answer: Callable[[str, object], dict[str, Any]], gate: Gate) -> None:
        self.send: Callable[[int, bytes], None] = lambda kind, payload: None
        self._answer = answer
        self._gate = gate
        self._changed = threading.Condition()
        self._calls: deque[tuple[int, bytes]] = deque()
        self._refused: deque[int] = deque()
        self._threads = 0
        self._idle = 0
        self._closed = False

    def submit(self, number: int, payload: bytes) -> None:
        """Have a call answered. Returns at once, so that the caller can go on reading.

        Args:
            number: names the call.
            payload: ``{"path": str, "request": object}`` as JSON, unchecked.

        Raises:
            FloodError: calls come faster than they can be refused.
        """
        with self._changed:
            if self._closed:
                return
            if len(self._calls) < _MAX_WAITING and self._reserve(len(payload)):
                self._calls.append((number, payload))
            elif len(self._refused) < _MAX_REFUSED:
                # Another thread sends the refusal: the container may not be reading.
                self._refused.append(number)
            else:
                raise FloodError("the container sent calls faster than they could be refused")
            if len(self._calls) + len(self._refused) <= self._idle:
                self._changed.notify()
            elif self._threads < _THREADS:
                self._threads += 1
                # Daemons: a slow answer must not keep this process from ending.
                threading.Thread(target=self._serve, name="rlm-call", daemon=True).start()

    def close(self) -> None:
        """Drop the calls that wait. Those that are being answered end by themselves."""
        with self._changed:
            self._closed = True
            self._calls.clear()
            self._refused.clear()
            self._changed.notify_all()

    def _reserve(self, count: int) -> bool:
        try:
            self._gate.reserve(count)
        except GateFullError:
            return False
        return True

    # In the threads

    def _serve(self) -> None:
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
            try:
                reply = self._reply_to(payload)
            except GateClosedError:
                return
            self._reply(number, reply)
            del payload, reply  # an idle thread must hold no memory

    def _reply_to(self, payload: bytes) -> bytes:
        try:
            with self._gate.parsed(payload) as call:
                reply = self._encoded(str(call["path"]), call["request"])  # type: ignore[index]
        except GateFullError:
            return _TOO_MANY
        except (ValueError, KeyError, TypeError):
            return b'{"error": "bad request"}'
        finally:
            self._gate.release(len(payload))
        if len(reply) > wire.MAX_FRAME - 4:
            text = f"the answer has {len(reply)} bytes, too many for the pipe"
            return json.dumps({"error": text}).encode("ascii")
        return reply

    def _encoded(self, path: str, request: object) -> bytes:
        try:
            return json.dumps(self._answer(path, request)).encode("ascii")
        except GateClosedError:
            raise
        except Exception as error:
            # The answer is somebody else's code, and this thread has other calls to serve.
            return json.dumps({"error": f"{type(error).__name__}: {error}"}).encode("ascii")

    def _reply(self, number: int, reply: bytes) -> None:
        try:
            self.send(wire.CALL, number.to_bytes(4, "big") + reply)
        except SandboxError:
            logger.debug("the container ended before its call was answered")
