"""One bit flips in a file of a session on the disk: harmless, or an error or loss with a name."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlm_containers import Sandbox
from rlm_containers.container.bundle import Bundle
from rlm_containers.errors import ContainersError
from rlm_containers.state import SessionStore, export_session, import_session
from tests.support import warnings_of
from tests.unit.guests import LocalRuntime
from tests.unit.sessions import run, settle

#: The variables of the session. The last cell changes `x`.
EXPECTED = {
    "x": 2,
    "items": [1, [1]],
    "long": "l" * 300_000,
    "context": "c" * 6000,
    "rows": [{"n": n} for n in range(500)],
}

#: A cell that prints a checksum of each variable that is there.
LOOK = f"""
import zlib
for name in {list(EXPECTED)}:
    if name in globals():
        print(name, zlib.crc32(repr(globals()[name]).encode()))
"""

POSITIONS = ("first", "middle", "last")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, made_bundle: Bundle) -> Iterator[Path]:
    """The state directory with a closed session "one", which has a snapshot."""
    state = tmp_path_factory.mktemp("saved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(state))
        with Sandbox(runtime=LocalRuntime(), session="one") as box:
            box.load("context", "c" * 6000)
            box.load("rows", [{"n": n} for n in range(500)])
            run(box, "x = 1\nlong = 'l' * 300_000\ninner = [1]\nitems = [1, inner]")
            box.snapshot("a note")
            run(box, "x = 2")
            settle(box)
        yield state


def files_of(state: Path) -> list[str]:
    """Return the files of the session, relative to its directory."""
    top = state / "rlm-containers" / "sessions" / "one"
    return sorted(str(p.relative_to(top)) for p in top.rglob("*") if p.is_file())


def flip(path: Path, position: str) -> None:
    """Flip one bit, and leave the length and the times as they were."""
    found = path.stat()
    content = bytearray(path.read_bytes())
    place = {"first": 0, "middle": len(content) // 2, "last": len(content) - 1}[position]
    content[place] ^= 1 << (zlib.crc32(path.name.encode()) % 7)
    path.write_bytes(content)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def flipped_files(saved: Path, below: str) -> list[str]:
    files = [file for file in files_of(saved) if file.startswith(below)]
    assert files
    return files


def offline(store: SessionStore, scratch: Path) -> dict[str, object]:
    """Do without a sandbox what can be done. Return what was seen, or the error, of each."""
    session = store.directory / "one"

    def workspace(name: str) -> dict[str, bytes]:
        top = store.directory / name / "workspace"
        return {str(p.relative_to(top)): p.read_bytes() for p in top.rglob("*") if p.is_file()}

    def inspect() -> object:
        manifest = store.inspect("one").manifest
        return "lost" if manifest is None else json.dumps(manifest.to_json())

    def snapshots() -> object:
        return [(s.id, s.note, s.created, s.manifest, s.entries) for s in store.snapshots("one")]

    def again() -> object:
        made = store.snapshot("one").id
        store.fork("one", "again", made)
        return workspace("again")

    def fork() -> object:
        store.fork("one", "two", snapshot)
        return workspace("two")

    def moved() -> object:
        export_session("one", scratch / "a.tar", sessions=store)
        import_session(scratch / "a.tar", "three", sessions=store)
        return workspace("three"), [s.id for s in store.snapshots("three")]

    def restore() -> object:
        store.restore("one", snapshot)
        return workspace("one")

    (snapshot,) = [name.removesuffix(".json") for name in os.listdir(session / "snapshots")]
    seen: dict[str, object] = {}
    # What writes comes last. Neither may hide what the others see.
    for step in (inspect, snapshots, fork, moved, again, restore):
        try:
            seen[step.__name__] = step()
        except ContainersError as error:
            seen[step.__name__] = error
    return seen


@pytest.fixture(scope="module")
def whole(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What is seen of the session without any damage."""
    scratch = tmp_path_factory.mktemp("whole")
    shutil.copytree(saved / "rlm-containers" / "sessions", scratch / "sessions")
    return offline(SessionStore(scratch / "sessions"), scratch)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("part", ["manifest.json", "lock", "snapshots/", "objects/"])
def test_in_what_only_the_host_writes(
    part: str,
    position: str,
    saved: Path,
    whole: dict[str, object],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert not any(isinstance(seen, ContainersError) for seen in whole.values())
    for number, file in enumerate(flipped_files(saved, part)):
        caplog.clear()
        directory = tmp_path / str(number)
        shutil.copytree(saved / "rlm-containers" / "sessions", directory / "sessions")
        store = SessionStore(directory / "sessions")
        flip(store.directory / "one" / file, position)
        seen = offline(store, directory)
        told = " ".join(record.getMessage() for record in warnings_of(caplog))
        for step, result in seen.items():
            if isinstance(result, ContainersError):
                assert result.remedy, step
                assert file.rpartition("/")[2][:12] in str(result), step
            elif result != whole[step]:
                assert result == "lost" or file in told, (file, step)
        for name in store.names():
            store.remove(name)
        assert os.listdir(store.directory) == []


@pytest.mark.parametrize("position", POSITIONS)
def test_in_what_the_guest_writes(
    position: str,
    saved: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for number, file in enumerate(flipped_files(saved, "workspace/")):
        caplog.clear()
        state = tmp_path / str(number)
        shutil.copytree(saved, state)
        monkeypatch.setenv("XDG_STATE_HOME", str(state))
        store = SessionStore()
        flip(store.directory / "one" / file, position)
        with Sandbox(runtime=LocalRuntime(), session="one") as box:
            printed = dict(line.split() for line in run(box, LOOK).stdout.splitlines())
            lost = {variable.name for variable in box.lost}
            told = " ".join(record.getMessage() for record in warnings_of(caplog))
            # Each variable is there as it was, or is named, or all are said to be older.
            changed = {
                name
                for name, value in EXPECTED.items()
                if name not in lost and printed.get(name) != str(zlib.crc32(repr(value).encode()))
            }
            assert not changed or "goes on from the state before its last one" in told, file
            assert all(name in told for name in lost), file
            kept = box.snapshots()
            assert len(kept) == (2 if changed or lost else 1), file  # nothing is thrown away
        store.remove("one")
        assert store.names() == []
