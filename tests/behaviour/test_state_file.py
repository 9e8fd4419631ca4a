"""The file that a session lives on in, ``/workspace/state.dill``, and the files beside it."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import pytest

from rlm_containers import Sandbox
from tests.conftest import MakeBox
from tests.support import Engine, die, execute, printed, skip_on_cluster, workspace

#: These tests are of the file: no heir may keep what is lost, or leave out a checkpoint.
OPTIONS = {"heirs": "never"}

BIG = 5_000_000


@pytest.fixture(autouse=True)
def not_in_pods(engine: Engine) -> None:
    skip_on_cluster(engine, "no pod has its state on this host")


def disk_use(box: Sandbox) -> int:
    """Bytes of the files in a sandbox's workspace."""
    assert box.unsaved == ()  # waits until the checkpoint is written
    files = (Path(top, name) for top, _, names in os.walk(workspace(box)) for name in names)
    return sum(file.lstat().st_size for file in files)


def test_the_state_is_on_the_host(fresh: Sandbox) -> None:
    printed(fresh, "x = 1")
    assert fresh.unsaved == ()
    assert (workspace(fresh) / "state.dill").stat().st_size > 0


@pytest.mark.container
def test_a_state_of_another_python_says_so(engine: Engine, make_box: MakeBox) -> None:
    # As when a workspace is taken to another image: what is not byte code comes along.
    older = make_box(engine.image("3.9"), **OPTIONS)
    printed(older, "def f(): return 5\nnumbers = [1, 2]")
    assert older.unsaved == ()
    box = make_box(engine.image("3.13"), **OPTIONS)
    given = workspace(box) / "given"
    given.write_bytes((workspace(older) / "state.dill").read_bytes())
    given.chmod(0o644)
    result = box.execute("import os; os.system('cp given state.dill'); os._exit(1)")
    assert result.lost == ("f",)
    assert re.search(r"its code is Python 3\.9\.\d+'s, and this is 3\.13\.\d+", result.stderr)
    assert printed(box, "print(numbers)") == "[1, 2]\n"


def test_the_file_is_whole_at_any_moment(fresh: Sandbox, make_box: MakeBox) -> None:
    # A copy of what is there while it is being written, over and over; each copy is then given to
    # a session as its state. There is no other judge of a whole file than the guest.
    printed(fresh, "rows = [str(n) for n in range(20_000)]\nmark = -1")
    assert fresh.unsaved == ()
    path = workspace(fresh) / "state.dill"
    copies: list[bytes] = []
    stop = threading.Event()

    def copy() -> None:
        while not stop.is_set():
            copies.append(path.read_bytes())

    thread = threading.Thread(target=copy)
    thread.start()
    for number in range(10):
        printed(fresh, f"mark = {number}\nrows.append({number})")
    assert fresh.unsaved == ()
    stop.set()
    thread.join()
    different = list(dict.fromkeys(copies))
    assert len(different) > 1
    other = make_box(**OPTIONS)
    for number, content in enumerate(different[:6]):
        given = workspace(other) / f"given-{number}"
        given.write_bytes(content)
        given.chmod(0o644)
        printed(other, "mine = 1")
        assert other.unsaved == ()
        assert die(other, f"os.system('cp given-{number} state.dill')") == ()
        assert printed(other, "print(len(rows) - mark, 'mine' in globals())") == "20001 False\n"
        assert printed(other, "del rows, mark") == ""


def test_long_strings_come_back(fresh: Sandbox) -> None:
    execute(
        fresh,
        """
        import os
        text = 'grüße \\ud800 \\0\\r\\n' * 100_000
        raw = os.urandom(1_000_000)
        held = {'list': [text, 'y' * 400_000], 'pair': (raw, b'z' * 300_000)}
        copy, digest = str(text), hash(raw)
        """,
    )
    assert fresh.unsaved == ()
    assert die(fresh) == ()
    assert printed(
        fresh,
        "print(text == 'grüße \\ud800 \\0\\r\\n' * 100_000, held['list'][0] is text, len(raw),"
        " held['list'][1] == 'y' * 400_000, held['pair'][0] is raw, held['pair'][1][:3])",
    ) == "True True 1000000 True True b'zzz'\n"  # fmt: skip


def test_a_loaded_context_is_not_stored_twice(fresh: Sandbox) -> None:
    disk_use(fresh)  # so that none of the next checkpoints is left out
    fresh.load("context_0", "c" * BIG)
    disk_use(fresh)
    printed(fresh, "part = context[:10]")
    assert BIG < disk_use(fresh) < 1.5 * BIG
    assert die(fresh) == ()
    assert printed(fresh, "print(len(context_0), context is context_0, part)") == (
        f"{BIG} True cccccccccc\n"
    )
