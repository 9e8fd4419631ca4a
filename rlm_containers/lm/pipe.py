"""Calls that come over the container's pipe, where no network leads to the proxy."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from rlm_containers.errors import SandboxError
from rlm_containers.guest import wire

__all__ = ["PipeCalls"]

logger = logging.getLogger("rlm_containers.lm")

#: Calls that are answered at once; as many as the proxy serves.
_WORKERS = 64


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
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False

    def take(self, number: int, payload: bytes) -> None:
        """Answer a call, in a thread of its own: the caller must go on reading.

        Args:
            number: names the call.
            payload: ``{"path": str, "request": object}`` as JSON, unchecked.
        """
        if self._closed:
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="rlm-call")
        self._pool.submit(self._serve, number, payload)

    def close(self) -> None:
        """Take no more calls. Those that are being answered end by themselves."""
        self._closed = True
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _serve(self, number: int, payload: bytes) -> None:
        with self._waiting():
            try:
                call = json.loads(payload)
                answer = self._answer(str(call["path"]), call["request"])
            except (ValueError, RecursionError, KeyError, TypeError):
                answer = {"error": "bad request"}
        reply = json.dumps(answer).encode("ascii")
        if len(reply) > wire.MAX_FRAME - 4:
            answer = {"error": f"the answer has {len(reply)} bytes, too many for the pipe"}
            reply = json.dumps(answer).encode("ascii")
        try:
            self._send(wire.CALL, number.to_bytes(4, "big") + reply)
        except SandboxError:
            logger.debug("the container ended before its call was answered")
