"""The protocol between host and guest, and the names that both use.

The guest is two processes in the container. The *supervisor* has the container's standard input and
output, which are the pipe to the host. It forks the *worker*, which runs the cells. When the worker
dies, the supervisor forks another. Both ends are of the same version: the host sends the guest
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
``RESTART``    host → supervisor   kill the worker and start another; with any bytes, from the file
``SWEEP``      host → supervisor   nothing: kill the processes that the last request has started
``MODULES``    host → boot program the guest's own modules, then byte code, see ``rlm_guest.bundle``
``RUN``        host → supervisor   a command's number (4 bytes, big-endian), then a JSON object
``INPUT``      host → supervisor   the number, then bytes for its standard input; none end that
``KILL``       host → supervisor   the number: kill the command and all that it has started
``RUN_OUT``    supervisor → host   the number, then bytes that it wrote to standard output
``RUN_ERR``    supervisor → host   the same for standard error
``TAKEN``      host ⇄ supervisor   the number, then how much was taken (4 bytes), see Commands
``ENDED``      supervisor → host   the number, then a JSON object
``FORK``       host → supervisor   a branch's number, then how many follow from it on (4 bytes each)
``BRANCH``     host ⇄ supervisor   a branch's number, the kind of a frame, and its payload
``KEEP``       host → supervisor   a branch's number: it is to be the worker
=============  ==================  ================================================================

**Order.** The host begins with two ``MODULES``, and the supervisor with the event ``hello``. The
host sends ``start`` to each new worker, which restores the variables and answers ``ready``. Then it
sends one request after another. The worker answers each with one ``result``, saves the
variables, or has an heir save them, and only then reads the next. A request that reaches a worker
before its ``start`` was meant for a dead worker and is ignored. The host sends a request again if
the worker died before it began with it. When the host closes the pipe, the guest ends.

**Requests**, from the host. ``op`` says which. All but ``prepare`` and ``start`` have an ``id``,
which counts up from 1, and may have ``"announce": true``, which asks for ``begun``.

``prepare``
    Import what is needed later, and answer ``prepared``. A container that waits for a sandbox gets
    this before ``start``, once when it is up and once more to see whether it lives. ``compiled``:
    whether the byte code is wanted, too.
``start``
    ``expected``: whether there must be a checkpoint, so that a missing one is a loss. ``lm``:
    whether a model is connected. ``proxy``: ``{"host", "port", "token"}`` or null. ``env``:
    environment variables. ``file_limit``: the most bytes of a file, or null. ``core_files``:
    whether processes that crash may leave their memory in a file. ``scaffold``: whether cells find
    ``llm_query``, ``answer`` and so on. ``tools``: functions of the host, each ``{"name",
    "signature", "doc"}``. ``kept``: requests ``load`` to repeat, without ``op`` and
    ``id``. ``kept_names``: see ``keep``. ``kept_session``: whether there is a session, which
    outlives the container. ``durable``: whether each checkpoint is flushed to the disk. ``heirs``:
    whether a forked child of the worker may write it.
``cell``
    Run code. ``code``. ``name``: for tracebacks. ``display``: whether to print the value of an
    expression at the end.
``load``
    Bind a variable to the contents of a file. ``name``. ``file``: its path in the workspace.
    ``kind``: ``"text"`` in UTF-8, ``"json"`` or ``"marshal"``. ``size`` in bytes and ``checksum``,
    a CRC-32, of the file. ``superseded``: the file that the variable was loaded from
    before, or null. ``keep``: whether cells cannot change the variable (``history`` only).
``tools``
    Replace the functions of the host by ``tools``, as in ``start``.
``branch``
    Fork ``count`` branches, whose numbers begin with ``first``, see Branches.
``save``
    Do nothing but what follows a cell: answer, and save the variables.
``keep``
    Restore the variables ``names`` after each cell that has bound them to something else.
``reset_answer``
    Forget the final answer.
``sync``
    Do nothing. The ``result`` shows that the checkpoint before it is written.

**Messages**, from the worker. ``op`` says which.

``prepared``
    The worker has imported what ``prepare`` asks for. ``code``: the byte code of what was compiled
    for that, by base64; empty if nothing was.
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
    it was interrupted before it began; that has no more. ``saved``: the last request whose
    checkpoint is written. ``refused``: for ``branch``, what is in the way, if anything: a word,
    ``"hooks"``, ``"threads"``, ``"open"``, ``"children"`` or ``"room"``, and a text. But for these
    and ``sync`` also ``locals`` as in ``ready``; ``final_answer``: a string or null; ``exit_code``:
    for ``"exit"``; ``artifacts``: paths of the figures that the cell has saved, if any.
``saved``
    A checkpoint was written, or failed, perhaps while the next cell runs. Sent only if it differs
    from the last ``saved``. ``unsaved``: ``[name, type, reason]`` of each variable that is not in
    it. ``error``: why it failed as a whole, or null. If there is a session, also ``variables``:
    ``[name, type, bytes]`` of each that is in it, and ``state``: the size and the ``mtime_ns`` of
    the state file.

**Events**, from the supervisor. ``event`` says which.

``hello``
    ``python``: the version of the interpreter. ``pid``. ``wrote``: whether there is a new file
    :data:`HELLO` in the workspace. ``direct``: whether it has connected to :data:`SOCKET` there,
    twice. Then everything else, either way, goes by the first connection instead of the standard
    streams; the second one is its standard error.
``killed``
    The kernel has killed a process for its memory, but not the worker. ``memory``: ``{"limit":
    bytes}``, where null stands for the machine's own limit; null if the kernel does not say.
``died``
    The worker died and another was forked. ``signal`` or ``exit``: of what. ``memory``: as in
    ``killed``, if it may have been killed for its memory. ``stalled``: true if the supervisor
    killed it because code of a cell's object, such as a ``__repr__``, did not end. ``begun``: the
    last request that it began with. ``saved``: the last request whose checkpoint was written.
``kept``
    ``branch``: the branch that is the worker now, which waits for its ``start``; 0 if the one that
    was to be is gone, and nothing has changed.
``ended``
    The host has closed the pipe, and nothing of the cells runs any more. The engine has more to do.
``failed``
    As ``died``, but three workers died before any answer. The guest ends.

**Calls**, from cells. The object from the worker is ``{"path", "request"}``, the one from the host
is the answer. :mod:`rlm_guest.lm` and :mod:`rlm_guest.tools` have the paths. An answer has the
number of its call; answers may come in any order.

**Commands** run beside the cells, several at once. ``RUN`` starts one: ``argv``; ``cwd``, the
directory to start in, relative to the workspace, or null; ``env``, variables besides the
container's; ``file_limit`` and ``core_files``, as in ``start``; ``input``, whether input follows.
``ENDED`` says how the command itself ended, which may have left processes: ``exit`` or ``signal``;
and ``memory``, as in ``killed``, if the kernel has killed a process for its memory meanwhile.
``KILL`` is answered by ``ENDED`` in any case. All other frames for a command that has ended are
ignored. Each side sends at most :data:`WINDOW` of output or input that the other has not taken. A
frame of output counts as its bytes plus :data:`FRAME_COST`. When the command has ended, the
supervisor also sends what is left in its pipes, up to :data:`DRAINED` of each stream.

**Branches** are forked children of the worker that run cells as it does, each beside the others.
The host sends ``FORK``, and the request ``branch``. From the answer on, ``BRANCH`` carries the
frames of each: to it ``MESSAGE``, ``CALL``, ``INTERRUPT``, ``SWEEP``, ``TAKEN``, and ``RESTART``,
which ends it for good and is answered by ``died`` in any case; from it ``MESSAGE``, ``CALL``,
``STDOUT``, ``STDERR``, and ``EVENT``: ``killed``, and ``died`` at its end. A branch saves nothing,
and its calls go over the pipe. The supervisor reads no more of its messages and output while the
host has not taken :data:`WINDOW` of them, counted as for commands. After ``KEEP`` all other
branches end, and the kept one is the worker.

**Files.** Where no directory of the host is the workspace, the host works on the files by commands
that are no programs: ``RUN`` has ``files`` in place of the other fields, an object with ``op`` and
its arguments, and ``input``. Paths are lists of components below the workspace. Standard input and
output are streams of *records*, which have the form of frames:

``NODES``
    From the host, an object. For ``put``, the file, directory or link that follows: ``path``,
    ``kind``, ``mode``, ``modified`` (nanoseconds since the epoch, or null for a single file, which
    keeps its permissions), ``target`` of a link. For ``get``, the file that is wanted: ``path`` and
    ``blocks``, the SHA-256 of the blocks that the host has of it, in hexadecimal. From the guest, a
    list of nodes, each ``[path, mode, size, blocks, modified, changed, inode, links, target]`` as
    stat(2) has them.
``DATA``
    A piece of a file, at most :data:`BLOCK` bytes.
``SAME``
    In place of a piece, the number (4 bytes, big-endian) of a block that the host has.
``END``
    The end of a file, or of all that the host sends.
``FAILED``
    ``[errno, path]``: why it could not be done.

``list``: ``path``; ``depth`` and ``most``, how many levels and nodes at most. ``stat``,
``discard``, ``make_directory``: ``path``. ``move``: ``path`` and ``target``. ``put``: the host
sends nodes, each file followed by its pieces; with ``clear``, everything else is removed before.
``get``: the host sends which files it wants, and the guest answers for each with its node and its
pieces, or with ``FAILED``. ``usage``: ``count``, whether to count the files, with ``depth`` and
``most``; the answer is a node ``[bytes of files, of saved variables, whether all was counted, bytes
free, files free]``.

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
MODULES = 0x62  # b
RUN = 0x78  # x
INPUT = 0x6E  # n
KILL = 0x71  # q
RUN_OUT = 0x70  # p
RUN_ERR = 0x50  # P
TAKEN = 0x74  # t
ENDED = 0x7A  # z
FORK = 0x66  # f
BRANCH = 0x42  # B
KEEP = 0x4B  # K

#: The kinds of records, see Files.
NODES = 0x4E  # N
DATA = 0x44  # D
SAME = 0x53  # S
END = 0x45  # E
FAILED = 0x46  # F

_OF_CELLS = (MESSAGE, EVENT, STDOUT, STDERR, CALL, INTERRUPT, RESTART, SWEEP)
_OF_COMMANDS = (RUN, INPUT, KILL, RUN_OUT, RUN_ERR, TAKEN, ENDED)
_OF_BRANCHES = (FORK, BRANCH, KEEP)
_KINDS = frozenset((*_OF_CELLS, *_OF_COMMANDS, *_OF_BRANCHES))

#: The most bytes of a payload. No model takes a prompt of this size.
MAX_FRAME = 64 * 1024 * 1024
#: The most bytes that are read at once: the size of a Linux pipe. malloc() asks the kernel for the
#: memory of larger buffers, and gives it back, each time.
CHUNK = 64 * 1024
#: How much output or input of a command may be on its way.
WINDOW = 1024 * 1024
#: What a frame of output counts besides its bytes: more than it takes in memory.
FRAME_COST = 256
#: The most bytes that are read from each stream of a command once it has ended.
DRAINED = 256 * 1024
#: The most branches at once, and the bytes before the payload of a branch's frame.
MAX_BRANCHES = 64
BRANCH_HEADER = 5
#: The most bytes of a piece of a file.
BLOCK = 256 * 1024
#: The most bytes of each record's payload.
RECORDS = {NODES: MAX_FRAME // 8, DATA: BLOCK, SAME: 4, END: 0, FAILED: 64 * 1024}
#: The most variables whose short forms are in one message.
MAX_FORMS = 500

#: The path of a call of a host function. All other paths are the language model's.
TOOL_PATH = "/tool"

#: Where the container has its workspace.
WORKSPACE = "/workspace"
#: Where the guest's modules and packages seem to be. They are in memory only.
BUNDLE = "/opt/rlm-containers"

#: An environment variable that is set for the guest's own processes, and not for those of cells.
TUNABLES = "GLIBC_TUNABLES"

#: The file in the workspace that the variables are saved in, and the one saved before it.
STATE = "state.dill"
PREVIOUS_STATE = "state.dill.previous"
#: The directory in the workspace for long strings that state files refer to.
BLOBS = ".blobs"
#: What the name of a state file ends with while it is written.
UNFINISHED = ".new"
#: A file that the guest makes to show that it has the host's workspace. The host removes it.
HELLO = ".hello"

#: Where the guest connects to, if it can, see ``hello``.
SOCKET = ".socket"
#: Names in the workspace that are the guest's, and not the cells'.
RESERVED = frozenset(
    (STATE, PREVIOUS_STATE, STATE + UNFINISHED, PREVIOUS_STATE + UNFINISHED, BLOBS, HELLO, SOCKET)
)

#: The bytes of a frame before its payload.
HEADER = 5

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
        whole: payloads of at least so many bytes are yielded as ``bytearray``, without a copy.
    """

    def __init__(self, limits: Mapping[int, int] = _ANY, whole: int = MAX_FRAME + 1) -> None:
        self._limits = limits
        self._whole = whole
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
            while len(buffer) - start >= HEADER:
                length = int.from_bytes(buffer[start : start + 4], "big")
                kind = buffer[start + 4]
                if length > self._limits.get(kind, -1):
                    raise FrameError("not a frame: kind {:#04x}, length {}".format(kind, length))
                end = start + HEADER + length
                if len(buffer) < end:
                    break
                if length >= self._whole:
                    # Hand over the buffer itself: for a moment a copy would take as much again.
                    self._buffer = buffer[end:]
                    del buffer[end:], buffer[: start + HEADER]
                    whole, buffer, start = buffer, self._buffer, 0
                    yield kind, whole  # type: ignore[misc]  # only for who asks for it
                    del whole
                    continue
                with memoryview(buffer) as view:  # a slice of the buffer would copy twice
                    payload = bytes(view[start + HEADER : end])
                start = end
                yield kind, payload
        finally:
            # Once per read, not once per frame: to delete from the front copies the rest.
            del buffer[:start]
