"""The bytes between a host and a pod: connections that break, and ends that lie."""

from __future__ import annotations

import array
import contextlib
import os
import random
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from hypothesis import strategies as st

from runtimes import ContainerSpec, Placement
from runtimes.link import WINDOW, Link, LinkError
from runtimes.pods import job

#: Seconds for anything to end.
_END = 30.0

#: The bytes of notes, and of what waits to be sent, that an end may keep. The stream that has come is
#: bounded by whoever reads the connection.
_KEPT = 2 * WINDOW

# Both ends tell the truth, and the connection breaks


@dataclass(frozen=True)
class Step:
    """What happens next.

    Attributes:
        sends: bytes that each end sends, if it has room for them.
        carries: bytes that the connection carries each way then.
        breaks: whether it breaks after that, and the next one begins.
    """

    sends: tuple[int, int]
    carries: int
    breaks: bool


_sizes = st.sampled_from([0, 0, 1, 100, 70_000, 300_000])
steps = st.lists(
    st.builds(
        Step,
        st.tuples(_sizes, _sizes),
        st.sampled_from([0, 1, 4, 5, 6, 13, 1000, 100_000, 1 << 20]),
        st.sampled_from([False, False, False, True]),
    ),
    max_size=60,
)


def connect(todo: list[Step]) -> None:
    """Let two ends speak over connections that break, and check that all has come once."""
    ends = (Link(), Link())
    said = (bytearray(), bytearray())
    for end in ends:
        end.connect()
    for number, step in enumerate(todo):
        for this, end in enumerate(ends):
            piece = random.Random(number).randbytes(min(end.room(), step.sends[this]))
            end.send(piece)
            said[this].extend(piece)
        _carry(ends, step.carries)
        if step.breaks:
            for end in ends:
                end.connect()
    for end in ends:
        end.end(b"0")
        end.connect()
    while any(end.outbox for end in ends):
        _carry(ends, 1 << 20)
    assert (ends[1].inbox, ends[0].inbox) == said
    assert [end.ended for end in ends] == [b"0", b"0"]


def _carry(ends: tuple[Link, Link], most: int) -> None:
    for source, sink in (ends, ends[::-1]):
        sink.feed(bytes(source.outbox[:most]))
        del source.outbox[:most]


# One end lies

_counts = st.one_of(
    st.sampled_from([0, 0, 0, 1, 5, 1000, WINDOW, 2**63, 2**64 - 1]), st.integers(0, 2**64 - 1)
).map(lambda number: number.to_bytes(8, "big"))
_units = st.one_of(
    st.tuples(st.sampled_from([b"R", b"A"]), _counts),
    st.tuples(
        st.sampled_from([b"D", b"N"]),
        st.sampled_from([b"", b"x", b"x" * 1000, b"x" * 70_000, b"x" * (1 << 20)]),
    ),
    st.tuples(st.just(b"C"), st.sampled_from([b"", b"0", b"-1", b"x" * 1000, b"\xff"])),
    st.tuples(st.binary(min_size=1, max_size=1), st.binary(max_size=20)),
).map(lambda unit: unit[0] + len(unit[1]).to_bytes(4, "big") + unit[1])
_truths = st.just(b"R\0\0\0\x08" + bytes(8))
_junk = st.one_of(
    st.binary(max_size=30), st.sampled_from([b"D\xff\xff\xff\xff", b"R\x00\x10\x00\x01"])
)

#: The bytes of one connection.
lies = st.builds(
    lambda first, units: first + b"".join(units),
    st.one_of(_truths, _truths, _units, _junk),
    st.lists(st.one_of(_units, _units, _junk), max_size=12),
)

#: Some connections, and how they are cut into pieces.
talks = st.tuples(st.lists(lies, min_size=1, max_size=4), st.integers(1, 100_000))


def listen(talk: tuple[list[bytes], int]) -> None:
    """Let an end listen to lies, and check that it keeps to its bounds."""
    said, length = talk
    link = Link()
    link.send(b"s" * 1000)
    come = 0
    for connection in said:
        link.connect()
        with contextlib.suppress(LinkError):
            for start in range(0, len(connection), length):
                link.feed(connection[start : start + length])
                come += length
                assert len(link.notes) + len(link.outbox) < _KEPT
                assert 0 <= link.room() <= WINDOW
                assert len(link.inbox) <= come
        link.disconnect()
    assert len(link.ended or b"") <= 1 << 20


# Strangers in the pod


@dataclass(frozen=True)
class Stranger:
    """Somebody in the pod who connects to its first process, as the host does.

    Attributes:
        descriptors: how many descriptors come along. The host sends two.
        says: the bytes of its connection.
        stays: whether it stays connected when the next one comes.
        times: how often it comes.
    """

    descriptors: int
    says: bytes
    stays: bool
    times: int


strangers = st.lists(
    st.builds(
        Stranger,
        st.sampled_from([0, 1, 2, 2, 2, 3, 5]),
        lies,
        st.booleans(),
        st.sampled_from([1, 1, 1, 8]),
    ),
    min_size=1,
    max_size=6,
)


@contextlib.contextmanager
def held(name: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the first process of a pod here, with a program that sends back what it is sent."""
    spec = ContainerSpec(image="none", name=name, command=(sys.executable, "-c", _ECHO))
    (container,) = job(spec, Placement())["spec"]["template"]["spec"]["containers"]
    process = subprocess.Popen(
        (*container["command"], *container["args"]), stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.communicate()


_ECHO = "import os\nwhile data := os.read(0, 65536): os.write(1, data)"


def intrude(name: str, intruders: list[Stranger]) -> None:
    """Let strangers come to a pod's first process, and check that it serves its host after them."""
    staying: list[int] = []
    with held(name) as process:
        try:
            _wait_for(process, name)
            _call(process, name)
            before = _descriptors(process)
            for stranger in intruders:
                for _ in range(stranger.times):
                    staying += _visit(name, stranger)
            for descriptor in staying:
                os.close(descriptor)
            staying.clear()
            _call(process, name)
            after = _descriptors(process)
            assert after <= before + 4, f"{after} descriptors are open"
        finally:
            for descriptor in staying:
                os.close(descriptor)
        if process.poll() is not None:
            assert process.stderr is not None
            assert b"Traceback" not in process.stderr.read()


def _descriptors(process: subprocess.Popen[bytes]) -> int:
    return 0 if process.poll() is not None else len(os.listdir(f"/proc/{process.pid}/fd"))


def _wait_for(process: subprocess.Popen[bytes], name: str) -> None:
    """Wait until it listens."""
    end = time.monotonic() + _END
    while time.monotonic() < end:
        with socket.socket(socket.AF_UNIX) as one, contextlib.suppress(OSError):
            one.connect("\0" + name)
            return
        assert process.poll() is None
        time.sleep(0.01)
    raise TimeoutError("it does not listen")


def _visit(name: str, stranger: Stranger) -> list[int]:
    """Connect once. Return the descriptors that stay open."""
    there, says = os.pipe()
    hears, back = os.pipe()
    os.set_blocking(says, False)
    sent = [there, back, *(3 * [back])][: stranger.descriptors]
    with socket.socket(socket.AF_UNIX) as one, contextlib.suppress(OSError):
        one.connect("\0" + name)
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(says, stranger.says)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", sent))] if sent else []
        one.sendmsg([b"R"], rights)
        # Until it was let in, or refused.
        if stranger.descriptors == 2:
            select.select((hears,), (), (), 0.2)
    os.close(there)
    os.close(back)
    if stranger.stays:
        return [says, hears]
    os.close(says)
    os.close(hears)
    return []


def _call(process: subprocess.Popen[bytes], name: str) -> None:
    """Connect as the host does. It must be heard, unless a stranger has spoken for the host."""
    there, says = os.pipe()
    hears, back = os.pipe()
    with socket.socket(socket.AF_UNIX) as one:
        try:
            try:
                one.connect("\0" + name)
            except ConnectionRefusedError:
                process.wait(_END)  # a stranger has ended it, as the host would
                return
            rights = array.array("i", (there, back))
            one.sendmsg([b"R"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            os.close(there)
            os.close(back)
            there = back = -1
            assert select.select((hears,), (), (), _END)[0], "it does not answer"
            head = os.read(hears, 13)
            assert head[:1] in (b"R", b""), head
        finally:
            for descriptor in (there, back, says, hears):
                if descriptor >= 0:
                    os.close(descriptor)
