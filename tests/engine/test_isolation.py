"""What a sandbox keeps apart: by default, with strict isolation, and with what a user asks for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlm_containers import Sandbox
from rlm_containers.errors import UnsupportedByEngineError
from rlm_containers.state import LABEL
from tests.conftest import MakeBox
from tests.engine.test_limits import enforces
from tests.support import Engine, eventually, printed, warnings_of

#: Whom a container may run as: any, where root may give a directory away or Podman maps ids.
SOMEBODY = os.getuid() or 1234


def inspect(engine: Engine, box: Sandbox) -> dict[str, Any]:
    (container,) = engine.containers(box.name)
    return container


#: Prints the mount points that the cell can write to, devices and single files left out.
WRITABLE = """
import json, os
points = {line.split()[1] for line in open('/proc/mounts')}
print(json.dumps([p for p in points if os.path.isdir(p) and os.access(p, os.W_OK)]))
"""


@pytest.fixture(scope="module")
def strict(engine: Engine) -> Iterator[Sandbox]:
    """A sandbox with strict isolation; without limits where the engine enforces none."""
    limits: dict[str, Any] = {} if enforces(engine) else {"memory": None, "pids": None}
    with Sandbox(
        engine.image(),
        runtime=engine.runtime,
        isolation="strict",
        disk="1m",
        lm=str.upper,
        **limits,
    ) as strict:
        yield strict


# Both


@pytest.mark.parametrize("fixture", ["box", "strict"])
def test_what_the_engine_was_told(
    engine: Engine, request: pytest.FixtureRequest, fixture: str
) -> None:
    box = request.getfixturevalue(fixture)
    container = inspect(engine, box)
    config = container["HostConfig"]
    assert not config["Privileged"]
    assert not config["CapAdd"]
    if engine.name == "docker":
        assert config["CapDrop"] == ["ALL"]
    else:
        assert {"CAP_NET_RAW", "CAP_SETUID", "CAP_DAC_OVERRIDE"} <= set(config["CapDrop"])
        assert not container["EffectiveCaps"]
    assert "no-new-privileges" in config["SecurityOpt"]
    assert config["Init"]
    assert config["ReadonlyRootfs"] is (fixture == "strict")
    assert config["PidsLimit"] == (1024 if enforces(engine) else 0)
    assert container["Config"]["User"].partition(":")[0] not in ("", "0", "root")
    writable = [mount for mount in container["Mounts"] if mount["RW"]]
    assert [mount["Destination"] for mount in writable] == ["/workspace"]
    for host in ("PidMode", "IpcMode", "UTSMode", "NetworkMode"):
        assert config[host] != "host"


@pytest.mark.parametrize("fixture", ["box", "strict"])
def test_what_a_cell_is(engine: Engine, request: pytest.FixtureRequest, fixture: str) -> None:
    box = request.getfixturevalue(fixture)
    status = json.loads(
        printed(
            box,
            """
            import json
            lines = open('/proc/self/status').read().splitlines()
            print(json.dumps(dict(line.split(':\\t', 1) for line in lines if ':\\t' in line)))
            """,
        )
    )
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[capabilities], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert "0" not in status["Uid"].split() + status["Gid"].split() + status["Groups"].split()


def test_what_is_writable_by_default(box: Sandbox) -> None:
    points = set(json.loads(printed(box, WRITABLE)))
    assert points == {"/workspace", "/dev/mqueue", "/dev/shm"}


# Strict


def test_what_is_writable_when_strict(strict: Sandbox) -> None:
    points = set(json.loads(printed(strict, WRITABLE)))
    assert points == {"/workspace", "/tmp", "/dev/mqueue", "/dev/shm"}
    assert printed(
        strict,
        """
        import errno, os
        for place in ('/', '/var/tmp', '/run', '/etc', '/root', '/var/lib', '/usr', '/home'):
            if os.path.isdir(place):
                try:
                    open(os.path.join(place, 'file'), 'w')
                except OSError as error:
                    if error.errno in (errno.EROFS, errno.EACCES):
                        continue
                print(place)
        """,
    ) == ""  # fmt: skip


def test_tmp_is_small_and_in_memory(strict: Sandbox) -> None:
    assert printed(
        strict,
        """
        import os, tempfile
        (line,) = [line for line in open('/proc/mounts') if line.split()[1] == '/tmp']
        print(line.split()[0], {'nosuid', 'nodev', 'noexec'} <= set(line.split()[3].split(',')))
        print(tempfile.gettempdir())
        written = []
        try:
            for number in range(10):
                with open(f'/tmp/{number}', 'wb', buffering=0) as file:
                    written.append(file.write(bytes(250_000)))
        except OSError as error:
            print(error.strerror)
        print(sum(written) <= 1024**2)
        for number in range(len(written) + 1):
            os.remove(f'/tmp/{number}')
        """,
    ) == "tmpfs True\n/tmp\nNo space left on device\nTrue\n"  # fmt: skip


def test_no_file_is_larger_than_disk(strict: Sandbox) -> None:
    assert printed(
        strict,
        """
        import resource
        with open('large', 'wb', buffering=0) as file:
            try:
                for _ in range(20):
                    file.write(bytes(100_000))
            except OSError as error:
                print(error.strerror, file.tell())
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
        except ValueError as error:
            print('no')
        """,
    ) == "File too large 1048576\nno\n"  # fmt: skip
    # Its successors are held to the same.
    assert strict.execute("import os; os._exit(1)").status == "died"
    limit = printed(strict, "import resource; print(resource.getrlimit(resource.RLIMIT_FSIZE))")
    assert limit == "(1048576, 1048576)\n"


def test_strict_has_no_network_and_a_model_all_the_same(strict: Sandbox) -> None:
    assert strict.lm_route == "pipe"
    assert printed(
        strict,
        """
        import os, socket
        print(os.listdir('/sys/class/net'), llm_query('hello'))
        try:
            socket.create_connection(('1.1.1.1', 53), 5)
        except OSError:
            print('refused')
        """,
    ) == "['lo'] HELLO\nrefused\n"  # fmt: skip


def test_strict_loses_no_variable(strict: Sandbox) -> None:
    printed(strict, "kept = {'a': 1}\nlong = 'x' * 300_000")
    assert strict.execute("import os; os._exit(1)").status == "died"
    assert printed(strict, "print(kept, len(long))") == "{'a': 1} 300000\n"


# What a user asks for


def test_mounts_and_a_user(engine: Engine, make_box: MakeBox, tmp_path: Path) -> None:
    for name in ("data", "results"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / "results").chmod(0o777)
    for folder in (tmp_path, *tmp_path.parents[:2]):  # pytest makes its own for its user only
        folder.chmod(folder.stat().st_mode | 0o055)
    (tmp_path / "link").symlink_to("data")
    box = make_box(
        mounts=[f"{tmp_path}/link:/data", f"{tmp_path}/results:/srv/results:rw"],
        user=f"{SOMEBODY}:2345" if os.getuid() == 0 or engine.name != "docker" else None,
    )
    assert printed(
        box,
        """
        import os
        print(open('/data/file').read(), open('/srv/results/file').read())
        try:
            open('/data/new', 'w')
        except OSError as error:
            print(error.strerror)
        open('/srv/results/new', 'w').write(f'{os.getuid()}')
        open('here', 'w').write('the workspace')
        """,
    ) == "data results\nRead-only file system\n"  # fmt: skip
    if box.options.user:
        assert printed(box, "print(os.getuid(), os.getgid())") == f"{SOMEBODY} 2345\n"
        assert (tmp_path / "results" / "new").read_text() == str(SOMEBODY)
    assert box.execute("kept = 1\nos._exit(1)").status == "died"
    assert printed(box, "print(open('here').read())") == "the workspace\n"
    sources = {m["Destination"]: m["Source"] for m in inspect(engine, box)["Mounts"]}
    assert sources["/data"] == str(tmp_path / "data")


def test_a_user_who_cannot_write_to_the_workspace(engine: Engine, make_box: MakeBox) -> None:
    if os.getuid() == 0 or engine.name != "docker":
        pytest.skip("here any user can")
    with pytest.raises(UnsupportedByEngineError, match="cannot write to the workspace"):
        make_box(user=str(os.getuid() + 1))


def test_gpus(make_box: MakeBox) -> None:
    try:
        box = make_box(gpus="all")
    except UnsupportedByEngineError as error:
        assert "GPU" in str(error)  # noqa: PT017 - this machine has none
        return
    assert "nvidia" in printed(box, "import os; print(os.listdir('/dev'))")


# An internal network

HOST = """
import sys
from rlm_containers import Sandbox

runtime, image = sys.argv[1:]
box = Sandbox(image, runtime=runtime, network="internal", lm=str.upper).start()
print(box.execute("print(llm_query('ready'))").stdout, end="", flush=True)
sys.stdin.read()
"""


def networks(engine: Engine) -> list[str]:
    """The names of this project's networks on the engine."""
    style = "--format={{.Name}}"
    found = engine.run("network", "ls", f"--filter=label={LABEL}", style)
    return sorted(name for name in found.stdout.split() if "internal" in name)


def ours(engine: Engine, pid: int) -> list[str]:
    """Those of one process: others may be at work on the same engine."""
    return [name for name in networks(engine) if f"-{pid}-" in name]


def test_an_internal_network(
    engine: Engine, make_box: MakeBox, caplog: pytest.LogCaptureFixture
) -> None:
    try:
        box = make_box(network="internal", lm=str.upper)
    except UnsupportedByEngineError as error:
        assert 'network="none"' in error.remedy  # noqa: PT017
        assert engine.name != "docker"
        assert not ours(engine, os.getpid())
        return
    (network,) = ours(engine, os.getpid())
    other = make_box(network="internal", lm=str.lower)
    assert ours(engine, os.getpid()) == [network]
    assert (box.lm_route, other.lm_route) == ("http", "http")
    assert printed(box, "print(llm_query('Hello'))") == "HELLO\n"
    assert printed(other, "print(llm_query('Hello'))") == "hello\n"
    address = printed(
        other,
        """
        import socket
        server = socket.create_server(('0.0.0.0', 5000))
        print(socket.gethostbyname(socket.gethostname()))
        """,
    ).strip()
    # Neither what is outside nor the neighbour can be reached, nor are names asked for outside.
    targets = [("1.1.1.1", 53), ("192.0.2.77", 80), ("name.example.com", 80)]
    if engine.name == "docker":
        targets.append((address, 5000))
    assert printed(
        box,
        f"""
        import socket
        for target in {targets!r}:
            try:
                socket.create_connection(target, 1)
                print(target)
            except OSError:
                pass
        """,
    ) == ""  # fmt: skip
    with subprocess.Popen(
        (sys.executable, "-c", HOST, engine.runtime, engine.image()),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "READY\n"
        (theirs,) = ours(engine, process.pid)
        assert theirs != network
        process.kill()
    assert eventually(lambda: not ours(engine, process.pid), 15), networks(engine)
    box.close()
    assert ours(engine, os.getpid()) == [network]
    assert printed(other, "print(llm_query('Still There'))") == "still there\n"
    other.close()
    assert not ours(engine, os.getpid())
    assert not warnings_of(caplog)
