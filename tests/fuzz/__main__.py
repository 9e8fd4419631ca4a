"""``python -m tests.fuzz``: see ``scripts/fuzz``."""

from __future__ import annotations

import argparse
import faulthandler
import gc
import os
import random
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.host import a_proxy, ask_proxy, converse, outside, watched
from tests.fuzz.strategies import Act, acts, proxy_bytes

#: Megabytes by which this process may have grown at the end. Hypothesis itself uses some.
_GROWTH = 150

#: Seconds for one conversation to end. Past that the traceback of every thread is shown.
_HANG = 120

#: Cases after which hypothesis is restarted, because it keeps all cases of a run in memory.
_ROUND = 200

_SETTINGS = settings(
    max_examples=_ROUND,
    database=None,
    deadline=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


def resident() -> int:
    """Return the megabytes of memory that this process uses now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 2**20


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("--frames", type=int, default=50_000)
    parser.add_argument("--connections", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=None, help="to repeat a run")
    options = parser.parse_args()
    number = options.seed if options.seed is not None else random.randrange(2**32)
    print(f"seed {number}", flush=True)
    with tempfile.TemporaryDirectory(prefix="rlm-fuzz-") as directory:
        os.environ["XDG_CACHE_HOME"] = os.environ["XDG_CONFIG_HOME"] = directory
        base = Path(directory)
        converse([Act("hear"), Act("ready")])  # so that late imports are done
        with outside(base), watched(base) as done:
            guests(options.frames, number)
            callers(options.connections, number)
        print(f"outside of the workspaces: {len(done)} accesses")
        left = list((base / "rlm-containers" / "workspaces").iterdir())
        print(f"left behind: {', '.join(path.name for path in left) or 'nothing'}")
        for line in done[:20]:
            print("  ", line)
    if done or left:
        sys.exit(1)


def guests(frames: int, number: int) -> None:
    """Run conversations until so many frames have been sent."""
    count = sent = raw = 0
    start, before = time.monotonic(), resident()
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    while sent < frames:

        @seed(number + count)
        @_SETTINGS
        @given(acts)
        def run(guest: list[Act]) -> None:
            nonlocal count, sent, raw
            faulthandler.dump_traceback_later(_HANG, exit=True)
            converse(guest)
            count += 1
            sent += sum(act.frames for act in guest)
            raw += sum(len(act.raw) for act in guest)

        run()
        gc.collect()
    faulthandler.cancel_dump_traceback_later()
    deadline = time.monotonic() + 10
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.05)
    grown = resident() - before
    print(
        f"guests: {count} sandboxes, {sent} frames, {raw} bytes in {time.monotonic() - start:.0f} s; "
        f"memory {grown:+} MB, descriptors {len(os.listdir('/proc/self/fd')) - descriptors:+}, "
        f"threads {threading.active_count() - threads:+}",
        flush=True,
    )
    assert grown < _GROWTH, "the host's memory grows"
    assert len(os.listdir("/proc/self/fd")) <= descriptors, "descriptors are left"
    assert threading.active_count() <= threads, "threads are left"


def callers(connections: int, number: int) -> None:
    """Open so many connections to one proxy."""
    count = 0
    start = time.monotonic()
    with a_proxy() as proxy:
        while count < connections:

            @seed(number + count)
            @_SETTINGS
            @given(proxy_bytes)
            def run(parts: list[tuple[bytes, bytes]]) -> None:
                nonlocal count
                faulthandler.dump_traceback_later(_HANG, exit=True)
                ask_proxy(proxy, parts)
                count += 1

            run()
    faulthandler.cancel_dump_traceback_later()
    print(f"callers: {count} connections in {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
