"""The network of sandboxes that reach only this host: made once, and removed once."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlm_containers import Sandbox
from rlm_containers.container.network import NetworkLease
from rlm_containers.errors import EngineCommandError, UnsupportedByEngineError
from runtimes import HostRoute
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
from tests.unit.guests import LocalRuntime

pytestmark = pytest.mark.usefixtures("no_settings")

Make = Callable[..., tuple[ContainerEngine, FakeCli]]

LABELS = {"io.github.rlm-containers.owner": "123"}


def with_networks(cli: FakeCli) -> FakeCli:
    """Make an engine that makes and removes networks."""
    cli.answer("network create", "0123456789\n")
    cli.answer("network rm", "gone\n")
    cli.answer("network inspect", [{"Subnet": "172.20.0.0/16", "Gateway": "172.20.0.1"}])
    return cli


def docker(directory: Path, **info: Any) -> tuple[ContainerEngine, FakeCli]:
    cli = with_networks(fake_docker(directory, docker_info(**info)))
    return DockerRuntime(EngineCommand((str(cli.path),))), cli


def podman(directory: Path, **host: Any) -> tuple[ContainerEngine, FakeCli]:
    cli = with_networks(fake_podman(directory, podman_info(**host)))
    return PodmanRuntime(EngineCommand((str(cli.path),))), cli


@pytest.mark.parametrize("make", [docker, podman])
def test_the_first_lease_makes_the_network_and_the_last_removes_it(
    tmp_path: Path, make: Make
) -> None:
    runtime, cli = make(tmp_path)
    first, second = NetworkLease(runtime), NetworkLease(runtime)
    network = first.acquire(LABELS)
    assert second.acquire(LABELS) is network
    (made,) = cli.called("network", "create")
    assert made[-1] == network.name
    assert {"--internal", "--label=io.github.rlm-containers.owner=123"} <= set(made)
    assert f"-{os.getpid()}-" in network.name
    first.release()
    first.release()  # once is enough
    assert not cli.called("network", "rm")
    second.release()
    assert cli.called("network", "rm") == [["network", "rm", network.name]]
    # The next lease makes it again.
    third = NetworkLease(runtime)
    third.acquire(LABELS)
    assert len(cli.called("network", "create")) == 2
    third.release()
    assert len(cli.called("network", "rm")) == 2


@pytest.mark.parametrize("make", [docker, podman])
def test_a_lease_that_was_never_acquired_removes_nothing(tmp_path: Path, make: Make) -> None:
    runtime, cli = make(tmp_path)
    NetworkLease(runtime).release()
    assert not cli.called("network")


def test_docker_keeps_its_containers_apart(tmp_path: Path) -> None:
    runtime, cli = docker(tmp_path)
    network = runtime.make_internal_network("rlm-net", LABELS)
    assert network.route == HostRoute(bind="172.20.0.1", address="172.20.0.1")
    (made,) = cli.called("network", "create")
    assert "--opt=com.docker.network.bridge.enable_icc=false" in made


def test_podman_is_told_an_address(tmp_path: Path) -> None:
    runtime, cli = podman(tmp_path)
    network = runtime.make_internal_network("rlm-net", LABELS)
    (made,) = cli.called("network", "create")
    (gateway,) = [word.removeprefix("--gateway=") for word in made if word.startswith("--gateway")]
    assert network.route == HostRoute(bind=gateway, address=gateway)
    assert f"--subnet={gateway.removesuffix('.1')}.0/24" in made
    assert "--disable-dns" in made


def test_podman_tries_another_subnet(tmp_path: Path) -> None:
    runtime, cli = podman(tmp_path)
    flag = tmp_path / "tried"
    used = "Error: subnet 10.1.2.0/24 is already used on the host or by another config"
    cli.script("network create", f"[ -e {flag} ] && exit 0; : >{flag}; echo '{used}' >&2; exit 125")
    network = runtime.make_internal_network("rlm-net", LABELS)
    calls = cli.called("network", "create")
    assert len(calls) == 2
    assert f"--gateway={network.route.bind}" in calls[1]
    cli.answer("network create", stderr=used, exit_code=125)
    with pytest.raises(EngineCommandError, match="already used"):
        runtime.make_internal_network("rlm-net", LABELS)


@pytest.mark.parametrize("make", [docker, podman])
def test_a_half_made_network_is_removed(tmp_path: Path, make: Make) -> None:
    runtime, cli = make(tmp_path)
    cli.answer("network create", stderr="Error: no pool left\n", exit_code=1)
    with pytest.raises(EngineCommandError, match="no pool left"):
        NetworkLease(runtime).acquire(LABELS)
    assert len(cli.called("network", "rm")) == 1
    cli.answer("network create", "0123\n")
    lease = NetworkLease(runtime)
    lease.acquire(LABELS)  # the failed one does not count as made
    assert len(cli.called("network", "create")) == 2
    lease.release()


@pytest.mark.parametrize("make", [docker, podman])
@pytest.mark.parametrize(
    "busy",
    [
        "Error response from daemon: error while removing network: network x has active endpoints",
        'Error: "x" has associated containers with it. Use -f to forcibly delete: network in use',
    ],
)
def test_removing_a_busy_network_is_tried_again(tmp_path: Path, make: Make, busy: str) -> None:
    runtime, cli = make(tmp_path)
    flag = tmp_path / "tried"
    cli.script("network rm", f"[ -e {flag} ] && exit 0; : >{flag}; echo '{busy}' >&2; exit 1")
    runtime.remove_network("x")
    assert len(cli.called("network", "rm")) == 2


@pytest.mark.parametrize("make", [docker, podman])
@pytest.mark.parametrize(
    "said",
    [
        "Error: No such network: x",
        "Error response from daemon: network x not found",
        "Error: unable to find network with name or ID x: network not found",
    ],
)
def test_removing_a_missing_network_is_no_error(tmp_path: Path, make: Make, said: str) -> None:
    runtime, cli = make(tmp_path)
    cli.answer("network rm", stderr=said, exit_code=1)
    runtime.remove_network("x")


def test_a_network_that_cannot_be_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runtime, cli = docker(tmp_path)
    lease = NetworkLease(runtime)
    network = lease.acquire(LABELS)
    cli.answer("network rm", stderr="Error: no\n", exit_code=1)
    with pytest.raises(EngineCommandError, match="could not remove the network") as caught:
        runtime.remove_network(network.name)
    assert f"network rm {network.name}" in caught.value.remedy
    lease.release()
    assert network.name in caplog.text


@pytest.mark.parametrize("make", [docker, podman])
def test_the_command_line_that_removes_container_and_network(tmp_path: Path, make: Make) -> None:
    runtime, cli = make(tmp_path)
    lease = NetworkLease(runtime)
    name = lease.acquire(LABELS).name
    command = lease.remove_command((*runtime.remove_command("rlm-x"), "it's"))
    subprocess.run(command, check=True, capture_output=True)
    (removed,) = cli.called("rm")
    assert removed[-2:] == ["rlm-x", "it's"]
    assert cli.called("network", "rm") == [["network", "rm", name]]
    lease.release()


@pytest.mark.parametrize(
    ("make", "info", "why"),
    [
        (docker, {"SecurityOptions": ["name=rootless"]}, "without root"),
        (docker, {"OperatingSystem": "Docker Desktop"}, "another machine"),
        (podman, rootless(), "without root"),
        (podman, {"serviceIsRemote": True}, "another machine"),
        (podman, {"networkBackend": "cni"}, "CNI"),
    ],
)
def test_engines_without_internal_networks(
    tmp_path: Path, make: Make, info: dict[str, Any], why: str
) -> None:
    runtime, cli = make(tmp_path, **info)
    for ask in (lambda: NetworkLease(runtime), runtime.check_internal_network):
        with pytest.raises(UnsupportedByEngineError, match=why) as caught:
            ask()
        assert 'network="none"' in caught.value.remedy
    with pytest.raises(UnsupportedByEngineError):
        runtime.make_internal_network("x", LABELS)
    assert not cli.called("network")


def test_a_third_partys_runtime_has_no_internal_network() -> None:
    with pytest.raises(UnsupportedByEngineError, match="local has no networks"):
        Sandbox(runtime=LocalRuntime(), network="internal").start()


def test_a_sandbox_that_fails_to_start_leaves_no_network(tmp_path: Path) -> None:
    _, cli = docker(tmp_path)
    cli.answer("run", stderr="docker: no.\n", exit_code=125)
    with pytest.raises(EngineCommandError):
        Sandbox(runtime=str(cli.path), network="internal").start()
    (made,) = cli.called("network", "create")
    assert cli.called("network", "rm") == [["network", "rm", made[-1]]]
    (run,) = cli.called("run")
    assert f"--network={made[-1]}" in run
