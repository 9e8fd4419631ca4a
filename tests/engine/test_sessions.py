"""Named sessions, snapshots and files, where containers write to them as users of their own."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlm_containers import Sandbox
from rlm_containers.errors import SessionInUseError, WorkspaceError
from rlm_containers.state import SessionStore
from tests import support
from tests.conftest import MakeBox
from tests.support import Engine, assert_gone, execute, printed, warnings_of

REPOSITORY = Path(__file__).parent.parent.parent

# A host that has a session, and is killed right after a cell whose variables take a while to save.
HOST = """
import os, sys
from rlm_containers import Sandbox
box = Sandbox(sys.argv[1], runtime=sys.argv[2], session=sys.argv[3]).start()
assert box.execute("x = [1]; y = x").status == "ok"
assert box.execute('''
import time
class Slow:
    def __reduce__(self):
        time.sleep(1)
        return (int, (42,))
slow = Slow()
''').status == "ok"
print(box.name, flush=True)
sys.stdin.read()
"""

CELL = """
import importlib.util
import os
def double(x): return 2 * x
items = [1]
same = items
text = "t" * 400_000
os.makedirs("deep/er")
open("deep/er/file", "w").write("from the first engine")
os.chmod("deep/er/file", 0o400)
"""

CHECK = """
assert double(items[0]) == 2 and same is items and len(text) == 400_000
assert open("deep/er/file").read() == "from the first engine"
assert open("put/here.txt").read() == "from the host"
assert len(context) == 1000
os.remove("deep/er/file")  # all of it is this user's own
open("deep/er/file", "w").write("from the first engine")
open("put/here.txt", "a").close()
items.append(1)
"""


def others(engine: Engine) -> list[Engine]:
    return [Engine(name) for name in support.usable() if name != engine.name]


def test_a_session_goes_on_there_and_elsewhere(make_box: MakeBox, engine: Engine) -> None:
    name = f"moves-{engine.name}"
    box = make_box(session=name, durability="sync")
    box.load("context", "c" * 1000)
    box.put_file(b"from the host", "put/here.txt")
    printed(box, CELL)
    with pytest.raises(SessionInUseError):
        make_box(session=name)
    box.close()
    for other in (engine, *others(engine)):
        with Sandbox(other.image(), runtime=other.runtime, session=name) as again:
            assert again.lost == ()
            printed(again, CHECK)
        info = SessionStore().inspect(name)
        assert info.is_current
        assert info.manifest is not None
        assert info.manifest.engine == other.runtime
    SessionStore().remove(name)


def test_a_killed_host_leaves_its_session(make_box: MakeBox, engine: Engine) -> None:
    name = f"killed-{engine.name}"
    host = subprocess.Popen(
        (sys.executable, "-c", HOST, engine.image(), engine.runtime, name),
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert host.stdout is not None
    sandbox = host.stdout.readline().strip()
    assert sandbox
    host.send_signal(signal.SIGKILL)
    host.communicate()
    # At once: the lock is free only when nothing of the other is left that could write to it.
    box = make_box(session=name)
    assert not engine.containers(sandbox)
    assert box.lost == ()
    assert printed(box, "print(x is y, slow)") == "True 42\n"
    box.close()
    assert_gone(engine, sandbox)
    SessionStore().remove(name)


def test_another_python(
    make_box: MakeBox, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"python-{engine.name}"
    box = make_box(session=name)
    printed(box, "def f(): return 1\nclass C: pass\nnumbers = [1, 2]\ntext = 't' * 300_000")
    old = box.python_version
    box.close()
    newer = make_box(engine.image("3.13"), session=name)
    # A class without code in it is none of a Python's own.
    assert [variable.name for variable in newer.lost] == ["f"]
    assert printed(newer, "print(numbers, len(text))") == "[1, 2] 300000\n"
    warning = warnings_of(caplog)[-1].getMessage()
    assert f"was made with Python {old}, and this is 3.13." in warning
    (kept,) = newer.snapshots()
    assert kept.id in warning
    newer.close()
    # Everything is there again for the Python that it was made with.
    again = make_box(session=name)
    again.restore(kept.id)
    assert printed(again, "print(f(), C.__name__)") == "1 C\n"
    again.close()
    SessionStore().remove(name)


@pytest.fixture
def clean(box: Sandbox) -> Sandbox:
    """The sandbox of this module without a file or variable of another test."""
    printed(
        box,
        "import os, shutil\nfor n in os.listdir('.'):\n"
        "    if not n.startswith(('state.dill', '.blobs')):\n"
        "        shutil.rmtree(n) if os.path.isdir(n) and not os.path.islink(n) else os.remove(n)\n",
    )
    return box


def test_snapshots_and_forks(clean: Sandbox, engine: Engine) -> None:
    box = clean
    printed(
        box,
        "items = [1]\nsame = items\nos.makedirs('d')\nopen('d/f', 'w').write('1')\nos.chmod('d', 0o500)",
    )
    first = box.snapshot()
    printed(
        box, "items.append(2)\nos.chmod('d', 0o700)\nopen('d/f', 'w').write('2')\nopen('new', 'w')"
    )
    with box.fork() as other:
        printed(other, "items.append(3)\nopen('d/f', 'a').write('3')\nopen('d/g', 'w')")
        assert other.get_file("d/f") == b"23"
    assert box.restore(first) == ()
    assert printed(box, "print(items, same is items, open('d/f').read(), os.listdir('d'))") == (
        "[1] True 1 ['f']\n"
    )
    printed(box, "os.chmod('d', 0o700)\nopen('d/f', 'w').write('mine')\nopen('d/g', 'w')")
    box.remove_snapshot(first)
    assert box.snapshots() == []


def test_files(clean: Sandbox, tmp_path: Path) -> None:
    box = clean
    box.put_file(b"1", "a/b/one")
    box.put_file(b"2", "top")
    printed(
        box,
        """
        open("a/b/one", "a").write("1"); open("a/b/two", "w").write("2"); os.rename("a/b", "a/c")
        os.remove("top")
        os.symlink("/etc/passwd", "link"); os.mkfifo("fifo"); os.mkdir("locked")
        os.chmod("a/c/one", 0o600)
        """,
    )
    assert [file.name for file in box.list_files()] == ["a/c/one", "a/c/two"]
    assert box.get_file("a/c/one") == b"11"
    assert box.get_file("/workspace/a/c/two", tmp_path).read_bytes() == b"2"
    for name, said in (("link", "symbolic link"), ("fifo", "FIFO"), ("top", "No such file")):
        with pytest.raises(WorkspaceError, match=said):
            box.get_file(name)
    box.put_file(b"3", "link")
    assert execute(box, "print(open('link').read(), os.path.islink('link'))").stdout == "3 False\n"


def test_figures(make_box: MakeBox, engine: Engine) -> None:
    # The real matplotlib, that of this environment: for the same Python it runs there, too.
    found = importlib.util.find_spec("matplotlib")
    assert found is not None
    assert found.origin is not None
    place = Path(found.origin).parent.parent
    python = "{}.{}".format(*sys.version_info)
    box = make_box(engine.image(python), mounts=[f"{place}:/opt/packages"], network="none")
    result = execute(
        box,
        """
        import sys
        sys.path.append("/opt/packages")
        import matplotlib.pyplot as plt
        plt.plot([1, 2, 3])
        plt.savefig("saved.pdf")
        plt.show()
        """,
    )
    # On a busy machine it says after five seconds that it builds the font cache.
    said = [line for line in result.stderr.splitlines() if "font cache" not in line]
    assert (result.status, said) == ("ok", [])
    assert [(a.path, a.mime_type) for a in result.artifacts] == [
        ("saved.pdf", "application/pdf"),
        ("figures/figure-1.png", "image/png"),
    ]
    assert box.get_file("saved.pdf").startswith(b"%PDF")
    assert box.get_file("figures/figure-1.png").startswith(b"\x89PNG")
