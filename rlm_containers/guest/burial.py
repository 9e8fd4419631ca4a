"""What happens from the death of a worker until another takes its place."""

from __future__ import annotations

import os
import select
import socket
from time import monotonic

from . import wire
from .interrupts import FILE, FILE_REQUEST, SAVED
from .link import Link, close_all, open_channels
from .succession import Succession

#: Seconds for an heir to take the place of a dead worker.
_OFFER_TIMEOUT = 5.0

#: Seconds for the checkpoint of a dead worker, once the host waits for no more than a new one.
_TIMEOUT = 8.0


class Burial:
    """The burial of a worker.

    Its newest heir is offered its place. One that does not take it writes what it holds.

    Args:
        poll: registers what leads to the heir that goes on.
        link: leads to the dead worker. Only its socket for calls is still open.
        progress: the numbers that were shared with it.
        succession: knows its heirs.
        how: how it died, as a part of a JSON object.

    Attributes:
        how: as it was given.
        successor: once it is over, what leads to the heir that goes on; ``None`` if none does.
        saved: once it is over, the last request whose changes the next worker has.
    """

    def __init__(
        self,
        poll: select.poll,
        link: Link,
        progress: memoryview,
        succession: Succession,
        how: str,
    ) -> None:
        self._poll = poll
        self._link = link
        self._progress = progress
        self._succession = succession
        self.how = how
        self.successor: Link | None = None
        self.saved = 0
        # The other end of this is the heir's too. Until it is offered the place.
        self._calls: socket.socket | None = link.calls
        self._offered: Link | None = None
        self._offer_ends = monotonic() + _OFFER_TIMEOUT
        self._ends = float("inf")
        succession.note_death(self._written())

    def hasten(self) -> None:
        """Wait no longer than some seconds from now on: the host wants another worker."""
        self._ends = min(self._ends, monotonic() + _TIMEOUT)

    def is_over(self) -> bool:
        """Go on with it. Return whether it is over, so that there can be another worker."""
        succession = self._succession
        if self._calls is not None:
            if succession.is_unready() and monotonic() < self._offer_ends:
                return False
            with self._calls as calls:
                self._offer_place(calls)
            self._calls = None
        if self._offered is not None:
            is_able = succession.is_able()  # first: who goes on says so before it leaves its group
            pid = succession.successor()
            if pid:
                self.successor, self._offered = self._offered, None
                self.successor.listen(pid)
                self.saved = max(self._written(), succession.take_over())
                return True
            if is_able and monotonic() < self._offer_ends:
                return False
            self.withdraw()
        if succession.is_pending() and monotonic() < self._ends:
            return False
        succession.end()
        self._progress[SAVED] = self._written()  # the next worker applies the journal to that
        self.saved = succession.saved(self._progress[SAVED])
        return True

    def withdraw(self) -> None:
        """Offer the place to nobody any more."""
        if self._calls is not None:
            self._calls.close()
        if self._offered is not None:
            self._offered.close()
        self._calls = self._offered = None

    def _offer_place(self, calls: socket.socket) -> None:
        """Tell the heir to go on in the worker's place, if it can, or to write what it holds.

        Args:
            calls: the socket whose other end the heir has from the worker.
        """
        if self._link.from_file or not self._succession.is_able():
            self._succession.hurry()
            return
        # What a worker has.
        ours, theirs = open_channels()
        self._offered = Link(self._poll, ours, self._progress)
        try:
            socket.send_fds(calls, [b"t"], theirs, socket.MSG_DONTWAIT)
        except OSError:
            pass  # it will not take them
        close_all(theirs)
        self._succession.hand_over()
        self._offer_ends = monotonic() + _OFFER_TIMEOUT

    def _written(self) -> int:
        """Return the last request whose checkpoint is written, by what the dead worker noted."""
        progress = self._progress
        try:
            # This process is in the workspace from its start on.
            found = os.stat(wire.STATE, follow_symlinks=False).st_ino
        except OSError:
            found = 0
        if found and found == progress[FILE]:
            return max(progress[SAVED], progress[FILE_REQUEST])
        return progress[SAVED]
