"""Contexts where a cell is in the way of the host, which writes them as a user of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rlm_containers import Sandbox
from rlm_containers.errors import WorkspaceError
from tests.conftest import MakeBox
from tests.support import printed, workspace

PLANTS = {
    "a link to a file": "os.symlink({victim!r}, file)",
    "a link to a directory": "os.symlink({directory!r}, file)",
    "a link to nowhere": "os.symlink('/nowhere/at/all', file)",
    "a link to itself": "os.symlink(file, file)",
    "a pipe": "os.mkfifo(file)",
    "a locked file": "open(file, 'w').close(); os.chmod(file, 0)",
    "another name of the state": "os.link('state.dill', file)",
}


@pytest.mark.parametrize("plant", PLANTS)
def test_nothing_planted_is_followed(box: Sandbox, tmp_path: Path, plant: str) -> None:
    # The names mean something on the host, which writes the file.
    victim = tmp_path / "victim"
    victim.write_text("the host's own")
    printed(box, "kept = 'kept'")
    assert box.unsaved == ()
    name = f"planted_{list(PLANTS).index(plant)}"
    code = PLANTS[plant].format(victim=str(victim), directory=str(tmp_path))
    printed(box, f"import os\nfile = '{name}.txt'\n{code}\nprint(os.path.lexists(file))")
    box.load(name, "from the host")
    assert (workspace(box) / f"{name}.txt").read_text() == "from the host"
    assert printed(box, f"print({name})") == "from the host\n"
    assert victim.read_text() == "the host's own"
    assert os.listdir(tmp_path) == ["victim"]
    assert box.execute("import os; os._exit(1)").lost == ()
    assert printed(box, f"print({name}, kept)") == "from the host kept\n"


def test_a_workspace_that_a_cell_locks(make_box: MakeBox) -> None:
    # The owner may; the host then says so, or copes.
    box = make_box()
    printed(box, "import os\nos.chmod('/workspace', 0o500)")
    try:
        box.load("context_0", "text")
    except WorkspaceError as error:
        assert "context_0" in str(error)  # noqa: PT017 - or none: root may write all the same
    printed(box, "import os\nos.chmod('/workspace', 0o700)")
    box.load("context_0", "text")
    assert printed(box, "print(context)") == "text\n"
