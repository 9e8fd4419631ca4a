"""Faults of a cluster: no cell is lost, run twice or silently forgotten.

They need the cluster of ``scripts/setup-cluster``, with two nodes for the death of one.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rlm_containers import Sandbox
from rlm_containers.errors import SandboxLostError
from runtimes.pod import PodProcess
from tests.cluster.test_pods import kill_clients, pods
from tests.conftest import MakeBox
from tests.support import KubernetesEngine, eventually, interpreter_of, printed

_SCRIPT = Path(__file__).parents[2] / "scripts" / "setup-cluster"

_STATE = os.environ.get("RLM_CONTAINERS_TEST_CLUSTER")

pytestmark = [
    pytest.mark.skipif(not _STATE, reason="NOT TESTED: faults of a cluster that is not ours"),
    pytest.mark.xdist_group("faults"),
]

#: Seconds that a part is away. Connections are given up after 50.
_AWAY = 3.0

#: Seconds for which cells run on when all is well again: what has broken may be noticed late.
_AFTER = 15.0


def fault(*what: str) -> None:
    subprocess.run((_SCRIPT, "fault", str(_STATE), *what), check=True, capture_output=True)


def node_of(engine: KubernetesEngine, box: Sandbox) -> str:
    """The number of the node on which a sandbox's pod is."""
    (pod,) = pods(engine, box)
    name: str = pod["spec"]["nodeName"]
    return name.removeprefix("n")


def api_server(box: Sandbox, node: str) -> None:
    fault("stop-api")
    time.sleep(_AWAY)
    fault("start-api")


def api_server_that_ends(box: Sandbox, node: str) -> None:
    """For a minute it serves the connections that it has, and takes no other."""
    fault("end-api")
    fault("start-api")


def kubelet(box: Sandbox, node: str) -> None:
    fault("stop-kubelet", node)
    time.sleep(_AWAY)
    fault("start-node", node)


def containerd(box: Sandbox, node: str) -> None:
    fault("stop-containerd", node)
    time.sleep(_AWAY)
    fault("start-node", node)


def network(box: Sandbox, node: str) -> None:
    fault("cut", node)
    time.sleep(4 * _AWAY)
    fault("heal", node)


def network_of_clients(box: Sandbox, node: str) -> None:
    fault("cut-clients")
    time.sleep(10 * _AWAY)
    fault("heal-clients")


def client(box: Sandbox, node: str) -> None:
    kill_clients(box)


@pytest.mark.parametrize(
    "harm",
    [client, api_server, api_server_that_ends, kubelet, containerd, network, network_of_clients],
)
def test_cells_go_on(
    engine: KubernetesEngine, make_box: MakeBox, harm: Callable[[Sandbox, str], None]
) -> None:
    box = make_box()
    node = node_of(engine, box)
    printed(box, "count = 0")
    harming = threading.Thread(target=harm, args=(box, node))
    harming.start()
    count = 0
    end = time.monotonic() + _AFTER
    while harming.is_alive() or time.monotonic() < end:
        if harming.is_alive():
            end = time.monotonic() + _AFTER
        count += 1
        assert printed(box, "count += 1; print(count)") == f"{count}\n"
    harming.join()
    assert [pod["status"]["phase"] for pod in pods(engine, box)] == ["Running"]


def test_what_is_idle_is_not_cut(make_box: MakeBox) -> None:
    """The nodes of this cluster cut streams that say nothing for 20 seconds."""
    box = make_box()
    printed(box, "count = 1")
    time.sleep(30)
    assert printed(box, "count += 1; print(count)") == "2\n"


def test_a_node_that_dies(engine: KubernetesEngine, make_box: MakeBox) -> None:
    nodes = json.loads(engine.run("get", "nodes", "--output=json").stdout)["items"]
    if len(nodes) < 2:
        pytest.skip("there is one node only: scripts/setup-cluster up DIRECTORY 2")
    box = make_box(restarts=1, durability="sync", memory="300m")
    printed(box, "count = 0; text = 'x' * 1_000_000; open('file', 'w').write('1')")
    for count in range(1, 6):
        assert printed(box, "count += 1; print(count)") == f"{count}\n"
    node = node_of(engine, box)
    fault("kill-node", node)
    try:
        result = box.execute("count += 1")
        # It may have run, and says that nobody knows.
        assert result.status == "died"
        assert "NodeLost" in result.stderr or "Unreachable" in result.stderr
        assert printed(box, "print(count, len(text), open('file').read())") == "5 1000000 1\n"
    finally:
        fault("start-node", node)

    def is_ready() -> bool:
        listed = engine.run("get", "nodes", "--no-headers").stdout
        return listed.count(" Ready") == len(nodes)

    assert eventually(is_ready, 90)
    box.close()
    assert eventually(lambda: not engine.containers(box.name), 90), "the old pod is left"


def test_a_pod_that_is_evicted(make_box: MakeBox) -> None:
    box = make_box(
        workspace="memory", workspace_size="2m", memory="300m", restarts=1, durability="sync"
    )
    printed(box, "count = 0")
    for count in range(1, 4):
        assert printed(box, "count += 1; print(count)") == f"{count}\n"
    result = box.execute("open('big', 'wb').write(bytes(60_000_000)); import time; time.sleep(300)")
    assert result.status == "died"
    assert "Evicted" in result.stderr
    assert printed(box, "print(count)") == "3\n"


# Speaks for the host to the first process of the pod: this was all, and everything has come.
_STRANGER = """
import array, os, socket, sys
def unit(kind, payload):
    os.write(says, kind + len(payload).to_bytes(4, "big") + payload)
name, known = sys.argv[1], int(sys.argv[2])
one = socket.socket(socket.AF_UNIX)
one.connect("\\0" + name)
theirs, says = os.pipe()
hears, back = os.pipe()
one.sendmsg([b"R"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", (theirs, back)))])
os.close(theirs)
os.close(back)
unit(b"R", known.to_bytes(8, "big"))
unit(b"C", b"")
data = b""
while piece := os.read(hears, 65536):
    data += piece
    while len(data) > 4 and len(data) >= 5 + int.from_bytes(data[1:5], "big"):
        kind, length = data[:1], int.from_bytes(data[1:5], "big")
        data = data[5 + length :]
        if kind == b"D":
            known += length
            unit(b"A", known.to_bytes(8, "big"))
        elif kind == b"C":
            sys.exit(0)
"""


def is_at_rest(process: PodProcess) -> bool:
    before = process._link.received
    time.sleep(0.5)
    return process._link.received == before


@pytest.mark.parametrize("restarts", [0, 1])
def test_status_0_without_a_goodbye_is_a_loss(
    engine: KubernetesEngine, make_box: MakeBox, restarts: int
) -> None:
    """The program of the pod ends well, and the host has not heard of it."""
    box = make_box(restarts=restarts, durability="sync")
    printed(box, "count = 0")
    for count in range(1, 4):
        assert printed(box, "count += 1; print(count)") == f"{count}\n"
    (pod,) = pods(engine, box)
    process = interpreter_of(box).pipe.process
    assert isinstance(process, PodProcess)
    assert eventually(lambda: is_at_rest(process))
    stranger = ("python3", "-c", _STRANGER, box.name, str(process._link.received))
    engine.run("exec", pod["metadata"]["name"], "--", *stranger, check=False)
    if restarts:
        result = box.execute("count += 1")
        assert result.status == "died"
        assert printed(box, "print(count)") == "3\n"
    else:
        with pytest.raises(SandboxLostError):
            box.execute("count += 1")
