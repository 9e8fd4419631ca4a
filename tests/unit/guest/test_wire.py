"""Frames: what is encoded is decoded, and anything else is refused at once."""

from __future__ import annotations

import pytest

from rlm_containers.guest import wire

KINDS = (
    wire.MESSAGE,
    wire.EVENT,
    wire.STDOUT,
    wire.STDERR,
    wire.CALL,
    wire.INTERRUPT,
    wire.RESTART,
    wire.SWEEP,
    wire.RUN,
    wire.INPUT,
    wire.KILL,
    wire.RUN_OUT,
    wire.RUN_ERR,
    wire.TAKEN,
    wire.ENDED,
    wire.FORK,
    wire.BRANCH,
    wire.KEEP,
)


def decode(*pieces: bytes) -> list[tuple[int, bytes]]:
    decoder = wire.FrameDecoder()
    return [frame for piece in pieces for frame in decoder.feed(piece)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("payload", [b"", b"x", bytes(range(256)), b"\0" * 70_000])
def test_a_frame_comes_out_as_it_went_in(kind: int, payload: bytes) -> None:
    assert decode(wire.encode(kind, payload)) == [(kind, payload)]


def test_the_layout_is_length_kind_payload() -> None:
    # rlm_guest.boot writes its hello in this form without rlm_guest.wire.
    assert wire.encode(wire.EVENT, b"abc") == b"\0\0\0\x03" + b"e" + b"abc"


def test_kinds_are_distinct_bytes() -> None:
    assert len(set(KINDS)) == len(KINDS)
    assert all(0 < kind < 256 for kind in KINDS)


def test_a_stream_may_be_cut_anywhere() -> None:
    frames = [(wire.MESSAGE, b'{"op": "x"}'), (wire.INTERRUPT, b""), (wire.STDOUT, b"\0\xff")]
    stream = b"".join(wire.encode(kind, payload) for kind, payload in frames)
    for cut in range(len(stream) + 1):
        assert decode(stream[:cut], stream[cut:]) == frames, cut


def test_a_stream_may_come_byte_by_byte() -> None:
    frames = [(kind, bytes([kind]) * index) for index, kind in enumerate(KINDS)]
    stream = b"".join(wire.encode(kind, payload) for kind, payload in frames)
    assert decode(*(stream[i : i + 1] for i in range(len(stream)))) == frames


def test_an_unfinished_frame_is_held_back() -> None:
    decoder = wire.FrameDecoder()
    frame = wire.encode(wire.STDOUT, b"hello")
    assert list(decoder.feed(frame[:-1])) == []
    assert list(decoder.feed(b"")) == []
    assert list(decoder.feed(frame[-1:])) == [(wire.STDOUT, b"hello")]


def test_every_other_kind_is_refused() -> None:
    for kind in set(range(256)) - set(KINDS):
        with pytest.raises(wire.FrameError, match=f"kind {kind:#04x}"):
            decode(b"\0\0\0\0" + bytes([kind]))


def test_frames_before_garbage_are_returned() -> None:
    decoder = wire.FrameDecoder()
    stream = decoder.feed(wire.encode(wire.STDOUT, b"good") + b"not a frame at all")
    assert next(stream) == (wire.STDOUT, b"good")
    with pytest.raises(wire.FrameError):
        next(stream)


def test_no_frame_is_read_after_garbage() -> None:
    decoder = wire.FrameDecoder()
    with pytest.raises(wire.FrameError):
        list(decoder.feed(b"GET / HTTP/1.1\r\n"))
    with pytest.raises(wire.FrameError):
        list(decoder.feed(wire.encode(wire.STDOUT, b"hello")))


@pytest.mark.parametrize("length", [wire.MAX_FRAME + 1, 2**31, 2**32 - 1])
def test_a_huge_length_is_refused_at_once(length: int) -> None:
    with pytest.raises(wire.FrameError, match=str(length)):
        decode(length.to_bytes(4, "big") + bytes([wire.STDOUT]))


def test_the_largest_frame_is_accepted() -> None:
    header = wire.MAX_FRAME.to_bytes(4, "big") + bytes([wire.STDOUT])
    assert decode(header) == []  # accepted; the decoder waits for the payload
    payload = bytes(wire.MAX_FRAME)
    frame = wire.encode(wire.STDOUT, payload)
    assert frame[:5] == header
    assert len(frame) == 5 + wire.MAX_FRAME


def test_a_payload_that_is_too_large_is_not_encoded() -> None:
    with pytest.raises(wire.FrameError, match=str(wire.MAX_FRAME + 1)):
        wire.encode(wire.STDOUT, bytes(wire.MAX_FRAME + 1))


def test_frames_that_were_returned_are_not_kept() -> None:
    decoder = wire.FrameDecoder()
    frame = wire.encode(wire.STDOUT, bytes(1000))
    for _ in range(1000):
        assert len(list(decoder.feed(frame))) == 1
    # Only this private name shows how much the decoder holds.
    assert len(decoder._buffer) == 0


def test_at_most_one_frame_and_one_read_are_kept() -> None:
    decoder = wire.FrameDecoder()
    payload = bytes(100_000)
    stream = wire.encode(wire.STDOUT, payload) * 3
    most = 0
    for start in range(0, len(stream), 4096):
        for _ in decoder.feed(stream[start : start + 4096]):
            pass
        most = max(most, len(decoder._buffer))
    assert most <= len(payload) + 5 + 4096
