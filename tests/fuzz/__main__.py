"""``python -m tests.fuzz``: see ``scripts/fuzz``."""

from __future__ import annotations

import argparse
import faulthandler
import gc
import itertools
import os
import random
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from tests.fuzz.host import a_proxy, ask_proxy, converse, outside, watched
from tests.fuzz.links import connect, intrude, listen, steps, strangers, talks
from tests.fuzz.strategies import Act, acts, proxy_bytes
from tests.fuzz.transfers import guests as transfer_guests
from tests.fuzz.transfers import transfer

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
    parser.add_argument("--transfers", type=int, default=1_000)
    parser.add_argument("--links", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=None, help="to repeat a run")
    options = parser.parse_args()
    number = options.seed if options.seed is not None else random.randrange(2**32)
    print(f"seed {number}", flush=True)
    with tempfile.TemporaryDirectory(prefix="rlm-fuzz-") as directory:
        for kind in ("CACHE", "CONFIG", "STATE"):
            os.environ[f"XDG_{kind}_HOME"] = directory
        base = Path(directory)
        converse([Act("hear"), Act("ready")])  # so that late imports are done
        with outside(base), watched(base) as done:
            guests(options.frames, number)
            callers(options.connections, number)
            repeat("transfers", options.transfers, number, transfer_guests, transfer)
        links(options.links, number)
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
    with a_proxy() as proxy:
        repeat("callers", connections, number, proxy_bytes, lambda parts: ask_proxy(proxy, parts))


def links(most: int, number: int) -> None:
    """Have both ends of links told the truth, and lies; and a tenth of that to a pod's process."""
    repeat("links that break", most, number, steps, connect)
    repeat("links that lie", most, number, talks, listen)
    names = itertools.count()

    def meet(intruders: list[Any]) -> None:
        intrude(f"fuzz-{os.getpid()}-{next(names)}", intruders)

    repeat("strangers in a pod", most // 10, number, strangers, meet)


def repeat(
    what: str, most: int, number: int, cases: SearchStrategy[Any], one: Callable[[Any], None]
) -> None:
    """Try so many cases."""
    count = 0
    start = time.monotonic()
    while count < most:

        @seed(number + count)
        @settings(_SETTINGS, max_examples=min(_ROUND, most - count))
        @given(cases)
        def run(case: Any) -> None:
            nonlocal count
            faulthandler.dump_traceback_later(_HANG, exit=True)
            one(case)
            count += 1

        run()
    faulthandler.cancel_dump_traceback_later()
    print(f"{what}: {count} in {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
