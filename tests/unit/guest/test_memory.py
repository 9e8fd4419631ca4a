"""Processes that the kernel killed for their memory: what the guest reads and reports of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.guests import Guest, run_python

# As Linux 4.19 to 6.18 writes them.
V1 = "9:name=systemd:/docker/ab\n4:memory:/docker/ab\n0::/docker/ab\n"
V2 = "0::/\n"
OOM_CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"
EVENTS = "low 0\nhigh 0\nmax 431\noom {}\noom_kill {}\noom_group_kill 0\n"

WATCH = """
import json, sys
from rlm_guest.memory import MemoryWatch
root, steps = sys.argv[1], json.loads(sys.argv[2])
watch = MemoryWatch(root)
seen = []
for name, text in steps:
    open(root + name, "w").write(text)
    seen.append([watch.new_kills(), watch.report()])
print(json.dumps(seen))
"""


def tree(root: Path, cgroup: str, **files: str) -> str:
    """Write files below a directory that stands for the root. Return its path."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(cgroup)
    for name, text in files.items():
        path = root / "sys" / "fs" / "cgroup" / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


def watch(guest_path: list[str], root: str, *steps: tuple[str, str]) -> list[list[object]]:
    """Return what a MemoryWatch sees after each change of a file."""
    done = run_python(WATCH, root, json.dumps(steps), path=guest_path)
    assert (done.returncode, done.stderr) == (0, "")
    seen: list[list[object]] = json.loads(done.stdout)
    return seen


@pytest.mark.parametrize("place", ["memory", "memory__docker__ab"])
def test_cgroups_v1(guest_path: list[str], tmp_path: Path, place: str) -> None:
    # Engines show a container its own part of the tree, or all of it.
    root = tree(
        tmp_path,
        V1,
        **{
            f"{place}__memory_dot_oom_control": OOM_CONTROL.format(3),
            f"{place}__memory_dot_limit_in_bytes": "209715200\n",
            f"{place}__memory_dot_max_usage_in_bytes": "209711104\n",
        },
    )
    here = f"/sys/fs/cgroup/{place.replace('__', '/')}"
    assert watch(
        guest_path,
        root,
        (f"{here}/memory.oom_control", OOM_CONTROL.format(3)),
        (f"{here}/memory.oom_control", OOM_CONTROL.format(5)),
        (f"{here}/memory.oom_control", OOM_CONTROL.format(5)),
        # The peak is far from the limit, so the machine was out of memory.
        (f"{here}/memory.max_usage_in_bytes", "104857600\n"),
        (f"{here}/memory.limit_in_bytes", "9223372036854771712\n"),
    ) == [
        [0, '{"limit": 209715200}'],
        [2, '{"limit": 209715200}'],
        [0, '{"limit": 209715200}'],
        [0, '{"limit": null}'],
        [0, '{"limit": null}'],
    ]


def test_cgroups_v2(guest_path: list[str], tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        V2,
        memory_dot_events=EVENTS.format(0, 0),
        memory_dot_max="209715200\n",
    )
    assert watch(
        guest_path,
        root,
        ("/sys/fs/cgroup/memory.events", EVENTS.format(0, 0)),
        ("/sys/fs/cgroup/memory.events", EVENTS.format(0, 1)),
        ("/sys/fs/cgroup/memory.events", EVENTS.format(7, 3)),
        ("/sys/fs/cgroup/memory.max", "max\n"),
    ) == [
        [0, '{"limit": null}'],
        [1, '{"limit": null}'],
        [2, '{"limit": 209715200}'],
        [0, '{"limit": null}'],
    ]


@pytest.mark.parametrize("cgroup", [V1, V2, "", "0::/elsewhere\n"])
def test_a_kernel_that_does_not_count(guest_path: list[str], tmp_path: Path, cgroup: str) -> None:
    assert watch(guest_path, tree(tmp_path, cgroup), ("/x", "")) == [[None, "null"]]


def test_a_kernel_without_the_oom_kill_counter(guest_path: list[str], tmp_path: Path) -> None:
    # Linux before 4.13.
    root = tree(tmp_path, V1, memory__memory_dot_oom_control="oom_kill_disable 0\nunder_oom 0\n")
    assert watch(guest_path, root, ("/x", ""))[0][0] is None


def test_the_kernel_kills_a_worker_first(ready: Guest) -> None:
    _, stdout, _ = ready.run("print(open('/proc/self/oom_score_adj').read())")
    assert stdout.strip() == "1000"
    assert Path(f"/proc/{ready.pid}/oom_score_adj").read_text().strip() != "1000"


def test_another_death_is_not_reported_as_one_for_memory(ready: Guest) -> None:
    ready.cell("import os\nos.kill(os.getpid(), 9)")
    died = ready.event("died")
    assert died["signal"] == 9
    assert not died.get("memory")
    ready.start(expected=True)
    ready.cell("import os\nos.kill(os.getpid(), 15)")
    assert "memory" not in ready.event("died")
