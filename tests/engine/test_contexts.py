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


def test_large_texts_have_huge_pages(box: Sandbox) -> None:
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not enabled.exists() or "[never]" in enabled.read_text():
        pytest.skip("this kernel has none")
    box.load("large", "x" * 50_000_000)
    code = (
        "huge = [line.split()[1] for line in open('/proc/self/smaps') if 'AnonHuge' in line]\n"
        "print(sum(map(int, huge)) > 0)"
    )
    assert printed(box, code) == "True\n"
    # What asks for them is for this package's processes only.
    code = "import os\nprint(os.environ.get('GLIBC_TUNABLES'))\nos.system('echo $GLIBC_TUNABLES')"
    assert printed(box, code) == "None\n\n"
    box.load("large", "")
