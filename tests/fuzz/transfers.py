"""Sandboxes whose files are reached through the pipe, and guests that lie about these files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import shutil
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from rlm_containers import ContainersError, Sandbox
from rlm_containers.guest import wire
from rlm_containers.state import sessions_directory
from runtimes import ContainerProcess, ContainerSpec
from tests.fuzz.host import GuestRuntime, GuestThread, check
from tests.fuzz.strategies import Act

#: The most bytes of the files that a sandbox fetches.
QUOTA = 1 << 20

#: Seconds that a guest waits for the host, which may have nothing to say.
_HEARS = 0.05

#: Seconds for anything to end.
_END = 60.0

#: Stands for a directory of the host that nothing may touch.
OUTSIDE = "OUTSIDE"

_numbers = itertools.count()


@dataclass(frozen=True)
class File:
    """What a guest says that its workspace has.

    Attributes:
        path: its path.
        kind: ``"file"``, ``"directory"``, ``"symlink"`` or ``"fifo"``.
        size: bytes of a file.
        target: of a link.
    """

    path: str
    kind: str = "file"
    size: int = 3
    target: str | None = None

    def row(self, changed: int, outside: str) -> list[Any]:
        mode = {
            "file": stat.S_IFREG | 0o644,
            "directory": stat.S_IFDIR | 0o755,
            "symlink": stat.S_IFLNK | 0o777,
            "fifo": stat.S_IFIFO | 0o600,
        }[self.kind]
        target = self.target and self.target.replace(OUTSIDE, outside)
        return [self.path, mode, self.size, 8, 1, changed, 1, 1, target]

    def content(self) -> bytes:
        return (self.path.encode("utf-8", "replace") or b"x")[:1] * self.size


@dataclass(frozen=True)
class Lie:
    """What a guest does to the records of one answer.

    Attributes:
        how: ``"replace"``, ``"insert"``, ``"cut"``, ``"repeat"`` or ``"flip"``.
        place: which record.
        record: what comes in its place.
    """

    how: str
    place: int
    record: bytes = b""

    def tell(self, records: list[bytes]) -> None:
        place = self.place % (len(records) + 1)
        if self.how == "insert":
            records[place:place] = [self.record]
        elif self.how == "cut":
            del records[place:]
        elif place < len(records):
            if self.how == "replace":
                records[place] = self.record
            elif self.how == "repeat":
                records[place:place] = 3 * [records[place]]
            elif records[place]:
                changed = bytearray(records[place])
                changed[self.place % len(changed)] ^= 1 << self.place % 8
                records[place] = bytes(changed)


@dataclass(frozen=True)
class Answer:
    """How a guest answers what the host asks for next.

    Attributes:
        files: what its workspace has from the next list on.
        lies: see :class:`Lie`.
        between: frames that come between the pieces of the answer.
        taken: bytes of input that it says it has taken; ``None`` for the truth.
        end: what it says of its end; ``None`` for nothing at all.
    """

    files: tuple[File, ...]
    lies: tuple[Lie, ...] = ()
    between: bytes = b""
    taken: int | None = None
    end: bytes | None = b'{"exit": 0}'


# What guests say

_names = st.sampled_from(["a", "b", "directory", "state.dill", ".blobs", "x" * 250, "\u00e4"])
_paths = st.lists(_names, min_size=1, max_size=3).map("/".join)
_bad_paths = st.sampled_from(
    [
        "../evil",
        "a/../../evil",
        "/etc/passwd",
        "",
        ".",
        "..",
        "a//b",
        "a/./b",
        "a\0b",
        "\udcff",
        "\ud800",
        "a\x1b[2Jb",
        "/".join(100 * ["d"]),
        "x" * 5000,
    ]
)
_files = st.builds(
    File,
    path=st.one_of(_paths, _paths, _paths, _bad_paths),
    size=st.sampled_from([0, 3, 3, 1000, 600_000, QUOTA, 1 << 40, -1, 1 << 70]),
) | st.builds(File, path=_paths, size=st.sampled_from([3, 1000, 600_000]))
_links = st.builds(
    File,
    path=_paths,
    kind=st.just("symlink"),
    target=st.sampled_from([OUTSIDE, f"{OUTSIDE}/file", "..", "/", "a", "\0", "", "x" * 5000]),
)
_others = st.builds(File, path=_paths, kind=st.sampled_from(["directory", "directory", "fifo"]))


def _record(kind: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + bytes((kind,)) + payload


def _json(kind: int, value: object) -> bytes:
    return _record(kind, json.dumps(value).encode("ascii"))


_records = st.one_of(
    # A block that nobody has told it of.
    st.integers(0, 2**32 - 1).map(lambda n: _record(wire.SAME, n.to_bytes(4, "big"))),
    st.integers(0, 3).map(lambda n: _record(wire.SAME, n.to_bytes(4, "big"))),
    st.sampled_from([b"", b"x", b"x" * 1000, b"x" * wire.BLOCK]).map(
        lambda data: _record(wire.DATA, data)
    ),
    st.just(_record(wire.END, b"")),
    st.lists(_files | _links | _others, max_size=3).map(
        lambda files: _json(wire.NODES, [file.row(1, "/nowhere") for file in files])
    ),
    st.sampled_from(
        [[2, "a"], [13, ""], [0, "a"], [10**6, "a"], ["a"], {}, None, [28, "\x1b"]]
    ).map(lambda said: _json(wire.FAILED, said)),
    st.sampled_from([b"[" * 3000, b"null", b"{}", b"[[[]]]", b"\xff"]).map(
        lambda data: _record(wire.NODES, data)
    ),
    st.binary(max_size=12),
    st.sampled_from([b"\xff\xff\xff\xffD", b"\x00\x04\x00\x01D"]),
)
_lies = st.builds(
    Lie,
    how=st.sampled_from(["replace", "insert", "cut", "repeat", "flip"]),
    place=st.integers(0, 30),
    record=_records,
)
_floods = st.one_of(
    st.just(b""),
    st.just(b""),
    st.sampled_from([wire.STDOUT, wire.STDERR]).map(lambda kind: wire.encode(kind, b"y" * 300_000)),
    st.sampled_from([wire.RUN_OUT, wire.RUN_ERR]).map(
        lambda kind: 8 * wire.encode(kind, b"\xff\xff\xff\xff" + b"y" * 60_000)
    ),
)
_ends = st.sampled_from(
    [
        *4 * [b'{"exit": 0}'],
        *(b'{"exit": 1}', b'{"signal": 9}', b"{}", b"[]", b'{"exit": -1}', b"\xff", None),
    ]
)
_trees = st.lists(st.one_of(_files, _files, _others, _links), max_size=6).map(
    lambda files: tuple({file.path: file for file in files}.values())
)
_answers = st.one_of(
    st.builds(Answer, _trees),
    st.builds(
        Answer,
        _trees,
        lies=st.lists(_lies, min_size=1, max_size=3).map(tuple),
        between=_floods,
        taken=st.sampled_from([None, None, None, 0, 1, 1 << 20, 2**32 - 1]),
        end=_ends,
    ),
)

#: A guest: how it answers, one thing after another.
guests = st.lists(_answers, min_size=4, max_size=25)


# The guest and the host


class TransferGuest(GuestThread):
    """A container's program that has no files, and says what it likes about them."""

    def __init__(self, spec: ContainerSpec, answers: list[Answer], outside: str) -> None:
        self._answers = list(answers)
        self._outside = outside
        self._asked: deque[tuple[bytes, dict[str, Any]]] = deque()
        self._given: dict[bytes, deque[tuple[int, bytes]]] = {}
        self._decoders: dict[bytes, wire.FrameDecoder] = {}
        self._changes = itertools.count(2)
        self._listed: tuple[File, ...] = ()
        super().__init__(spec, [Act("answer")] * len(answers))

    def _note(self, kind: int, payload: bytes) -> None:
        number, content = payload[:4], payload[4:]
        if kind == wire.RUN:
            self._asked.append((number, json.loads(content)))
            self._given[number] = deque()
            self._decoders[number] = wire.FrameDecoder(wire.RECORDS)
        elif kind == wire.INPUT:
            self._given[number].extend(self._decoders[number].feed(content))
            self._write(wire.encode(wire.TAKEN, number + len(content).to_bytes(4, "big")))
        elif kind == wire.KILL:
            self._write(wire.encode(wire.ENDED, number + b'{"signal": 9}'))
        else:
            super()._note(kind, payload)

    def _do(self, act: Act) -> None:
        if act.kind != "answer":
            super()._do(act)
            return
        answer = self._answers.pop(0)
        if not self._await(lambda: bool(self._heard or self._asked)):
            return
        if self._heard:
            self._last = self._heard.pop(0)
            super()._do(Act("ready" if self._last["op"] == "start" else "result"))
            return
        number, request = self._asked.popleft()
        if "files" not in request:
            self._write(wire.encode(wire.ENDED, number + b'{"exit": 0}'))
            return
        records = list(self._records(answer, request["files"], self._given[number]))
        for lie in answer.lies:
            lie.tell(records)
        if answer.taken is not None:
            self._write(wire.encode(wire.TAKEN, number + answer.taken.to_bytes(4, "big")))
        said = b"".join(records)
        for start in range(0, len(said), 60_000):
            self._write(wire.encode(wire.RUN_OUT, number + said[start : start + 60_000]))
            self._write(answer.between)
        if answer.end is not None:
            self._write(wire.encode(wire.ENDED, number + answer.end))

    def _await(self, true: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + _HEARS
        while not true():
            if not self._wait_for_host(deadline - time.monotonic()) or not self._read():
                return False
        return True

    def _records(
        self, answer: Answer, operation: dict[str, Any], given: deque[tuple[int, bytes]]
    ) -> Iterator[bytes]:
        """Yield the records of the truth."""
        op, changed = operation["op"], next(self._changes)
        if op == "list":
            self._listed = answer.files
        files = {file.path: file for file in self._listed}
        if op == "list":
            yield _json(wire.NODES, [file.row(changed, self._outside) for file in files.values()])
        elif op == "stat":
            path = "/".join(operation["path"])
            file = files.get(path, File(path or ".", "directory"))
            yield _json(wire.NODES, [file.row(changed, self._outside)])
        elif op == "usage":
            yield _json(wire.NODES, [0, 0, True, 1 << 30, 1 << 20])
        elif op in ("get", "put"):
            while self._await(lambda: bool(given)):
                kind, payload = given.popleft()
                if kind == wire.END and op == "get":
                    return
                if op == "get":
                    wanted = json.loads(payload)
                    path = "/".join(wanted["path"])
                    yield from self._file(files.get(path), wanted["blocks"], changed)

    def _file(self, file: File | None, blocks: str, changed: int) -> Iterator[bytes]:
        if file is None or not 0 <= file.size <= QUOTA:
            yield _json(wire.FAILED, [errno.ENOENT, ""])
            return
        yield _json(wire.NODES, [file.row(changed, self._outside)])
        content = file.content()
        for start in range(0, len(content), wire.BLOCK):
            block = content[start : start + wire.BLOCK]
            place = blocks.find(hashlib.sha256(block).hexdigest())
            if place >= 0:
                yield _record(wire.SAME, (place // 64).to_bytes(4, "big"))
            else:
                yield _record(wire.DATA, block)
        yield _record(wire.END, b"")


class TransferRuntime(GuestRuntime):
    """Starts such guests."""

    def __init__(self, answers: list[Answer], outside: Path) -> None:
        super().__init__(())
        self._answers = answers
        self._outside = str(outside)

    def open(self, spec: ContainerSpec) -> ContainerProcess:
        guest = TransferGuest(spec, self._answers, self._outside)
        self.guests.append(guest)
        return guest


def transfer(answers: list[Answer]) -> None:
    """Let a sandbox work with the files of such a guest, and check what is on this host then."""
    session = f"fuzz-{next(_numbers)}"
    home = sessions_directory() / session
    runtime = TransferRuntime(answers, home.parents[2] / "outside")
    box = Sandbox(
        runtime=runtime,
        session=session,
        workspace="memory",
        workspace_size=QUOTA,
        start_timeout=5,
        max_output=1000,
    )
    steps: tuple[Callable[[], object], ...] = (
        lambda: check(box.execute("x = 1")),
        box.snapshot,
        lambda: box.files.read("a"),
        lambda: box.files.write("b", b"z" * 1000),
        lambda: box.files.list(recursive=True),
        lambda: box.files.stat("directory"),
        lambda: box.files.remove("a"),
        box.snapshot,
    )
    try:
        with _bounded():
            box.start()
            for step in (*steps, *steps):
                with _bounded():
                    step()
                stored = _size(home / "workspace")
                assert stored <= 3 * QUOTA, f"the replica has {stored} bytes"
    finally:
        with _bounded():
            box.close()
        for guest in runtime.guests:
            guest.wait(_END)
            assert guest.error is None, guest.error
    assert not [thread for thread in threading.enumerate() if box.name in thread.name]
    shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Let errors of this project pass, if they are not too long."""
    try:
        yield
    except ContainersError as error:
        assert len(str(error)) < 20_000  # noqa: PT017 - most guests cause some
        assert "\x1b" not in str(error)  # noqa: PT017


def _size(directory: Path) -> int:
    return sum(
        os.lstat(Path(above) / name).st_size
        for above, _, names in os.walk(directory)
        for name in names
    )
