"""What comes through a pipe for the interpreter, and its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlm_containers.errors import SandboxLostError
from rlm_containers.guest import wire
from rlm_containers.interpreter.untrusted import UntrustedJSON

#: The exit status of a client whose container was killed by SIGKILL.
KILLED = 128 + 9

#: The kinds of frames that are items.
ITEMS = (wire.STDOUT, wire.STDERR, wire.MESSAGE, wire.EVENT)

#: Bytes that an item takes besides its contents.
_OVERHEAD = 500

#: Parts of a message. Reports of variables have four for each variable.
_MAX_PARTS = 200_000


@dataclass(frozen=True)
class Message:
    """A JSON object from the worker."""

    content: dict[str, Any]


@dataclass(frozen=True)
class Event:
    """A JSON object from the supervisor."""

    content: dict[str, Any]


@dataclass(frozen=True)
class Output:
    """A piece of a standard stream. ``stream`` is a frame kind of :mod:`guest.wire`."""

    stream: int
    data: bytes


@dataclass(frozen=True)
class Closed:
    """The end: nothing more will come.

    Attributes:
        exit_code: the client's exit status, or ``None`` if it had to be killed.
        stderr: the end of what was written to standard error.
        reason: why the host closed the pipe; empty if the container ended by itself.
    """

    exit_code: int | None
    stderr: str
    reason: str = ""

    def error(self, container: str, memory_loss: Callable[[], str | None]) -> SandboxLostError:
        """Return the error that says how the container ended.

        Args:
            container: its name.
            memory_loss: says how it was killed for its memory, see :meth:`Launch.memory_loss`.
        """
        status = "" if self.exit_code is None else f" with status {self.exit_code}"
        why = self.reason or f"its program ended{status}"
        remedy = "Make a new Sandbox. Was it removed by someone, or its engine stopped?"
        if self.exit_code == KILLED and not self.reason:
            loss = memory_loss()
            if loss:
                why, remedy = loss, "Make a new Sandbox."
            elif loss is None:
                why += ", perhaps killed for its memory"
        stderr = self.stderr.strip()
        return SandboxLostError(
            f"The container is gone: {why}." + (f" It said: {stderr}" if stderr else ""),
            remedy=remedy,
            container=container,
        )


Item = Message | Event | Output | Closed


def parsed(kind: int, payload: bytes | bytearray) -> tuple[Item, int]:
    """Return the item in a frame of one of :data:`ITEMS`, and the bytes that it takes in memory.

    Raises:
        ValueError: it is not what such a frame has.
    """
    if kind in (wire.STDOUT, wire.STDERR):
        return Output(kind, bytes(payload)), _OVERHEAD + len(payload)
    text = UntrustedJSON(payload, _MAX_PARTS)
    content = text.load()
    if not isinstance(content, dict):
        raise ValueError("it is no object")
    item = Message(content) if kind == wire.MESSAGE else Event(content)
    return item, _OVERHEAD + text.size
