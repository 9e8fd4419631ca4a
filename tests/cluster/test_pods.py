"""What only a real cluster shows: how pods start, end, and what they may reach."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from rlm_containers import Sandbox
from rlm_containers.container import prune
from rlm_containers.doctor import diagnose
from rlm_containers.errors import (
    ContainersError,
    ContainerStartError,
    GuestPythonError,
    ImageNotFoundError,
    SandboxLostError,
    UnsupportedByEngineError,
)
from runtimes import get_runtime
from tests.conftest import MakeBox
from tests.support import KubernetesEngine, eventually, printed

#: Runs a sandbox until it is killed.
_HOST = """
import sys, time
from rlm_containers import Sandbox
box = Sandbox(sys.argv[1], runtime="kubernetes").start()
box.execute("x = 1")
print(box.name, flush=True)
time.sleep(600)
"""


def pods(engine: KubernetesEngine, box: Sandbox) -> list[dict[str, Any]]:
    """The pods of a sandbox."""
    selector = f"--selector=job-name={box.name}"
    found = json.loads(engine.run("get", "pods", selector, "--output=json").stdout)
    items: list[dict[str, Any]] = found["items"]
    return items


def kill_clients(box: Sandbox) -> None:
    """Kill the kubectl that holds a sandbox's pod."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    words = file.read().split(b"\0")
            except OSError:
                continue
            if b"exec" in words and words[-2:] == [box.name.encode(), b""]:
                os.kill(int(entry), signal.SIGKILL)


def test_what_a_pod_has_and_has_not(engine: KubernetesEngine, make_box: MakeBox) -> None:
    box = make_box(memory="200m", cpus=0.5)
    code = """if True:
        import os
        status = dict(line.split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
        print(os.getuid(), status["CapEff"].strip(), status["NoNewPrivs"].strip())
        print([name for name in os.environ if "KUBERNETES" in name], os.getcwd())
        print(os.path.exists("/var/run/secrets/kubernetes.io"))
    """
    assert printed(box, code) == "65534 0000000000000000 1\n[] /workspace\nFalse\n"
    (pod,) = pods(engine, box)
    assert pod["spec"]["containers"][0]["resources"]["limits"] == {
        "memory": str(200 * 1024**2),
        "cpu": "500m",
    }
    result = box.execute("x = bytearray(400_000_000)")
    assert result.status == "died"
    assert "memory" in result.stderr
    assert printed(box, "print(1)") == "1\n"


def test_a_killed_client_costs_nothing(make_box: MakeBox) -> None:
    box = make_box()
    printed(box, "x = 0")
    for number in range(1, 4):
        kill_clients(box)
        assert printed(box, "x += 1; print(x)") == f"{number}\n"


def test_a_pod_that_somebody_removes(engine: KubernetesEngine, make_box: MakeBox) -> None:
    box = make_box()
    printed(box, "x = 1")
    engine.run("delete", "pod", f"--selector=job-name={box.name}", "--wait=false")
    with pytest.raises(SandboxLostError, match="Deleted|removed"):
        for _ in range(100):
            box.execute("import time; time.sleep(0.1)")


def test_the_pod_of_a_host_that_is_killed(engine: KubernetesEngine) -> None:
    host = subprocess.Popen(
        (sys.executable, "-c", _HOST, engine.image()), stdout=subprocess.PIPE, text=True
    )
    assert host.stdout is not None
    with host.stdout:
        name = host.stdout.readline().strip()
    assert engine.containers(name)
    host.kill()
    host.wait()
    assert eventually(lambda: not engine.containers(name))


def test_prune_removes_what_belongs_to_nobody(engine: KubernetesEngine, make_box: MakeBox) -> None:
    box = make_box()
    job = json.loads(engine.run("get", "job", box.name, "--output=json").stdout)
    orphan = f"{box.name}-orphan"
    job["metadata"] = {
        "name": orphan,
        "labels": job["metadata"]["labels"],
        # Its process id is that of no process.
        "annotations": {
            **job["metadata"]["annotations"],
            "io.github.rlm-containers.owner": str(2**22 + 1),
        },
    }
    del job["status"], job["spec"]["selector"]
    job["spec"]["template"]["metadata"]["labels"] = {}
    job["spec"]["parallelism"] = 0
    subprocess.run(
        ("kubectl", "create", "--filename=-"), input=json.dumps(job), text=True, check=True
    )
    try:
        assert prune([get_runtime("kubernetes")]).containers == [orphan]
        assert printed(box, "print(1)") == "1\n"
    finally:
        engine.run("delete", "job", orphan, "--ignore-not-found")


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ({"image": "localhost/rlm-containers/none:1"}, ImageNotFoundError, "No node could pull"),
        ({"image": "localhost/rlm-containers/no-python"}, GuestPythonError, "neither python3 nor"),
        ({"image": "localhost/rlm-containers/python:3.8-slim"}, GuestPythonError, "too old: 3.8"),
        ({"memory": "100t", "start_timeout": 8}, ContainerStartError, "Unschedulable.*memory=…"),
        (
            {"placement": {"node_selector": {"none": "such"}}, "start_timeout": 8},
            ContainerStartError,
            "Unschedulable",
        ),
        ({"placement": {"runtime_class": "none-such"}}, ContainersError, "none-such"),
        ({"placement": {"service_account": "none-such"}}, ContainerStartError, "none-such"),
    ],
)
def test_pods_that_do_not_start(
    engine: KubernetesEngine, options: dict[str, Any], kind: type[Exception], says: str
) -> None:
    options = {"image": engine.image(), **options}
    with pytest.raises(kind, match=says):
        Sandbox(runtime="kubernetes", **options).start()


def test_a_network_that_is_there_is_noticed(engine: KubernetesEngine) -> None:
    """This cluster must enforce no NetworkPolicy, or have none for these pods."""
    strict = Sandbox(engine.image(), runtime="kubernetes", isolation="strict", pids=None)
    with pytest.raises(UnsupportedByEngineError, match="does not hold.*NetworkPolicy"):
        strict.start()


def test_a_user_who_may_do_little(engine: KubernetesEngine) -> None:
    runtime = "kubectl --as system:serviceaccount:default:nobody"
    with pytest.raises(ContainersError, match="forbidden.*role that is enough"):
        Sandbox(engine.image(), runtime=runtime).start()
    (report,) = diagnose([runtime], image=engine.image()).engines
    assert (report.checks[-1].name, report.checks[-1].status) == ("permissions", "failed")


def test_doctor(engine: KubernetesEngine) -> None:
    (report,) = diagnose(["kubernetes"], image=engine.image()).engines
    assert [check for check in report.checks if check.status == "failed"] == []
    assert report.tried
    assert "permissions" in [check.name for check in report.checks]
