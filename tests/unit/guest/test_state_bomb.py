"""A state file that runs code when it is loaded: the guest's own affair, never the host's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rlm_containers import Sandbox
from tests.unit.sessions import DIE, Boxes, run, settle, workspace_of

# A class whose pickle notes who loads it.
BOMB = """
import os
class Bomb:
    def __reduce__(self):
        note = "open({place!r} + '/' + str(__import__('os').getpid()), 'w').close()"
        return (exec, (note,))
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where a bomb notes the process that has loaded it."""
    directory = tmp_path / "exploded"
    directory.mkdir()
    return directory


def bomb(box: Sandbox, place: Path) -> None:
    run(box, BOMB.replace("{place!r}", repr(str(place))))


def everything_that_the_host_does(box: Sandbox) -> None:
    run(box, "x = 1")
    box.load("context_0", "text")
    box.load("history", [{"role": "user"}], keep=True)
    settle(box)
    box.reset_answer()
    assert box.execute("1 / 0").status == "error"


def test_one_that_the_session_saved_is_loaded_by_its_interpreter_only(
    boxes: Boxes, place: Path
) -> None:
    box = boxes()
    bomb(box, place)
    run(box, "bomb = Bomb()")
    everything_that_the_host_does(box)
    assert list(place.iterdir()) == []
    assert box.execute(DIE).status == "died"
    everything_that_the_host_does(box)
    box.close()
    loaded = [int(path.name) for path in place.iterdir()]
    assert loaded  # it works, where it may
    assert os.getpid() not in loaded


def test_one_that_a_cell_wrote_is_not_loaded_by_the_host(boxes: Boxes, place: Path) -> None:
    # Not a state file at all: a plain pickle, under every name that anyone might load.
    box = boxes()
    bomb(box, place)
    run(
        box,
        """
        import pickle
        for name in ("state.dill", "state.dill.previous", "context_0.txt", "x.pkl", "index.json"):
            open(name, "wb").write(pickle.dumps(Bomb()) * 20)
        del Bomb
        """,
    )
    everything_that_the_host_does(box)
    (workspace_of(box) / "state.dill").write_bytes(b"cos\nsystem\n(S'echo'\ntR." * 20)
    assert box.execute(DIE).status == "died"
    everything_that_the_host_does(box)
    box.close()
    assert str(os.getpid()) not in [path.name for path in place.iterdir()]
