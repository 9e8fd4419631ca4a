"""Executes programs in pods by WebSocket, through one ``kubectl proxy`` for all pods of a process.

A ``kubectl exec`` takes 15 MB or more, which hundreds of sandboxes cannot have each. The proxy has
the credentials of kubectl. It listens on a socket in a directory that only this user may enter, and
lets nothing pass but ``exec``. See ``k8s.io/apimachinery/pkg/util/remotecommand`` for the protocol.

Importing this fails without ``websockets``, the extra ``kubernetes``.
"""

from __future__ import annotations

import contextlib
import select
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote, urlencode

from websockets.client import ClientProtocol
from websockets.frames import DATA_OPCODES, Frame, Opcode
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from runtimes.command import EngineCommand
from runtimes.errors import EngineCommandError
from runtimes.forks import drop_in_children
from runtimes.process import ClientProcess

#: Each message begins with one byte for its stream.
_PROTOCOL = "v4.channel.k8s.io"
_STDIN, _STDOUT = b"\0", 1

#: Seconds for the proxy to listen.
_START_TIMEOUT = 5.0

#: Bytes in one message, and bytes that may wait for the connection.
_PIECE = 1 << 16
_MOST = 1 << 18

#: The longest message that may come.
_LONGEST = 1 << 21

#: Bytes of what the cluster says that are kept.
_SAID = 1 << 16

# Ends the proxy and removes its directory when standard input closes: this process may be killed.
_HOLD = 'directory=$1; shift; "$@" <&- & child=$!; read -r line; kill "$child"; rm -rf "$directory"'


class Proxy:
    """The ``kubectl proxy`` of one kubectl. It runs while anything is connected.

    Args:
        command: kubectl, with the arguments that lead to the cluster.
        namespace: where the pods are.
    """

    def __init__(self, command: EngineCommand, namespace: str) -> None:
        self._command = command
        self._namespace = namespace
        self._lock = threading.Lock()
        self._users = 0
        self._process: ClientProcess | None = None
        self._directory: Path | None = None

    def execute(self, pod: str, container: str, command: Sequence[str]) -> SocketExec:
        """Run a program in a container of a pod.

        Raises:
            EngineCommandError: there is no proxy.
        """
        where = f"/api/v1/namespaces/{quote(self._namespace)}/pods/{quote(pod)}/exec"
        streams = {"container": container, "stdin": 1, "stdout": 1, "stderr": 1}
        query = urlencode([*streams.items(), *(("command", word) for word in command)])
        with self._lock:
            connection = self._connect()
            self._users += 1
        return SocketExec(connection, f"ws://localhost{where}?{query}", self._leave)

    def _connect(self) -> socket.socket:
        """Connect to the proxy. Start it if it does not run."""
        if self._process is not None and self._directory is not None:
            with contextlib.suppress(OSError):
                return _connected(self._directory)
            self._stop()
        directory = self._directory = Path(tempfile.mkdtemp(prefix="rlm-kubectl-"))  # 0700
        self._process = EngineCommand(("sh",)).hold(
            "proxy",
            *("-c", _HOLD, "sh", str(directory), *self._command.argv, "proxy"),
            *(f"--unix-socket={directory}/socket", "--reject-paths=^$"),
            "--accept-paths=^/api/v1/namespaces/[^/]+/pods/[^/]+/exec$",
        )
        end = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                return _connected(directory)
            time.sleep(0.02)
        self._stop()
        raise EngineCommandError(
            f"`{self._command} proxy` does not listen.",
            remedy=f"See `{self._command} proxy --unix-socket=/tmp/socket`.",
        )

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._stop()

    def _stop(self) -> None:
        process, directory = self._process, self._directory
        self._process = self._directory = None
        if process is not None:
            process.kill()
            process.wait(_START_TIMEOUT)
            process.close()
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)


def _connected(directory: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(directory / "socket"))
    except OSError:
        connection.close()
        raise
    return connection


class SocketExec:
    """A program in a pod, by WebSocket. See :class:`runtimes.execs.Exec`.

    Args:
        connection: to the proxy.
        url: what to ask for.
        leave: called when this is closed.
    """

    def __init__(self, connection: socket.socket, url: str, leave: Callable[[], None]) -> None:
        connection.setblocking(False)
        self.said = bytearray()
        self._connection = connection
        self._leave: Callable[[], None] | None = leave
        self._out = bytearray()
        self._stream = 0  # of the message that has begun
        self._protocol = ClientProtocol(
            parse_uri(url), subprotocols=[Subprotocol(_PROTOCOL)], max_size=_LONGEST
        )
        self._protocol.send_request(self._protocol.connect())
        self._out += b"".join(self._protocol.data_to_send())
        drop_in_children(self)

    def interests(self, *, reads: bool, writes: bool) -> list[tuple[int, int]]:
        events = select.POLLIN if reads else 0
        if self._out or (writes and self._is_open):
            events |= select.POLLOUT
        return [(self._connection.fileno(), events)]

    def pass_on(self, happened: Mapping[int, int], outbox: bytearray) -> bytes | None:
        events = happened.get(self._connection.fileno(), 0)
        data = None
        if events & ~select.POLLOUT:
            data = self._receive()
        if events & select.POLLOUT:
            while outbox and self._is_open and len(self._out) < _MOST:
                self._protocol.send_binary(_STDIN + bytes(outbox[:_PIECE]))
                del outbox[:_PIECE]
                self._out += b"".join(self._protocol.data_to_send())
        return data if self._send() else b""

    @property
    def _is_open(self) -> bool:
        return self._protocol.state is State.OPEN

    def _receive(self) -> bytes | None:
        try:
            data = self._connection.recv(_MOST)
        except BlockingIOError:
            return None
        except OSError:
            return b""
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        found = b"".join(map(self._content, self._protocol.events_received()))
        self._out += b"".join(self._protocol.data_to_send())
        if self._protocol.handshake_exc is not None:
            self.said += f"{self._protocol.handshake_exc}\n".encode()
        if found:
            return found
        return b"" if not data or self._protocol.state in (State.CLOSING, State.CLOSED) else None

    def _content(self, event: object) -> bytes:
        """Return what belongs to standard output. The rest are words."""
        if not isinstance(event, Frame):
            self.said += bytes(getattr(event, "body", None) or b"")[:_SAID]
        elif event.opcode in DATA_OPCODES:
            content = bytes(event.data)
            if event.opcode is not Opcode.CONT:
                self._stream, content = (content[0] if content else 0), content[1:]
            if self._stream == _STDOUT:
                return content
            self.said += content
        del self.said[:-_SAID]
        return b""

    def _send(self) -> bool:
        """Send some of what waits. Return whether the other end is there."""
        if self._out:
            try:
                del self._out[: self._connection.send(self._out)]
            except BlockingIOError:
                pass
            except OSError:
                return False
        return True

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.kill()
        self._connection.close()
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()

    def drop(self) -> None:
        """In a forked child, close the descriptor."""
        self._connection.close()
