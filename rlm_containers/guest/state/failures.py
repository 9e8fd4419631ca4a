"""Why variables were not saved the last time, and when to try them again."""

from __future__ import annotations

from typing import NamedTuple

from ..shortforms import type_name

TOO_LONG = "saving it took too long"


class Failure(NamedTuple):
    """Why a variable was not saved.

    Attributes:
        reason: in words.
        fingerprint: what a pickle of it alone was like, if it was saved and could not be loaded.
    """

    reason: str
    fingerprint: tuple[int, int] | None = None


class SlowVariable:
    """A variable whose saving took too long, or ended the process.

    It would cost every cell that time. So it is tried again when it is bound to another object,
    else after 4 checkpoints, then after 8, and so on.

    Args:
        value: the object that it is bound to.
        last_time: what was noted when it was tried before.
        reason: in words.
        deadly: whether it has ended the process.

    Attributes:
        reason: in words.
        deadly: whether it has ended the process.
    """

    def __init__(
        self,
        value: object,
        last_time: SlowVariable | None,
        reason: str = TOO_LONG,
        *,
        deadly: bool = False,
    ) -> None:
        self.reason = reason
        self.deadly = deadly
        # Plain values, which another process can be told.
        self._key = id(value), type_name(value)
        again = last_time is not None and last_time._key == self._key
        self._pause: int = 2 * last_time._pause if again and last_time is not None else 4
        self._left = self._pause

    def skips(self, value: object) -> bool:
        """Return whether to leave the variable out of this checkpoint."""
        self._left -= 1
        return self._left >= 0 and self._key == (id(value), type_name(value))
