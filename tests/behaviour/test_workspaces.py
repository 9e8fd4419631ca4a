"""Files, state and sessions, the same wherever the workspace is."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rlm_containers import Sandbox
from rlm_containers.errors import SandboxLostError, WorkspaceError
from rlm_containers.guest import wire
from rlm_containers.interpreter.files import FileCall
from rlm_containers.state import sessions_directory
from tests.conftest import MakeBox
from tests.support import (
    KUBERNETES,
    Engine,
    eventually,
    execute,
    printed,
    skip_on_cluster,
)

PLACES = ("shared", "memory")


@pytest.fixture(scope="module", params=PLACES)
def place(engine: Engine, request: pytest.FixtureRequest) -> str:
    if request.param == "shared":
        skip_on_cluster(engine, "no pod sees files of this host")
    return str(request.param)


@pytest.fixture(scope="module")
def box(engine: Engine, place: Any) -> Iterator[Sandbox]:
    with Sandbox(engine.image(), runtime=engine.runtime, workspace=place) as box:
        yield box


@pytest.fixture
def make(make_box: MakeBox, place: str) -> MakeBox:
    """Makes sandboxes that have their workspaces in this place."""

    def made(image: str | None = None, **options: Any) -> Sandbox:
        return make_box(image, **{"workspace": place, **options})

    return made


def refused(call: Callable[[], object], number: int) -> None:
    with pytest.raises(WorkspaceError) as caught:
        call()
    assert caught.value.errno == number, caught.value


def test_both_see_each_others_files(box: Sandbox) -> None:
    every = bytes(range(256))
    box.files.write("deep/down/data.bin", every)
    assert printed(box, "print(open('deep/down/data.bin', 'rb').read() == bytes(range(256)))")
    printed(box, "with open('deep/cells', 'w') as f: f.write('a cell was here')")
    assert box.files.read("deep/cells") == b"a cell was here"
    assert [(f.name, f.kind, f.size) for f in box.files.list("deep", recursive=True)] == [
        ("deep/cells", "file", 15),
        ("deep/down", "directory", box.files.stat("deep/down").size),
        ("deep/down/data.bin", "file", 256),
    ]
    assert [f.name for f in box.files.list("deep")] == ["deep/cells", "deep/down"]


def test_files_are_moved_and_removed(box: Sandbox) -> None:
    box.files.write("one", "1")
    box.files.mkdir("made/of/parts")
    box.files.mkdir("made/of/parts")
    box.files.move("one", "made/of/parts/two")
    assert printed(box, "print(open('made/of/parts/two').read())") == "1\n"
    box.files.remove("made")
    assert "made" not in printed(box, "import os; print(os.listdir())")


def test_a_file_that_is_replaced_keeps_its_permissions(box: Sandbox) -> None:
    box.files.write("tool", "#!/bin/sh\necho one\n")
    printed(box, "import os; os.chmod('tool', 0o755)")
    box.files.write("tool", "#!/bin/sh\necho two\n")
    assert box.files.stat("tool").mode == 0o755
    assert box.command(["./tool"]).stdout == b"two\n"


def test_errors_have_their_numbers(box: Sandbox) -> None:
    printed(
        box,
        """
        import os
        os.makedirs("dir/below", exist_ok=True)
        os.symlink("/etc", "link")
        os.mkfifo("fifo")
        """,
    )
    refused(lambda: box.files.read("missing"), errno.ENOENT)
    refused(lambda: box.files.stat("dir/missing"), errno.ENOENT)
    refused(lambda: box.files.remove("missing"), errno.ENOENT)
    refused(lambda: box.files.move("missing", "other"), errno.ENOENT)
    refused(lambda: box.files.read("dir"), errno.EISDIR)
    refused(lambda: box.files.write("dir", "text"), errno.EISDIR)
    refused(lambda: box.files.read("link"), errno.EINVAL)
    refused(lambda: box.files.read("fifo"), errno.EINVAL)
    refused(lambda: box.files.read("link/passwd"), errno.ENOTDIR)
    refused(lambda: box.files.list("link"), errno.ENOTDIR)
    refused(lambda: box.files.mkdir("fifo/dir"), errno.ENOTDIR)
    assert box.files.stat("link").kind == "symlink"
    box.files.write("link", "no link any more")
    assert box.files.stat("link").kind == "file"
    assert printed(box, "print(os.path.exists('/etc/passwd'))") == "True\n"
    box.files.remove("fifo")


def test_names_of_any_bytes(box: Sandbox) -> None:
    printed(box, "open(b'odd-\\xff\\n\\'\"', 'w').write('odd')")
    (found,) = (f for f in box.files.list() if f.name.startswith("odd"))
    assert box.files.read(found.name) == b"odd"
    box.files.remove(found.name)


def test_long_files_travel_whole(box: Sandbox, tmp_path: Path) -> None:
    content = os.urandom(1 << 20) * 5 + b"end"
    source = tmp_path / "long"
    source.write_bytes(content)
    box.put_file(source)
    code = "import hashlib; print(hashlib.sha256(open('long', 'rb').read()).hexdigest())"
    assert printed(box, code) == hashlib.sha256(content).hexdigest() + "\n"
    assert box.get_file("long") == content
    assert box.get_file("long", to=tmp_path / "copy").read_bytes() == content
    with pytest.raises(WorkspaceError, match="bytes long"):
        box.files.read("long", max_size=1000)
    box.files.remove("long")


def test_a_write_that_fails_leaves_nothing(box: Sandbox) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"the beginning"
        raise ZeroDivisionError

    workspace = box._life.running.workspace
    with pytest.raises(ZeroDivisionError):
        workspace.write("broken/off", chunks())
    assert box.files.list("broken") == ()


def test_contexts_arrive(box: Sandbox) -> None:
    box.load("context", "grüße " * 500_000)
    assert printed(box, "print(len(context), context[:6])") == "3000000 grüße \n"
    box.load("context", {"a": [1, 2]})
    assert printed(box, "print(context)") == "{'a': [1, 2]}\n"


def test_a_tool_may_use_the_files_while_the_cell_waits(box: Sandbox) -> None:
    def save(name: str, text: str) -> str:
        box.files.write(name, text)
        return box.files.read_text("of-the-cell")

    box.set_tools({"save": save})
    code = "open('of-the-cell', 'w').write('here'); print(save('by-tool', 'x' * 3_000_000))"
    assert printed(box, code) == "here\n"
    assert printed(box, "print(len(open('by-tool').read()))") == "3000000\n"
    box.set_tools({})


def test_several_threads_may_use_the_files(box: Sandbox) -> None:
    def work(number: int) -> None:
        content = bytes([number]) * 700_000
        for _ in range(3):
            box.files.write(f"thread-{number}", content)
            assert box.files.read(f"thread-{number}") == content
        done.append(number)

    done: list[int] = []
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    printed(box, "sum(range(1000))")
    for thread in threads:
        thread.join()
    assert sorted(done) == [0, 1, 2, 3]


def test_files_that_cells_cannot_be_asked_for(box: Sandbox) -> None:
    """A cell that keeps the interpreter busy keeps nobody from the files."""
    done = threading.Event()

    def read(stream: str, text: str) -> None:
        assert box.files.read("busy") == b"1"
        done.set()

    code = "open('busy', 'w').write('1'); print('go', flush=True); sum(range(10**7)); print('end')"
    assert box.execute(code, on_output=read).stdout == "go\nend\n"
    assert done.is_set()


def test_a_death_costs_nothing_that_was_saved(box: Sandbox) -> None:
    printed(box, "kept = [1, 2]; open('kept', 'w').write('3')")
    assert execute(box, "import os; os.kill(os.getpid(), 9)").status == "died"
    assert printed(box, "print(kept, open('kept').read())") == "[1, 2] 3\n"


def test_going_back_to_a_snapshot(make: MakeBox) -> None:
    box = make()
    box.load("context", "c" * 1_000_000)
    printed(
        box,
        """
        import os
        x = 1
        os.makedirs("dir/empty")
        open("dir/file", "w").write("before")
        os.chmod("dir/file", 0o640)
        os.symlink("dir/file", "link")
        """,
    )
    first = box.snapshot("first")
    printed(box, "x = 2; open('dir/file', 'w').write('after'); os.rmdir('dir/empty'); y = 1")
    printed(box, "os.remove('link'); os.mkdir('link'); open('link/new', 'w').write('n')")
    second = box.snapshot()
    assert box.restore(first) == ()
    shown = (
        "print(x, open('link').read(), sorted(os.listdir('dir')), len(context), 'y' in globals())"
    )
    assert printed(box, shown) == "1 before ['empty', 'file'] 1000000 False\n"
    assert box.files.stat("dir/file").mode == 0o640
    box.restore(second)
    assert printed(box, "print(x, y, open('link/new').read())") == "2 1 n\n"


def test_forks_go_their_own_ways(make: MakeBox) -> None:
    box = make()
    printed(box, "x = [1]; open('file', 'w').write('1')")
    with box.fork() as fork:
        assert printed(fork, "print(x, open('file').read())") == "[1] 1\n"
        printed(fork, "x.append(2); open('file', 'w').write('2')")
    assert printed(box, "print(x, open('file').read())") == "[1] 1\n"


@pytest.mark.parametrize("then", PLACES)
def test_a_session_goes_on_in_either_place(
    engine: Engine, make: MakeBox, place: str, then: str
) -> None:
    if then == "shared":
        skip_on_cluster(engine, "no pod sees files of this host")
    session = f"place-{place}-{then}"
    with make(session=session) as box:
        box.load("context", "text " * 200_000)
        printed(box, "x = {'a': context[:4]}; open('file', 'w').write('1')")
        printed(box, "x['b'] = 2")
    with make(session=session, workspace=then) as box:
        assert printed(box, "print(x, len(context), open('file').read())") == (
            "{'a': 'text', 'b': 2} 1000000 1\n"
        )
        printed(box, "import os; x = 3; os.remove('file')")
    with make(session=session) as box:
        assert printed(box, "import os; print(x, os.path.exists('file'))") == "3 False\n"


@pytest.mark.parametrize("durability", ["async", "sync"])
def test_a_session_outlives_its_container(
    engine: Engine,
    make: MakeBox,
    place: str,
    durability: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    session = f"lost-{place}-{durability}"
    box = make(session=session, durability=durability)
    box.load("context", "text " * 200_000)
    printed(box, "x = [1]; open('file', 'w').write('cell')")
    box.files.write("other", "host")
    if durability == "sync":
        printed(box, "x.append(2)")
    else:
        assert box.unsaved == ()
        state = box.files.read("state.dill")
        replica = sessions_directory() / session / "workspace"
        assert eventually((replica / "state.dill").exists)
        assert eventually(lambda: (replica / "state.dill").read_bytes() == state)
        assert eventually((replica / "other").exists)
    # What reaches the host is not lost with the container.
    box._life.running.interpreter.pipe.process.kill()
    with pytest.raises(SandboxLostError):
        for _ in range(1000):
            box.execute("pass")
    box.close()
    # Any place will do, but pods have one only.
    then = "memory" if engine.name == KUBERNETES else "shared"
    with make(session=session, workspace=then) as again:
        expected = "[1, 2]" if durability == "sync" else "[1]"
        shown = "print(x, len(context), open('file').read(), open('other').read())"
        assert printed(again, shown) == f"{expected} 1000000 cell host\n"


def test_only_what_has_changed_is_sent_again(
    make: MakeBox, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == "shared":
        pytest.skip("nothing is sent")
    box = make(session="blocks")
    pieces: list[int] = []
    receive = FileCall.receive

    def counted(self: FileCall) -> tuple[int, bytes] | None:
        record = receive(self)
        pieces.extend(len(data) for kind, data in [record or (0, b"")] if kind == wire.DATA)
        return record

    monkeypatch.setattr(FileCall, "receive", counted)
    printed(box, "import os; data = os.urandom(4_000_000); open('long', 'wb').write(data)")
    box.snapshot()
    assert sum(pieces) > 4_000_000
    pieces.clear()
    files = box._life.running.workspace
    before = files.pull().path.joinpath("long").read_bytes()
    printed(box, "f = open('long', 'r+b'); f.seek(1_000_000); f.write(b'changed'); f.close()")
    after = files.pull().path.joinpath("long").read_bytes()
    assert 0 < sum(pieces) < 1_000_000
    assert after == before[:1_000_000] + b"changed" + before[1_000_007:]
