"""Engines that do not see this machine's files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlm_containers import Sandbox
from rlm_containers.doctor import diagnose
from rlm_containers.errors import UnsupportedByEngineError
from rlm_containers.state import SessionStore, workspaces_directory
from tests.engine.remote_machine import RemoteMachine
from tests.support import Engine, eventually, execute, interpreter_of, printed


@pytest.fixture(scope="module")
def machine(engine: Engine, cache: Path) -> Iterator[RemoteMachine]:
    machine = RemoteMachine(engine, cache)
    try:
        machine.start()
        yield machine
    finally:
        machine.stop()


@pytest.fixture(scope="module")
def here(engine: Engine) -> str:
    """The engine of this machine, whatever DOCKER_HOST says later."""
    host = os.environ.get("DOCKER_HOST")
    return f"docker --host {host}" if host and engine.name == "docker" else engine.runtime


@pytest.fixture(scope="module", params=["tcp", "ssh"])
def remote(
    here: str,
    request: pytest.FixtureRequest,
    machine: RemoteMachine,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """The name of the remote engine, as ``runtime`` takes it, by each way to reach it."""
    way = request.param
    if way not in machine.ports:
        pytest.skip(f"there is no {way} here")
    is_docker = machine.engine.name == "docker"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "CONTAINER_HOST"):
            patch.delenv(name, raising=False)
        if way == "tcp":
            patch.setenv("DOCKER_CONFIG", str(tmp_path_factory.mktemp("docker")))
            url = f"host=tcp://127.0.0.1:{machine.ports['tcp']}"
            create = ("docker", "context", "create", "lab", "--docker", url)
            subprocess.run(create, check=True, capture_output=True)
            yield "docker --context lab"
        else:
            patch.setenv("PATH", f"{machine.bin}{os.pathsep}{os.environ['PATH']}")
            patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # podman notes hosts there
            url = f"ssh://root@127.0.0.1:{machine.ports['ssh']}"
            if is_docker:
                patch.setenv("DOCKER_HOST", url)
                yield "docker"
            else:
                path = machine.socket.removeprefix("unix://")
                yield f"podman --url {url}{path} --identity {machine.key}"


@pytest.fixture(scope="module")
def runtime(machine: RemoteMachine) -> str:
    """The same by its socket."""
    host = "docker --host" if machine.engine.name == "docker" else "podman --remote --url"
    return f"{host} {machine.socket}"


def test_a_sandbox_on_a_remote_engine(
    here: str, remote: str, engine: Engine, machine: RemoteMachine, tmp_path: Path
) -> None:
    session = f"remote-{engine.name}-{abs(hash(remote))}"
    options: dict[str, Any] = {
        "runtime": remote,
        "network": "none",
        "session": session,
        "restarts": 1,
    }
    with Sandbox(engine.image(), lm=str.upper, **options) as box:
        assert printed(box, "x = [1]; print(llm_query('on'))") == "ON\n"
        assert box.lm_route == "pipe"
        box.load("context", "text " * 500_000)
        box.put_file(b"data", "dir/file")
        assert printed(box, "print(len(context), open('dir/file').read())") == "2500000 data\n"
        printed(box, "open('large', 'wb').write(bytes(3_000_000))")
        assert box.get_file("large", to=tmp_path / "large").stat().st_size == 3_000_000
        assert box.command("echo $PWD").stdout == b"/workspace\n"
        first = box.snapshot()
        assert execute(box, "x.append(2)\nimport os\nos._exit(3)").status == "died"
        assert printed(box, "print(x)") == "[1]\n"
        printed(box, "x.append(3); open('dir/file', 'w').write('changed')")
        assert box.restore(first) == ()
        assert printed(box, "print(x, open('dir/file').read())") == "[1] data\n"
        # Its connection is cut.
        pipe = interpreter_of(box).pipe
        pipe.process.kill()
        assert eventually(lambda: pipe.closed is not None)
        result = box.execute("print(x, open('dir/file').read(), len(context))")
        assert result.stdout == "[1] data 2500000\n", result.stderr
        with box.fork() as fork:
            assert printed(fork, "x.append(4); print(x, len(context))") == "[1, 4] 2500000\n"
    # The session goes on with an engine of this machine, and back.
    with Sandbox(engine.image(), runtime=here, session=session) as box:
        assert (
            printed(box, "print(x, open('dir/file').read(), len(context))") == "[1] data 2500000\n"
        )
        printed(box, "x.append(5)")
    with Sandbox(engine.image(), **options) as box:
        assert printed(box, "print(x, open('dir/file').read())") == "[1, 5] data\n"
    assert eventually(lambda: machine.run("ps", "--all", "--quiet").stdout == "")
    SessionStore().remove(session)


def test_what_needs_this_machines_files_says_so(runtime: str, engine: Engine) -> None:
    wanted: tuple[dict[str, Any], ...] = ({"mounts": ["/etc:/host"]}, {"workspace": "shared"})
    for options in wanted:
        box = Sandbox(engine.image(), runtime=runtime, network="none", **options)
        with pytest.raises(UnsupportedByEngineError, match="remote"):
            box.start()


def test_what_the_doctor_says(runtime: str, engine: Engine) -> None:
    (report,) = diagnose([runtime], image=engine.image()).engines
    assert report.ok, report
    (files,) = (check for check in report.checks if check.name == "files")
    assert "memory" in files.detail
    assert "mounts" in files.detail


def test_an_image_is_built_there(runtime: str, engine: Engine) -> None:
    dockerfile = "ENV BUILT=there\nLABEL built=there\n"
    with Sandbox(engine.image(), runtime=runtime, network="none", dockerfile=dockerfile) as box:
        assert printed(box, "import os; print(os.environ['BUILT'])") == "there\n"


def test_nothing_is_left_of_a_host_that_was_killed(
    runtime: str, engine: Engine, machine: RemoteMachine
) -> None:
    program = (
        "import sys; from rlm_containers import Sandbox\n"
        f"box = Sandbox({engine.image()!r}, runtime={runtime!r}, network='none').start()\n"
        "print(box.name, flush=True); sys.stdin.read()"
    )
    host = subprocess.Popen(
        (sys.executable, "-c", program), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert host.stdout is not None
    assert host.stdin is not None
    with host.stdout, host.stdin:
        name = host.stdout.readline().strip()
        assert name in machine.run("ps", "--format={{.Names}}").stdout
        host.send_signal(signal.SIGKILL)
        host.wait()
    assert eventually(lambda: name not in machine.run("ps", "--all", "--format={{.Names}}").stdout)
    assert eventually(lambda: not list(workspaces_directory().glob(f"*{name}*")))
