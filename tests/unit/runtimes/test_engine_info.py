"""Reading `info`: versions, limits, users, and how a container reaches this host."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from runtimes import EngineInfo, HostRoute
from runtimes.command import EngineCommand
from runtimes.docker import DockerRuntime
from runtimes.errors import UnsupportedByEngineError
from tests.unit.engines import (
    docker,
    docker_info,
    fake_docker,
    fake_podman,
    podman,
    podman_info,
    rootless,
)

pytestmark = pytest.mark.usefixtures("no_settings")


def test_docker_info(tmp_path: Path) -> None:
    assert docker(fake_docker(tmp_path)).info() == EngineInfo(
        engine="docker",
        version=(20, 10, 24),
        rootless=False,
        cgroup_version=2,
        selinux=False,
        remote=False,
        has_init=True,
        memory=16 * 1024**3,
        cpus=8,
        unenforced={},
        no_disk_limit="its storage driver overlay2 can only on xfs, and is on extfs",
    )


@pytest.mark.parametrize(
    ("said", "attribute", "value"),
    [
        ({"ServerVersion": "28.2.2"}, "version", (28, 2, 2)),
        ({"SecurityOptions": ["name=seccomp", "name=rootless"]}, "rootless", True),
        ({"SecurityOptions": ["name=selinux"]}, "selinux", True),
        ({"SecurityOptions": None}, "rootless", False),
        ({"SecurityOptions": None}, "selinux", False),
        ({"CgroupVersion": "1"}, "cgroup_version", 1),
        ({"CgroupVersion": ""}, "cgroup_version", 1),
        ({"InitBinary": ""}, "has_init", False),
        ({"ClientInfo": None}, "remote", False),
    ],
)
def test_docker_info_field_by_field(
    tmp_path: Path, said: dict[str, Any], attribute: str, value: object
) -> None:
    info = docker(fake_docker(tmp_path, docker_info(**said))).info()
    assert getattr(info, attribute) == value


@pytest.mark.parametrize(
    ("host", "remote"),
    [
        ("unix:///var/run/docker.sock", False),
        ("", False),
        ("tcp://10.0.0.5:2375", True),
        ("tcp://127.0.0.1:2375", True),  # it may be a tunnel
        ("ssh://user@host", True),
    ],
)
def test_docker_host_may_be_remote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, remote: bool
) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    assert docker(fake_docker(tmp_path)).info().remote is remote


@pytest.mark.parametrize(
    ("endpoint", "remote"),
    [("unix:///home/me/.docker/run/docker.sock\n", False), ("ssh://user@host\n", True)],
)
def test_docker_context_may_be_remote(tmp_path: Path, endpoint: str, remote: bool) -> None:
    cli = fake_docker(tmp_path, docker_info(ClientInfo={"Context": "mine"}))
    cli.answer("context inspect", endpoint)
    assert docker(cli).info().remote is remote
    assert cli.called("context", "inspect", "mine")


@pytest.mark.parametrize(
    "pools",
    [
        [{"Subnet": "fd00::/64"}, {"Subnet": "10.1.0.0/16", "Gateway": "10.1.0.1"}],
        [{"Subnet": "fd00::/64", "Gateway": "fd00::1"}, {"Gateway": "10.1.0.1"}],
        [{"Subnet": "fd00::/64"}, {"Subnet": "10.1.0.0/16"}],  # no gateway is named
    ],
)
def test_docker_route_is_its_bridge_over_ipv4(tmp_path: Path, pools: list[dict[str, str]]) -> None:
    cli = fake_docker(tmp_path)
    cli.answer("network inspect", pools)
    assert docker(cli).host_route() == HostRoute(bind="10.1.0.1", address="10.1.0.1")


@pytest.mark.parametrize("exit_code", [0, 1])  # with 1, there is no such network
@pytest.mark.parametrize(
    "pools", ["null", "[]", '[{"Subnet": "10.1.0.0/32"}]', '[{"Subnet": "no"}]', "[null]", "hm"]
)
def test_docker_without_a_gateway_has_no_route(tmp_path: Path, pools: str, exit_code: int) -> None:
    cli = fake_docker(tmp_path)
    cli.answer("network inspect", pools, exit_code=exit_code)
    assert docker(cli).host_route() is None


def test_docker_desktop_resolves_the_host_itself(tmp_path: Path) -> None:
    desktop = docker(fake_docker(tmp_path, docker_info(OperatingSystem="Docker Desktop")))
    assert desktop.host_route() == HostRoute(bind="127.0.0.1", address=None)


@pytest.mark.parametrize("selinux", [False, True])
def test_a_remote_docker_is_not_made_to_make_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selinux: bool
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "ssh://lab")
    options = {"SecurityOptions": ["name=selinux"]} if selinux else {}
    engine = docker(fake_docker(tmp_path, docker_info(**options)))
    assert engine.info().selinux is selinux
    assert engine.shares_files is (False if selinux else None)


@pytest.mark.parametrize(
    "arguments", [("--host", "tcp://lab:2376"), ("--host=tcp:lab",), ("-H", "ssh://lab")]
)
def test_an_argument_may_name_a_remote_docker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///here")
    cli = fake_docker(tmp_path)
    cli.answer(arguments[0], docker_info())
    engine = DockerRuntime(EngineCommand((str(cli.path), *arguments)))
    assert engine.info().remote
    assert engine.host_route() is None


def test_remote_engines_have_no_route(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert podman(fake_podman(tmp_path, podman_info(serviceIsRemote=True))).host_route() is None
    monkeypatch.setenv("DOCKER_HOST", "ssh://user@host")
    assert docker(fake_docker(tmp_path)).host_route() is None


def test_rootless_docker_has_no_route(tmp_path: Path) -> None:
    info = docker_info(SecurityOptions=["name=rootless"])
    runtime = docker(fake_docker(tmp_path, info))
    assert runtime.host_route() is None
    assert runtime.workspace_user() == (0, 0)


def test_podman_info(tmp_path: Path) -> None:
    info = podman(fake_podman(tmp_path)).info()
    assert (info.engine, info.version, info.version_text) == ("podman", (4, 3, 1), "4.3.1")
    assert (info.rootless, info.cgroup_version, info.selinux, info.remote) == (
        False,
        2,
        False,
        False,
    )


@pytest.mark.parametrize(
    ("said", "attribute", "value"),
    [
        (rootless(), "rootless", True),
        ({"security": {"selinuxEnabled": True}}, "selinux", True),
        ({"security": None}, "rootless", False),
        ({"cgroupVersion": "v1"}, "cgroup_version", 1),
        ({"serviceIsRemote": True}, "remote", True),
        ({"serviceIsRemote": True}, "has_init", True),
    ],
)
def test_podman_info_field_by_field(
    tmp_path: Path, said: dict[str, Any], attribute: str, value: object
) -> None:
    info = podman(fake_podman(tmp_path, podman_info(**said))).info()
    assert getattr(info, attribute) == value


def test_podman_route_is_its_bridge(tmp_path: Path) -> None:
    route = podman(fake_podman(tmp_path)).host_route()
    assert route == HostRoute(bind="10.88.0.1", address="10.88.0.1")


def test_podman_route_with_cni_networks(tmp_path: Path) -> None:
    # As podman 4.0 prints them with CNI.
    cli = fake_podman(tmp_path)
    pools = [[{"subnet": "10.88.0.0/16", "gateway": "10.88.0.1"}]]
    plugins = [{"type": "bridge", "ipam": {"ranges": pools}}, {"type": "portmap"}]
    cli.answer("network inspect", [{"cniVersion": "0.4.0", "name": "podman", "plugins": plugins}])
    route = podman(cli).host_route()
    assert route is not None
    assert route.bind == "10.88.0.1"


@pytest.mark.parametrize("said", ["[]", "null", "[{}]", '[{"subnets": null}]', "hm"])
def test_podman_without_a_network_has_no_route(tmp_path: Path, said: str) -> None:
    cli = fake_podman(tmp_path)
    cli.answer("network inspect", said)
    assert podman(cli).host_route() is None


@pytest.mark.parametrize(
    ("version", "network", "address"),
    [
        ("4.3.1", None, "10.0.2.2"),
        ("4.9.4", None, "10.0.2.2"),
        ("5.0.3", "slirp4netns", "10.0.2.2"),
        ("5.2.3", "pasta", "169.254.1.3"),
        ("5.4.0", "pasta", "169.254.1.3"),
        ("5.0.0", None, "169.254.1.3"),
        ("6.0.0", None, "169.254.1.3"),
        ("4.9.4", "pasta", "169.254.1.3"),
    ],
)
def test_rootless_podman_route_is_loopback(
    tmp_path: Path, version: str, network: str | None, address: str
) -> None:
    said = rootless() if network is None else rootless(rootlessNetworkCmd=network)
    runtime = podman(fake_podman(tmp_path, podman_info(version, **said)))
    assert runtime.host_route() == HostRoute(bind="127.0.0.1", address=address)
    assert runtime.workspace_user() == (os.getuid(), os.getgid())


def test_the_workspace_never_belongs_to_root(tmp_path: Path) -> None:
    expected = (65534, 65534) if os.getuid() == 0 else (os.getuid(), os.getgid())
    assert docker(fake_docker(tmp_path)).workspace_user() == expected
    assert podman(fake_podman(tmp_path)).workspace_user() == expected


def test_info_and_route_are_asked_for_once(tmp_path: Path) -> None:
    cli = fake_docker(tmp_path)
    runtime = docker(cli)
    for _ in range(3):
        runtime.host_route()
        runtime.info()
    assert len(cli.called("network")) == 1
    assert len(cli.called("info")) == 1


# Limits

V1 = "it runs without root on cgroups v1"
ROOTLESS = ["name=seccomp", "name=rootless"]


@pytest.mark.parametrize(
    ("said", "unenforced"),
    [
        ({}, {}),
        ({"CgroupVersion": "1"}, {}),
        ({"CpuCfsQuota": False}, {"cpus": "the cgroup controller 'cpu' is missing in its kernel"}),
        (
            {"MemoryLimit": False, "SecurityOptions": ROOTLESS},
            {"memory": "the cgroup controller 'memory' is not delegated to its user"},
        ),
        (
            {"CgroupVersion": "1", "SecurityOptions": ROOTLESS},
            {"memory": V1, "cpus": V1, "pids": V1},
        ),
    ],
)
def test_limits_that_docker_cannot_enforce(
    tmp_path: Path, said: dict[str, Any], unenforced: dict[str, str]
) -> None:
    assert docker(fake_docker(tmp_path, docker_info(**said))).info().unenforced == unenforced


@pytest.mark.parametrize(
    ("said", "unenforced"),
    [
        ({}, {}),
        ({"cgroupVersion": "v1"}, {}),
        # What systemd delegates to users by default in many distributions.
        (
            rootless(cgroupControllers=["memory", "pids"]),
            {"cpus": "the cgroup controller 'cpu' is not delegated to its user"},
        ),
        (
            rootless(cgroupVersion="v1", cgroupControllers=[]),
            {"memory": V1, "cpus": V1, "pids": V1},
        ),
        (rootless(cgroupVersion="v1"), {"memory": V1, "cpus": V1, "pids": V1}),
        # A podman that does not list its controllers.
        ({"cgroupControllers": None}, {}),
    ],
)
def test_limits_that_podman_cannot_enforce(
    tmp_path: Path, said: dict[str, Any], unenforced: dict[str, str]
) -> None:
    assert podman(fake_podman(tmp_path, podman_info(**said))).info().unenforced == unenforced


@pytest.mark.parametrize(
    ("driver", "backing", "can"),
    [
        ("overlay2", "xfs", True),
        ("overlay2", "extfs", False),
        ("btrfs", "", True),
        ("zfs", "", True),
        ("vfs", "", False),
        ("fuse-overlayfs", "", False),
        ("", "", False),
    ],
)
def test_storage_drivers_that_can_limit_a_disk(
    tmp_path: Path, driver: str, backing: str, can: bool
) -> None:
    said = docker_info(Driver=driver, DriverStatus=[["Backing Filesystem", backing]])
    info = docker(fake_docker(tmp_path, said)).info()
    assert (info.no_disk_limit == "") is can
    store = {"graphDriverName": driver, "graphStatus": {"Backing Filesystem": backing}}
    (tmp_path / "podman-too").mkdir()
    told = {**podman_info(), "store": store}
    info = podman(fake_podman(tmp_path / "podman-too", told)).info()
    assert (info.no_disk_limit == "") is can


def test_rootless_podman_cannot_limit_a_disk(tmp_path: Path) -> None:
    said = podman_info(**rootless())
    said["store"] = {"graphDriverName": "btrfs"}
    assert "without root" in podman(fake_podman(tmp_path, said)).info().no_disk_limit


def test_unknown_memory_and_cpus(tmp_path: Path) -> None:
    info = docker(
        fake_docker(tmp_path, docker_info(MemTotal=0, NCPU=None, DriverStatus=None))
    ).info()
    assert (info.memory, info.cpus) == (None, None)


# Users


def test_workspace_user_of_rootful_engines(tmp_path: Path) -> None:
    for runtime in (docker(fake_docker(tmp_path)), podman(fake_podman(tmp_path))):
        assert runtime.workspace_user((os.getuid() or 1234, 7)) == (os.getuid() or 1234, 7)
        if os.getuid() != 0:
            with pytest.raises(UnsupportedByEngineError, match="belongs to this process's user"):
                runtime.workspace_user((os.getuid() + 1, 7))


def test_workspace_user_of_rootless_engines(tmp_path: Path) -> None:
    caller = (os.getuid(), os.getgid())
    new = podman(fake_podman(tmp_path, podman_info("4.3.0", **rootless())))
    assert new.workspace_user((1234, 5678)) == caller
    (tmp_path / "old").mkdir()
    old = podman(fake_podman(tmp_path / "old", podman_info("4.2.1", **rootless())))
    assert old.workspace_user((0, 0)) == caller
    with pytest.raises(UnsupportedByEngineError, match=r"4\.2\.1 the user 1234 cannot write"):
        old.workspace_user((1234, 5678))
    other = docker(fake_docker(tmp_path, docker_info(SecurityOptions=ROOTLESS)))
    assert other.workspace_user((0, 5)) == (0, 0)
    with pytest.raises(UnsupportedByEngineError, match="the user 1234 cannot write"):
        other.workspace_user((1234, 5678))


# Out of memory


def test_docker_reports_out_of_memory_after_removal(tmp_path: Path) -> None:
    cli = fake_docker(tmp_path)
    runtime = docker(cli)
    cli.answer("events", "")
    assert runtime.ran_out_of_memory("rlm-x", 1000.5, None) is False
    (call,) = cli.called("events")
    assert {"--since=1000.500000000", "--filter=container=rlm-x", "--filter=event=oom"} <= set(call)
    cli.answer("events", "0123456789ab\n")
    assert runtime.ran_out_of_memory("rlm-x", 1000.5, None) is True
    cli.answer("events", "", stderr="no engine", exit_code=1)
    assert runtime.ran_out_of_memory("rlm-x", 1000.5, None) is None


def test_podman_reports_out_of_memory_by_a_file(tmp_path: Path) -> None:
    runtime = podman(fake_podman(tmp_path))
    place = tmp_path / "workspace"
    place.mkdir()
    assert runtime.ran_out_of_memory("rlm-x", 1000.0, None) is None
    assert runtime.ran_out_of_memory("rlm-x", 1000.0, place) is False
    (place / "oom").touch()
    os.utime(place / "oom", (2000, 2000))
    assert runtime.ran_out_of_memory("rlm-x", 1000.0, place) is True
    # The monitor does not touch an existing file, so an old one tells nothing.
    assert runtime.ran_out_of_memory("rlm-x", 3000.0, place) is None
    (place / "oom").unlink()
    (place / "oom").symlink_to("/nowhere")
    assert runtime.ran_out_of_memory("rlm-x", 1000.0, place) is True
