"""Two streams of bytes that outlive the connection they go over.

Both ends count the bytes of the stream that they have received, and keep what they have sent until
the other one has said that it is there. When a connection breaks, the next one begins with these
counts, and what was lost is sent again. So neither end loses a byte, or sees one twice.

A connection carries units: one byte for the kind, four for the length, and a payload.

====  =====================================================================================
kind  payload
====  =====================================================================================
R     8 bytes: the bytes received so far. The first unit of each side of a connection.
D     bytes of the stream
A     8 bytes: the bytes received so far. Sent now and then, and as the sign of life.
N     text for people, which may be lost
C     nothing follows in the stream. The payload says why.
====  =====================================================================================

This module does no input and output. Its text is sent to the pods, too: it imports nothing but the
standard library, and runs on Python 3.9.
"""

from __future__ import annotations

#: The most bytes that are sent and not known to be there.
WINDOW = 4 << 20

#: The longest payload.
_LONGEST = 1 << 20

#: Bytes of the stream in one unit.
_PIECE = 64 << 10

#: Bytes that may come before the other end is told.
_TELL = 256 << 10

#: Bytes of notes that nobody has taken.
_NOTES = 64 << 10

_HEADER = 5


class LinkError(Exception):
    """The other end does not keep to the protocol."""


class Link:
    """One end.

    Attributes:
        inbox: what has come and was not taken. Whoever takes it deletes it here.
        notes: the texts that have come, likewise.
        outbox: what is to be written to the connection. Whoever writes it deletes it here.
        received: the bytes that have come in all.
        ended: why nothing more follows from the other end; ``None`` as long as it may.
        resumed: whether the two ends of this connection know of each other.
    """

    def __init__(self) -> None:
        self.inbox = bytearray()
        self.notes = bytearray()
        self.outbox = bytearray()
        self.received = 0
        self.ended: bytes | None = None
        self.resumed = False
        self._read = bytearray()  # of the unit that is not complete
        self._kept = bytearray()  # what is sent and not known to be there
        self._known = 0  # the bytes before that
        self._told = 0
        self._ending: bytes | None = None

    def connect(self) -> None:
        """Begin with a new connection."""
        self.disconnect()
        self._told = self.received
        self._put(b"R", self.received.to_bytes(8, "big"))

    def disconnect(self) -> None:
        """Forget the connection."""
        self._read.clear()
        self.outbox.clear()
        self.resumed = False

    def room(self) -> int:
        """Return how many bytes may be sent now."""
        return 0 if self._ending is not None else max(0, WINDOW - len(self._kept))

    def send(self, data: bytes) -> None:
        """Send bytes of the stream."""
        self._kept += data
        if self.resumed:
            self._put_data(data)

    def end(self, why: bytes = b"") -> None:
        """Say that nothing follows in the stream. Only the first call counts."""
        if self._ending is None:
            self._ending = why
            if self.resumed:
                self._put(b"C", why)

    def note(self, text: bytes) -> None:
        """Send a text for people, if there is a connection with room for it."""
        if self.resumed and len(self.outbox) < WINDOW:
            self._put(b"N", text[:_PIECE])

    def beat(self) -> None:
        """Say that this end lives, and what it has received."""
        if self.resumed and len(self.outbox) < WINDOW:  # else the other end does not read
            self._told = self.received
            self._put(b"A", self.received.to_bytes(8, "big"))

    def feed(self, data: bytes) -> None:
        """Take what has come over the connection.

        Raises:
            LinkError: it makes no sense.
        """
        self._read += data
        start = 0
        while len(self._read) >= start + _HEADER:
            length = int.from_bytes(self._read[start + 1 : start + _HEADER], "big")
            if length > _LONGEST:
                raise LinkError("a unit is too long")
            stop = start + _HEADER + length
            if len(self._read) < stop:
                break
            kind = bytes(self._read[start : start + 1])
            self._handle(kind, bytes(self._read[start + _HEADER : stop]))
            start = stop
        del self._read[:start]
        if self.received - self._told >= _TELL:
            self.beat()

    def _handle(self, kind: bytes, payload: bytes) -> None:
        if kind == b"R" and not self.resumed:
            self._learn(payload)
            self.resumed = True
            self._put_data(bytes(self._kept))
            if self._ending is not None:
                self._put(b"C", self._ending)
        elif not self.resumed:
            raise LinkError("it does not begin with a count")
        elif kind == b"D" and self.ended is None:
            self.received += len(payload)
            self.inbox += payload
        elif kind == b"A":
            self._learn(payload)
        elif kind == b"N":
            self.notes += payload[: max(0, _NOTES - len(self.notes))]
        elif kind == b"C":
            self.ended = payload
        else:
            raise LinkError("a unit is of an unknown kind")

    def _learn(self, payload: bytes) -> None:
        """Note how much has arrived at the other end, which need not be kept any longer."""
        count = int.from_bytes(payload, "big") - self._known
        if len(payload) != 8 or not 0 <= count <= len(self._kept):
            raise LinkError("it acknowledges what was not sent")
        del self._kept[:count]
        self._known += count

    def _put_data(self, data: bytes) -> None:
        for start in range(0, len(data), _PIECE):
            self._put(b"D", data[start : start + _PIECE])

    def _put(self, kind: bytes, payload: bytes) -> None:
        self.outbox += kind + len(payload).to_bytes(4, "big") + payload
