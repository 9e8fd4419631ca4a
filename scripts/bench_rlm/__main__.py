"""`python -m bench_rlm`: measure both sides on every engine that is named."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from pathlib import Path

from rlm.core.lm_handler import LMHandler

from bench_rlm.bench import Bench
from bench_rlm.cells import measure_cells
from bench_rlm.client import InstantClient
from bench_rlm.contender import BATCH, BenchError, ours, route
from bench_rlm.contexts import measure_contexts
from bench_rlm.engine import Engine, EngineError
from bench_rlm.extras import measure_extras
from bench_rlm.lives import measure_lives
from bench_rlm.machine import facts
from bench_rlm.report import Report, document
from bench_rlm.shim import NO_SHIM, install_shim
from bench_rlm.tidy import tidy
from rlm_containers.errors import ContainersError


def main() -> int:
    """Run the benchmark; 0 if all could be measured, whatever came out."""
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
    parser.add_argument("--runs", type=int, default=10, help="samples (default: 10)")
    parser.add_argument("--quick", action="store_true", help="2 samples, contexts of 10 MB")
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
            handler=handler.address,
            runs=2 if options.quick else options.runs,
            megabytes=10 if options.quick else 100,
        )
        known = facts(engine, options.image, shim)
        with ours(engine, handler.address).live(options.image) as live:
            known["our `llm_query`"] = f"route: {route(live)}"
        rows = measure_lives(bench) + measure_cells(bench)
        rows += measure_contexts(bench) + measure_extras(bench)
        bench.note("")
    report = Report(name, known, rows)
    print(report.text(), flush=True)
    return report


def _terminate(number: int, frame: object) -> None:
    del number, frame
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
