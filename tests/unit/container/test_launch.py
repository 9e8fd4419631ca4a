"""Starting a container: missing images, missing Pythons, and engines that fail.

The engines are programs that print what real ones print, see ``tests.unit.engines``.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlm_containers import Sandbox
from rlm_containers.container.bundle import TOO_OLD, Bundle
from rlm_containers.errors import (
    ContainersError,
    ContainerStartError,
    EngineCommandError,
    EngineUnavailableError,
    GuestPythonError,
    ImageNotFoundError,
    SandboxStartError,
    UnsupportedByEngineError,
)
from rlm_containers.guest import wire
from rlm_containers.state import workspaces_directory
from tests.support import TIMEOUT, eventually
from tests.unit.engines import FakeCli, fake_docker, fake_podman, podman_info
from tests.unit.guests import LocalRuntime, await_end

NO_PYTHON3 = [
    "docker: Error response from daemon: failed to create shim task: OCI runtime create failed: "
    'runc create failed: unable to start container process: exec: "python3": executable file not '
    "found in $PATH: unknown.\nSee 'docker run --help'.\n",
    "docker: Error response from daemon: OCI runtime create failed: container_linux.go:380: "
    'starting container process caused: exec: "python3": executable file not found in $PATH: '
    "unknown.\n",
    'Error: runc: runc create failed: unable to start container process: exec: "python3": '
    "executable file not found in $PATH: OCI runtime attempted to invoke a command that was not "
    "found\n",
    "Error: crun: executable file `python3` not found in $PATH: No such file or directory: OCI "
    "runtime attempted to invoke a command that was not found\n",
]

NO_IMAGE = "docker: Error response from daemon: No such image: python:3.11-slim.\n"


@pytest.fixture(params=["docker", "podman"])
def fake(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> FakeCli:
    """A fake docker, and a fake podman."""
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "CONTAINER_HOST"):
        monkeypatch.delenv(name, raising=False)
    return (fake_docker if request.param == "docker" else fake_podman)(tmp_path)


def start(cli: FakeCli, **options: object) -> None:
    """Start a sandbox that cannot come up, and check that nothing of it is left."""
    before = set(workspaces_directory().glob("*"))
    box = Sandbox(runtime=str(cli.path), **options)  # type: ignore[arg-type]
    try:
        box.start()
    finally:
        assert set(workspaces_directory().glob("*")) == before
        assert "closed" in repr(box)


@pytest.mark.parametrize("stderr", NO_PYTHON3)
def test_an_image_without_python(fake: FakeCli, stderr: str) -> None:
    fake.answer("run", stderr=stderr, exit_code=127)
    with pytest.raises(GuestPythonError, match="neither python3 nor python") as caught:
        start(fake)
    assert "Python 3." in caught.value.remedy
    assert caught.value.container
    entries = [o for call in fake.called("run") for o in call if o.startswith("--entrypoint")]
    assert entries == ["--entrypoint=python3", "--entrypoint=python"]
    assert not fake.called("pull")


def test_an_image_with_too_old_a_python(fake: FakeCli) -> None:
    stderr = "rlm-containers: this Python is too old: 3.6\n"
    fake.answer("run", stderr=stderr, exit_code=TOO_OLD)
    with pytest.raises(GuestPythonError, match=r"too old: .*3\.6") as caught:
        start(fake)
    assert "3.9 or later" in caught.value.remedy
    assert len(fake.called("run")) == 1


def test_a_missing_image_is_pulled(fake: FakeCli) -> None:
    fake.script(
        "run", f"[ -e {fake.path}.pulled ] || {{ echo '{NO_IMAGE}' >&2; exit 125; }}; exit 9"
    )
    fake.answer("image inspect", stderr="Error: No such image: x", exit_code=1)
    fake.script("pull", f": >{fake.path}.pulled; exit 0")
    with pytest.raises(ContainerStartError, match="status 9"):
        start(fake)
    assert len(fake.called("pull")) == 1
    assert len(fake.called("run")) == 2


def test_an_image_that_cannot_be_pulled(fake: FakeCli) -> None:
    fake.answer("run", stderr=NO_IMAGE, exit_code=125)
    fake.answer("image inspect", stderr="Error: No such image: x", exit_code=1)
    fake.answer("pull", stderr="Error: manifest unknown\n", exit_code=1)
    with pytest.raises(ImageNotFoundError, match="manifest unknown"):
        start(fake)
    assert len(fake.called("run")) == 1


def test_a_present_image_is_never_pulled(fake: FakeCli) -> None:
    fake.answer("run", stderr=NO_IMAGE, exit_code=125)
    fake.answer("image inspect", {"Id": "x"})
    with pytest.raises(ImageNotFoundError):
        start(fake)
    assert not fake.called("pull")


@pytest.mark.parametrize(
    ("stderr", "exit_code", "match"),
    [
        ("Error: OCI runtime error: cgroups in hybrid mode not supported\n", 126, "hybrid mode"),
        ("docker: Error response from daemon: Conflict.\n", 125, "Conflict"),
        ("", 1, "it said nothing"),
        ("", 0, "it said nothing"),
        ("Killed\n", 137, "Killed"),
    ],
)
def test_an_engine_that_refuses(fake: FakeCli, stderr: str, exit_code: int, match: str) -> None:
    fake.answer("run", stderr=stderr, exit_code=exit_code)
    with pytest.raises(ContainerStartError, match=match) as caught:
        start(fake)
    assert caught.value.exit_code == exit_code
    assert caught.value.container


BUSY = [
    "docker: Error response from daemon: failed to create shim task: OCI runtime create failed: "
    "runc did not terminate successfully: exit status 1: unknown.\n",
    "Error: beginning transaction: database is locked\n",
]


@pytest.mark.parametrize(("stderr", "exit_code"), [*((text, 125) for text in BUSY), ("", 1)])
def test_an_engine_that_is_busy_is_asked_again(fake: FakeCli, stderr: str, exit_code: int) -> None:
    fake.script(
        "run",
        f"[ -e {fake.path}.tried ] || "
        f"{{ : >{fake.path}.tried; echo '{stderr}' >&2; exit {exit_code}; }}\n"
        "echo other >&2; exit 9",
    )
    with pytest.raises(ContainerStartError, match="status 9"):
        start(fake)
    assert len(fake.called("run")) == 2


def test_an_engine_that_stays_busy_is_an_error(fake: FakeCli) -> None:
    fake.answer("run", stderr=BUSY[0], exit_code=125)
    with pytest.raises(ContainerStartError, match="runc did not terminate"):
        start(fake)
    assert len(fake.called("run")) == 3
    names = {o for call in fake.called("run") for o in call if o.startswith("--name")}
    assert len(names) == 1
    assert len(fake.called("rm")) >= 2  # a half-made container must not block the next try


def test_a_guest_that_is_killed_for_memory_at_its_start(tmp_path: Path) -> None:
    cli = fake_docker(tmp_path)
    cli.answer("run", exit_code=137)
    cli.answer("events", "0123456789ab\n")
    with pytest.raises(SandboxStartError, match=r"killed for its memory.*32 MiB") as caught:
        start(cli, memory="32m")
    assert "memory=" in caught.value.remedy
    cli.answer("events", "")  # somebody else has killed it
    with pytest.raises(ContainerStartError, match="status 137"):
        start(cli, memory="32m")


def test_the_client_runs_in_the_workspace_unless_arguments_have_relative_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Podman's monitor leaves a file where its client was called.
    cli = fake_podman(tmp_path)
    cli.script("run", f"pwd >>{tmp_path}/where; exit 9")
    here = tmp_path / "here"
    here.mkdir()
    (here / "vars.env").touch()
    monkeypatch.chdir(here)
    for arguments in ([], ["--cpus=1"], ["--env-file=vars.env"], ["--env-file", "vars.env"]):
        with pytest.raises(ContainerStartError):
            start(cli, run_args=arguments)
    places = [Path(line) for line in (tmp_path / "where").read_text().splitlines()]
    assert [place.parent == workspaces_directory() for place in places] == [
        True,
        True,
        False,
        False,
    ]
    assert places[2:] == [here, here]


def test_an_engine_with_files_of_its_own(fake: FakeCli) -> None:
    # The guest has made its file elsewhere: in the directory of that name on another machine.
    hello = '{"event": "hello", "python": "3.11.0", "pid": 1, "wrote": true}'
    frame = wire.encode(wire.EVENT, hello.encode())
    octal = "".join(f"\\{byte:03o}" for byte in frame)
    fake.script("run", f"printf '{octal}'; cat >/dev/null")
    with pytest.raises(UnsupportedByEngineError, match='remote.* workspace="shared"') as caught:
        start(fake, workspace="shared")
    assert "put_file" in caught.value.remedy
    # From now on this is known.
    with pytest.raises(UnsupportedByEngineError, match="mounts"):
        start(fake, mounts=["/etc:/host"])


@pytest.mark.parametrize(
    "refusal",
    [
        'docker: Error response from daemon: invalid mount config for type "bind": bind source '
        "path does not exist: {}.",
        "docker: Error response from daemon: Mounts denied: \nThe path {} is not shared from the "
        "host and is not known to Docker.",
        "Error: statfs {}: no such file or directory",
    ],
)
def test_an_engine_that_refuses_to_mount(fake: FakeCli, refusal: str, tmp_path: Path) -> None:
    place = tmp_path / "arguments"
    path = 'source=$(echo "$*" | sed -n "s/.*type=bind,source=//; s/,target=.workspace.*//p")'
    said = refusal.format("$source")
    fake.script("run", f'echo "@$*" >>{place}; {path}; printf \'%s\' "{said}" >&2; exit 125')
    with pytest.raises(ContainerStartError):
        start(fake)
    first, second = place.read_text().split("@run ")[1:]
    assert "type=bind" in first
    assert "--tmpfs=/workspace:rw,exec,nosuid,nodev,mode=" in second
    assert "type=bind" not in second


def test_a_remote_podman_without_an_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONTAINER_HOST", raising=False)
    cli = fake_podman(tmp_path, podman_info(serviceIsRemote=True))
    place = tmp_path / "arguments"
    said = "Error: container-init binary not found on the host: stat /usr/libexec/podman/catatonit"
    init = "case $* in *--init*) echo '" + said + "' >&2; exit 127 ;; esac"
    cli.script("run", f'echo "@$*" >>{place}; {init}; echo other >&2; exit 125')
    with pytest.raises(ContainerStartError, match="other"):
        start(cli)
    first, second = place.read_text().split("@run ")[1:]
    assert "--init" in first
    assert "--init" not in second


def test_an_image_that_prints_something_first(fake: FakeCli) -> None:
    fake.script("run", "echo 'Welcome!'; cat >/dev/null; exit 0")
    with pytest.raises(SandboxStartError, match="did not come up") as caught:
        start(fake)
    assert "print something" in caught.value.remedy


def test_an_engine_that_hangs(fake: FakeCli) -> None:
    fake.script("run", f"echo $$ >{fake.path}.pid; exec sleep 1000")
    fake.script("rm", f"kill -9 $(cat {fake.path}.pid); exit 0")
    with pytest.raises(SandboxStartError, match="not up within 3 s"):
        start(fake, start_timeout=3)
    assert fake.called("rm")


def test_an_engine_that_makes_the_container_too_late(fake: FakeCli) -> None:
    # It cannot remove a container that it is still making, and has made it when the client ends.
    fake.script("run", "cat >/dev/null; exit 125")
    fake.script(
        "rm",
        f"[ -e {fake.path}.twice ] && exit 0; mv {fake.path}.once {fake.path}.twice 2>/dev/null\n"
        f": >{fake.path}.once; echo 'Error: cannot remove it: container state improper' >&2; exit 2",
    )
    with pytest.raises(SandboxStartError, match="not up within 3 s"):
        start(fake, start_timeout=3)
    assert len(fake.called("rm")) == 3


def as_it_is(cli: FakeCli) -> None:
    pass


def without_image(cli: FakeCli) -> None:
    cli.answer("run", stderr=NO_IMAGE, exit_code=125)
    cli.answer("image inspect", stderr="Error: No such image: x", exit_code=1)
    cli.answer("pull")


def with_network(cli: FakeCli) -> None:
    cli.answer("network create")
    cli.answer("network rm")


@pytest.mark.parametrize("make", [fake_docker, fake_podman])
@pytest.mark.parametrize(
    ("prepare", "options"),
    [
        (as_it_is, {}),
        (with_network, {"network": "internal"}),
        (without_image, {}),
        (without_image, {"packages": ["six"]}),
    ],
    ids=["plain", "internal network", "missing image", "derived image"],
)
def test_an_engine_that_hangs_at_any_command(
    make: Callable[[Path], FakeCli],
    prepare: Callable[[FakeCli], None],
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("runtimes.engine.REMOVE_TIMEOUT", 0.5)
    monkeypatch.setattr("runtimes.images.TRANSFER_TIMEOUT", 0.5)
    monkeypatch.setattr("rlm_containers.container.launch._END_TIMEOUT", 0.1)
    threads = threading.active_count()
    hung: list[str] = []
    while True:
        (directory := tmp_path / str(len(hung))).mkdir()
        cli = make(directory)
        cli.answer("run", exit_code=1, stderr="Error: not today\n")
        prepare(cli)
        cli.hang(len(hung) + 1)
        with pytest.raises(ContainersError) as caught:
            start(cli, start_timeout=2, **options)
        if (pid := cli.hanging) is None:
            break
        command = " ".join(cli.calls[len(hung)][:2])
        hung.append(command)
        assert await_end(pid), command
        if not command.startswith(("rm", "network rm")):  # other errors are more important
            named = command.split()[0]
            assert named in caught.value.what, command
            assert caught.value.remedy, command
    assert {"info --format=json", "info --format={{json .}}"} & set(hung)
    assert len(hung) >= 3, hung
    assert eventually(lambda: threading.active_count() <= threads)


def test_the_image_is_not_a_part_of_the_time(fake: FakeCli) -> None:
    # The command takes longer than what is left once it is over.
    fake.script(
        "run", f"[ -e {fake.path}.pulled ] || {{ echo '{NO_IMAGE}' >&2; exit 125; }}; exit 9"
    )
    fake.answer("image inspect", stderr="Error: No such image: x", exit_code=1)
    fake.script("pull", f": >{fake.path}.pulled; sleep 2.2; exit 0")
    with pytest.raises(ContainerStartError, match="status 9"):
        start(fake, start_timeout=2)


def test_a_start_does_not_wait_for_another_whose_engine_hangs(fake: FakeCli) -> None:
    fake.script("info", "exec sleep 1000")
    errors: list[ContainersError] = []

    def work(seconds: float) -> None:
        with pytest.raises(ContainersError) as caught:
            start(fake, start_timeout=seconds)
        errors.append(caught.value)

    first = threading.Thread(target=work, args=(3,))
    first.start()
    assert eventually(lambda: fake.called("info"))
    work(0.5)
    (error,) = errors
    assert "start_timeout" in error.remedy
    assert "another thread" in error.what
    first.join(TIMEOUT)
    assert "info" in errors[1].what


def test_an_engine_that_floods(fake: FakeCli) -> None:
    fake.script("info", "cat /dev/zero")
    with pytest.raises(EngineCommandError, match="info .* printed more than 32 MiB") as caught:
        start(fake)
    assert "Run it by hand" in caught.value.remedy


def test_an_engine_that_is_gone(fake: FakeCli) -> None:
    fake.answer("info", stderr="Cannot connect\n", exit_code=1)
    with pytest.raises(EngineUnavailableError, match="Cannot connect"):
        start(fake)
    assert not fake.called("run")


def test_the_engines_arguments(fake: FakeCli) -> None:
    fake.answer("run", exit_code=9)
    with pytest.raises(ContainersError):
        start(
            fake,
            image="quay.io/a/b:1",
            env={"SECRET": "s3cret-value"},
            memory=10**9,
            pids=50,
            run_args=["--cpus=1"],
        )
    (call,) = fake.called("run")
    assert "--pull=never" in call
    assert {"--memory=1000000000", "--pids-limit=50", "--cpus=1"} <= set(call)
    assert call.index("--cpus=1") < call.index("quay.io/a/b:1")
    # Anybody on this machine can list the arguments of processes.
    assert not [argument for argument in call if "s3cret" in argument or "SECRET" in argument]


def test_no_secret_is_an_argument_of_anything(
    local: LocalRuntime, made_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Sandbox(runtime=local, lm=str.upper, env={"SECRET": "s3cret-value"}) as box:
        assert box.execute("import os; print(os.environ['SECRET'])").stdout == "s3cret-value\n"
        commands = Path("/proc").glob("[0-9]*/cmdline")
        for path in commands:
            try:
                assert b"s3cret-value" not in path.read_bytes()
            except OSError:
                pass  # it ended
        (spec,) = local.specs
        assert "s3cret-value" not in repr(spec)


def test_an_image_with_python_and_no_python3(local: LocalRuntime, made_bundle: Bundle) -> None:
    local.programs.append(("/bin/sh", "-c", 'printf "%s" "$0" >&2; exit 127', NO_PYTHON3[0]))
    with Sandbox(runtime=local) as box:
        assert box.execute("print(1)").stdout == "1\n"
        assert box.python_version == ".".join(map(str, sys.version_info[:3]))
    assert [spec.command[0] for spec in local.specs] == ["python3", "python"]


def test_ctrl_c_after_the_greeting_leaves_no_container(
    local: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rlm_containers.images.note_use", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Sandbox(runtime=local).start()
    (process,) = local.processes
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_a_third_partys_error_is_raised_as_it_is(local: LocalRuntime) -> None:
    local.programs.append(("/bin/sh", "-c", "echo 'no room' >&2; exit 5"))
    with pytest.raises(ContainerStartError, match="no room"):
        Sandbox(runtime=local).start()


@pytest.mark.parametrize("name", ["with,comma", "with:colon"])
def test_a_cache_path_that_cannot_be_mounted(
    local: LocalRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
    with pytest.raises(ContainersError, match=r"comma|colon") as caught:
        Sandbox(runtime=local).start()
    assert "XDG_CACHE_HOME" in str(caught.value)


def test_the_last_words_of_an_interpreter_that_does_not_come_up(
    local: LocalRuntime, made_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import os, sys\nsys.stderr.write('these are my last words\\n')\nos._exit(3)\n"
    (tmp_path / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ContainersError, match="these are my last words"):
        Sandbox(runtime=local).start()
