"""The direct connection to a guest: a Unix socket in the workspace, where it shares that.

What goes through a container's standard streams passes the engine's client, its daemon and a shim.
A socket in a directory that host and container share leads past all of them. So the guest connects
to it before its hello, if it can. It cannot on remote engines, in virtual machines and under some
security modules; then everything goes through the standard streams.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from pathlib import Path

from rlm_containers.guest import wire
from runtimes.forks import drop_in_children

_INT = struct.Struct("i")


class DirectSocket:
    """Waits for the connections of a guest, and becomes the first of them.

    Args:
        workspace: the directory that the guest shares.

    Attributes:
        errors: the second one, the guest's standard error; ``None`` until they were taken.
        peer: the process id of the guest on this host; 0 if it cannot be seen from here.

    Raises:
        OSError: there can be no socket in it.
    """

    def __init__(self, workspace: Path) -> None:
        self._file = workspace / wire.SOCKET
        self.errors: socket.socket | None = None
        self.peer = 0
        self._socket = socket.socket(socket.AF_UNIX)
        drop_in_children(self)
        try:
            self._socket.setblocking(False)
            self._bind(workspace)
            self._socket.listen(2)
        except BaseException:
            self.close()
            raise

    def _bind(self, workspace: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._file.unlink()  # of a start that was killed
        # The path may be too long for an address, see unix(7). That of its directory is short.
        directory = os.open(workspace, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._socket.bind(f"/proc/self/fd/{directory}/{wire.SOCKET}")
            # The container may run as another user. Nobody else gets into the workspace.
            os.chmod(wire.SOCKET, 0o666, dir_fd=directory)  # noqa: S103
        finally:
            os.close(directory)

    def accept(self) -> bool:
        """Take the two connections that wait. Return whether they do. No other can follow."""
        try:
            connection, _ = self._socket.accept()
            listening, self._socket = self._socket, connection
            with listening:
                self.errors, _ = listening.accept()
            self.errors.setblocking(False)
            connection.setblocking(False)
            self.peer = _peer_of(connection)
        except OSError:
            return False
        self.remove()
        return True

    def fileno(self) -> int:
        """Return the descriptor, -1 once it is closed."""
        return self._socket.fileno()

    def shut_down(self) -> None:
        """Tell the guest that nothing more follows. What it still says can be read."""
        with contextlib.suppress(OSError):  # it has no connection, or its end is closed already
            self._socket.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Let nobody write to it any more. What it has can still be read, and that ends."""
        for connection in (self._socket, self.errors):
            if connection is not None:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def remove(self) -> None:
        """Remove the socket from the workspace."""
        with contextlib.suppress(OSError):
            self._file.unlink()

    def close(self) -> None:
        """Close it, and remove it from the workspace."""
        self.drop()
        self.remove()

    def drop(self) -> None:
        """In a forked child, close the descriptors. The connections stay its parent's."""
        self._socket.close()
        if self.errors is not None:
            self.errors.close()


def _peer_of(connection: socket.socket) -> int:
    """Return the process id of who has connected, 0 if it cannot be seen from here."""
    if not hasattr(socket, "SO_PEERCRED"):
        return 0
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 3 * _INT.size)
    pid = int(_INT.unpack_from(found)[0])
    return pid if Path(f"/proc/{pid}").exists() else 0
