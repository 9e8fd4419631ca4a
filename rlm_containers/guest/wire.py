"""The protocol between host and guest, and the names that both use.

The guest is two processes in the container. The *supervisor* has the container's standard input and
output, which are the pipe to the host. It forks the *worker*, which runs the cells. When the worker
dies, the supervisor forks another. Both ends are of the same version: the host mounts the guest
that belongs to it. The host trusts nothing that it reads, see ``rlm_containers.interpreter``.

**Frames.** A frame is the length of its payload (4 bytes, big-endian), one byte for its kind, and
the payload.

=============  ==================  ================================================================
kind           direction           payload
=============  ==================  ================================================================
``MESSAGE``    host ⇄ worker       a JSON object; the supervisor passes it on unread
``EVENT``      supervisor → host   a JSON object
``STDOUT``     supervisor → host   bytes that the worker or a child of it wrote to standard output
``STDERR``     supervisor → host   the same for standard error
``CALL``       worker ⇄ host       the call's number (4 bytes, big-endian), then a JSON object
``INTERRUPT``  host → supervisor   a step (8 bytes, big-endian): send SIGINT to the worker
``RESTART``    host → supervisor   nothing: kill the worker and start another
``SWEEP``      host → supervisor   nothing: kill the processes that the last request has started
=============  ==================  ================================================================

**Order.** The supervisor begins with the event ``hello``. The host sends ``start`` to each new
worker, which restores the variables and answers ``ready``. Then the host sends one request after
another. The worker answers each with one ``result``, saves the variables, and only then reads the
next. A request that reaches a worker before its ``start`` was meant for a dead worker and is
ignored. The host sends a request again if the worker died before it began with it. When the host
closes the pipe, the guest ends.

**Requests**, from the host. ``op`` says which. All but ``start`` have an ``id``, which counts up
from 1, and may have ``"announce": true``, which asks for ``begun``.

``start``
    ``expected``: whether there must be a checkpoint, so that a missing one is a loss. ``lm``:
    whether a model is connected. ``proxy``: ``{"host", "port", "token"}`` or null. ``env``:
    environment variables. ``file_limit``: the most bytes of a file, or null. ``scaffold``: whether
    cells find ``llm_query``, ``answer`` and so on. ``tools``: functions of the host, each
    ``{"name", "signature", "doc"}``. ``kept``: requests ``load`` to repeat, without ``op`` and
    ``id``. ``kept_names``: see ``keep``. ``kept_session``: whether the session outlives the
    container.
``cell``
    Run code. ``code``. ``name``: for tracebacks. ``display``: whether to print the value of an
    expression at the end.
``load``
    Bind a variable to the contents of a file. ``name``. ``file``: its path in the workspace.
    ``kind``: ``"text"`` or ``"json"``. ``superseded``: the file that the variable was loaded from
    before, or null. ``keep``: whether cells cannot change the variable (``history`` only).
``tools``
    Replace the functions of the host by ``tools``, as in ``start``.
``keep``
    Restore the variables ``names`` after each cell that has bound them to something else.
``reset_answer``
    Forget the final answer.
``sync``
    Do nothing. The ``result`` shows that the checkpoint before it is written.

**Messages**, from the worker. ``op`` says which.

``ready``
    ``locals``: short forms of variables, by name. ``names``: all variables. ``lost``: the variables
    that could not be restored, each ``[name, type, reason]``; the name ``*`` stands for all.
    ``damage``: why the variables are those of the checkpoint before the last, or empty. ``older``:
    names whose values may be older for that reason. ``route``: ``"http"``, ``"pipe"`` or
    ``"none"``, the way to the model. ``reason``: why not HTTP.
``begun``
    ``id``. The worker begins with that request.
``result``
    ``id``. ``status``: ``"ok"``, ``"error"``, ``"exit"`` or ``"interrupted"``. ``skipped``: true if
    it was interrupted before it began. But for ``sync`` and skipped requests also ``locals`` as in
    ``ready``; ``final_answer``: a string or null; ``exit_code``: for ``"exit"``; ``artifacts``:
    paths of the figures that the cell has saved, if any.
``saved``
    A checkpoint was written, or failed. Sent only if it differs from the last ``saved``.
    ``unsaved``: ``[name, type, reason]`` of each variable that is not in it. ``error``: why it
    failed as a whole, or null. For a kept session also ``variables``: ``[name, type, bytes]`` of
    each that is in it, and ``state``: the size and the ``mtime_ns`` of the state file.

**Events**, from the supervisor. ``event`` says which.

``hello``
    ``python``: the version of the interpreter. ``pid``.
``killed``
    The kernel has killed a process for its memory, but not the worker. ``memory``: ``{"limit":
    bytes}``, where null stands for the machine's own limit; null if the kernel does not say.
``died``
    The worker died and another was forked. ``signal`` or ``exit``: of what. ``memory``: as in
    ``killed``, if it may have been killed for its memory. ``begun``: the last request that it began
    with. ``saved``: the last request whose checkpoint was written.
``failed``
    As ``died``, but three workers died before any answer. The guest ends.

**Calls**, from cells. The object from the worker is ``{"path", "request"}``, the one from the host
is the answer. :mod:`rlm_guest.lm` and :mod:`rlm_guest.tools` have the paths. An answer has the
number of its call; answers may come in any order.

**Steps.** A signal may arrive after what it was meant for, so an interrupt says how far it reaches.
The steps of a worker are numbered: restoring is 0, request N is 2N, and the checkpoint after it is
2N + 1. An interrupt reaches whatever runs up to its step, and nothing later. One without a payload
is for the request that was begun last.
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

#: The most bytes of a payload. No model takes a prompt of this size.
MAX_FRAME = 64 * 1024 * 1024
#: The most variables whose short forms are in one message.
MAX_FORMS = 500

#: The path of a call of a host function. All other paths are the language model's.
TOOL_PATH = "/tool"

#: Where the container has its workspace.
WORKSPACE = "/workspace"
#: Where the container has the guest and its packages.
BUNDLE = "/opt/rlm-containers"

#: The file in the workspace that the variables are saved in, and the one saved before it.
STATE = "state.dill"
PREVIOUS_STATE = "state.dill.previous"
#: The directory in the workspace for long strings that state files refer to.
BLOBS = ".blobs"
#: What the name of a state file ends with while it is written.
UNFINISHED = ".new"
#: Names in the workspace that are the guest's, and not the cells'.
RESERVED = frozenset(
    (STATE, PREVIOUS_STATE, STATE + UNFINISHED, PREVIOUS_STATE + UNFINISHED, BLOBS)
)

_HEADER = 5

_ANY = dict.fromkeys(_KINDS, MAX_FRAME)


class FrameError(Exception):
    """The bytes are not a frame of this protocol."""


def encode(kind: int, payload: bytes = b"") -> bytes:
    """Encode one frame.

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
    """Turns a stream of bytes into frames. Keeps at most one frame and one read of bytes.

    Args:
        limits: the kinds that are accepted, and the most bytes of a payload of each.
    """

    def __init__(self, limits: Mapping[int, int] = _ANY) -> None:
        self._limits = limits
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Add bytes that were read, and yield the complete frames as ``(kind, payload)``.

        Raises:
            FrameError: a kind is not accepted, or a payload is too long. The stream cannot be
                read any further.
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
                with memoryview(buffer) as view:  # a slice of the buffer would copy twice
                    payload = bytes(view[start + _HEADER : end])
                start = end
                yield kind, payload
        finally:
            # Once per read, not once per frame: to delete from the front copies the rest.
            del buffer[:start]
