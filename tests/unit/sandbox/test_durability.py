"""What ``durability="sync"`` adds: an answer that waits for the disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rlm_containers.state import sessions_directory
from tests.support import eventually
from tests.unit.sessions import DIE, Boxes, run

pytestmark = pytest.mark.usefixtures("own_sessions")

#: A variable whose saving takes long enough that nobody sees its checkpoint who does not wait.
SLOW = """
import time
class Slow:
    def __reduce__(self):
        time.sleep(0.5)
        return (int, (42,))
slow = Slow()
"""


@pytest.mark.parametrize("session", [None, "one"])
def test_an_answer_waits_for_its_checkpoint(boxes: Boxes, session: str | None) -> None:
    box = boxes(durability="sync", session=session)
    # The worker is killed from outside right after the answer.
    run(box, SLOW + "import os, threading\nworker = os.getpid()")
    worker = int(run(box, "print(worker)").stdout)
    run(box, "slow = Slow(); new = 'value'")
    os.kill(worker, 9)
    result = box.execute("print(new, slow)")
    assert (result.lost, result.stdout) == ((), "value 42\n")


def test_a_loaded_variable_waits_too(boxes: Boxes) -> None:
    box = boxes(durability="sync", session="one")
    box.load("context", "c" * 1000)
    assert box.execute(DIE).lost == ()
    assert run(box, "print(len(context))").stdout == "1000\n"


def test_a_container_that_is_lost_while_the_host_fetches_what_changed(boxes: Boxes) -> None:
    """The cell has ended. Its result says that what it did may be lost, and the session goes on."""
    box = boxes(durability="sync", session="one", workspace="memory", restarts=1)
    run(box, "import os\ncount = 1")
    first = sessions_directory() / "one" / "workspace" / "0"

    def kill() -> None:
        assert eventually(first.exists)
        boxes.local.processes[-1].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    code = "for i in range(40): open(f'{i}', 'wb').write(os.urandom(4_000_000))\ncount += 1"
    result = box.execute(code)
    killer.join()
    assert result.status == "died"
    assert "Another one goes on" in result.stderr
    assert run(box, "print(count)").stdout == "1\n"


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("durability", ["async", "sync"])
def test_a_checkpoint_is_flushed_before_it_counts(tmp_path: Path, durability: str) -> None:
    program = (
        "import sys\nfrom rlm_containers import Sandbox\n"
        "from tests.unit.guests import LocalRuntime\n"
        "with Sandbox(runtime=LocalRuntime(), session='one', durability=sys.argv[1]) as box:\n"
        "    box.load('context', 'c' * 5)\n"
        "    assert box.execute('x = \"x\" * 300_000').status == 'ok'\n"
        "    box.snapshot()\n"
    )
    log = tmp_path / "log"
    subprocess.run(
        ("strace", "-f", "-y", "-e", "trace=fsync,fdatasync", "-o", str(log),
         sys.executable, "-c", program, durability),
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        check=True,
    )  # fmt: skip
    flushed = [line for line in log.read_text().splitlines() if "fsync(" in line]
    workspace = sessions_directory() / "one" / "workspace"
    found = {
        name: any(f"{workspace / name}" in line for line in flushed)
        for name in ("state.dill.new", ".blobs/00000000", ".blobs>")
    }
    assert found == dict.fromkeys(found, durability == "sync")
    assert any(f"<{workspace}>" in line for line in flushed) == (durability == "sync")
    # A snapshot is on the disk either way: its contents, their names, then its record.
    session = workspace.parent
    objects = [n for n, line in enumerate(flushed) if f"<{session}/objects" in line]
    records = [n for n, line in enumerate(flushed) if f"<{session}/snapshots" in line]
    assert len(records) == 2
    assert max(objects) < min(records)
    assert any(f"<{session}/objects/" in line and "/." not in line for line in flushed)
