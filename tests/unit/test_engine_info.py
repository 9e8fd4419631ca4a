"""What engines say of themselves, and how a container on them reaches this host."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from runtimes import EngineInfo, HostRoute
from runtimes.command import EngineCommand
from runtimes.docker import DockerRuntime
from runtimes.podman import PodmanRuntime
from tests.unit.engines import (
    FakeCli,
    docker_info,
    fake_docker,
    fake_podman,
    podman_info,
    rootless,
)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of this machine's own engines."""
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "CONTAINER_HOST"):
        monkeypatch.delenv(name, raising=False)


def docker(cli: FakeCli) -> DockerRuntime:
    return DockerRuntime(EngineCommand((str(cli.path),)))


def podman(cli: FakeCli) -> PodmanRuntime:
    return PodmanRuntime(EngineCommand((str(cli.path),)))


def test_an_ordinary_docker(tmp_path: Path) -> None:
    assert docker(fake_docker(tmp_path)).info() == EngineInfo(
        engine="docker",
        version=(20, 10, 24),
        rootless=False,
        cgroup_version=2,
        selinux=False,
        remote=False,
        has_init=True,
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
def test_what_docker_says(
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
        ("tcp://127.0.0.1:2375", True),  # may be a tunnel
        ("ssh://user@host", True),
    ],
)
def test_a_docker_host_elsewhere_is_remote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, remote: bool
) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    assert docker(fake_docker(tmp_path)).info().remote is remote


@pytest.mark.parametrize(
    ("endpoint", "remote"),
    [("unix:///home/me/.docker/run/docker.sock\n", False), ("ssh://user@host\n", True)],
)
def test_a_context_elsewhere_is_remote(tmp_path: Path, endpoint: str, remote: bool) -> None:
    cli = fake_docker(tmp_path, docker_info(ClientInfo={"Context": "mine"}))
    cli.answer("context inspect", endpoint)
    assert docker(cli).info().remote is remote
    assert cli.called("context", "inspect", "mine")


def test_docker_is_reached_at_its_bridge(tmp_path: Path) -> None:
    route = docker(fake_docker(tmp_path)).host_route()
    assert route == HostRoute(bind="172.17.0.1", address="172.17.0.1")


@pytest.mark.parametrize(
    "pools",
    [
        [{"Subnet": "fd00::/64"}, {"Subnet": "10.1.0.0/16", "Gateway": "10.1.0.1"}],
        [{"Subnet": "fd00::/64", "Gateway": "fd00::1"}, {"Gateway": "10.1.0.1"}],
    ],
)
def test_docker_with_two_address_families(tmp_path: Path, pools: list[dict[str, str]]) -> None:
    cli = fake_docker(tmp_path)
    cli.answer("network inspect", pools)
    route = docker(cli).host_route()
    assert route == HostRoute(bind="10.1.0.1", address="10.1.0.1")


def test_docker_that_has_not_been_restarted_yet_does_not_name_its_gateway(tmp_path: Path) -> None:
    cli = fake_docker(tmp_path)
    cli.answer("network inspect", [{"Subnet": "fd00::/64"}, {"Subnet": "10.1.0.0/16"}])
    assert docker(cli).host_route() == HostRoute(bind="10.1.0.1", address="10.1.0.1")


@pytest.mark.parametrize(
    "pools", ["null", "[]", '[{"Subnet": "10.1.0.0/32"}]', '[{"Subnet": "no"}]', "[null]", "hm"]
)
def test_docker_without_a_gateway_has_no_route(tmp_path: Path, pools: str) -> None:
    cli = fake_docker(tmp_path)
    cli.answer("network inspect", pools)
    assert docker(cli).host_route() is None


def test_docker_without_a_bridge_has_no_route(tmp_path: Path) -> None:
    cli = fake_docker(tmp_path)
    cli.answer("network inspect", "[]", stderr="Error: No such network: bridge", exit_code=1)
    assert docker(cli).host_route() is None


def test_docker_desktop_knows_the_host_by_itself(tmp_path: Path) -> None:
    desktop = docker(fake_docker(tmp_path, docker_info(OperatingSystem="Docker Desktop")))
    assert desktop.host_route() == HostRoute(bind="127.0.0.1", address=None)


def test_no_route_to_a_host_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "ssh://user@host")
    assert docker(fake_docker(tmp_path)).host_route() is None


def test_rootless_docker_does_not_let_containers_to_the_host(tmp_path: Path) -> None:
    info = docker_info(SecurityOptions=["name=rootless"])
    runtime = docker(fake_docker(tmp_path, info))
    assert runtime.host_route() is None
    assert runtime.workspace_user() == (0, 0)


def test_an_ordinary_podman(tmp_path: Path) -> None:
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
def test_what_podman_says(
    tmp_path: Path, said: dict[str, Any], attribute: str, value: object
) -> None:
    info = podman(fake_podman(tmp_path, podman_info(**said))).info()
    assert getattr(info, attribute) == value


def test_podman_is_reached_at_its_bridge_while_a_container_runs(tmp_path: Path) -> None:
    route = podman(fake_podman(tmp_path)).host_route()
    assert route == HostRoute(bind="10.88.0.1", address="10.88.0.1", needs_container=True)


def test_podman_with_cni_networks(tmp_path: Path) -> None:
    # As podman 3 and, on CNI, 4.0 print them.
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


def test_podman_elsewhere_has_no_route(tmp_path: Path) -> None:
    assert podman(fake_podman(tmp_path, podman_info(serviceIsRemote=True))).host_route() is None


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
def test_rootless_podman_reaches_loopback(
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


def test_the_engine_is_asked_once_for_its_route(tmp_path: Path) -> None:
    cli = fake_docker(tmp_path)
    runtime = docker(cli)
    for _ in range(3):
        runtime.host_route()
        runtime.info()
    assert len(cli.called("network")) == 1
    assert len(cli.called("info")) == 1
