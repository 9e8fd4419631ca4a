"""An engine that stops, dies and comes back: a docker daemon of this test's own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlm_containers import ContainersError, Sandbox, SandboxPool
from rlm_containers.errors import EngineUnavailableError, SandboxLostError
from rlm_containers.state import workspaces_directory
from tests.support import Engine, eventually, on_ci, printed, processes

IMAGE = "rlm-containers-test:latest"


class Daemon:
    """A dockerd that shares nothing with any other, neither files nor networks.

    Args:
        directory: where all of it goes; short, as sockets are made in it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.runtime = f"docker --host unix://{directory}/s"
        self._process: subprocess.Popen[bytes] | None = None

    def docker(self, *args: str) -> subprocess.CompletedProcess[str]:
        command = (*self.runtime.split(), *args)
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    def start(self) -> None:
        # Of one that was killed, and with it its containerd.
        for left in ("p", "s", "e/containerd/containerd.pid"):
            (self.directory / left).unlink(missing_ok=True)
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                (
                    # In a network of its own. Without a bridge a daemon removes docker0, whosever
                    # it is; with one it takes it for its own.
                    *("unshare", "--net", "dockerd"),
                    *("--host", f"unix://{self.directory}/s", "--pidfile", f"{self.directory}/p"),
                    *("--data-root", f"{self.directory}/d", "--exec-root", f"{self.directory}/e"),
                    *("--bridge", "none", "--iptables=false", "--ip6tables=false"),
                ),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        assert eventually(lambda: self.docker("info").returncode == 0, 60), (
            self.directory / "log"
        ).read_text()[-3000:]

    def end(self, number: int) -> None:
        """Send the daemon a signal, and wait until it has ended."""
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(60)

    def clean_up(self) -> None:
        """End whatever is left, its own containerd included."""
        if self._process is not None and self._process.poll() is None:
            self.end(signal.SIGTERM)
        for pid, _ in processes(f"{self.directory}/"):
            if pid != os.getpid():
                os.kill(pid, signal.SIGKILL)
        for mount in Path("/proc/self/mounts").read_text().splitlines():
            path = mount.split()[1]
            if path.startswith(f"{self.directory}/"):
                subprocess.run(("umount", "-l", path), check=False)
        shutil.rmtree(self.directory, ignore_errors=True)


@pytest.fixture(scope="module")
def daemon(engine: Engine) -> Iterator[Daemon]:
    """A daemon with an image."""
    if engine.name != "docker":
        pytest.skip("podman has no daemon that could stop")
    if os.getuid() != 0 or shutil.which("dockerd") is None or shutil.which("unshare") is None:
        if on_ci():
            pytest.fail("this must run in CI, and needs root, dockerd and unshare", pytrace=False)
        pytest.skip("needs root, dockerd and unshare, to start a daemon of its own")
    daemon = own_daemon(engine.image())
    yield daemon
    daemon.clean_up()


def own_daemon(image: str) -> Daemon:
    """Start a daemon that has an image of docker's as :data:`IMAGE`. The caller cleans it up."""
    daemon = Daemon(Path(tempfile.mkdtemp(prefix="rlm-d.", dir="/tmp")))
    try:
        daemon.start()
        with tempfile.TemporaryFile() as saved:
            subprocess.run(("docker", "save", image), stdout=saved, check=True)
            saved.seek(0)
            load = (*daemon.runtime.split(), "load", "--quiet")
            subprocess.run(load, stdin=saved, check=True, capture_output=True)
        assert daemon.docker("tag", image, IMAGE).returncode == 0
    except BaseException:
        daemon.clean_up()
        raise
    return daemon


def box_on(daemon: Daemon) -> Sandbox:
    # Its network is the one thing that this daemon has not got.
    return Sandbox(IMAGE, runtime=daemon.runtime, network="none", lm=str.upper)


def left(box: Sandbox) -> list[object]:
    """What is left of a sandbox on this machine, containers aside."""
    found: list[object] = [process for process in processes(box.name) if box.name in process[1]]
    return found + list(workspaces_directory().glob(f"{box.name}*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_an_engine_that_ends_and_comes_back(daemon: Daemon, number: int) -> None:
    box = box_on(daemon)
    idle = box_on(daemon)
    with idle, box:
        assert printed(box, "x = 1\nprint(llm_query('on'))") == "ON\n"
        daemon.end(number)
        with pytest.raises(SandboxLostError, match=box.name):
            for _ in range(10_000):
                box.execute("pass")
        # One clear error for a new one, and at once.
        with pytest.raises(ContainersError) as caught:
            box_on(daemon).start()
        assert isinstance(caught.value, EngineUnavailableError)
        assert "start" in caught.value.remedy.lower()
        box.close()  # which has no engine to ask
        idle.close()
    assert eventually(lambda: not left(box) + left(idle)), left(box) + left(idle)
    daemon.start()
    # The containers of the one that was killed outlived it, if at all, until it came back.
    assert eventually(lambda: daemon.docker("ps", "--quiet").stdout == "", 20)
    with box_on(daemon) as again:
        assert printed(again, "print(llm_query('again'))") == "AGAIN\n"
    assert eventually(lambda: daemon.docker("ps", "--all", "--quiet").stdout == "")


def test_an_engine_that_stops_in_the_middle_of_a_cell(daemon: Daemon) -> None:
    with box_on(daemon) as box, pytest.raises(SandboxLostError):
        box.execute(
            "import time\nprint('in', flush=True)\ntime.sleep(60)",
            on_output=lambda *_: daemon.end(signal.SIGTERM),
        )
    assert eventually(lambda: not left(box)), left(box)
    daemon.start()
    assert eventually(lambda: daemon.docker("ps", "--all", "--quiet").stdout == "", 20)


def test_a_sandbox_goes_on_once_the_engine_is_back(daemon: Daemon) -> None:
    options: dict[str, Any] = {"runtime": daemon.runtime, "network": "none", "restarts": 2}
    with Sandbox(IMAGE, lm=str.upper, **options) as box:
        printed(box, "x = [1]; open('file', 'w').write('here')")
        assert box.unsaved == ()
        daemon.end(signal.SIGKILL)
        with pytest.raises(SandboxLostError) as caught:
            for _ in range(10_000):
                box.execute("pass")
        assert isinstance(caught.value.__cause__, ContainersError)  # it was tried
        daemon.start()
        result = box.execute("print(x, open('file').read(), llm_query('on'))")
        assert (result.status, result.stdout) == ("ok", "[1] here ON\n"), result.stderr
    assert eventually(lambda: not left(box)), left(box)
    assert eventually(lambda: daemon.docker("ps", "--all", "--quiet").stdout == "", 20)


def test_a_pool_goes_on_once_its_engine_is_back(daemon: Daemon) -> None:
    with SandboxPool(IMAGE, runtime=daemon.runtime, network="none", size=2) as pool:
        assert eventually(lambda: pool.waiting == 2)
        held = [pool.acquire()]
        daemon.end(signal.SIGKILL)
        with pytest.raises(ContainersError):
            while True:  # those that wait have no client that would end
                held.append(pool.acquire())
        for box in held:
            box.close()
        daemon.start()
        with pool.sandbox(lm=str.upper) as box:
            assert printed(box, "print(llm_query('on'))") == "ON\n"
            assert eventually(lambda: pool.waiting == 2)
        with pool.sandbox() as box:
            assert printed(box, "print('on')") == "on\n"
    assert eventually(lambda: daemon.docker("ps", "--all", "--quiet").stdout == "", 20)
