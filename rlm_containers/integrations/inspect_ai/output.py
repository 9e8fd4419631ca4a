"""What Inspect gets of a command's output."""

from __future__ import annotations

from rlm_containers.interpreter import StreamName


class Tail:
    """The last bytes of each of a command's two streams, as Inspect's own providers keep them.

    Args:
        most: how many bytes to keep of each.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: dict[StreamName, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}

    def add(self, stream: StreamName, data: bytes) -> None:
        """Take a piece of a stream, as an ``on_output``."""
        kept = self._kept[stream]
        kept += data
        if len(kept) > 2 * self._most:  # not each time: to delete from the front copies the rest
            del kept[: -self._most]

    def text(self, stream: StreamName) -> str:
        """Return what is kept of a stream. What is not UTF-8 becomes U+FFFD."""
        return self._kept[stream][-self._most :].decode("utf-8", "replace")
