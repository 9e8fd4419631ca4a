"""Hand-overs of a pool under faults: nothing of one sandbox is in the next, and nothing is left."""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

from rlm_containers import Sandbox, SandboxPool
from rlm_containers.errors import ContainersError, SandboxLostError, SandboxStartError
from soak_rlm.failures import Failures
from tests.engine.test_engine_stops import IMAGE, Daemon, own_daemon
from tests.engine.test_pool import PLANT, PROGRAM, SEARCH
from tests.support import Engine, assert_gone

#: Containers that wait.
_SIZE = 4

#: How often a host with a pool is killed.
_HOSTS = 3

#: How often an engine is ended and started again, and the sandboxes that are taken before each.
_ENDS = (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL)
_TAKEN = 10

#: Seconds for what must end by itself.
_END = 30.0


class Handovers:
    """Sandboxes of a pool, each of which looks for what the ones before have left.

    Args:
        options: those of the command line.
        seed: the seed of all random choices.
        failures: takes what should not have happened.

    Attributes:
        count: sandboxes that were handed over.
        faults: how many times each fault was made.
    """

    def __init__(self, options: argparse.Namespace, seed: int, failures: Failures) -> None:
        self.options = options
        self.seed = seed
        self.engine = Engine(options.engine)
        self.count = 0
        self.lost = 0
        self.slowest = 0.0
        self.faults: dict[str, int] = {}
        self.failures = failures
        self._lock = threading.Lock()
        self._broken: set[str] = set()

    def run(self, pool: ThreadPoolExecutor) -> None:
        """Hand over all sandboxes, and kill some hosts and an engine."""
        others = [pool.submit(self.kill_host) for _ in range(_HOSTS)]
        if self.options.engine == "docker" and os.getuid() == 0:
            others.append(pool.submit(self.restart_engine))
        with SandboxPool(
            self.options.image, runtime=self.options.engine, size=_SIZE, cell_timeout=60
        ) as sandboxes:
            list(
                pool.map(lambda number: self.one(sandboxes, number), range(self.options.hand_overs))
            )
        for other in others:
            other.result()

    def one(self, pool: SandboxPool, number: int) -> None:
        """Take a sandbox, look for what others have planted, plant, and close it."""
        chance = random.Random(f"{self.seed} {number}")
        try:
            if chance.random() < self.options.faults:
                self.fault(pool, chance)
            began = time.monotonic()
            with pool.sandbox(lm=str.upper, env={"OF": str(number)}) as box:
                with self._lock:
                    self.slowest = max(self.slowest, time.monotonic() - began)
                self.use(box, number)
        except Exception as error:
            with self._lock:
                # The fault was meant for one that waited, and came too late. One that is stopped
                # then does not become ready.
                late = isinstance(error, (SandboxLostError, SandboxStartError))
                late = late and error.container in self._broken
                self.lost += late
            if not late:
                self.failures.add(f"hand-over {number}: {traceback.format_exc()}")
        with self._lock:
            self.count += 1
            if self.count % 100 == 0:
                print(f"{self.count} hand-overs, {len(self.failures)} failures", flush=True)

    def use(self, box: Sandbox, number: int) -> None:
        """Look for what others have planted, and plant."""
        found = box.execute(SEARCH.replace("TOKEN", ""))
        assert (found.status, found.stdout) == ("ok", "[] True\n"), found
        planted = box.execute(PLANT)
        assert planted.stdout == "True True True\n", planted
        asked = box.execute("import os\nprint(llm_query('a'), os.environ['OF'])")
        assert asked.stdout == f"A {number}\n", asked

    def fault(self, pool: SandboxPool, chance: random.Random) -> None:
        """Break a container that waits."""
        with self._lock:
            # Two that stop all processes of one container would stop each other.
            waiting = [one for one in list(pool._pool._waiting) if one.name not in self._broken]
            if not waiting:
                return
            container = chance.choice(waiting)
            self._broken.add(container.name)
        kind = chance.choice(("removed", "shim killed", "stopped"))
        if kind == "removed":
            self.engine.run("rm", "--force", container.name, check=False)
        elif kind == "shim killed":
            pipe = container.pipe
            assert pipe is not None
            monitor = pipe.process._monitor  # type: ignore[attr-defined]
            if not monitor or self.options.engine != "docker":
                return  # podman cannot remove a container any more whose monitor was killed
            with contextlib.suppress(ProcessLookupError):
                os.kill(monitor, signal.SIGKILL)
        else:
            code = "import os\nfor p in os.listdir('/proc'):\n"
            code += "    if p.isdigit() and int(p) not in (1, os.getpid()): os.kill(int(p), 19)"
            self.engine.run("exec", container.name, "python3", "-c", code, check=False)
        with self._lock:
            self.faults[kind] = self.faults.get(kind, 0) + 1

    def kill_host(self) -> None:
        """Kill a process that has a pool. Nothing of it must be left."""
        done = subprocess.run(
            (sys.executable, "-c", PROGRAM, self.options.image, self.options.engine),
            capture_output=True,
            text=True,
            check=False,
        )
        made = done.stdout.split()
        try:
            assert len(made) > 1, done.stderr
            assert_gone(self.engine, *made)
        except (AssertionError, ContainersError) as error:
            self.failures.add(f"a killed host: {error}")

    def restart_engine(self) -> None:
        """Take sandboxes from a pool whose engine, one of its own, ends and comes back."""
        try:
            daemon = own_daemon(self.options.image)
            try:
                with SandboxPool(IMAGE, runtime=daemon.runtime, network="none", size=2) as pool:
                    for number in _ENDS:
                        self.take(pool)
                        with pool.sandbox(lm=str.upper):
                            daemon.end(number)
                            self.miss(pool)
                        daemon.start()
                    self.take(pool)
                self.await_nothing(daemon)
            finally:
                daemon.clean_up()
        except Exception:
            self.failures.add(f"an engine that ends: {traceback.format_exc()}")

    def take(self, pool: SandboxPool) -> None:
        for number in range(_TAKEN):
            with pool.sandbox(lm=str.upper, env={"OF": str(number)}) as box:
                self.use(box, number)

    def miss(self, pool: SandboxPool) -> None:
        """Take those that wait, and one that cannot start."""
        for _ in range(10):
            try:
                with pool.sandbox():
                    pass
            except ContainersError:
                with self._lock:
                    self.faults["engine ended"] = self.faults.get("engine ended", 0) + 1
                return
        raise AssertionError("sandboxes started without an engine")

    def await_nothing(self, daemon: Daemon) -> None:
        deadline = time.monotonic() + _END
        while left := daemon.docker("ps", "--all", "--quiet").stdout:
            assert time.monotonic() < deadline, left
            time.sleep(0.2)

    def report(self) -> str:
        """What was seen, in a line."""
        faults = ", ".join(f"{count} {kind}" for kind, count in sorted(self.faults.items()))
        return (
            f"{self.count} hand-overs, the slowest in {self.slowest:.2f} s; faults of containers "
            f"that waited: {faults or 'none'}; {_HOSTS} hosts killed; {self.lost} sandboxes lost "
            "to a fault that came too late"
        )
