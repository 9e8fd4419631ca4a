"""Kills at every system call that changes something: what is left of a session is whole.

A child process runs an operation and kills itself before its Nth change to the file system, as
Python's audit events announce them (https://docs.python.org/3/library/audit_events.html). N grows
until the operation ends. ``RLM_CONTAINERS_ALL_KILLS=1`` tries every N; else every third.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlm_containers.errors import ContainersError
from rlm_containers.state import SessionStore, export_session, import_session, sessions_directory
from tests.unit.sessions import Boxes, run

pytestmark = pytest.mark.usefixtures("own_sessions")

#: The events before changes to the file system; opening counts if it may make a file.
_CHANGES = (
    *("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod"),
    *("os.chown", "os.truncate", "os.utime", "shutil.rmtree", "fcntl.flock"),
)

STEP = 1 if os.environ.get("RLM_CONTAINERS_ALL_KILLS") else 3


def kill_at(number: int) -> None:
    """Kill this process before its Nth change."""
    left = number

    def count(event: str, args: tuple[Any, ...]) -> None:
        nonlocal left
        changes = event in _CHANGES or (event == "open" and args[2] & os.O_ACCMODE != os.O_RDONLY)
        if changes:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def killed(operation: Callable[[], object], number: int) -> bool:
    """Run an operation in a child that kills itself. Return whether it came to that."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            kill_at(number)
            operation()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    return status != 0


def content(store: SessionStore, name: str) -> dict[str, bytes | str]:
    """Return the files of a session's workspace."""
    info = store.inspect(name)
    assert info.problem == ""
    assert info.manifest is not None
    found: dict[str, bytes | str] = {}
    with store.locked(name):  # undoes what was interrupted
        top = info.path / "workspace"
        for path in sorted(top.rglob("*")):
            if path.is_symlink():
                found[str(path.relative_to(top))] = os.readlink(path)
            elif path.is_file():
                found[str(path.relative_to(top))] = path.read_bytes()
    for snapshot in store.snapshots(name):
        assert store.fork(name, "proof", snapshot.id) is None
        store.remove("proof")
    return found


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, made_bundle: object
) -> tuple[Path, Path, str, str]:
    """A directory of sessions with one session, an export of it, and the ids of two snapshots."""
    from rlm_containers import Sandbox
    from tests.unit.guests import LocalRuntime

    directory = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(directory))
        with Sandbox(runtime=LocalRuntime(), session="one") as box:
            run(box, "x = 1\nimport os\nos.makedirs('d/e')\nopen('d/e/f', 'w').write('first')")
            first = box.snapshot("first")
            run(box, "x = 2\nopen('d/e/f', 'w').write('second')\nos.symlink('e/f', 'd/link')")
            second = box.snapshot("second")
            run(box, "x = 3\nopen('only now', 'w').write('third')")
        export_session("one", directory / "one.tar")
        return sessions_directory(), directory / "one.tar", first, second


OPERATIONS: dict[str, Callable[[SessionStore, Path, str, str], object]] = {
    "fork": lambda store, archive, first, second: store.fork("one", "new"),
    "fork a snapshot": lambda store, archive, first, second: store.fork("one", "new", first),
    "snapshot": lambda store, archive, first, second: store.snapshot("one", "third"),
    "restore": lambda store, archive, first, second: store.restore("one", first),
    "remove snapshot": lambda store, archive, first, second: store.remove_snapshot("one", second),
    "remove": lambda store, archive, first, second: store.remove("one"),
    "import": lambda store, archive, first, second: import_session(archive, "new"),
    "export": lambda store, archive, first, second: export_session(
        "one", store.directory.parent / "again.tar"
    ),
    "sweep": lambda store, archive, first, second: store.sweep(),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_kill_at_any_change(
    made: tuple[Path, Path, str, str], own_sessions: Path, name: str
) -> None:
    source, archive, first, second = made
    store = SessionStore()

    def operation() -> object:
        return OPERATIONS[name](store, archive, first, second)

    def reset() -> None:
        shutil.rmtree(store.directory.parent, ignore_errors=True)
        shutil.copytree(source, store.directory, symlinks=True)
        if name == "sweep":
            store.directory.joinpath("one").rename(store.directory / ".removed-abc")
            shutil.copytree(source, store.directory, symlinks=True, dirs_exist_ok=True)

    reset()
    before = {"one": content(store, "one")}
    operation()
    done = {path.name for path in store.directory.parent.iterdir()}
    after = {session: content(store, session) for session in store.names()}
    number, kills = 1, 0
    while True:
        reset()
        if not killed(operation, number):
            break
        kills += 1
        names = store.names()
        assert set(names) in (set(before), set(after)), number
        for session in names:
            versions = (before.get(session), after.get(session))
            assert content(store, session) in versions, (number, session)
        store.sweep()
        strangers = {path.name for path in store.directory.iterdir()} - set(names)
        assert not strangers, number
        assert {path.name for path in store.directory.parent.iterdir()} <= done, number
        # The operation can be done all the same, unless it is done.
        try:
            operation()
        except ContainersError:
            done_already = set(names) == set(after) != set(before)
            assert done_already or name in ("export", "remove snapshot"), number
        number += STEP
    assert kills >= 2


@pytest.mark.parametrize("number", range(1, 400, 9 if STEP == 1 else 40))
def test_a_kill_while_a_session_is_made(boxes: Boxes, own_sessions: Path, number: int) -> None:
    code = "open('ran', 'a').write('x')\nsetup = 'done'"

    def make() -> None:
        from rlm_containers import Sandbox

        Sandbox(runtime=boxes.local, session="one", setup_code=code).start().close()

    killed(make, number)
    box = boxes(session="one", setup_code=code)
    assert box.execute("print(setup, open('ran').read())").stdout == "done x\n"
    assert box.lost == ()
