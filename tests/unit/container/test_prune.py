"""Pruning removes what dead processes left, and nothing of living ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from rlm_containers import Sandbox
from rlm_containers.container.prune import PrunedSandboxes, prune
from rlm_containers.errors import EngineUnavailableError
from rlm_containers.state import Owner, Workspace, owner_file, workspaces_directory
from runtimes import ContainerRecord
from runtimes.base import NetworkRecord
from tests.support import TIMEOUT, eventually
from tests.unit.container.test_reaper import REPOSITORY
from tests.unit.guests import LocalRuntime
from tests.unit.sessions import Boxes, run, workspace_of

#: The module, which the package's function of the same name hides.
PRUNE = sys.modules["rlm_containers.container.prune"]

ME = (os.getuid(), os.getgid())
GONE = replace(Owner.current(), started="1")
STRANGER = replace(Owner.current(), started="1", host="another")


class Engine(LocalRuntime):
    """An engine that has a container and a network of each of these owners."""

    def __init__(self, *owners: Owner | None) -> None:
        super().__init__()
        self.owners = owners
        self.asked = 0
        self.removed_networks: list[str] = []

    def find(self, labels: Mapping[str, str]) -> list[ContainerRecord]:
        self.asked += 1
        return [
            ContainerRecord(id=str(n), name=f"c{n}", image="i", running=True, labels=labels_of(o))
            for n, o in enumerate(self.owners)
        ]

    def find_networks(self, labels: Mapping[str, str]) -> list[NetworkRecord]:
        return [NetworkRecord(name=f"n{n}", labels=labels_of(o)) for n, o in enumerate(self.owners)]

    def remove_network(self, name: str) -> None:
        self.removed_networks.append(name)


def labels_of(owner: Owner | None) -> dict[str, str]:
    return owner.labels() if owner else {}


@pytest.fixture
def left(private_cache: Path) -> Workspace:
    """The workspace of an owner that is gone."""
    workspace = Workspace.create("rlm-left", ME, GONE.json(runtime="x"))
    workspace.write("file", [b"x"])
    (workspace.path / "locked").mkdir()
    (workspace.path / "locked").chmod(0)
    return workspace


def test_containers_and_networks_of_the_dead_only() -> None:
    engine = Engine(GONE, Owner.current(), STRANGER, None, replace(Owner.current(), boot="b"))
    pruned = prune([engine])
    assert engine.removed == pruned.containers == ["c0", "c4"]
    assert engine.removed_networks == pruned.networks == ["n0", "n4"]
    assert pruned.errors == []


def test_workspaces_of_the_dead_only(left: Workspace, box: Sandbox) -> None:
    others = {
        "rlm-stranger": STRANGER.json(),
        "rlm-odd": "{",
        "rlm-old": "",  # of a version that kept no record
    }
    for name, record in others.items():
        Workspace.create(name, ME, record)
    strays = [
        workspaces_directory() / name for name in (".owner", "..owner", "....owner", "x.owner")
    ]
    for stray in strays:
        stray.write_text(GONE.json())
    assert prune() == PrunedSandboxes(workspaces=["rlm-left"])
    assert not left.path.exists()
    assert not owner_file(left.path).exists()
    for stray in strays:
        stray.unlink()
    for name in others:
        path = workspaces_directory() / name
        assert path.is_dir()
        path.rmdir()
        owner_file(path).unlink(missing_ok=True)
    run(box, "x = 1")
    assert workspace_of(box).is_dir()
    assert prune() == PrunedSandboxes()


def test_an_owner_file_without_a_workspace_is_removed(left: Workspace) -> None:
    left.remove()
    owner_file(left.path).write_text(GONE.json())
    prune()
    assert not owner_file(left.path).exists()


def test_symlinks_in_workspaces_of_the_dead_are_not_followed(
    left: Workspace, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    (left.path / "link").symlink_to(tmp_path)
    prune()
    assert (tmp_path / "file").read_bytes() == b"mine"


class Broken(Engine):
    """An engine that does not answer."""

    def __repr__(self) -> str:
        return "<the broken engine>"

    def find(self, labels: Mapping[str, str]) -> list[ContainerRecord]:
        raise EngineUnavailableError("it has stopped")


def test_an_engine_that_does_not_answer_does_not_stop_the_rest(left: Workspace) -> None:
    good = Engine(GONE)
    pruned = prune([Broken(), good])
    assert good.removed == ["c0"]
    assert pruned.workspaces == ["rlm-left"]
    assert [str(error) for error in pruned.errors] == ["it has stopped"]


def test_workspaces_of_other_engines_are_kept_for_their_next_start(
    left: Workspace,
) -> None:
    answering = Engine()
    broken = Workspace.create("rlm-broken", ME, GONE.json(runtime=repr(Broken())))
    here = Workspace.create("rlm-here", ME, GONE.json(runtime=repr(answering)))
    pruned = prune([Broken(), answering], everywhere=False)
    assert pruned.workspaces == ["rlm-here"]
    assert not here.path.exists()
    for kept in (left, broken):
        assert kept.path.is_dir()
        assert owner_file(kept.path).exists()
    assert sorted(prune().workspaces) == ["rlm-broken", "rlm-left"]


def test_a_container_that_cannot_be_removed_does_not_stop_the_rest() -> None:
    class Stubborn(Engine):
        def remove(self, name: str) -> None:
            if name == "c0":
                raise EngineUnavailableError("not now")
            super().remove(name)

    engine = Stubborn(GONE, GONE)
    pruned = prune([engine])
    assert pruned.containers == ["c1"]
    assert pruned.networks == ["n0", "n1"]
    assert len(pruned.errors) == 1


# A host that is killed together with its reaper, as in a power failure.
HOST = """
import os, sys
from rlm_containers import Sandbox
from tests.unit.guests import LocalRuntime
class Named(LocalRuntime):
    def __repr__(self): return "<the engine>"
box = Sandbox(runtime=Named()).start()
box.execute("import os; os.mkdir('d'); open('d/file', 'w').write('x'); os.chmod('d', 0)")
print(box.name, box._life.running.reaper.pid, flush=True)
sys.stdin.read()
"""


def test_the_next_start_removes_what_a_killed_host_left(
    boxes: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen(
        (sys.executable, "-c", HOST),
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as host:
        assert host.stdout is not None
        name, reaper = host.stdout.readline().split()
        os.kill(int(reaper), 9)
        host.kill()
        host.wait(TIMEOUT)
    path = workspaces_directory() / name
    assert path.is_dir()
    monkeypatch.setattr(PRUNE, "_pruned", set())

    class Named(Engine):
        def __repr__(self) -> str:
            return "<the engine>"

    boxes.local = Named()
    living = boxes()
    assert eventually(lambda: not path.exists() and not owner_file(path).exists(), TIMEOUT)
    run(living, "x = 1")
    assert workspace_of(living).is_dir()
    # It is pruned once per process, and never asked if no owner file names the dead.
    assert boxes.local.asked == 1
    boxes()
    assert boxes.local.asked == 1


def test_a_start_asks_no_engine_if_there_are_no_leftovers(
    boxes: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[object] = []
    monkeypatch.setattr(PRUNE, "_pruned", set())
    monkeypatch.setattr(PRUNE, "prune", lambda *where, **how: looked.append(where))
    boxes.local = Engine()
    box = boxes()
    file = owner_file(workspace_of(box))
    assert Owner.from_json(file.read_text()) == Owner.current()
    box.close()
    assert not file.exists()
    assert looked == []


def test_a_workspace_that_cannot_be_made_leaves_no_owner_file(private_cache: Path) -> None:
    (workspaces_directory() / "rlm-taken").mkdir(parents=True)
    with pytest.raises(Exception, match="could not be made"):
        Workspace.create("rlm-taken", ME, GONE.json())
    assert not owner_file(workspaces_directory() / "rlm-taken").exists()
    (workspaces_directory() / "rlm-taken").rmdir()
