"""``python -m bench_rlm``: measure both sides on every named engine."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from rlm.core.lm_handler import LMHandler

import rlm_containers
from bench_rlm.cases import measure_cells, measure_contexts, measure_lives
from bench_rlm.extras import measure_extras
from bench_rlm.pools import measure_pools
from bench_rlm.report import Report, Row, document
from bench_rlm.sides import (
    BATCH,
    NO_SHIM,
    Bench,
    BenchError,
    Engine,
    EngineError,
    InstantClient,
    install_shim,
    ours,
    route,
)
from bench_rlm.states import measure_states
from rlm_containers.errors import ContainersError


def facts(engine: Engine, image: str, shim: str) -> dict[str, str]:
    """The machine, the engine and the versions, by name."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
        "machine": f"{os.cpu_count()} cores ({_processor()}), {_memory()}, "
        f"load average {' '.join(f'{load:.2f}' for load in os.getloadavg())}",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "engine": str(engine),
        "image": f"`{image}`, Python {engine.python_version(image)}",
        "host's Python": platform.python_version(),
        "rlms": version("rlms"),
        "rlm-containers": f"{rlm_containers.__version__}{_commit()}",
        "between rlms and the engine": shim,
    }


def _commit() -> str:
    """The version of the sources, if they are a git checkout."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        done = subprocess.run(
            describe, check=False, cwd=Path(__file__).parent, capture_output=True, text=True
        )
    except OSError:
        return ""
    return f" ({done.stdout.strip()})" if done.returncode == 0 else ""


def _processor() -> str:
    return _first("/proc/cpuinfo", "model name") or platform.processor() or "unknown"


def _memory() -> str:
    kilobytes = _first("/proc/meminfo", "MemTotal").split(" ")[0]
    return f"{int(kilobytes) / 1024**2:.0f} GiB" if kilobytes.isdigit() else "memory unknown"


def _first(path: str, name: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


#: Where rlms makes its workspaces. The default is the working directory.
_THEIR_WORKSPACES = "RLM_DOCKER_WORKSPACE_DIR"

_ENDING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def tidy(engine: Engine) -> Iterator[Path]:
    """Make a directory for temporary files; afterwards remove it and all containers."""
    directory = Path(tempfile.mkdtemp(prefix="rlm-bench-"))
    path = os.environ["PATH"]
    os.environ[_THEIR_WORKSPACES] = str(directory / "rlms")
    try:
        yield directory
    finally:
        # Ignore further interrupts: what follows takes a second.
        handlers = {number: signal.signal(number, signal.SIG_IGN) for number in _ENDING}
        os.environ["PATH"] = path
        del os.environ[_THEIR_WORKSPACES]
        try:
            # rlms learns a container's name only when `run` returns. After an interrupted `run` the
            # container may appear a little later.
            found = engine.remove_mounting(directory)
            if sys.exc_info()[0] is not None:
                time.sleep(1)
                found += engine.remove_mounting(directory)
            if found:
                print(f"bench: removed {found} container(s) of rlms", file=sys.stderr)
            if left := engine.ours_left():
                print(f"bench: {left} container(s) of ours left behind", file=sys.stderr)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        if directory.exists():
            print(f"bench: could not remove {directory}", file=sys.stderr)
        for number, handler in handlers.items():
            signal.signal(number, handler)


_PARTS: dict[str, Callable[[Bench], list[Row]]] = {
    "lives": measure_lives,
    "cells": measure_cells,
    "contexts": measure_contexts,
    "states": measure_states,
    "extras": measure_extras,
    "pools": measure_pools,
}


def main() -> int:
    """Run the benchmark; return 0 if everything was measured, whatever the figures are."""
    options = _options()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        reports = [_measure(name, options) for name in options.runtime]
    except (BenchError, EngineError, ContainersError) as error:
        print(f"\nbench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nbench: interrupted", file=sys.stderr)
        return 130
    if options.markdown:
        command = shlex.join(["scripts/bench", *options.as_called])
        options.markdown.write_text(document(reports, command, BATCH))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench_rlm", description=__doc__)
    parser.add_argument("--runtime", action="append", required=True)
    parser.add_argument("--image", required=True, help="has dill and requests")
    parser.add_argument("--plain-image", help="has neither")
    parser.add_argument("--frame-image", help="has pandas")
    parser.add_argument("--runs", type=int, default=10, help="samples (default: 10)")
    parser.add_argument("--quick", action="store_true", help="2 samples, contexts of 10 MB")
    parser.add_argument(
        "--only", action="append", choices=_PARTS, help="measure this part; repeatable"
    )
    parser.add_argument("--markdown", type=Path, help="write the result to this file, too")
    parser.add_argument("--as-called", type=shlex.split, default=sys.argv[1:])
    options = parser.parse_args()
    if options.runs < 1:
        parser.error("--runs must be at least 1")
    return options


def _measure(name: str, options: argparse.Namespace) -> Report:
    engine = Engine(name)
    with tidy(engine) as directory, LMHandler(InstantClient()) as handler:
        shim = NO_SHIM
        if engine.argv != ("docker",):
            shim = install_shim(engine, options.image, directory / "bin")
            os.environ["PATH"] = f"{directory / 'bin'}:{os.environ['PATH']}"
        bench = Bench(
            engine=engine,
            image=options.image,
            plain_image=options.plain_image,
            frame_image=options.frame_image,
            handler=handler.address,
            runs=2 if options.quick else options.runs,
            megabytes=10 if options.quick else 100,
            many=20 if options.quick else 200,
        )
        known = facts(engine, options.image, shim)
        with ours(engine, handler.address).live(options.image) as live:
            known["our `llm_query`"] = f"route: {route(live)}"
        rows: list[Row] = []
        for part, measure in _PARTS.items():
            if not options.only or part in options.only:
                rows += measure(bench)
        bench.note("")
    report = Report(name, known, rows)
    print(report.text(), flush=True)
    return report


def _terminate(number: int, frame: object) -> None:
    del number, frame
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
