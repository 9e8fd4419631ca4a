"""Named sessions: what a later sandbox finds again, and who may use one."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlm_containers import Sandbox
from rlm_containers.errors import (
    OptionError,
    SandboxLostError,
    SessionError,
    SessionInUseError,
    SessionStateError,
    SetupCodeError,
    WorkspaceError,
)
from rlm_containers.state import Manifest, Owner, SessionStore, Workspace, sessions_directory
from rlm_containers.state.lock import SessionLock, owner_of
from tests.support import TIMEOUT, eventually, warnings_of
from tests.unit.guests import LocalRuntime
from tests.unit.sessions import Boxes, run

pytestmark = pytest.mark.usefixtures("own_sessions")

REPOSITORY = Path(__file__).parents[3]

#: A variable that takes so long to save that a test fails if nobody waits for it.
SLOW = """
import time
class Slow:
    def __reduce__(self):
        time.sleep(1)
        return (int, (42,))
slow = Slow()
"""

# Runs cells in a session, prints a line, and waits to be killed.
HOST = """
import sys
from rlm_containers import Sandbox
from tests.unit.guests import LocalRuntime
box = Sandbox(runtime=LocalRuntime(), session=sys.argv[1]).start()
for code in sys.argv[2:]:
    assert box.execute(code).status == "ok"
print("done", flush=True)
sys.stdin.read()
"""


def session_path(name: str = "one") -> Path:
    return sessions_directory() / name


@pytest.fixture
def hosts() -> Iterator[Any]:
    """Starts other processes that use a session, and kills them at the end."""
    made: list[subprocess.Popen[str]] = []

    def start(session: str, *cells: str) -> subprocess.Popen[str]:
        host = subprocess.Popen(
            (sys.executable, "-c", HOST, session, *cells),
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        made.append(host)
        assert host.stdout is not None
        assert host.stdout.readline() == "done\n"
        return host

    yield start
    for host in made:
        host.kill()
        host.communicate()


def test_variables_and_files_are_there_again(boxes: Boxes) -> None:
    box = boxes(session="one")
    assert box.lost == ()
    box.load("context", {"rows": [{"n": n} for n in range(1000)]})
    box.load("text", "ü" * 300_000)
    run(
        box,
        """
        def double(x): return x * factor
        factor = 2
        items = [1, 2]
        same = items
        row = context["rows"][3]
        long = "x" * 300_000
        open("notes.txt", "w").write("written by a cell")
        import math
        """,
    )
    box.put_file(b"\0\1", "data/raw.bin")
    box.close()
    again = boxes(session="one")
    assert again.name != box.name
    assert again.lost == ()
    run(
        again,
        """
        assert double(21) == 42 and math.pi
        assert items == [1, 2] and same is items
        assert row is context["rows"][3] and len(text) == len(long) == 300_000
        assert open("notes.txt").read() == "written by a cell"
        items.append(3)
        """,
    )
    assert again.get_file("data/raw.bin") == b"\0\1"
    again.close()
    assert run(boxes(session="one"), "print(same)").stdout == "[1, 2, 3]\n"


def test_sessions_are_apart(boxes: Boxes) -> None:
    run(boxes(session="one"), "x = 1")
    run(boxes(session="two"), "x = 2")
    assert "x" not in boxes().execute("").locals
    for box in boxes.made:
        box.close()
    assert boxes(session="one").execute("").locals["x"] == "1"
    assert boxes(session="two").execute("").locals["x"] == "2"
    assert SessionStore().names() == ["one", "two"]


def test_closing_waits_for_the_last_checkpoint(boxes: Boxes) -> None:
    box = boxes(session="one")
    run(box, SLOW)
    box.close()
    again = boxes(session="one")
    assert (again.lost, run(again, "print(slow)").stdout) == ((), "42\n")


def test_a_killed_host_leaves_a_session_to_go_on_with(boxes: Boxes, hosts: Any) -> None:
    # The last cell has been answered, but its checkpoint takes another second.
    host = hosts("one", "x = [1]\ny = x", SLOW)
    host.send_signal(signal.SIGKILL)
    host.wait()
    again = boxes(session="one")
    assert again.lost == ()
    assert run(again, "print(x is y, slow)").stdout == "True 42\n"
    again.close()
    again = boxes(session="one")
    again.close()


def test_the_manifest_of_a_killed_hosts_session(boxes: Boxes, hosts: Any) -> None:
    host = hosts("one", "x = 1", "y = 2")
    store = SessionStore()
    assert store.inspect("one").pid == host.pid
    host.send_signal(signal.SIGKILL)
    host.wait()
    assert eventually(lambda: store.inspect("one").pid is None, 20)
    info = store.inspect("one")
    assert info.manifest is not None
    assert info.manifest.python == ".".join(map(str, sys.version_info[:3]))
    # The manifest is written at most once a second, and the host was killed before the last time.
    assert not info.is_current
    boxes(session="one").close()
    info = store.inspect("one")
    assert info.is_current or info.manifest is not None


def test_one_sandbox_at_a_time(boxes: Boxes, hosts: Any) -> None:
    box = boxes(session="one")
    with pytest.raises(SessionInUseError, match="another sandbox of this process") as caught:
        boxes(session="one")
    assert caught.value.pid == os.getpid()
    run(box, "x = 1")  # the refused sandbox did no harm
    box.close()
    host = hosts("one", "x += 1")
    with pytest.raises(SessionInUseError, match=f"in use by process {host.pid}"):
        boxes(session="one")
    host.communicate()  # end the process, which closes its sandbox
    assert boxes(session="one").execute("").locals["x"] == "2"


def test_a_lock_outlives_its_owner_as_long_as_something_of_it_does(tmp_path: Path) -> None:
    # Its child holds the lock, as a reaper does until the container is gone.
    directory = tmp_path / "s"
    program = (
        "import os, subprocess, sys\nfrom pathlib import Path\n"
        "from rlm_containers.state.lock import SessionLock\n"
        "lock = SessionLock(Path(sys.argv[1]), 's', create=True)\n"
        "loop = 'while ! [ -e \"$0/go\" ]; do sleep 0.01; done'\n"
        "subprocess.Popen(('sh', '-c', loop, sys.argv[1]), pass_fds=(lock.descriptor,), stdout=2)\n"
        "print(os.getpid(), flush=True)\nos._exit(0)\n"
    )
    done = subprocess.run(
        (sys.executable, "-c", program, str(directory)),
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    assert owner_of(directory) == int(done.stdout)
    (directory / "go").touch()
    with_lock = SessionLock(directory, "s")  # waits, since the owner is dead
    assert owner_of(directory) == os.getpid()
    with_lock.close()
    with_lock.close()
    assert owner_of(directory) is None


@contextlib.contextmanager
def held(directory: Path, text: str) -> Iterator[None]:
    """Hold a lock whose file has this text."""
    directory.mkdir()
    (directory / "lock").write_text(text)
    with (directory / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_a_lock_whose_dead_owners_number_somebody_else_has_now_is_waited_for(
    tmp_path: Path,
) -> None:
    with contextlib.ExitStack() as reaper:
        reaper.enter_context(held(tmp_path / "s", replace(Owner.current(), started="1").json()))
        threading.Timer(1.0, reaper.close).start()
        SessionLock(tmp_path / "s", "s").close()


def test_the_lock_file_of_an_older_version_is_read(tmp_path: Path) -> None:
    directory = tmp_path / "s"
    with held(directory, json.dumps({"pid": 4711, "host": socket.gethostname()})):
        assert owner_of(directory) == 4711
        with pytest.raises(SessionInUseError, match="in use by process 4711\\.") as caught:
            SessionLock(directory, "s")
        assert caught.value.pid == 4711
    assert owner_of(directory) is None
    lock = SessionLock(directory, "s")  # a lock that nobody holds can be taken
    assert owner_of(directory) == os.getpid()
    lock.close()


def test_a_lock_of_another_machine_says_which(tmp_path: Path) -> None:
    elsewhere = replace(Owner.current(), pid=4711, host="another").json(machine="far.example")
    with (
        held(tmp_path / "s", elsewhere),
        pytest.raises(SessionInUseError, match="in use by process 4711 on far.example\\."),
    ):
        SessionLock(tmp_path / "s", "s")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x", "host": 5}', "\0" * 5000, "\xff"])
def test_a_lock_file_with_unreadable_content(tmp_path: Path, text: str) -> None:
    with held(tmp_path / "s", text):
        assert owner_of(tmp_path / "s") == 0
        with pytest.raises(SessionInUseError, match="in use by another process") as caught:
            SessionLock(tmp_path / "s", "s")
        assert caught.value.pid is None
    SessionLock(tmp_path / "s", "s").close()


def test_a_session_that_is_being_removed_cannot_be_locked(tmp_path: Path) -> None:
    lock = SessionLock(tmp_path / "s", "s", create=True)
    (tmp_path / "s").rename(tmp_path / "removed")
    other = SessionLock(tmp_path / "s", "s", create=True)
    assert (tmp_path / "s" / "lock").exists()
    lock.close()
    other.close()


def test_the_manifest_describes_the_session(boxes: Boxes) -> None:
    box = boxes(session="one", image="some/image:1")
    box.load("context", "c" * 500_000)
    run(box, "x = list(range(1000))\ngenerator = (i for i in x)\ntext = 't' * 400_000")
    box.close()
    raw = json.loads((session_path() / "manifest.json").read_text())
    assert raw["image"] == "some/image:1"
    assert raw["engine"] == "local"
    assert raw["created"] < raw["used"]
    info = SessionStore().inspect("one")
    assert (info.is_current, info.pid, info.snapshots) == (True, None, 0)
    assert info.manifest is not None
    sizes = {v.name: (v.type, v.size) for v in info.manifest.variables}
    assert sizes["context"][0] == "str"
    assert 500_000 <= sizes["context"][1] < 501_000
    assert 400_000 <= sizes["text"][1] < 401_000
    assert 2_000 < sizes["x"][1] < 10_000
    assert "generator" not in sizes
    assert [(v.name, v.type) for v in info.manifest.unsaved] == [("generator", "generator")]
    assert info.size is not None
    assert info.size > 900_000
    again = boxes(session="one")
    assert [variable.name for variable in again.lost] == ["generator"]
    assert again.snapshots() == []  # none is needed: it was known to be unsaved
    run(again, "x = 5")
    again.close()
    info = SessionStore().inspect("one")
    assert info.is_current
    assert info.manifest is not None
    assert info.manifest.created == raw["created"]
    assert info.manifest.unsaved == ()


def test_a_lost_manifest_costs_nothing_else(boxes: Boxes, caplog: pytest.LogCaptureFixture) -> None:
    box = boxes(session="one")
    run(box, "x = 1")
    box.close()
    (session_path() / "manifest.json").write_text("{")
    assert SessionStore().inspect("one").manifest is None
    again = boxes(session="one")
    assert again.execute("").locals["x"] == "1"
    assert "manifest of the session 'one' is lost" in caplog.text
    again.close()
    info = SessionStore().inspect("one")
    assert info.manifest is not None


@pytest.mark.parametrize(
    "report",
    [
        {},
        {"variables": None},
        {"variables": {"a": 1}},
        {"variables": [1, None, [], ["a"], ["a", "b"], ["a", "b", "c"], ["a", "b", -1]]},
        {"variables": [["a", "b", True], ["a", "b", 1.5], ["a", "b", 1 << 80]], "unsaved": 5},
        {"variables": [], "unsaved": [1, ["a"], ["a", "b", "c", "d"]]},
        {"variables": [["x", "int", 1]], "error": "disk full"},
    ],
)
def test_a_guest_may_report_anything(report: dict[str, Any]) -> None:
    manifest = Manifest.new().reported(report)
    assert (manifest.variables, manifest.unsaved) == ((), ())
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest


def test_a_report_is_bounded() -> None:
    report = {"variables": [["n" * 5_000, "t" * 5_000, 1]] * 20_000, "unsaved": [["u" * 999] * 3]}
    manifest = Manifest.new().reported(report)
    assert len(manifest.variables) == 10_000
    assert max(len(v.name) for v in manifest.variables) == 300
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest


def test_setup_code_runs_once(boxes: Boxes) -> None:
    box = boxes(session="one", setup_code="results = []")
    run(box, "results.append(1)")
    box.close()
    assert run(boxes(session="one", setup_code="results = []"), "print(results)").stdout == "[1]\n"


def test_a_start_that_fails_leaves_no_session(boxes: Boxes) -> None:
    with pytest.raises(SetupCodeError):
        boxes(session="one", setup_code="1 / 0")
    assert not session_path().exists()
    box = boxes(session="one")
    run(box, "x = 1")
    box.close()
    boxes.local.programs = [("/bin/false",)]
    with pytest.raises(Exception, match="status 1"):
        boxes(session="one")
    assert boxes(session="one").execute("").locals["x"] == "1"  # an existing session stays


def test_a_variable_is_loaded_again_in_a_later_sandbox(boxes: Boxes) -> None:
    box = boxes(session="one")
    box.load("context", "first")
    run(box, "kept = context")
    box.close()
    # `kept` is restored from the first file, so the second must have another name.
    again = boxes(session="one")
    again.load("context", "second")
    again.close()
    last = boxes(session="one")
    assert last.lost == ()
    assert run(last, "print(kept, context)").stdout == "first second\n"


def test_what_cannot_be_restored_is_named_and_kept(
    boxes: Boxes, caplog: pytest.LogCaptureFixture
) -> None:
    box = boxes(session="one")
    run(box, "text = 't' * 300_000\nx = 1")
    box.close()
    (blob,) = (session_path() / "workspace" / ".blobs").iterdir()
    whole = blob.read_bytes()
    blob.write_bytes(b"damaged")
    again = boxes(session="one")
    assert [variable.name for variable in again.lost] == ["text"]
    (kept,) = again.snapshots()
    (warning,) = warnings_of(caplog)
    assert "could not bring back: text" in warning.getMessage()
    assert kept.id in warning.getMessage()
    run(again, "x += 1")  # writes a checkpoint without `text`
    again.close()
    # The snapshot is the way back once the damage is repaired.
    again = boxes(session="one")
    assert again.lost == ()
    assert [variable.name for variable in again.restore(kept.id)] == ["text"]
    assert again.execute("").locals["x"] == "1"
    assert len(whole) == 300_000


def test_a_state_that_cannot_be_read_is_an_error_and_stays(boxes: Boxes) -> None:
    box = boxes(session="one")
    run(box, "x = 1")
    saved = box.snapshot()
    run(box, "x = 2")
    box.close()
    for file in (session_path() / "workspace").glob("state.dill*"):
        file.write_bytes(b"damaged")
    for _ in range(2):
        with pytest.raises(SessionStateError, match="cannot be read") as caught:
            boxes(session="one")
        assert "Restore a snapshot" in caught.value.remedy
        assert (session_path() / "workspace" / "state.dill").read_bytes() == b"damaged"
    SessionStore().restore("one", saved)
    assert boxes(session="one").execute("").locals["x"] == "1"


def test_a_damaged_state_goes_on_from_the_one_before(
    boxes: Boxes, caplog: pytest.LogCaptureFixture
) -> None:
    box = boxes(session="one")
    run(box, "x = 1")
    run(box, "x = 2")
    box.close()
    state = session_path() / "workspace" / "state.dill"
    state.write_bytes(b"damaged")
    again = boxes(session="one")
    assert again.execute("").locals["x"] == "1"
    (kept,) = again.snapshots()
    assert [entry.size for entry in kept.entries if entry.path == "state.dill"] == [7]
    warning = warnings_of(caplog)[-1].getMessage()
    assert "the state before its last one" in warning
    assert kept.id in warning
    again.close()
    state.unlink()  # a cell may do that, and its host may be killed then
    assert boxes(session="one").execute("").locals["x"] == "1"


def test_another_python_gives_a_warning_and_a_snapshot(
    boxes: Boxes, caplog: pytest.LogCaptureFixture
) -> None:
    box = boxes(session="one")
    run(box, "x = 1")
    box.close()
    path = session_path() / "manifest.json"
    replace(Manifest.read(path), python="3.2.1").write(path)
    again = boxes(session="one")
    (warning,) = warnings_of(caplog)
    assert "was made with Python 3.2.1, and this is 3." in warning.getMessage()
    (kept,) = again.snapshots()
    assert kept.manifest.python == "3.2.1"
    assert kept.note.startswith("before Python 3.")
    assert again.execute("").locals["x"] == "1"
    again.close()
    caplog.clear()
    boxes(session="one")  # no second warning
    assert warnings_of(caplog) == []


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "/a", "a:b", "a,b", "a b", "ü", "a\0", "x" * 65, 5, b"a", True]
)  # fmt: skip
def test_names_that_no_session_has(local: LocalRuntime, name: Any) -> None:
    with pytest.raises(OptionError, match="session"):
        Sandbox(runtime=local, session=name)
    with pytest.raises(OptionError, match="name of a session"):
        SessionStore().inspect(name)
    assert not sessions_directory().exists()


def test_the_sessions_directory_cannot_be_made(
    boxes: Boxes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.raises(SessionError, match="cannot be locked") as caught:
        boxes(session="one")
    assert "XDG_STATE_HOME" in caught.value.remedy


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be another user for a while")
def test_a_workspace_is_given_to_the_user_of_the_engine(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "w", (65534, 65534))
    workspace.write("file", [b"x"])
    workspace.close()
    victim = tmp_path / "victim"
    victim.touch()
    (tmp_path / "w" / "deep" / "er").mkdir(parents=True)
    (tmp_path / "w" / "deep" / "er" / "file").touch()
    (tmp_path / "w" / "link").symlink_to(victim)
    Workspace.open(tmp_path / "w", (65534, 65534)).close()  # the same user: nothing is done
    assert (tmp_path / "w" / "deep").stat().st_uid == 0
    Workspace.open(tmp_path / "w", (1234, 1235)).close()
    for path in ("", "file", "deep", "deep/er", "deep/er/file", "link"):
        found = (tmp_path / "w" / path).lstat()
        assert (found.st_uid, found.st_gid) == (1234, 1235), path
    assert victim.stat().st_uid == 0
    child = os.fork()
    if child == 0:
        try:
            for above in (tmp_path, *tmp_path.parents[:2]):  # and not /tmp itself
                above.chmod(0o755)
            os.setgid(4321)
            os.setuid(4321)
            Workspace.open(tmp_path / "w", (4321, 4321))
        except WorkspaceError:
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_closing_leaves_no_descriptor_and_no_process(boxes: Boxes) -> None:
    boxes(session="one").close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        box = boxes(session="one")
        run(box, "x = 1")
        box.snapshot()
        box.close()
    assert eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_closing_ends_a_running_cell_and_keeps_the_session(boxes: Boxes) -> None:
    box = boxes(session="one")
    run(box, "x = 1")

    def loop() -> None:
        with pytest.raises(SandboxLostError):
            box.execute("open('ready', 'w')\nx = 2\nwhile True: pass")

    running = threading.Thread(target=loop)
    running.start()
    assert eventually(lambda: any(file.name == "ready" for file in box.list_files()), TIMEOUT)
    begun = time.monotonic()
    box.close()
    running.join(TIMEOUT)
    assert not running.is_alive()
    assert time.monotonic() - begun < TIMEOUT
    assert boxes(session="one").execute("").locals["x"] == "1"


def test_the_log_names_no_more_than_it_must(boxes: Boxes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    box = boxes(session="one", env={"SECRET": "swordfish"})
    run(box, "x = 1")
    box.snapshot("a note")
    box.close()
    assert "swordfish" not in caplog.text
    for path in session_path().rglob("*"):
        assert not path.is_file() or b"swordfish" not in path.read_bytes()


@pytest.mark.parametrize("made", ["os.mkdir('.hello')", "os.symlink('/', '.hello')"])
def test_what_has_the_name_of_the_guests_greeting(
    boxes: Boxes, own_sessions: None, made: str
) -> None:
    with boxes(session="one") as box:
        run(box, f"import os; {made}; x = 1")
    with boxes(session="one") as box:
        assert run(box, "print(x)").stdout == "1\n"
