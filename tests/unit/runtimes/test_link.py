"""Streams that outlive their connections."""

from __future__ import annotations

import random

import pytest

from runtimes.link import WINDOW, Link, LinkError


class Cable:
    """Two ends and a connection that can break at any byte."""

    def __init__(self) -> None:
        self.ends = (Link(), Link())
        self.plug()

    def plug(self) -> None:
        for end in self.ends:
            end.connect()

    def carry(self, most: int) -> None:
        """Carry up to so many bytes each way."""
        for source, sink in (self.ends, self.ends[::-1]):
            sink.feed(bytes(source.outbox[:most]))
            del source.outbox[:most]


def settle(cable: Cable) -> None:
    while any(end.outbox for end in cable.ends):
        cable.carry(1 << 20)


@pytest.mark.parametrize("seed", range(5))
def test_no_byte_is_lost_or_comes_twice(seed: int) -> None:
    chance = random.Random(seed)
    cable = Cable()
    said: tuple[bytearray, bytearray] = (bytearray(), bytearray())
    for _ in range(300):
        for number, end in enumerate(cable.ends):
            piece = chance.randbytes(min(end.room(), chance.choice((0, 1, 100, 70_000, 300_000))))
            end.send(piece)
            said[number].extend(piece)
        cable.carry(chance.choice((1, 4, 5, 1000, 100_000)))
        if chance.random() < 0.1:
            cable.plug()
    for end in cable.ends:
        end.end(b"3")
    cable.plug()
    settle(cable)
    assert (cable.ends[1].inbox, cable.ends[0].inbox) == said
    assert [end.ended for end in cable.ends] == [b"3", b"3"]


def test_what_is_not_acknowledged_is_bounded() -> None:
    cable = Cable()
    settle(cable)
    one, other = cable.ends
    one.send(bytes(WINDOW))
    assert one.room() == 0
    settle(cable)
    other.beat()
    settle(cable)
    assert (one.room(), len(other.inbox)) == (WINDOW, WINDOW)


def test_an_end_that_does_not_read_costs_no_memory() -> None:
    cable = Cable()
    settle(cable)
    link = cable.ends[0]
    for _ in range(WINDOW // 8):
        link.beat()
    assert len(link.outbox) <= WINDOW + 13


def test_notes_come_while_there_is_a_connection() -> None:
    cable = Cable()
    one, other = cable.ends
    one.note(b"lost")
    settle(cable)
    one.note(b"heard")
    settle(cable)
    assert bytes(other.notes) == b"heard"


@pytest.mark.parametrize(
    ("unit", "reason"),
    [
        (b"D\0\0\0\1x", "begin with a count"),
        (b"R\0\0\0\x08" + (5).to_bytes(8, "big"), "not sent"),
        (b"R\0\0\0\1x", "not sent"),
        (b"R\0\0\0\x08" + bytes(8) + b"A\0\0\0\x08" + b"\xff" * 8, "not sent"),
        (2 * (b"R\0\0\0\x08" + bytes(8)), "unknown kind"),
        (b"R\0\0\0\x08" + bytes(8) + b"C\0\0\0\0D\0\0\0\1x", "unknown kind"),
        (b"R\xff\0\0\0", "too long"),
    ],
)
def test_lies_are_noticed(unit: bytes, reason: str) -> None:
    link = Link()
    link.connect()
    with pytest.raises(LinkError, match=reason):
        link.feed(unit)
