"""Containers as a runtime opens, finds and removes them."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rlm_containers import Sandbox
from runtimes import ContainerProcess, ContainerSpec, Mount, Runtime, get_runtime
from tests.conftest import MakeBox
from tests.support import Engine, eventually, printed

LABEL = "io.github.rlm-containers.test"


@pytest.fixture
def runtime(engine: Engine) -> Runtime:
    """The runtime under test."""
    return get_runtime(engine.runtime)


Open = Callable[..., ContainerProcess]


@pytest.fixture
def open_one(engine: Engine, runtime: Runtime) -> Iterator[Open]:
    """Opens containers that run a command of busybox; they are gone at the end."""
    opened: list[ContainerProcess] = []

    def open_one(*command: str, **spec: object) -> ContainerProcess:
        made = ContainerSpec(
            image=engine.image_without_python(),
            command=command,
            name=f"rlm-test-{secrets.token_hex(6)}",
            labels={LABEL: str(os.getpid()), **spec.pop("labels", {})},  # type: ignore[dict-item]
            **spec,  # type: ignore[arg-type]
        )
        process = runtime.open(made)
        opened.append(process)
        return process

    yield open_one
    for process in opened:
        runtime.remove(process.name)
        process.close_stdin()
        process.wait(30)
        process.close()
    mine = f"--filter=label={LABEL}={os.getpid()}"
    assert eventually(lambda: not engine.run("ps", "-aq", mine).stdout)


def read_all(descriptor: int) -> bytes:
    """Everything until the other end is closed."""
    parts = []
    while part := os.read(descriptor, 65536):
        parts.append(part)
    return b"".join(parts)


def test_the_pipe_is_held(open_one: Open) -> None:
    process = open_one("cat")
    data = os.urandom(1_000_000)
    received = b""
    sent = 0
    while len(received) < len(data):
        sent += os.write(process.stdin, data[sent : sent + 4096])
        received += os.read(process.stdout, 65536)
    assert received == data
    process.close_stdin()
    assert read_all(process.stdout) == b""
    assert process.wait(30) == 0


def test_the_container_ends_with_its_pipe(engine: Engine, open_one: Open) -> None:
    process = open_one("cat")
    os.write(process.stdin, b"x")
    assert os.read(process.stdout, 1) == b"x"
    assert engine.run("inspect", process.name, check=False).returncode == 0
    process.close_stdin()
    process.close_stdin()
    assert process.wait(30) == 0
    assert engine.run("inspect", process.name, check=False).returncode != 0


def test_both_streams_and_the_status(open_one: Open) -> None:
    process = open_one("sh", "-c", "echo out; echo err >&2; exit 7")
    assert read_all(process.stdout) == b"out\n"
    assert read_all(process.stderr) == b"err\n"
    assert process.wait(30) == 7


def test_what_a_spec_says(open_one: Open, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "file").write_text("from the host")
    process = open_one(
        "sh",
        "-c",
        'pwd; cat /seen/file; echo; touch /seen/new && echo written; printf "%s\\n" "$A" "$0" "$@"',
        "quoted 'word'",
        "$HOME `id`",
        "two\nlines",
        mounts=(Mount(source=tmp_path, target="/seen"),),
        env={"A": "a b=c\n'd'"},
        workdir="/tmp",
        network="none",
    )
    assert read_all(process.stdout).decode() == (
        "/tmp\nfrom the host\na b=c\n'd'\nquoted 'word'\n$HOME `id`\ntwo\nlines\n"
    )
    assert b"Read-only file system" in read_all(process.stderr)


def test_a_writable_mount(runtime: Runtime, open_one: Open, tmp_path: Path) -> None:
    if os.getuid() == 0:
        os.chown(tmp_path, *runtime.workspace_user())
    process = open_one(
        "sh",
        "-c",
        "echo inside >/w/file",
        mounts=(Mount(source=tmp_path, target="/w", read_only=False),),
    )
    assert process.wait(30) == 0
    assert (tmp_path / "file").read_text() == "inside\n"
    # The caller can remove what the container has made.
    (tmp_path / "file").unlink()


def test_the_images_own_entrypoint_is_not_run(engine: Engine, open_one: Open) -> None:
    process = open_one("echo", "mine")
    assert read_all(process.stdout) == b"mine\n"


def test_a_client_that_is_killed(open_one: Open) -> None:
    process = open_one("cat")
    os.write(process.stdin, b"x")
    assert os.read(process.stdout, 1) == b"x"
    process.kill()
    assert process.wait(30) == -9
    process.kill()


def test_a_client_that_does_not_end_in_time(open_one: Open) -> None:
    process = open_one("sleep", "600")
    assert process.wait(0.5) is None


def test_remove(engine: Engine, runtime: Runtime, open_one: Open) -> None:
    # One that would not listen to a polite request.
    process = open_one("sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done")
    assert os.read(process.stdout, 3) == b"up\n"
    runtime.remove(process.name)
    assert engine.run("inspect", process.name, check=False).returncode != 0
    runtime.remove(process.name)
    runtime.remove(f"rlm-never-was-{secrets.token_hex(4)}")


def test_find_by_label(engine: Engine, runtime: Runtime, open_one: Open) -> None:
    mark = f"{LABEL}.{secrets.token_hex(4)}"
    one = open_one("cat", labels={mark: "a", "shared": "s=1,2"})
    two = open_one("cat", labels={mark: "b"})
    for process in (one, two):
        os.write(process.stdin, b"x")
        assert os.read(process.stdout, 1) == b"x"
    found = {record.name: record for record in runtime.find({mark: ""})}
    assert set(found) == {one.name, two.name}
    assert found[one.name].running
    assert found[one.name].labels[mark] == "a"
    assert found[one.name].image == engine.image_without_python()
    assert engine.run("inspect", "--format={{.Id}}", one.name).stdout.strip() == found[one.name].id
    assert [record.name for record in runtime.find({mark: "b"})] == [two.name]
    assert runtime.find({mark: "c"}) == []
    assert [record.name for record in runtime.find({mark: "", LABEL: str(os.getpid())})] != []
    assert runtime.find({mark: "a", LABEL: "no"}) == []


def test_find_those_that_do_not_run(engine: Engine, runtime: Runtime) -> None:
    mark = f"{LABEL}.{secrets.token_hex(4)}"
    name = f"rlm-test-{secrets.token_hex(6)}"
    engine.run(
        "create", "--name", name, "--label", f"{mark}=x", engine.image_without_python(), "sh"
    )
    try:
        (record,) = runtime.find({mark: ""})
        assert (record.name, record.running) == (name, False)
    finally:
        runtime.remove(name)
    assert runtime.find({mark: ""}) == []


def test_a_user_that_the_image_does_not_know_has_a_name(engine: Engine) -> None:
    with Sandbox(engine.image(), runtime=engine.runtime, user="12345") as box:
        # Which one depends: podman adds the user to the image's passwd.
        code = "import getpass, os; print(os.getuid(), bool(getpass.getuser()))"
        assert printed(box, code) == "12345 True\n"


def connections() -> int:
    """How many connections of guests, by the sockets in their workspaces, this process has."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        if link.is_socket():
            with socket.socket(fileno=os.dup(int(link.name))) as found:
                count += str(found.getsockname()).endswith("/.socket")
    return count


def test_guests_connect_by_a_socket(make_box: MakeBox) -> None:
    before = connections()
    box = make_box()
    assert connections() == before + 2  # one for frames, one is its standard error
    assert printed(box, "import os; print('.socket' in os.listdir('/workspace'))") == "False\n"
    box.close()
    assert connections() == before
