"""What an interpreter needs of a pipe."""

from __future__ import annotations

from typing import Any, Protocol

from rlm_containers.interpreter.items import Item
from rlm_containers.interpreter.writer import Frame


class Channel(Protocol):
    """Frames to and from one process that runs cells.

    A :class:`Pipe` is one, and has the documentation of the methods.

    Attributes:
        name: the container's name.
    """

    name: str

    def send(self, kind: int, payload: bytes = b"") -> None: ...

    def try_send(self, kind: int, payload: bytes = b"") -> bool: ...

    def send_message(self, **content: Any) -> None: ...

    def message(self, content: dict[str, Any]) -> Frame: ...

    def write(self, frame: Frame) -> None: ...

    def has_begun(self, frame: Frame) -> bool: ...

    def receive(self, timeout: float | None = None) -> Item: ...

    def wake(self) -> None: ...

    def pending(self) -> int: ...

    def hang_up(self, reason: str = "it was closed") -> None: ...
