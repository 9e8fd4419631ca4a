"""``python -m soak_rlm``: see ``scripts/soak``."""

from __future__ import annotations

import argparse
import collections
import ctypes
import gc
import json
import os
import random
import resource
import signal
import statistics
import sys
import tempfile
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rlm_containers import ContainersError, Sandbox
from rlm_containers.errors import SandboxClosedError, SandboxLostError
from rlm_containers.state import LABEL, workspaces_directory
from soak_rlm.cells import BEGIN, FAULTS, LOOK, PASSING, THREAD, TO_CLOSE, WORK, Kind, Model
from soak_rlm.cluster import ClusterSoak
from soak_rlm.failures import Failures
from soak_rlm.pool import Handovers
from tests.support import Engine, processes


class Usage:
    """What this process uses at one moment.

    Attributes:
        resident: MiB in memory.
        used: MiB in memory after the C library's allocator has given back its empty pages. Only a
            leak makes it grow.
        objects: the number of objects that Python's garbage collector knows.
        descriptors: the number of open descriptors.
        threads: the number of Python's threads.
    """

    def __init__(self) -> None:
        self.resident = resident()
        gc.collect()
        _give_back()
        self.used = resident()
        self.objects = len(gc.get_objects())
        self.descriptors = len(os.listdir("/proc/self/fd"))
        self.threads = threading.active_count()

    def __str__(self) -> str:
        return (
            f"{self.resident:.0f} MB, {self.used:.0f} MB of them in use, {self.objects} objects, "
            f"{self.descriptors} descriptors, {self.threads} threads"
        )


def resident() -> float:
    """MiB of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def _give_back() -> None:
    """Call ``malloc_trim(3)``."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only in glibc
    if trim is not None:
        trim(0)


class Figures:
    """What the soak has seen, counted by many threads at once."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.lock = threading.Lock()
        self.cells: collections.Counter[str] = collections.Counter()
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.times: collections.defaultdict[str, list[float]] = collections.defaultdict(list)
        self.sandboxes = 0
        self.lost_sandboxes = 0
        self.deaths: list[str] = []
        self.failures = Failures()

    def note(self, kind: str, outcome: str, seconds: float) -> int:
        """Count a cell; return how many there were."""
        with self.lock:
            self.cells[kind] += 1
            self.outcomes[outcome] += 1
            self.times[kind].append(seconds)
            return self.cells.total()

    def report(self, before: Usage, after: Usage, left: list[str]) -> str:
        """The figures as text."""
        seconds = time.monotonic() - self.start
        rows = [
            f"{self.cells.total()} cells in {self.sandboxes} sandboxes, {seconds:.0f} s; "
            + ", ".join(f"{count} {outcome}" for outcome, count in self.outcomes.most_common()),
            f"sandboxes lost by a fault that ends them, and said so: {self.lost_sandboxes}",
            f"workers that died between two cells: {'; '.join(self.deaths) or 'none'}",
            f"the host's process before, with its first sandboxes gone: {before}",
            f"after the last: {after}",
            f"left behind: {', '.join(left) if left else 'nothing'}",
            f"failures: {len(self.failures)}",
            "",
            "| cell | count | median | longest |",
            "|---|--:|--:|--:|",
        ]
        for kind, times in sorted(self.times.items(), key=lambda item: -len(item[1])):
            median, longest = statistics.median(times), max(times)
            rows.append(f"| {kind} | {len(times)} | {median * 1e3:.1f} ms | {longest:.2f} s |")
        return "\n".join(rows)


#: Seconds for a cell. Endless ones take that long; on a busy machine others need half of it.
_CELL_TIMEOUT = 20.0

#: The share of sandboxes with a thread.
_WITH_THREAD = 0.1

#: Seconds to wait for what must end by itself.
_END = 30.0

#: Cells in each of the first sandboxes. The first measurement comes after them.
_FIRST = 50

#: How much the host's process may grow, in MiB and in Python objects. The soak's own bookkeeping
#: takes a small part of it.
_MEMORY = 10
_OBJECTS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--engine", default="docker")
    parser.add_argument("--image", required=True)
    parser.add_argument("--sandboxes", type=int, default=200)
    parser.add_argument("--cells", type=int, default=5000)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--faults", type=float, default=0.2, help="the share of cells that break")
    parser.add_argument(
        "--hand-overs", type=int, default=0, help="sandboxes of a pool, in place of all others"
    )
    parser.add_argument("--cluster", type=Path, help="the directory of scripts/setup-cluster")
    parser.add_argument("--seed", type=int, default=None, help="to repeat a run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rlm-soak-") as directory:
        os.environ["XDG_CACHE_HOME"] = os.environ["XDG_STATE_HOME"] = directory
        sys.exit(ClusterSoak(options).run() if options.cluster else _soak(options))


def _soak(options: argparse.Namespace) -> int:
    seed = options.seed if options.seed is not None else random.randrange(2**32)
    print(f"seed {seed}", flush=True)
    signal.signal(signal.SIGUSR1, TO_CLOSE.handle)
    return Soak(options, seed).run()


class Soak:
    """One run.

    Args:
        options: those of the command line.
        seed: the seed of all random choices.
    """

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        self.options = options
        self.seed = seed
        self.engine = Engine(options.engine)
        self.figures = Figures()
        self.barrier = threading.Barrier(options.at_once)
        each, more = divmod(options.cells, options.sandboxes)
        self.shares = [each + (number < more) for number in range(options.sandboxes)]

    def run(self) -> int:
        """Run everything; return the exit status."""
        with ThreadPoolExecutor(self.options.at_once) as pool:
            # Start with as many sandboxes as there will be at a time: what is imported and made for
            # them, and the threads with their parts of the allocator, count as no growth.
            threads = self.options.at_once + threading.active_count()
            list(pool.map(self.first, range(self.options.at_once)))
            self.await_threads(threads)
            if self.options.hand_overs:
                # Likewise, a pool has been there before.
                few = argparse.Namespace(**vars(self.options) | {"hand_overs": 20})
                Handovers(few, 0, Failures()).run(pool)
                self.await_threads(threads)
            before = Usage()
            if self.options.hand_overs:
                handovers = Handovers(self.options, self.seed, self.figures.failures)
                handovers.run(pool)
                print(handovers.report(), flush=True)
            else:
                list(pool.map(self.live, range(self.options.sandboxes), self.shares))
            left = self.left()
            self.await_threads(threads)
            after = Usage()
        print(self.figures.report(before, after, left), flush=True)
        flat = (
            after.descriptors <= before.descriptors
            and after.threads <= before.threads
            and after.objects <= before.objects + _OBJECTS
            and after.used <= before.used + _MEMORY
        )
        if not flat:
            names = sorted(thread.name for thread in threading.enumerate())
            print(f"FAILED: the host's process has grown; its threads: {', '.join(names)}")
        return 0 if flat and not left and not self.figures.failures else 1

    def first(self, number: int) -> None:
        """Run one of the first sandboxes, all of which work at the same time."""
        self.barrier.wait()
        self.live(-1 - number, _FIRST)
        self.barrier.wait()

    def await_threads(self, count: int) -> None:
        """Wait until there are no more than this many."""
        deadline = time.monotonic() + _END
        while threading.active_count() > count and time.monotonic() < deadline:
            time.sleep(0.1)  # the threads that served the last calls are ending

    def live(self, number: int, cells: int) -> None:
        """Run cells in one sandbox, and in another one whenever it is lost."""
        chance = random.Random(f"{self.seed} {number}")
        done = 0
        while done < cells:
            try:
                done += self.one_sandbox(chance, cells - done)
            except Exception:
                self.figures.failures.add(f"sandbox {number}: {traceback.format_exc()}")
                return

    def one_sandbox(self, chance: random.Random, cells: int) -> int:
        """Run cells in one sandbox until it is lost; return how many."""
        with self.figures.lock:
            self.figures.sandboxes += 1
        model = Model()
        box = Sandbox(
            self.options.image,
            runtime=self.options.engine,
            lm=str.upper,
            network=chance.choice(("bridge", "none")),
            cell_timeout=_CELL_TIMEOUT,
        )
        with box:
            for code in (*BEGIN, *((THREAD,) if chance.random() < _WITH_THREAD else ())):
                assert box.execute(code).status == "ok"
            for count in range(1, cells + 1):
                faulty = chance.random() < self.options.faults
                kinds = FAULTS if faulty else WORK
                (kind,) = chance.choices(kinds, [kind.weight for kind in kinds])
                if not self.one_cell(box, kind, model, chance):
                    return count
        return cells

    def one_cell(self, box: Sandbox, kind: Kind, model: Model, chance: random.Random) -> bool:
        """Run a cell and check all variables after it; return whether the sandbox still lives."""
        start = time.perf_counter()
        damaged = False
        try:
            result = kind.run(box, model, chance, self.engine)
        except (SandboxLostError, SandboxClosedError) as error:
            if not kind.ends or box.name not in str(error):
                raise
            self.note(kind.name, "lost", start)
            with self.figures.lock:
                self.figures.lost_sandboxes += 1
            return False
        if result is None:
            self.note(kind.name, "ok", start)
        else:
            self.note(kind.name, result.status, start)
            assert result.status in kind.statuses, (kind.name, result)
            damaged = bool(result.older)
            assert set(result.lost) <= (PASSING if damaged else set()), (kind.name, result.stderr)
        looked = box.execute(LOOK)
        assert looked.status == "ok", (kind.name, looked.stderr)
        found = json.loads(looked.stdout)
        if looked.older:
            # Nothing in the soak kills a worker that waits, but the kernel may, for memory.
            with self.figures.lock:
                self.figures.deaths.append(f"{box.name}, after {kind.name!r}: {looked.notices}")
        assert model.agrees(found, damaged=damaged or bool(looked.older)), (
            kind.name, found, model.values, model.before, looked.notices
        )  # fmt: skip
        return True

    def note(self, kind: str, outcome: str, start: float) -> None:
        count = self.figures.note(kind, outcome, time.perf_counter() - start)
        if count % 250 == 0:
            seconds = time.monotonic() - self.figures.start
            print(f"{count} cells, {seconds:.0f} s: {resident():.0f} MB", flush=True)

    def left(self) -> list[str]:
        """What is left behind once everything has had time to end."""
        deadline = time.monotonic() + _END
        while True:
            ours = self.engine.containers(f'"{LABEL}": "{os.getpid()}"')
            left = [f"container {container['Name']}" for container in ours]
            left += [f"file {path.name}" for path in workspaces_directory().iterdir()]
            left += [
                f"process {pid}" for pid, _ in processes("rlm-containers-reaper") if _is_child(pid)
            ]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.2)


def _is_child(pid: int) -> bool:
    """Whether a process is a child of this one."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # it has ended
        return False
    return int(stat.rpartition(")")[2].split()[1]) == os.getpid()


if __name__ == "__main__":
    try:
        main()
    except ContainersError as error:
        sys.exit(f"soak: {error}")
