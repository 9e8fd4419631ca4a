"""The program of a pod: holds another program, whoever comes and goes on the other side.

It is PID 1. The host reaches it by ``kubectl exec``, which runs :data:`RELAY`: that connects to a
socket, hands over its own standard input and output, and waits. The connection may break at any
time: kubectl is killed, or a machine between is restarted. The held program notices nothing of
that. It is ended when the host says so, or when nobody has been heard of for the time of a lease.

Its text is sent to the pods behind that of :mod:`runtimes.link`. It runs on Python 3.9.
"""

from __future__ import annotations

import array
import errno
import os
import select
import signal
import socket
import sys
import time

from runtimes.link import Link, LinkError

#: The exit status if the pod reaches a network that it must not reach.
REACHES_NETWORK = 77

#: Seconds between two signs of life.
BEAT = 4.0

#: Seconds for the held program to end by itself once its input is closed.
_END_TIMEOUT = 10.0

#: Seconds for the host to take what was said last.
_LAST_WORDS = 10.0

#: Bytes for the program, or of its output, that wait here.
_MOST = 1 << 20

_CHUNK = 1 << 16

#: What ``kubectl exec`` runs; its argument names the socket.
RELAY = """\
import array, os, socket, sys, time
s = socket.socket(socket.AF_UNIX)
for i in range(100):
    try:
        s.connect("\\0" + sys.argv[1])
        break
    except OSError:
        time.sleep(0.05)
fds = array.array("i", (0, 1))
s.sendmsg([b"R"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
s.recv(1)
"""

#: Seconds until what does not answer is out of reach, and for a network policy to take effect.
_PROBE_TIMEOUT = 1.0
_POLICY_TIMEOUT = 8.0


class Holder:
    """Between one program and one connection at a time.

    Args:
        command: the program and its arguments.
        name: the name of the socket, in the abstract namespace (unix(7)).
        lease: seconds without a sign of the host until the program is ended.
    """

    def __init__(self, command: list[str], name: str, lease: float) -> None:
        self.link = Link()
        self.lease = lease
        self.heard = time.monotonic()
        self.beaten = 0.0
        self.end_by: float | None = None  # when the program is killed
        self.gone_by = 0.0  # when this program ends after the other one
        self.said = False  # whether all was written, the end as well
        self.socket: socket.socket | None = None  # to the relay
        self.source = self.sink = -1
        self.status: int | None = None
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind("\0" + name)
        self.listening.listen(4)
        self.listening.setblocking(False)
        wake, waker = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(waker, False)
        self.wake = wake
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
        theirs_in, self.stdin = os.pipe()
        self.stdout, theirs_out = os.pipe()
        self.stderr, theirs_err = os.pipe()
        self.pid = os.posix_spawnp(
            command[0],
            command,
            # The variables that lead to the cluster are no business of the program.
            {k: v for k, v in os.environ.items() if not k.startswith("KUBERNETES_")},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, theirs_in, 0),
                (os.POSIX_SPAWN_DUP2, theirs_out, 1),
                (os.POSIX_SPAWN_DUP2, theirs_err, 2),
            ],
            setsigdef=[signal.SIGCHLD, signal.SIGTERM],
        )
        for descriptor in (theirs_in, theirs_out, theirs_err):
            os.close(descriptor)
        for descriptor in (self.stdin, self.stdout, self.stderr):
            os.set_blocking(descriptor, False)

    def run(self) -> int:
        """Serve until the program has ended. Return its exit status."""
        while not self.is_done():
            poll = select.poll()
            for descriptor, events in self.interests():
                poll.register(descriptor, events)
            for descriptor, _ in poll.poll(1000):
                self.handle(descriptor)
            self.keep_time()
        return self.status or 0

    def is_done(self) -> bool:
        """Whether the program has ended, and the host has been told or was waited for."""
        if self.status is None:
            return False
        return (self.said and self.source < 0) or time.monotonic() > self.gone_by

    def interests(self) -> list[tuple[int, int]]:
        wanted = [(self.wake, select.POLLIN), (self.listening.fileno(), select.POLLIN)]
        if self.source >= 0:
            reads = len(self.link.inbox) < _MOST
            wanted.append((self.source, select.POLLIN if reads else 0))
        if self.sink >= 0 and self.link.outbox:
            wanted.append((self.sink, select.POLLOUT))
        if self.stdin >= 0 and self.link.inbox:
            wanted.append((self.stdin, select.POLLOUT))
        if self.stdout >= 0 and self.link.room():
            wanted.append((self.stdout, select.POLLIN))
        if self.stderr >= 0:
            wanted.append((self.stderr, select.POLLIN))
        return wanted

    def handle(self, descriptor: int) -> None:
        if descriptor == self.wake:
            self.reap()
        elif descriptor == self.listening.fileno():
            self.accept()
        elif descriptor == self.source:
            self.read_host()
        elif descriptor == self.sink:
            if not write(self.sink, self.link.outbox):
                self.disconnect()
        elif descriptor == self.stdin:
            if not write(self.stdin, self.link.inbox):
                self.close_input()
        elif descriptor == self.stdout:
            self.read_output()
        elif descriptor == self.stderr:
            data = read(self.stderr)
            if data:
                self.link.note(data)
            elif data is not None:
                os.close(self.stderr)
                self.stderr = -1

    def keep_time(self) -> None:
        now = time.monotonic()
        if self.source >= 0 and len(self.link.inbox) >= _MOST:
            self.heard = now  # nobody listens
        if now > self.beaten + BEAT:
            self.beaten = now
            self.link.beat()
        if self.link.ended is not None and not self.link.inbox:
            self.close_input()
        if now > self.heard + self.lease:
            self.close_input()
        if self.end_by is not None and now > self.end_by and self.status is None:
            self.end_by = None
            os.kill(self.pid, signal.SIGKILL)
        if self.status is None:
            return
        while self.stdout >= 0 and self.link.room():
            self.read_output()
        if self.stdout < 0:
            self.link.end(b"%d" % self.status)
            if self.link.resumed and not self.link.outbox and not self.said:
                self.said = True
                self.gone_by = now + _LAST_WORDS

    def close_input(self) -> None:
        """Tell the program to end."""
        self.link.inbox.clear()
        if self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1
            self.end_by = time.monotonic() + _END_TIMEOUT

    def reap(self) -> None:
        try:
            while os.read(self.wake, _CHUNK):
                pass
        except BlockingIOError:
            pass
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.pid:
                killed = os.WIFSIGNALED(status)
                self.status = 128 + os.WTERMSIG(status) if killed else os.WEXITSTATUS(status)
                self.gone_by = time.monotonic() + self.lease

    def read_output(self) -> None:
        data = read(self.stdout)
        if data:
            self.link.send(data)
        elif data is not None or self.status is not None:
            os.close(self.stdout)
            self.stdout = -1

    # The connection

    def accept(self) -> None:
        """Let a new connection replace the old one."""
        descriptors = array.array("i")
        try:
            connection, _ = self.listening.accept()
            connection.settimeout(2.0)
            room = socket.CMSG_SPACE(2 * descriptors.itemsize)
            _, found, _, _ = connection.recvmsg(1, room)
            for _, kind, data in found:
                if kind == socket.SCM_RIGHTS:
                    descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
        except OSError:
            return
        if len(descriptors) != 2:  # a cell can connect as well
            for descriptor in descriptors:
                os.close(descriptor)
            connection.close()
            return
        self.disconnect()
        self.socket = connection
        self.source, self.sink = descriptors
        for descriptor in descriptors:
            os.set_blocking(descriptor, False)
        self.heard = time.monotonic()
        self.link.connect()

    def disconnect(self) -> None:
        self.link.disconnect()
        for descriptor in (self.source, self.sink):
            if descriptor >= 0:
                os.close(descriptor)
        self.source = self.sink = -1
        if self.socket is not None:
            self.socket.close()  # which ends the relay
            self.socket = None

    def read_host(self) -> None:
        data = read(self.source)
        if data is None:
            return
        self.heard = time.monotonic()
        try:
            self.link.feed(data)
        except LinkError:
            data = b""
        if not data:
            self.disconnect()


def read(descriptor: int) -> bytes | None:
    """Read. Return nothing at the end, and ``None`` if there is nothing now."""
    try:
        return os.read(descriptor, _CHUNK)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def write(descriptor: int, data: bytearray) -> bool:
    """Write some of it, and delete that. Return whether the other end is there."""
    try:
        del data[: os.write(descriptor, data[:_CHUNK])]
    except BlockingIOError:
        pass
    except OSError:
        return False
    return True


def reached() -> str:
    """Try to reach what every pod may see. Return what answered; nothing if all is out of reach."""
    tcp = [("1.1.1.1", 443), ("9.9.9.9", 53)]
    service = os.environ.get("KUBERNETES_SERVICE_HOST")
    if service:
        tcp.append((service, int(os.environ.get("KUBERNETES_SERVICE_PORT") or 443)))
    node = os.environ.get("KUBERNETES_NODE_ADDRESS")
    if node:
        tcp.append((node, 10250))
    udp = []
    try:
        with open("/etc/resolv.conf") as file:
            names = [line.split()[1] for line in file if line.startswith("nameserver ")]
    except (OSError, IndexError):
        names = []
    for name in names:
        tcp.append((name, 53))
        udp.append((name, 53))
    poll = select.poll()
    open_ones = {}
    for kind, addresses in ((socket.SOCK_STREAM, tcp), (socket.SOCK_DGRAM, udp)):
        for address in addresses:
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            one = socket.socket(family, kind)
            one.setblocking(False)
            try:
                one.connect(address)
            except BlockingIOError:
                pass
            except ConnectionRefusedError:
                return f"{address[0]} port {address[1]}"
            except OSError:
                continue  # there is no way
            if kind == socket.SOCK_DGRAM:
                try:
                    # Who serves the root of all names? See section 4 of RFC 1035.
                    one.send(
                        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x01"
                    )
                except OSError:
                    continue
            events = select.POLLOUT if kind == socket.SOCK_STREAM else select.POLLIN
            poll.register(one.fileno(), events)
            open_ones[one.fileno()] = (one, address)
    end = time.monotonic() + _PROBE_TIMEOUT
    while open_ones:
        left = end - time.monotonic()
        if left <= 0:
            break
        for descriptor, _ in poll.poll(1000 * left):
            one, address = open_ones.pop(descriptor)
            poll.unregister(descriptor)
            error = one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            one.close()
            if not error or error == errno.ECONNREFUSED:  # by somebody who is there
                return f"{address[0]} port {address[1]}"
    for one, _ in open_ones.values():
        one.close()
    return ""


def main(command: list[str], name: str, lease: float, offline: bool) -> None:
    """Hold a program to its end. Does not return.

    Args:
        command: the program and its arguments.
        name: see :class:`Holder`.
        lease: likewise.
        offline: whether to refuse if anything can be reached by the network.
    """
    end = time.monotonic() + _POLICY_TIMEOUT
    while offline:
        found = reached()
        if not found:
            break
        if time.monotonic() > end:
            sys.stderr.write(f"it reaches {found}\n")
            sys.exit(REACHES_NETWORK)
        time.sleep(0.2)
    os._exit(Holder(command, name, lease).run())
