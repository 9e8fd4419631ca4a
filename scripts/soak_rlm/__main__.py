"""``python -m soak_rlm``: see ``scripts/soak``."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rlm_containers import ContainersError, Sandbox
from rlm_containers.errors import SandboxLostError
from rlm_containers.state import workspaces_directory
from soak_rlm.cells import BEGIN, FAULTS, LOOK, PASSING, WORK, Kind, Model
from soak_rlm.engine import Engine
from soak_rlm.figures import Figures, Usage, resident

#: Seconds for a cell. The endless ones take that long.
_CELL_TIMEOUT = 8.0

#: Seconds in which all that ends by itself must have ended.
_END = 30.0

#: Cells of each of the first sandboxes, after which is looked for the first time.
_FIRST = 50

#: How much more the host's process may have at the end: MiB, a small part of which is bookkeeping
#: of this soak, and Python objects.
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
    parser.add_argument("--seed", type=int, default=None, help="to repeat a run")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.randrange(2**32)
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="rlm-soak-") as directory:
        os.environ["XDG_CACHE_HOME"] = directory
        soak = Soak(options, seed)
        sys.exit(soak.run())


class Soak:
    """One run.

    Args:
        options: the command line's.
        seed: of all chance in it.
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
        """Everything; the exit status."""
        with ThreadPoolExecutor(self.options.at_once) as pool:
            # What is imported and made for as many sandboxes as there will be at once is no
            # growth; nor are the threads, each with its share of the allocator.
            threads = self.options.at_once + threading.active_count()
            list(pool.map(self.first, range(self.options.at_once)))
            self.await_threads(threads)
            before = Usage()
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
        """The life of one of the first sandboxes, which are at work at the same time."""
        self.barrier.wait()
        self.live(-1 - number, _FIRST)
        self.barrier.wait()

    def await_threads(self, count: int) -> None:
        """Wait until there are no more than these."""
        deadline = time.monotonic() + _END
        while threading.active_count() > count and time.monotonic() < deadline:
            time.sleep(0.1)  # what served the last calls is on its way out

    def live(self, number: int, cells: int) -> None:
        """The life of one sandbox, and of those that take its place when it is lost."""
        chance = random.Random(f"{self.seed} {number}")
        done = 0
        while done < cells:
            try:
                done += self.one_sandbox(chance, cells - done)
            except Exception:
                self.figures.fail(f"sandbox {number}: {traceback.format_exc()}")
                return

    def one_sandbox(self, chance: random.Random, cells: int) -> int:
        """Cells in one sandbox until it is lost; how many."""
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
            for code in BEGIN:
                assert box.execute(code).status == "ok"
            for count in range(1, cells + 1):
                faulty = chance.random() < self.options.faults
                kinds = FAULTS if faulty else WORK
                (kind,) = chance.choices(kinds, [kind.weight for kind in kinds])
                if not self.one_cell(box, kind, model, chance):
                    return count
        return cells

    def one_cell(self, box: Sandbox, kind: Kind, model: Model, chance: random.Random) -> bool:
        """One cell, and a look whether all is there afterwards; whether the sandbox is."""
        start = time.perf_counter()
        damaged = False
        try:
            result = kind.run(box, model, chance, self.engine)
        except SandboxLostError as error:
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
        assert model.agrees(found, damaged=damaged), (kind.name, found, model.values, model.before)
        return True

    def note(self, kind: str, outcome: str, start: float) -> None:
        count = self.figures.note(kind, outcome, time.perf_counter() - start)
        if count % 250 == 0:
            seconds = time.monotonic() - self.figures.start
            print(f"{count} cells, {seconds:.0f} s: {resident():.0f} MB", flush=True)

    def left(self) -> list[str]:
        """What is left behind once all has had time to end."""
        deadline = time.monotonic() + _END
        while True:
            left = [f"container {name}" for name in self.engine.left()]
            left += [f"file {path.name}" for path in workspaces_directory().iterdir()]
            left += [f"process {name}" for name in processes("rlm-containers-reaper")]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.2)


def processes(needle: str) -> list[str]:
    """The children of this process with these words in their arguments."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (entry / "cmdline").read_bytes().decode("utf-8", "replace")
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if needle in arguments and int(parent) == os.getpid():
            found.append(entry.name)
    return found


if __name__ == "__main__":
    try:
        main()
    except ContainersError as error:
        sys.exit(f"soak: {error}")
