"""Faults of the host: a full or read-only disk, no locks, no descriptors. Each is an error of ours
that says where and what to do, and nothing is left behind.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rlm_containers import ContainersError, Sandbox
from rlm_containers.images import ImageCache
from rlm_containers.state import SessionStore, export_session, import_session
from tests.support import eventually
from tests.unit.guests import LocalRuntime, run_python
from tests.unit.sessions import Boxes, run

REPOSITORY = Path(__file__).parents[3]


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"NO FULL DISK: this user may not mount one: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small disk that has this user's state and cache."""
    place = tmp_path / "disk"
    place.mkdir()
    mount("-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place))
    monkeypatch.setenv("XDG_STATE_HOME", str(place / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path) -> None:
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))


def names(disk: Path) -> set[str]:
    return {str(path.relative_to(disk)) for path in disk.rglob("*")}


def failed(function: Callable[[], object]) -> ContainersError:
    with pytest.raises(ContainersError) as caught:
        function()
    return caught.value


#: Directories that stay once they are made.
PARENTS = {
    "state",
    "state/rlm-containers",
    "state/rlm-containers/sessions",
    "cache",
    "cache/rlm-containers",
    "cache/rlm-containers/workspaces",
}

BOX_CALLS: dict[str, Callable[[Sandbox, str], object]] = {
    "snapshot": lambda box, taken: box.snapshot(),
    "restore": lambda box, taken: box.restore(taken),
    "fork": lambda box, taken: box.fork(),
    "fork with a session": lambda box, taken: box.fork("new"),
    "put_file": lambda box, taken: box.put_file(bytes(200_000), "file"),
    "load": lambda box, taken: box.load("text", "x" * 200_000),
    "get_file": lambda box, taken: box.get_file("data", Path(os.environ["XDG_STATE_HOME"])),
    "start": lambda box, taken: Sandbox(runtime=box.options.runtime).start(),
    "start with a session": lambda box, taken: Sandbox(
        runtime=box.options.runtime, session="new"
    ).start(),
}


@pytest.mark.parametrize("session", [None, "one"])
def test_a_full_disk(disk: Path, local: LocalRuntime, session: str | None) -> None:
    with Sandbox(runtime=local, session=session) as box:
        run(box, "open('data', 'w').write('x' * 100_000)\nx = 1")
        taken = box.snapshot()
        run(box, "open('data', 'w').write('y' * 100_000)\nx = 2")
        assert box.unsaved is not None
        fill(disk)
        before = names(disk)
        for what, call in BOX_CALLS.items():
            error = failed(lambda: call(box, taken))  # noqa: B023
            assert re.search("No space left on device|has no room", str(error)), what
            assert "Make room" in error.remedy, what
            assert error.container or "'new'" in str(error), what
            assert names(disk) - before <= PARENTS, what
        (disk / "filler").unlink()
        assert run(box, "print(x, open('data').read(1))").stdout == "2 y\n"
        with box.fork() as other:
            assert run(other, "print(x)").stdout == "2\n"
        box.restore(taken)
        assert run(box, "print(x, open('data').read(1))").stdout == "1 x\n"


def made_session(local: LocalRuntime, tmp_path: Path) -> tuple[str, Path]:
    """Make the session ``one`` with a snapshot, and export it."""
    with Sandbox(runtime=local, session="one") as box:
        run(box, "open('data', 'w').write('x' * 100_000)")
        taken = box.snapshot()
        run(box, "open('data', 'w').write('y' * 100_000)")
    exported = tmp_path / "one.tar"
    export_session("one", exported)
    return taken, exported


STORE_CALLS: dict[str, Callable[[SessionStore, str, Path], object]] = {
    "snapshot": lambda store, taken, file: store.snapshot("one"),
    "restore": lambda store, taken, file: store.restore("one", taken),
    "fork": lambda store, taken, file: store.fork("one", "two"),
    "fork a snapshot": lambda store, taken, file: store.fork("one", "two", taken),
    "export": lambda store, taken, file: export_session("one", store.directory / "file.tar"),
    "import": lambda store, taken, file: import_session(file, "two"),
}
CHANGES: dict[str, Callable[[SessionStore, str, Path], object]] = {
    "remove": lambda store, taken, file: store.remove("one"),
    "remove a snapshot": lambda store, taken, file: store.remove_snapshot("one", taken),
}


def test_sessions_on_a_full_disk(disk: Path, local: LocalRuntime, tmp_path: Path) -> None:
    taken, exported = made_session(local, tmp_path)
    fill(disk)
    before, store = names(disk), SessionStore()
    for what, call in STORE_CALLS.items():
        error = failed(lambda: call(store, taken, exported))  # noqa: B023
        assert "No space left on device" in str(error), what
        assert names(disk) == before, what
    assert store.inspect("one").snapshots == 1
    assert store.names() == ["one"]


def test_a_read_only_disk(disk: Path, local: LocalRuntime, tmp_path: Path) -> None:
    taken, exported = made_session(local, tmp_path)
    before, store = names(disk), SessionStore()
    mount("-o", "remount,ro", str(disk))
    for what, call in {**STORE_CALLS, **CHANGES}.items():
        error = failed(lambda: call(store, taken, exported))  # noqa: B023
        assert "Read-only file system" in str(error), what
        assert str(disk) in str(error) or "one" in str(error), what
    for session in (None, "one", "new"):
        error = failed(Sandbox(runtime=local, session=session).start)
        assert "Read-only file system" in str(error)
        assert "Make the directory writable" in error.remedy
    assert store.names() == ["one"]
    assert len(store.snapshots("one")) == 1
    with pytest.raises(ContainersError, match="Read-only"):
        ImageCache().export_image(local, "x")
    mount("-o", "remount,rw", str(disk))
    assert names(disk) == before


@pytest.mark.parametrize(("place", "session"), [("state", "s"), ("cache", None)])
def test_a_directory_that_is_a_file(
    place: str, session: str | None, boxes: Boxes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(f"XDG_{place.upper()}_HOME", str(tmp_path / "file"))
    assert "Not a directory" in str(failed(lambda: boxes(session=session)))
    if place == "state":
        failed(lambda: import_session(tmp_path / "file"))


def test_a_file_system_without_locks(
    boxes: Boxes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    box = boxes(session="one")
    box.close()
    exported = tmp_path / "one.tar"
    export_session("one", exported)
    descriptors = len(os.listdir("/proc/self/fd"))

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    # There is no such file system here; the kernel's answer is all that it changes.
    monkeypatch.setattr(fcntl, "flock", flock)
    store = SessionStore()
    calls: list[Callable[[], Any]] = [
        lambda: boxes(session="one"),
        lambda: boxes(session="new"),
        lambda: store.snapshot("one"),
        lambda: store.fork("one", "two"),
        lambda: store.remove("one"),
        lambda: export_session("one", tmp_path / "two.tar"),
        lambda: import_session(exported, "two"),
    ]
    for call in calls:
        error = failed(call)
        assert "No locks available" in str(error)
        assert "has no locks" in error.remedy
    assert store.inspect("one").pid == 0
    assert store.names() == ["one"]
    assert eventually(lambda: len(os.listdir("/proc/self/fd")) <= descriptors)


_FEW_DESCRIPTORS = """
import os, resource
from rlm_containers import ContainersError, Sandbox
from tests.support import eventually
from tests.unit.guests import LocalRuntime

local = LocalRuntime()
with Sandbox(runtime=local):
    pass
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
count = lambda: len(os.listdir("/proc/self/fd"))
before = count()
failures = 0
for spare in range(0, 60, 4):
    # Not by a lower limit: the guest would inherit that.
    taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(256 - before - spare)]
    box = Sandbox(runtime=local)
    try:
        box.start()
    except ContainersError as error:
        failures += 1
        assert "Too many open files" in str(error), error
        assert "ulimit -n" in error.remedy, error.remedy
    finally:
        for descriptor in taken:
            os.close(descriptor)
        box.close()
    # The reader's thread closes what it has read.
    assert eventually(lambda: count() == before), (spare, count(), before)
print(failures)
"""


def test_too_few_descriptors(boxes: Boxes) -> None:
    boxes()  # makes the bundle
    done = run_python(_FEW_DESCRIPTORS, path=[str(REPOSITORY)])
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) >= 5


def test_a_limit_on_the_size_of_files(boxes: Boxes) -> None:
    box = boxes()
    run(box, "data = 'x' * 100_000")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        errors = [
            failed(lambda: box.load("text", "x" * 100_000)),
            failed(lambda: box.put_file(bytes(100_000), "file")),
        ]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    for error in errors:
        assert "File too large" in str(error)
        assert "ulimit -f" in error.remedy
        assert error.container == box.name
    assert [file.name for file in box.list_files()] == []
