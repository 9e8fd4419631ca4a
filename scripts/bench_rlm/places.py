"""``python -m bench_rlm.places``: the same sandbox here, on other machines, and on a cluster."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench_rlm.series import Series, seconds_of
from rlm_containers import Sandbox
from rlm_containers.state import SessionStore
from tests.engine.remote_machine import RemoteMachine
from tests.support import Engine, KubernetesEngine

#: Cells that are timed together.
_BATCH = 50

#: The rows.
START = "start and first cell"
CELL = "`x = 1`"
QUERY = "one `llm_query`"
CONTEXT = "load a context of {size} MB"
WRITE = "write a file of {size} MB, `files.write()`"
READ = "read it, `files.read()`"
STATE = "a cell makes {size} MB of state, until this host has it"
HOLD = "100 bytes to a file and back"


class Place:
    """Measures sandboxes of one engine.

    Args:
        runtime: the engine, as ``Sandbox(runtime=…)`` takes it.
        image: the image.
        size: megabytes of what is large.
    """

    def __init__(self, runtime: str, image: str, size: int) -> None:
        self.size = size
        self.data = os.urandom(size * 1_000_000)
        self._options: dict[str, Any] = {
            "image": image,
            "runtime": runtime,
            "lm": str.upper,
            "memory": "4g",
            "start_timeout": 120,
        }

    def measure(self, runs: int) -> dict[str, Series]:
        """Measure everything."""
        rows: dict[str, Series] = {
            name: Series() for name in (START, CELL, QUERY, HOLD, CONTEXT, WRITE, READ, STATE)
        }
        for run in range(runs + 1):
            self._measure_once(run, rows)
        for series in rows.values():
            series.drop_warm_up()
        return rows

    def _measure_once(self, run: int, rows: dict[str, Series]) -> None:
        boxes: list[Sandbox] = []

        def start() -> None:
            boxes.append(Sandbox(**self._options).start())
            self._run(boxes[0], "x = 0")

        rows[START].add(seconds_of(start))
        (box,) = boxes
        with box:
            rows[CELL].add(self._many(lambda n: self._run(box, f"x = {run * _BATCH + n}"), box))
            query = "assert llm_query('a{n}') == 'A{n}'"
            rows[QUERY].add(
                self._many(lambda n: self._run(box, query.replace("{n}", f"{run}{n}")), box)
            )
            rows[HOLD].add(self._many(lambda n: self._small(box, n), box))
            text = f"{run:08d} and more. " * (self.size * 1_000_000 // 18)
            rows[CONTEXT].add(self._until_saved(box, lambda: box.load("context", text)))
            self._run(box, "del context")
            rows[WRITE].add(seconds_of(lambda: box.files.write("file", self.data)))
            rows[READ].add(seconds_of(lambda: self._read(box)))
        name = f"bench-{os.getpid()}-{run}"
        with Sandbox(**self._options, session=name, durability="sync") as box:
            self._run(box, "import os")
            code = f"data = os.urandom({self.size * 1_000_000})"
            rows[STATE].add(seconds_of(lambda: self._run(box, code)))
        SessionStore().remove(name)

    def _small(self, box: Sandbox, number: int) -> None:
        box.files.write("small", b"x" * 100)
        assert len(box.files.read("small")) == 100

    def _read(self, box: Sandbox) -> None:
        assert box.files.read("file", max_size=1 << 30) == self.data

    def _many(self, one: Callable[[int], object], box: Sandbox) -> float:
        def many() -> None:
            for number in range(_BATCH):
                one(number)
            assert box.unsaved == ()

        return seconds_of(many) / _BATCH

    def _until_saved(self, box: Sandbox, act: Callable[[], object]) -> float:
        def both() -> None:
            act()
            assert box.unsaved == ()

        return seconds_of(both)

    def _run(self, box: Sandbox, code: str) -> None:
        result = box.execute(code)
        assert (result.status, result.stderr) == ("ok", ""), result


@contextmanager
def over_ssh(engine: Engine) -> Iterator[str]:
    """Yield the runtime of an engine that has files of its own and is reached by SSH."""
    with ExitStack() as stack:
        unseen = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rlm-bench-")))
        machine = RemoteMachine(engine, unseen)
        stack.callback(machine.stop)
        machine.start()
        before = dict(os.environ)
        stack.callback(lambda: (os.environ.clear(), os.environ.update(before)))
        os.environ["PATH"] = f"{machine.bin}{os.pathsep}{os.environ['PATH']}"
        os.environ["HOME"] = str(unseen)  # podman notes hosts there
        address = f"ssh://root@127.0.0.1:{machine.ports['ssh']}"
        if engine.name == "docker":
            yield f"docker --host {address}"
        else:
            path = machine.socket.removeprefix("unix://")
            yield f"podman --url {address}{path} --identity {machine.key}"


def table(columns: dict[str, dict[str, Series]], size: int) -> str:
    """The figures, in Markdown."""
    names = list(columns)
    lines = [f"| | {' | '.join(names)} |", f"|---{'|---' * len(names)}|"]
    for row in next(iter(columns.values())):
        figures = " | ".join(str(columns[name][row]) for name in names)
        lines.append(f"| {row.format(size=size)} | {figures} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench --places", description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--cluster", action="store_true", help="also the one that kubectl is at")
    parser.add_argument("--markdown", type=Path, help="write the table to this file, too")
    options = parser.parse_args()
    docker, podman, cluster = Engine("docker"), Engine("podman"), KubernetesEngine()
    columns: dict[str, dict[str, Series]] = {}

    def measure(name: str, runtime: str, image: str) -> None:
        print(f"{name}: {runtime}", file=sys.stderr, flush=True)
        columns[name] = Place(runtime, image, options.megabytes).measure(options.runs)

    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="rlm-bench-") as directory:
        os.environ["XDG_STATE_HOME"] = os.environ["XDG_CACHE_HOME"] = directory
        measure("docker", "docker", docker.image())
        with over_ssh(docker) as runtime:
            measure("docker by SSH", runtime, docker.image())
        with over_ssh(podman) as runtime:
            measure("podman by SSH", runtime, podman.image())
        if options.cluster:
            measure("kubernetes", "kubernetes", cluster.image())
    text = table(columns, options.megabytes)
    when = time.strftime("%Y-%m-%d")
    text += (
        f"\n\n{when}, {os.cpu_count()} processors ({platform.machine()}), load before: {load:.1f}"
    )
    print(text)
    if options.markdown:
        options.markdown.write_text(f"{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
