"""Engines on "another machine": with files of their own, reached by TCP or SSH on this one.

They run in a mount namespace in which the directories of this machine's users are empty. Needs root.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import socketserver
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.support import Engine, eventually, on_ci, processes

# $1: where it keeps its own files. $2: a directory of this machine that it must not see. Then the
# command line of the engine.
_MACHINE = """
set -e
for directory in /run /root "$2"; do
    mount -t tmpfs -o mode=0755 none "$directory"
done
mount -t tmpfs -o mode=1777 none /tmp
ln -s "$1/socket" /run/docker.sock
if [ -e "$1/hostkey" ]; then
    mkdir /run/sshd
    /usr/sbin/sshd -D -e -f /dev/null -p "$(cat "$1/port")" -h "$1/hostkey" -o UsePAM=no \
        -o ListenAddress=127.0.0.1 -o AuthorizedKeysFile="$1/key.pub" -o StrictModes=no \
        -o PidFile=none &
fi
directory=$1
shift 2
exec "$@"
"""

# Docker calls the ssh on PATH, and knows no option for a key.
_SSH = """\
#!/bin/sh
exec {ssh} -i {key} -o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=no -o LogLevel=ERROR "$@"
"""


class RemoteMachine:
    """A machine with one engine.

    Args:
        engine: the engine of this machine of the same kind.
        unseen: a directory of this machine that it does not see, besides /tmp, /run and /root.

    Attributes:
        ports: where it is reached, by ``"tcp"`` (docker only) and ``"ssh"`` (where there is sshd).
        bin: a directory for PATH, with an ssh that logs in there.
        key: the private key for that.
    """

    def __init__(self, engine: Engine, unseen: Path) -> None:
        needed = ("unshare", "dockerd" if engine.name == "docker" else "podman")
        if os.getuid() != 0 or not all(map(shutil.which, needed)):
            if on_ci() and os.getuid() == 0:
                pytest.fail(f"this must run in CI, and needs {needed}", pytrace=False)
            pytest.skip(f"needs root and {' and '.join(needed)}, for an engine of its own")
        self.engine = engine
        # It has a /tmp of its own, and the name of a socket must be short.
        self._directory = Path(tempfile.mkdtemp(prefix="rlm-r.", dir="/var/tmp"))
        self._unseen = unseen
        self._process: subprocess.Popen[bytes] | None = None
        self._server: socketserver.ThreadingTCPServer | None = None
        self.ports: dict[str, int] = {}
        self.bin = self._directory / "bin"
        self.key = self._directory / "key"

    @property
    def socket(self) -> str:
        """The URL of its socket. It has a path on this machine as well."""
        return f"unix://{self._directory}/socket"

    def start(self) -> None:
        """Start it, and give it the image."""
        self._prepare_ssh()
        if self.engine.name == "docker":
            command: tuple[str, ...] = (
                *("unshare", "--net", "dockerd", "--host", self.socket, "--pidfile", "/run/pid"),
                *("--data-root", f"{self._directory}/data", "--exec-root", "/run/docker"),
                *("--bridge", "none", "--iptables=false", "--ip6tables=false"),
            )
        else:
            command = (
                *("podman", "--root", f"{self._directory}/data", "--runroot", "/run/podman-own"),
                *("--tmpdir", "/run/libpod-own", "system", "service", "--time=0", self.socket),
            )
        environment = dict(os.environ)
        if settings := environment.get("CONTAINERS_CONF"):
            copy = self._directory / "containers.conf"
            copy.write_bytes(Path(settings).read_bytes())
            environment["CONTAINERS_CONF"] = str(copy)
        with (self._directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                (
                    *("unshare", "--mount", "--propagation", "private", "sh", "-c", _MACHINE, "sh"),
                    *(str(self._directory), str(self._unseen), *command),
                ),
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        log_text = (self._directory / "log").read_text
        assert eventually(lambda: self.run("info").returncode == 0, 60), log_text()[-3000:]
        with tempfile.TemporaryFile(dir=self._directory) as saved:
            image = self.engine.image()
            subprocess.run((self.engine.runtime, "save", image), stdout=saved, check=True)
            saved.seek(0)
            assert self.run("load", stdin=saved).returncode == 0
        if self.engine.name == "docker":
            self._server = _Forwarder(("127.0.0.1", 0), _Forwarding)
            self._server.path = f"{self._directory}/socket"
            threading.Thread(target=self._server.serve_forever, daemon=True).start()
            self.ports["tcp"] = self._server.server_address[1]

    def run(self, *args: str, stdin: Any = None) -> subprocess.CompletedProcess[str]:
        """Run a command of its engine, not by the code under test."""
        host = ("--host",) if self.engine.name == "docker" else ("--remote", "--url")
        return subprocess.run(
            (self.engine.runtime, *host, self.socket, *args),
            stdin=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def stop(self) -> None:
        """Stop it, and remove all of it."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
        for pid, _ in processes(f"{self._directory}/"):
            if pid != os.getpid():
                os.kill(pid, signal.SIGKILL)
        for mount in Path("/proc/self/mounts").read_text().splitlines():
            path = mount.split()[1]
            if path.startswith(f"{self._directory}/"):
                subprocess.run(("umount", "-l", path), check=False)
        subprocess.run(("rm", "-rf", "--", self._directory), check=False)

    def _prepare_ssh(self) -> None:
        ssh = shutil.which("ssh")
        if ssh is None or not Path("/usr/sbin/sshd").exists():
            return
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.ports["ssh"] = free.getsockname()[1]
        (self._directory / "port").write_text(str(self.ports["ssh"]))
        for name in ("key", "hostkey"):
            command = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self._directory / name)
            subprocess.run(command, check=True)
        self.bin.mkdir()
        (self.bin / "ssh").write_text(_SSH.format(ssh=ssh, key=self.key))
        (self.bin / "ssh").chmod(0o755)


class _Forwarder(socketserver.ThreadingTCPServer):
    """Forwards connections to a Unix socket."""

    daemon_threads = True
    path = ""


class _Forwarding(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, _Forwarder)
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(self.server.path)
            ends = {self.request: other, other: self.request}
            while ends:
                for source in select.select(list(ends), (), ())[0]:
                    try:
                        data = source.recv(1 << 16)
                        if data:
                            ends[source].sendall(data)
                            continue
                        ends[source].shutdown(socket.SHUT_WR)
                    except OSError:
                        pass
                    del ends[source]
