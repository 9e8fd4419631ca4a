"""Pods, with a kubectl whose cluster is a directory; tests/cluster has a real one."""

from __future__ import annotations

import json
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
from rlm_containers.errors import OptionError, SandboxLostError
from rlm_containers.options import SandboxOptions
from runtimes import ContainerSpec, GpuRequest, Placement, get_runtime
from runtimes.errors import (
    ContainersError,
    ContainerStartError,
    EngineCommandError,
    EngineNotFoundError,
    EngineUnavailableError,
    ImageNotFoundError,
    UnsupportedByEngineError,
)
from runtimes.pods import job
from tests.support import eventually, printed, processes

_KUBECTL = Path(__file__).parent / "kubectl.py"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a kubectl in it."""
    directory = tmp_path_factory.mktemp("bin")
    kubectl = directory / "kubectl"
    kubectl.write_text(f"#!{sys.executable} -IS\n" + _KUBECTL.read_text())
    kubectl.chmod(0o755)
    return directory


@pytest.fixture
def cluster(
    tmp_path: Path, program: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    monkeypatch.setenv("CLUSTER", str(tmp_path))
    monkeypatch.setenv("PATH", f"{program}{os.pathsep}{os.environ['PATH']}")
    yield tmp_path
    assert not list(tmp_path.glob("*.json")), "a job is left"
    assert eventually(lambda: not processes(str(tmp_path))), "a pod is left"


def kill_client(cluster: Path) -> None:
    """Kill the kubectl that holds the pod."""
    os.kill(int((cluster / "clients").read_text().split()[-1]), signal.SIGKILL)


def clients(cluster: Path) -> int:
    return len((cluster / "clients").read_text().split())


def test_a_killed_client_costs_nothing(cluster: Path) -> None:
    with Sandbox(runtime="kubernetes", lm=lambda prompt: f"answer to {prompt}") as box:
        printed(box, "x = 1")
        for number in range(2, 4):
            kill_client(cluster)
            assert printed(box, "x += 1; print(x, llm_query('it'))") == f"{number} answer to it\n"
        text = os.urandom(2_000_000).hex()
        box.load("context", text)
        kill_client(cluster)
        assert printed(box, "print(len(context), x)") == "4000000 3\n"
        assert clients(cluster) == 4
        # The pod's own variables are none of the cells'.
        code = "import os; print([name for name in os.environ if 'KUBERNETES' in name])"
        assert printed(box, code) == "[]\n"
        assert [record.name for record in get_runtime("kubernetes").find({})] == [box.name]


def proxies(program: Path) -> list[int]:
    return [pid for pid, words in processes(f"{program}/kubectl") if " proxy " in words]


def test_many_pods_share_one_kubectl(
    cluster: Path, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtimes.kubernetes._MOST_CLIENTS", 0)
    with Sandbox(runtime="kubernetes", lm=lambda prompt: f"answer to {prompt}") as box:
        printed(box, "x = 1")
        text = os.urandom(2_000_000).hex()
        box.load("context", text)
        with Sandbox(runtime="kubernetes") as other:
            assert printed(other, "print(2)") == "2\n"
        # It is killed, and another one takes its place.
        (proxy,) = proxies(program)
        os.kill(proxy, signal.SIGKILL)
        assert printed(box, "x += 1; print(x, len(context), llm_query('it'))") == (
            "2 4000000 answer to it\n"
        )
        assert not (cluster / "clients").exists()
        assert len((cluster / "sockets").read_text().split()) == 3
    assert eventually(lambda: not proxies(program))


# Holds its pod by WebSocket until it is killed.
_HOST = """
import runtimes.kubernetes
runtimes.kubernetes._MOST_CLIENTS = 0
from rlm_containers import Sandbox
box = Sandbox(runtime="kubernetes").start()
box.execute("x = 1")
print("ready", flush=True)
input()
"""


def test_the_shared_kubectl_of_a_host_that_is_killed(cluster: Path, program: Path) -> None:
    with subprocess.Popen(
        (sys.executable, "-c", _HOST), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as host:
        assert host.stdout is not None
        assert host.stdout.readline() == b"ready\n"
        (proxy,) = proxies(program)
        words = Path(f"/proc/{proxy}/cmdline").read_text().split("\0")
        (path,) = (word.partition("=")[2] for word in words if word.startswith("--unix-socket="))
        assert Path(path).exists()
        host.kill()
    assert eventually(lambda: not proxies(program))
    assert eventually(lambda: not Path(path).parent.exists())
    assert eventually(lambda: not list(cluster.glob("*.json")))


def test_a_pod_that_is_removed_is_lost(cluster: Path) -> None:
    with Sandbox(runtime="kubernetes") as box:
        printed(box, "x = 1")
        pod = cluster / f"{box.name}.pid"
        (cluster / f"{box.name}.json").unlink()
        os.kill(int(pod.read_text()), signal.SIGKILL)
        with pytest.raises(SandboxLostError, match="somebody has removed the pod"):
            for _ in range(3):
                box.execute("x")


@pytest.mark.parametrize(
    ("state", "kind", "says"),
    [
        (
            {"waiting": {"reason": "ErrImagePull", "message": "denied"}},
            ImageNotFoundError,
            "No node could pull .* ErrImagePull: denied .*pull_secrets",
        ),
        (
            {"terminated": {"reason": "OOMKilled", "exitCode": 137}},
            ContainersError,
            "memory",
        ),
        (
            {"terminated": {"reason": "Error", "exitCode": 77, "message": "it reaches 10.0.0.1"}},
            UnsupportedByEngineError,
            'network="none" does not hold .* it reaches 10.0.0.1.* NetworkPolicy',
        ),
        (
            {"waiting": {"reason": "CreateContainerConfigError", "message": "no secret"}},
            ContainerStartError,
            "CreateContainerConfigError: no secret",
        ),
    ],
)
def test_pods_that_do_not_start(
    cluster: Path, state: dict[str, Any], kind: type[Exception], says: str
) -> None:
    (cluster / "state").write_text(json.dumps(state))
    with pytest.raises(kind, match=says):
        Sandbox(runtime="kubernetes").start()


def test_a_client_that_floods(cluster: Path) -> None:
    (cluster / "flood").touch()
    with pytest.raises(ContainersError, match="printed an object of more than"):
        Sandbox(runtime="kubernetes").start()


def test_a_pod_that_is_late_says_what_it_waits_for(cluster: Path) -> None:
    state = {"waiting": {"reason": "ContainerCreating", "message": "no volume yet"}}
    (cluster / "state").write_text(json.dumps(state))
    with pytest.raises(ContainerStartError, match="ContainerCreating: no volume yet"):
        Sandbox(runtime="kubernetes", start_timeout=6).start()


@pytest.mark.parametrize(
    ("said", "kind", "remedy"),
    [
        (
            "The connection to the server 10.0.0.1:6443 was refused - did you specify the right "
            "host or port?",
            EngineUnavailableError,
            "KUBECONFIG",
        ),
        ("error: You must be logged in to the server (Unauthorized)", EngineCommandError, "Log in"),
        (
            'Error from server (Forbidden): jobs.batch is forbidden: User "me" cannot create',
            EngineCommandError,
            "kubernetes.md has the role",
        ),
        (
            'Error from server (NotFound): namespaces "lab" not found',
            EngineCommandError,
            "--namespace",
        ),
    ],
)
def test_clusters_that_refuse(cluster: Path, said: str, kind: type[Exception], remedy: str) -> None:
    get_runtime("kubernetes")  # which has answered once
    (cluster / "refuse").write_text(said)
    runtime = get_runtime("kubernetes")
    with pytest.raises(kind, match=remedy):
        runtime.open(ContainerSpec(image="python", command=("python3",), name="rlm-test"))


def test_no_kubectl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineNotFoundError, match="kubectl"):
        get_runtime("kubernetes")


def test_doctor_names_what_is_not_allowed(cluster: Path) -> None:
    (cluster / "deny").touch()
    (report,) = diagnose(["kubernetes"]).engines
    check = report.checks[-1]
    assert (check.name, check.status) == ("permissions", "failed")
    assert "create jobs" in check.detail
    assert "create pods/exec" in check.detail


def described(**options: Any) -> dict[str, Any]:
    """The specification of a container's pod."""
    placement = options.pop("placement", Placement())
    spec = ContainerSpec(image="python", command=("python3", "-c", "x"), name="rlm-x", **options)
    made: dict[str, Any] = job(spec, placement)["spec"]["template"]["spec"]
    return made


def test_a_pod_has_no_more_than_it_needs() -> None:
    pod = described(labels={"owner": "me/1"}, memory=2**30, cpus=0.5, read_only=True)
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert container["resources"] == {
        "limits": {"memory": str(2**30), "cpu": "0.500"},
        "requests": {"memory": str(2**30), "cpu": "0.100"},
    }
    assert container["args"][-3:] == ["python3", "-c", "x"]


def test_placement() -> None:
    options = SandboxOptions(
        placement={
            "node_selector": {"disk": "fast"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "runtime_class": "gvisor",
            "pull_secrets": ["registry"],
            "deadline": 600,
        }
    )
    assert isinstance(options.placement, Placement)
    pod = described(placement=options.placement, gpus=GpuRequest(count=2))
    assert pod["nodeSelector"] == {"disk": "fast"}
    assert pod["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert pod["runtimeClassName"] == "gvisor"
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert "serviceAccountName" not in pod
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "2"}


@pytest.mark.parametrize(
    ("placement", "says"),
    [
        ({"nodes": 1}, "has no 'nodes'.*node_selector"),
        ({"node_selector": ["a"]}, "mapping of strings"),
        ({"deadline": 5}, "at least 60"),
        ({"tolerations": "all"}, "list of mappings"),
        ("fast", "must be a mapping"),
    ],
)
def test_placements_that_make_no_sense(placement: Any, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        SandboxOptions(placement=placement)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"run_args": ["--cap-add=ALL"]}, "run_args"),
        ({"mounts": ["/usr:/mnt"]}, "remote.*mounts"),
        ({"gpus": "all"}, "by their number"),
        ({"disk": "1g"}, "evicted"),
        ({"packages": ["numpy"]}, "push it"),
        ({"isolation": "strict"}, "does not enforce pids"),
        ({"network": "internal"}, 'Use network="none"'),
    ],
)
def test_what_a_pod_does_not_have(cluster: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UnsupportedByEngineError, match=says):
        Sandbox(runtime="kubernetes", **options).start()


def test_docker_has_no_placement() -> None:
    from runtimes import EngineCommand
    from runtimes.docker import DockerRuntime

    runtime = DockerRuntime(EngineCommand(("true",)))
    spec = ContainerSpec(image="x", command=("x",), name="x", placement=Placement())
    with pytest.raises(UnsupportedByEngineError, match="placement"):
        runtime.open(spec)
