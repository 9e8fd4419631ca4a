"""Calls that come over the container's pipe, where no network leads to the proxy."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from rlm_containers.errors import SandboxError, describe
from rlm_containers.guest import wire
from rlm_containers.interpreter import FloodError, UntrustedJSON, parse_cost, start_thread
from rlm_containers.lm.gate import Gate, GateClosedError, GateFullError, Room
from runtimes.text import get_logger

logger = get_logger("rlm_containers.lm")

#: Threads that answer calls.
_THREADS = 64

#: Calls that may wait for a thread. A container has fewer processes and threads.
_MAX_WAITING = 4096

#: Calls that may wait to be refused. Our own guest never sends so many.
_MAX_REFUSED = 16 * _MAX_WAITING

#: Seconds for a thread to end once it has nothing to do.
_END_TIMEOUT = 10.0

#: Writes a frame to a container, given its kind and its payload.
Send = Callable[[int, bytes], None]

#: Answers a request, given its path and its parsed JSON.
Answer = Callable[[str, object], dict[str, Any]]

_BAD_REQUEST = b'{"error": "bad request"}'


class _Call:
    """A call that waits for its answer.

    Attributes:
        number: names it.
        room: the memory that it takes.
        send: writes a frame to whoever has made it.
        answer: answers it.
    """

    def __init__(
        self, number: int, payload: bytes | bytearray, room: Room, send: Send, answer: Answer
    ) -> None:
        self.number = number
        self.room = room
        self.send = send
        self.answer = answer
        self._payload = payload

    def parse(self) -> tuple[str, object]:
        """Return its path and its request. May be called once: it lets go of the payload.

        Raises:
            ValueError, KeyError, TypeError: it is not a valid call.
            GateFullError: there is no memory left for its parts.
        """
        text = UntrustedJSON(self._payload)
        self._payload = b""
        call = self.room.load(text)
        return str(call["path"]), call["request"]


class PipeCalls:
    """Answers the calls of one sandbox in threads of its own.

    Args:
        answer: answers a request, given its path and its parsed JSON.
        gate: bounds how many are answered at once, and their memory.

    Attributes:
        send: writes a frame to the container that makes calls now. Until it is set, answers are
            dropped. Those to an earlier container never reach another.
    """

    def __init__(self, answer: Answer, gate: Gate) -> None:
        self.send: Send = lambda kind, payload: None
        self._answer = answer
        self._gate = gate
        self._changed = threading.Condition()
        self._calls: deque[_Call] = deque()
        self._refused: deque[tuple[Send, int, bytes]] = deque()
        self._threads: set[threading.Thread] = set()
        self._answering: set[threading.Thread] = set()  # some of these
        self._idle = 0
        self._closed = False

    def submit(
        self,
        number: int,
        payload: bytes | bytearray,
        send: Send | None = None,
        answer: Answer | None = None,
    ) -> None:
        """Have a call answered. Returns at once, so that the caller can go on reading.

        Args:
            number: names the call.
            payload: ``{"path": str, "request": object}`` as JSON, unchecked. The caller must not
                keep it.
            send: writes the answer, if that is not for the worker.
            answer: answers it, likewise.

        Raises:
            FloodError: calls come faster than they can be refused.
        """
        send = send or self.send
        with self._changed:
            if self._closed:
                return
            try:
                if len(self._calls) >= _MAX_WAITING:
                    raise GateFullError
                room = self._gate.enter(parse_cost(payload))
                call = _Call(number, payload, room, send, answer or self._answer)
            except GateFullError as error:
                if len(self._refused) >= _MAX_REFUSED:
                    raise FloodError(
                        "the container sent calls faster than they could be refused"
                    ) from None
                # Another thread sends the refusal: the container may not be reading.
                self._refused.append((send, number, _error(error)))
            else:
                self._calls.append(call)
            if len(self._calls) + len(self._refused) <= self._idle:
                self._changed.notify()
            elif len(self._threads) < _THREADS:
                self._start()

    def _start(self) -> None:
        try:
            # A new thread waits for the lock, which this one holds.
            self._threads.add(start_thread(self._serve, "rlm-call"))
        except SandboxError as error:
            logger.warning("%s", error)
            if self._threads:
                return  # they come to it later
            # A call without an answer would keep its cell waiting.
            while self._calls:
                call = self._calls.popleft()
                with call.room:
                    _reply(call.send, call.number, _error(error.what))

    def close(self) -> None:
        """Drop the calls that wait, and wait for the threads that serve none.

        Those whose function of the host has not returned end by themselves.
        """
        with self._changed:
            self._closed = True
            self._calls.clear()
            self._refused.clear()
            self._changed.notify_all()
            ending = self._threads - self._answering - {threading.current_thread()}
        for thread in ending:
            thread.join(_END_TIMEOUT)

    # In the threads

    def _serve(self) -> None:
        thread = threading.current_thread()
        while True:
            with self._changed:
                self._answering.discard(thread)
                self._idle += 1
                self._changed.wait_for(lambda: self._calls or self._refused or self._closed)
                self._idle -= 1
                if self._closed:
                    self._threads.discard(thread)
                    return
                refused = self._refused.popleft() if self._refused else None
                call = None if refused else self._calls.popleft()
                if call is not None:
                    self._answering.add(thread)
            if refused is not None:
                _reply(*refused)
            if call is not None:
                try:
                    with call.room:
                        reply = self._reply_to(call)
                except GateClosedError:
                    reply = _error("the sandbox was closed")  # which nobody receives
                _reply(call.send, call.number, reply)
                del reply  # an idle thread must hold no memory
            del call

    def _reply_to(self, call: _Call) -> bytes:
        try:
            path, request = call.parse()
        except GateFullError as error:
            return _error(error)
        except (ValueError, KeyError, TypeError):
            return _BAD_REQUEST
        try:
            reply = json.dumps(call.answer(path, request)).encode("ascii")
        except GateClosedError:
            raise
        except BaseException as error:
            # The answer is somebody else's code, and this thread has other calls to serve.
            reply = _error(describe(error))
        if len(reply) > wire.MAX_FRAME - 4:
            return _error(f"the answer has {len(reply)} bytes, too many for the pipe")
        return reply


def _reply(send: Send, number: int, reply: bytes) -> None:
    try:
        send(wire.CALL, number.to_bytes(4, "big") + reply)
    except SandboxError:
        pass  # the container ended before its call was answered


def _error(error: object) -> bytes:
    return json.dumps({"error": str(error)}).encode("ascii")
