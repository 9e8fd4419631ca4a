"""The arguments of ``run``: hardening always, secrets never, and what each engine needs."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runtimes import ContainerSpec, GpuRequest, HostRoute, InternalNetwork, Mount, OwnDirectory
from runtimes.command import EngineCommand
from runtimes.docker import DockerRuntime
from runtimes.engine import ContainerEngine
from runtimes.podman import PodmanRuntime
from tests.unit.engines import (
    FakeCli,
    docker_info,
    fake_docker,
    fake_podman,
    podman_info,
    rootless,
)

pytestmark = pytest.mark.usefixtures("no_settings")

Make = Callable[..., tuple[ContainerEngine, FakeCli]]

NOBODY = "65534:65534" if os.getuid() == 0 else f"{os.getuid()}:{os.getgid()}"


def docker(directory: Path, **info: Any) -> tuple[ContainerEngine, FakeCli]:
    cli = fake_docker(directory, docker_info(**info))
    return DockerRuntime(EngineCommand((str(cli.path),))), cli


def podman(directory: Path, version: str = "4.3.1", **host: Any) -> tuple[ContainerEngine, FakeCli]:
    directory.mkdir(exist_ok=True)
    cli = fake_podman(directory, podman_info(version, **host))
    return PodmanRuntime(EngineCommand((str(cli.path),))), cli


def spec(directory: Path, **more: Any) -> ContainerSpec:
    return replace(
        ContainerSpec(
            image="python:3.11-slim",
            command=("python3", "-c", "print('-rm --privileged')\n"),
            name="rlm-test",
            labels={"io.github.rlm-containers.owner": "123"},
            mounts=(
                Mount(source=directory / "shared", target="/opt/x", shared=True),
                Mount(source=directory / "own", target="/workspace", read_only=False),
            ),
            env={"HOME": "/workspace"},
            workdir="/workspace",
            host_alias="host.docker.internal",
        ),
        **more,
    )


def arguments(engine: ContainerEngine, cli: FakeCli, wanted: ContainerSpec) -> list[str]:
    """Open a container, and return the arguments that the program got."""
    process = engine.open(wanted)
    process.wait(30)
    process.close()
    (call,) = cli.called("run")
    return call


@pytest.mark.parametrize("make", [docker, podman])
@pytest.mark.parametrize("network", ["bridge", "none"])
def test_every_container_is_hardened(tmp_path: Path, make: Make, network: str) -> None:
    call = arguments(*make(tmp_path), spec(tmp_path, network=network))
    image = call.index("python:3.11-slim")
    options = call[1:image]
    assert {
        "--interactive",
        "--rm",
        "--cap-drop=ALL",
        "--log-driver=none",
        "--security-opt=no-new-privileges",
        "--pull=never",
        "--name=rlm-test",
        "--workdir=/workspace",
        "--entrypoint=python3",
        "--label=io.github.rlm-containers.owner=123",
    } <= set(options)
    assert all(option.startswith("--") for option in options)
    assert not any("privileged" in o for o in options if o != "--security-opt=no-new-privileges")
    assert f"--user={NOBODY}" in options
    # What follows the image is no option of `run`.
    assert call[image + 1 :] == ["-c", "print('-rm --privileged')\n"]


@pytest.mark.parametrize(
    ("make", "info", "init", "given"),
    [
        (docker, {}, False, False),
        (docker, {"InitBinary": ""}, True, False),
        (podman, {}, False, False),
        (podman, {"serviceIsRemote": True}, True, True),
    ],
)
def test_init_where_the_engine_has_one(
    tmp_path: Path, make: Make, info: dict[str, Any], init: bool, given: bool
) -> None:
    call = arguments(*make(tmp_path, **info), spec(tmp_path, init=init))
    assert ("--init" in call) is given


@pytest.mark.parametrize("make", [docker, podman])
@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"memory": 10**9}, {"--memory=1000000000", "--memory-swap=1000000000"}),
        ({"pids": 100}, {"--pids-limit=100"}),
        ({"cpus": 0.5}, {"--cpus=0.500"}),
        ({"cpus": 2}, {"--cpus=2.000"}),
        ({"cpus": 0.0105}, {"--cpus=0.011"}),
        ({"disk": 10**9}, {"--storage-opt=size=1000000000"}),
    ],
)
def test_limits(tmp_path: Path, make: Make, limits: dict[str, Any], said: set[str]) -> None:
    assert said <= set(arguments(*make(tmp_path), spec(tmp_path, **limits)))


@pytest.mark.parametrize("make", [docker, podman])
def test_a_directory_of_its_own(tmp_path: Path, make: Make) -> None:
    own = OwnDirectory(target="/workspace", size=1024)
    call = arguments(*make(tmp_path), spec(tmp_path, own_directory=own, user="7:8"))
    user = "mode=0777,notmpcopyup" if make is podman else "mode=0700,uid=7,gid=8"
    assert f"--tmpfs=/workspace:rw,exec,nosuid,nodev,{user},size=1024" in call


@pytest.mark.parametrize("make", [docker, podman])
def test_a_volume_of_its_own(tmp_path: Path, make: Make) -> None:
    volume = OwnDirectory(target="/workspace", kind="volume")
    call = arguments(*make(tmp_path), spec(tmp_path, own_directory=volume))
    owned = ",U=true" if make is podman else ""
    assert f"--mount=type=volume,target=/workspace{owned}" in call


@pytest.mark.parametrize("make", [docker, podman])
def test_read_only_root_and_tmpfs(tmp_path: Path, make: Make) -> None:
    call = arguments(*make(tmp_path), spec(tmp_path, read_only=True, tmpfs={"/tmp": 1024}))
    tmpfs = "--tmpfs=/tmp:rw,noexec,nosuid,nodev,mode=1777,size=1024"
    assert {"--read-only", tmpfs + (",notmpcopyup" if make is podman else "")} <= set(call)
    # Unless told not to, podman adds unbounded ones.
    assert ("--read-only-tmpfs=false" in call) is (make is podman)


@pytest.mark.parametrize(
    ("gpus", "for_docker", "for_podman"),
    [
        (GpuRequest(), ["all"], ["all"]),
        (GpuRequest(count=2), ["2"], ["0", "1"]),
        (GpuRequest(ids=("1", "GPU-8f")), ['"device=1,GPU-8f"'], ["1", "GPU-8f"]),
    ],
)
def test_gpus(
    tmp_path: Path, gpus: GpuRequest, for_docker: list[str], for_podman: list[str]
) -> None:
    call = arguments(*docker(tmp_path), spec(tmp_path, gpus=gpus))
    assert [o for o in call if o.startswith("--gpus")] == [f"--gpus={name}" for name in for_docker]
    call = arguments(*podman(tmp_path), spec(tmp_path, gpus=gpus))
    devices = [f"--device=nvidia.com/gpu={name}" for name in for_podman]
    assert [option for option in call if option.startswith("--device")] == devices


@pytest.mark.parametrize("make", [docker, podman])
def test_no_limits(tmp_path: Path, make: Make) -> None:
    call = arguments(*make(tmp_path), spec(tmp_path))
    unasked = ("--memory", "--pids", "--cpus", "--storage", "--tmpfs", "--read-only", "--gpus")
    assert not [option for option in call if option.startswith((*unasked, "--device", "--dns"))]


@pytest.mark.parametrize("make", [docker, podman])
def test_mounts_without_selinux(tmp_path: Path, make: Make) -> None:
    call = arguments(*make(tmp_path), spec(tmp_path))
    mounts = [option for option in call if option.startswith(("--mount", "--volume"))]
    assert len(mounts) == 2
    shared, own = mounts
    assert f"{tmp_path}/shared" in shared
    assert "/opt/x" in shared
    assert shared.endswith(("readonly", "ro"))
    assert f"{tmp_path}/own" in own
    assert "readonly" not in own
    assert not own.endswith(":ro")


@pytest.mark.parametrize(
    ("make", "info"),
    [
        (docker, {"SecurityOptions": ["name=selinux"]}),
        (podman, {"security": {"selinuxEnabled": True}}),
    ],
)
def test_mounts_with_selinux(tmp_path: Path, make: Make, info: dict[str, Any]) -> None:
    call = arguments(*make(tmp_path, **info), spec(tmp_path))
    assert f"--volume={tmp_path}/shared:/opt/x:ro,z" in call
    assert f"--volume={tmp_path}/own:/workspace:rw,Z" in call


@pytest.mark.parametrize("make", [docker, podman])
def test_no_network(tmp_path: Path, make: Make) -> None:
    engine, cli = make(tmp_path)
    call = arguments(engine, cli, spec(tmp_path, network="none"))
    assert "--network=none" in call
    assert not [option for option in call if option.startswith("--add-host")]
    assert not cli.called("network")


@pytest.mark.parametrize(
    ("make", "address"), [(docker, "172.17.0.1"), (podman, "10.88.0.1")], ids=["docker", "podman"]
)
def test_the_host_alias(tmp_path: Path, make: Make, address: str) -> None:
    call = arguments(*make(tmp_path), spec(tmp_path))
    assert f"--add-host=host.docker.internal:{address}" in call
    assert not [option for option in call if option.startswith("--network")]


@pytest.mark.parametrize("make", [docker, podman])
def test_an_internal_network(tmp_path: Path, make: Make) -> None:
    route = HostRoute(bind="10.9.8.1", address="10.9.8.1")
    network = InternalNetwork(name="rlm-net", route=route)
    engine, cli = make(tmp_path)
    call = arguments(engine, cli, spec(tmp_path, network=network))
    assert [option for option in call if option.startswith("--net")] == ["--network=rlm-net"]
    assert "--add-host=host.docker.internal:10.9.8.1" in call
    # Docker's resolver would ask name servers outside.
    assert ("--dns=127.0.0.1" in call) is (make is docker)
    assert not cli.called("network")


@pytest.mark.parametrize(
    ("make", "info"),
    [(docker, {"OperatingSystem": "Docker Desktop"}), (podman, {"serviceIsRemote": True})],
)
def test_no_host_alias_without_a_route(tmp_path: Path, make: Make, info: dict[str, Any]) -> None:
    call = arguments(*make(tmp_path, **info), spec(tmp_path))
    assert not [option for option in call if option.startswith(("--add-host", "--network"))]


@pytest.mark.parametrize(
    ("version", "command", "network", "address"),
    [
        ("4.0.0", None, "slirp4netns:allow_host_loopback=true", "10.0.2.2"),
        ("4.3.1", None, "slirp4netns:allow_host_loopback=true", "10.0.2.2"),
        ("4.9.4", None, "slirp4netns:allow_host_loopback=true", "10.0.2.2"),
        ("5.2.3", "slirp4netns", "slirp4netns:allow_host_loopback=true", "10.0.2.2"),
        ("5.4.0", "pasta", "pasta:--map-host-loopback=169.254.1.3", "169.254.1.3"),
        ("6.0.0", None, "pasta:--map-host-loopback=169.254.1.3", "169.254.1.3"),
    ],
)
def test_rootless_podman_opens_the_way_to_loopback(
    tmp_path: Path, version: str, command: str | None, network: str, address: str
) -> None:
    said = rootless() if command is None else rootless(rootlessNetworkCmd=command)
    call = arguments(*podman(tmp_path, version, **said), spec(tmp_path))
    assert f"--network={network}" in call
    assert f"--add-host=host.docker.internal:{address}" in call


def test_rootless_podman_without_a_network(tmp_path: Path) -> None:
    call = arguments(*podman(tmp_path, **rootless()), spec(tmp_path, network="none"))
    assert [option for option in call if option.startswith("--network")] == ["--network=none"]


@pytest.mark.parametrize(
    ("make", "info", "user", "said"),
    [
        (docker, {}, "1234:5678", ["--user=1234:5678"]),
        (podman, {}, "1234:5678", ["--user=1234:5678"]),
        (docker, {"SecurityOptions": ["name=rootless"]}, None, ["--user=0:0"]),
        (
            podman,
            {"version": "4.3.0", **rootless()},
            None,
            ["--userns=keep-id:uid=65534,gid=65534", "--user=65534:65534"],
        ),
        (
            podman,
            rootless(),
            "1234:5678",
            ["--userns=keep-id:uid=1234,gid=5678", "--user=1234:5678"],
        ),
        # Root inside is the caller anyway.
        (podman, rootless(), "0:0", ["--user=0:0"]),
        (podman, {"version": "4.2.1", **rootless()}, None, []),
    ],
)
def test_users(
    tmp_path: Path, make: Make, info: dict[str, Any], user: str | None, said: list[str]
) -> None:
    call = arguments(*make(tmp_path, **info), spec(tmp_path, user=user))
    assert sorted(option for option in call if option.startswith("--user")) == sorted(said)


def test_rootless_podman_gets_one_network(tmp_path: Path) -> None:
    wanted = spec(tmp_path, extra_args=("--network=host",))
    call = arguments(*podman(tmp_path, **rootless()), wanted)
    assert [option for option in call if option.startswith("--net")] == ["--network=host"]


@pytest.mark.parametrize("make", [docker, podman])
def test_extra_arguments_come_last(tmp_path: Path, make: Make) -> None:
    own = ("--cpus=1", "--label", "a=b", "--cap-add=NET_RAW")
    call = arguments(*make(tmp_path), spec(tmp_path, extra_args=own))
    image = call.index("python:3.11-slim")
    assert tuple(call[image - len(own) : image]) == own


@pytest.mark.parametrize(
    ("source", "target"),
    [("relative", "/x"), ("/a", "x"), ("/a:b", "/x"), ("/a", "/x:ro"), ("/a,b", "/x")],
)
def test_mounts_that_no_argument_can_express(source: str, target: str) -> None:
    with pytest.raises(ValueError, match=r"absolute|colon|comma"):
        Mount(source=Path(source), target=target)
