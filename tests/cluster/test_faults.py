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
from tests.cluster.test_pods import kill_clients, pods
from tests.conftest import MakeBox
from tests.support import KubernetesEngine, eventually, printed

_SCRIPT = Path(__file__).parents[2] / "scripts" / "setup-cluster"

_STATE = os.environ.get("RLM_CONTAINERS_TEST_CLUSTER")

pytestmark = [
    pytest.mark.skipif(not _STATE, reason="NOT TESTED: faults of a cluster that is not ours"),
    pytest.mark.xdist_group("faults"),
]

#: Seconds that a part is away. Connections are given up after 50.
_AWAY = 3.0


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


def client(box: Sandbox, node: str) -> None:
    kill_clients(box)


@pytest.mark.parametrize("harm", [client, api_server, kubelet, containerd, network])
def test_cells_go_on(
    engine: KubernetesEngine, make_box: MakeBox, harm: Callable[[Sandbox, str], None]
) -> None:
    box = make_box()
    node = node_of(engine, box)
    printed(box, "count = 0")
    harming = threading.Thread(target=harm, args=(box, node))
    harming.start()
    count = 0
    # It may be noticed some time after it is over.
    end = time.monotonic() + 20
    while harming.is_alive() or time.monotonic() < end:
        count += 1
        assert printed(box, "count += 1; print(count)") == f"{count}\n"
    harming.join()
    assert [pod["status"]["phase"] for pod in pods(engine, box)] == ["Running"]


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
