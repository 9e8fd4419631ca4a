"""Sessions on a cluster, one of whose nodes dies while they run."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import threading
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from rlm_containers import Sandbox
from rlm_containers.errors import ContainersError
from soak_rlm.failures import Failures
from tests.support import KubernetesEngine, eventually, processes

_SETUP = Path(__file__).parents[1] / "setup-cluster"

#: What a session has to begin with.
BEGIN = "import json, time\ndone = []\ntext = '0'\nopen('file', 'w').write('0')"

#: A cell counts itself, in a list, and changes a text of 100 KB and a file. It takes a moment, so
#: that many are under way when the node dies.
CELL = """
time.sleep(0.5)
done.append({number})
text = '{number} ' * 40_000
open('file', 'w').write('{number}')
print(len(done))
"""

#: Prints what the session has.
LOOK = "print(json.dumps([done, int(text.split()[0]), int(open('file').read())]))"

#: Sandboxes that start at once, as many as two processors are busy with.
_STARTS = 8

#: How often a pod of one sandbox may be replaced.
_RESTARTS = 5

#: Seconds for one start. All nodes are one machine here.
_START_TIMEOUT = 600.0

#: Sessions that are opened once more at the end.
_REOPENED = 10

#: Seconds for what was removed to go, on a node that comes back too.
_END = 180.0


class ClusterSoak:
    """Runs sessions with counters in them, and kills a node when half of their cells are done.

    Every cell must be acknowledged once, in order. Only one that a death has cut short may be run
    again, and only if the session has nothing of it.

    Args:
        options: ``cluster``, the directory of ``scripts/setup-cluster``; ``sandboxes``, ``cells``
            of each, and the image.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.engine = KubernetesEngine()
        self.failures = Failures()
        self.outcomes: Counter[str] = Counter()
        self.seconds: list[float] = []  # of cells that ended well, in the first half
        self.starts: list[float] = []
        self.longest = 0.0
        self.figures: dict[str, str] = {}
        self._lock = threading.Lock()
        self._acknowledged = 0
        self._half = threading.Event()
        self._starting = threading.Semaphore(_STARTS)
        self._all_up = threading.Barrier(options.sandboxes + 1)
        self._all_done = threading.Barrier(options.sandboxes + 1)
        self._killed_at = 0.0

    def run(self) -> int:
        """Run everything. Return the exit status."""
        begun = time.monotonic()
        with ThreadPoolExecutor(self.options.sandboxes) as pool:
            sessions = [pool.submit(self.live, number) for number in range(self.options.sandboxes)]
            try:
                self._run_beside(begun)
            except threading.BrokenBarrierError:
                self.failures.add("not all sandboxes started")
            for session in sessions:
                session.result()
        self._note("all ended, after", f"{time.monotonic() - begun:.0f} s")
        with ThreadPoolExecutor(_STARTS) as pool:
            reopened = range(min(_REOPENED, self.options.sandboxes))
            checked = sum(pool.map(self.reopen, reopened))
        self._note("sessions opened once more, and whole", f"{checked} of {len(reopened)}")
        left: list[str] = []
        if not eventually(lambda: not self._left(left), _END):
            self.failures.add(f"left behind: {', '.join(left)}")
        self._report()
        return 1 if self.failures else 0

    def _run_beside(self, begun: float) -> None:
        """Measure, and kill a node, while the sessions run."""
        self._all_up.wait()
        count = self.options.sandboxes
        self._note(f"all {count} up, after", f"{time.monotonic() - begun:.0f} s")
        self._note(f"one start, of {_STARTS} at once", spread(self.starts))
        own, clients, number = host_memory()
        self._note("this process", f"{own:.0f} MB, {threading.active_count()} threads")
        self._note(
            "its kubectl and reapers",
            f"{number} processes, {clients:.0f} MB (PSS), {clients / count:.1f} MB a sandbox",
        )
        guests = sum(
            map(_number, Path("/sys/fs/cgroup/memory").glob("rk-n*/memory.usage_in_bytes"))
        )
        self._note("the guests", f"{guests / 2**20:.0f} MB, {guests / 2**20 / count:.1f} MB each")
        parts = sum(pss(pid) for pid, _ in processes(f"{self.options.cluster}/"))
        self._note("the cluster's own processes, shims among them", f"{parts:.0f} MB (PSS)")
        self._half.wait()
        node, pods = self._busiest_node()
        self._killed_at = time.monotonic()
        self._fault("kill-node", node)
        self._note("the node killed had", f"{pods} sandboxes")
        self._all_done.wait()
        self._note("from the kill to the last cell", f"{time.monotonic() - self._killed_at:.0f} s")
        # Only its kubelet can say that its pods have gone.
        self._fault("start-node", node)

    # A session

    def live(self, number: int) -> None:
        """Start a sandbox, run its cells beside all others, and close it."""
        box = self._box(number)
        try:
            try:
                with self._starting:
                    begun = time.monotonic()
                    box.start()
                    assert box.execute(BEGIN).status == "ok"
                    with self._lock:
                        self.starts.append(time.monotonic() - begun)
            except BaseException:
                self._all_up.abort()
                raise
            self._all_up.wait()
            try:
                for cell in range(1, self.options.cells + 1):
                    self.acknowledge(box, cell)
            except BaseException:
                self._half.set()  # it may be that half of the cells will never be done
                raise
            finally:
                self._all_done.wait()
        except threading.BrokenBarrierError:
            pass
        except Exception:
            self.failures.add(f"session {number}: {traceback.format_exc()}")
        finally:
            with self._starting, suppress(ContainersError):
                box.close()

    def acknowledge(self, box: Sandbox, cell: int) -> None:
        """Run a cell until the session has it, and check that it has each cell before it once."""
        while True:
            begun = time.monotonic()
            result = box.execute(CELL.format(number=cell))
            taken = time.monotonic() - begun
            with self._lock:
                self.outcomes[result.status] += 1
                self.longest = max(self.longest, taken)
                if result.status == "ok" and not self._killed_at:
                    self.seconds.append(taken)
            if result.status == "ok":
                assert result.stdout == f"{cell}\n", (cell, result)
                break
            assert result.status == "died", result
            done, text, file = self.look(box)
            assert done in (list(range(1, cell)), list(range(1, cell + 1))), (cell, done)
            # A file may come here before the state does that belongs to it.
            assert text == len(done), (cell, done, text)
            assert file in (text, cell), (cell, done, file)
            if len(done) == cell:
                break  # it was saved, and only the answer was lost
        with self._lock:
            self._acknowledged += 1
            if 2 * self._acknowledged >= self.options.sandboxes * self.options.cells:
                self._half.set()

    def look(self, box: Sandbox) -> Any:
        """Return the cells that a session has, and which of them text and file are of."""
        for _ in range(_RESTARTS):
            result = box.execute(LOOK)
            if result.status == "ok":
                return json.loads(result.stdout)
            assert result.status == "died", result
        raise AssertionError("it dies again and again")

    def reopen(self, number: int) -> bool:
        """Open a session once more, and check what it has."""
        try:
            with self._box(number) as box:
                last = self.options.cells
                found = self.look(box)
                assert found == [list(range(1, last + 1)), last, last], found
        except Exception:
            self.failures.add(f"session {number}, opened again: {traceback.format_exc()}")
            return False
        return True

    def _box(self, number: int) -> Sandbox:
        return Sandbox(
            self.options.image,
            runtime="kubernetes",
            session=f"soak-{number}",
            durability="sync",
            restarts=_RESTARTS,
            memory="200m",
            start_timeout=_START_TIMEOUT,
        )

    # The cluster

    def _fault(self, *what: str) -> None:
        command = (_SETUP, "fault", str(self.options.cluster), *what)
        subprocess.run(command, check=True, capture_output=True)

    def _pods(self) -> list[dict[str, Any]]:
        selector = "--selector=app.kubernetes.io/managed-by=rlm-containers"
        listed = self.engine.run("get", "pods", selector, "--output=json")
        pods: list[dict[str, Any]] = json.loads(listed.stdout)["items"]
        return pods

    def _busiest_node(self) -> tuple[str, int]:
        nodes = Counter(pod["spec"]["nodeName"] for pod in self._pods())
        ((name, count),) = nodes.most_common(1)
        return str(name).removeprefix("n"), count

    def _left(self, left: list[str]) -> list[str]:
        left[:] = [f"pod {pod['metadata']['name']}" for pod in self._pods()]
        left += self.engine.run("get", "jobs", "--output=name").stdout.split()
        # Also of this: the kubectl that has just asked is gone by now.
        left += [f"process {pid}" for pid in children()]
        return left

    def _note(self, what: str, figure: str) -> None:
        self.figures[what] = figure
        print(f"{what}: {figure}", flush=True)

    def _report(self) -> None:
        nodes = len(self.engine.run("get", "nodes", "--output=name").stdout.split())
        self._note("a cell, before the kill", spread(self.seconds))
        self._note("the longest cell", f"{self.longest:.1f} s")
        what = ", ".join(f"{count} {status}" for status, count in self.outcomes.most_common())
        self._note("cells", what)
        self._note("sessions in which a cell was lost or ran twice", str(len(self.failures)))
        title = f"{self.options.sandboxes} sessions of {self.options.cells} cells on {nodes} nodes"
        print(f"\n| {title} | |\n|---|---|")
        for name, figure in self.figures.items():
            print(f"| {name} | {figure} |")


def spread(samples: list[float]) -> str:
    """The median of some seconds, and the longest."""
    if not samples:
        return "none"
    return f"median {statistics.median(samples):.2f} s, longest {max(samples):.1f} s"


def _number(path: Path) -> int:
    return int(path.read_text())


def children() -> list[int]:
    """The processes below this one."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
    found = {os.getpid()}
    while below := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= below
    return sorted(found - {os.getpid()})


def host_memory() -> tuple[float, float, int]:
    """MB of this process, MB of those below it, and how many there are."""
    below = children()
    return pss(os.getpid()), sum(map(pss, below)), len(below)


def pss(pid: int) -> float:
    """MB of a process, of shared pages its part."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0
