"""The frames between the host, the supervisor and the worker.

A frame is a 4-byte big-endian length, one byte that says what kind it is, and that many bytes
(the kind is not counted). Both ends are this project's, of the same version: the host mounts the
guest that belongs to it.

=============  ==================  =====================================================
kind           direction           payload
=============  ==================  =====================================================
``MESSAGE``    host ⇄ worker       a JSON object; the supervisor passes it on unread
``EVENT``      supervisor → host   a JSON object
``STDOUT``     supervisor → host   bytes that the worker or its children wrote to stdout
``STDERR``     supervisor → host   the same for stderr
``CALL``       guest ⇄ host        4 bytes that name the call, then a JSON object
``INTERRUPT``  host → supervisor   8 bytes, a step: SIGINT for the worker
``RESTART``    host → supervisor   nothing: kill the worker and start another
``SWEEP``      host → supervisor   nothing: kill what the last request has started
=============  ==================  =====================================================

A signal may arrive after what it was meant for, so an interrupt says how far it goes. The steps of
a worker are numbered: restoring is 0, request N is 2N, the checkpoint that follows it is 2N + 1. An
interrupt reaches what runs up to its step, and no step after it. Without a payload it means the
request that was begun last.

The host trusts nothing it reads: see :data:`MAX_FRAME` and ``rlm_containers.interpreter.pipe``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

MESSAGE = 0x6D  # m
EVENT = 0x65  # e
STDOUT = 0x6F  # o
STDERR = 0x72  # r
CALL = 0x63  # c
INTERRUPT = 0x69  # i
RESTART = 0x6B  # k
SWEEP = 0x73  # s

_KINDS = frozenset((MESSAGE, EVENT, STDOUT, STDERR, CALL, INTERRUPT, RESTART, SWEEP))

#: Bytes that a frame's payload may have. A prompt of this size is past any model's context.
MAX_FRAME = 64 * 1024 * 1024
#: Where a container has its workspace, and the guest and its packages.
WORKSPACE = "/workspace"
BUNDLE = "/opt/rlm-containers"
#: The file in the workspace that the variables are saved in.
STATE = "state.dill"

#: The path of a call of a host function. All other paths are the language model's.
TOOL_PATH = "/tool"

#: Variables whose short forms are in a message.
MAX_FORMS = 500

_HEADER = 5

_ANY = dict.fromkeys(_KINDS, MAX_FRAME)


class FrameError(Exception):
    """The bytes are no frame of this protocol."""


def encode(kind: int, payload: bytes = b"") -> bytes:
    """One frame, ready to be written.

    Raises:
        FrameError: the payload is longer than :data:`MAX_FRAME`.
    """
    if len(payload) > MAX_FRAME:
        raise FrameError(
            "a message of {} bytes is more than the {} that fit into one".format(
                len(payload), MAX_FRAME
            )
        )
    return len(payload).to_bytes(4, "big") + bytes((kind,)) + payload


class FrameDecoder:
    """Bytes in, frames out. Keeps at most one frame and one read's worth of bytes.

    Args:
        limits: the kinds that may come, and the bytes that a payload of each may have.
    """

    def __init__(self, limits: Mapping[int, int] = _ANY) -> None:
        self._limits = limits
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Add what was read and yield the frames that are complete, as ``(kind, payload)``.

        Raises:
            FrameError: a kind that may not come, or a length past its limit. The stream cannot
                be read any further.
        """
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= _HEADER:
                length = int.from_bytes(buffer[start : start + 4], "big")
                kind = buffer[start + 4]
                if length > self._limits.get(kind, -1):
                    raise FrameError("not a frame: kind {:#04x}, length {}".format(kind, length))
                end = start + _HEADER + length
                if len(buffer) < end:
                    break
                with memoryview(buffer) as view:  # which does not copy it twice
                    payload = bytes(view[start + _HEADER : end])
                start = end
                yield kind, payload
        finally:
            # Once per read and not once per frame: deleting from the front copies the rest.
            del buffer[:start]
