"""The index of images: entries, two writers at once, crashes and damage."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlm_containers.images.index import ImageEntry, Index, note_use, store_of
from tests.unit.guests import LocalRuntime


def entry(name: str, **more: object) -> ImageEntry:
    made = ImageEntry(
        store="docker x", name=name, kind="built", origin="a + b", size=5, made=1.0, used=2.0
    )
    return dataclasses.replace(made, **more)  # type: ignore[arg-type]


def test_entries_are_put_replaced_and_removed(tmp_path: Path) -> None:
    index = Index(tmp_path / "new" / "images")
    assert index.entries() == []
    index.put(entry("a"), entry("b"))
    index.put(entry("a", size=6), entry("a", store="podman"))
    assert Index(tmp_path / "new" / "images").entries() == [
        entry("a", size=6),
        entry("b"),
        entry("a", store="podman"),
    ]
    index.remove(("docker x", "a"), ("docker x", "gone already"))
    assert [e.key for e in index.entries()] == [("docker x", "b"), ("podman", "a")]


def test_use_is_noted_once_an_hour(tmp_path: Path) -> None:
    index = Index(tmp_path)
    index.touch("docker x", "a")
    assert not index.path.exists()
    index.put(entry("a"))
    before = time.time()
    index.touch("docker x", "a")
    (found,) = index.entries()
    assert before <= found.used <= time.time()
    index.path.chmod(0o400)
    written = index.path.stat().st_mtime_ns, index.path.stat().st_ino
    index.touch("docker x", "a")
    index.touch("docker x", "b")
    assert (index.path.stat().st_mtime_ns, index.path.stat().st_ino) == written


WRITER = """\
import sys
from pathlib import Path
from rlm_containers.images.index import ImageEntry, Index
index = Index(Path(sys.argv[1]))
for number in range(20):
    name = f"{sys.argv[2]}-{number}"
    index.put(ImageEntry(store="s", name=name, kind="built", origin="", size=1, made=1.0, used=1.0))
"""


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen((sys.executable, "-c", WRITER, str(tmp_path), name)) for name in "ab"
    ]
    index = Index(tmp_path)
    while any(writer.poll() is None for writer in writers):
        index.entries()  # a reader never sees half of it
        assert not index.path.with_suffix(".damaged").exists()
    assert [writer.returncode for writer in writers] == [0, 0]
    assert {e.name for e in index.entries()} == {f"{w}-{n}" for w in "ab" for n in range(20)}


def test_a_writer_that_dies_leaves_the_index_as_it_was(tmp_path: Path) -> None:
    index = Index(tmp_path)
    index.put(entry("a"))
    dying = (
        "import os, sys\nfrom pathlib import Path\n"
        "from rlm_containers.images.index import Index\n"
        "os.fsync = lambda file: (os.ftruncate(file, 20), os._exit(9))\n"
        "Index(Path(sys.argv[1])).remove(('docker x', 'a'))\n"
    )
    done = subprocess.run((sys.executable, "-c", dying, str(tmp_path)), check=False)
    assert done.returncode == 9
    assert index.entries() == [entry("a")]
    index.put(entry("b"))  # and its lock went with it
    assert len(index.entries()) == 2


DAMAGED = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'{"version": 1}',
    b'{"version": 1, "entries": 5}',
    b'{"version": 1, "entries": [5]}',
    b'{"version": 1, "entries": [{"store": "s"}]}',
    json.dumps(
        {"version": 1, "entries": [dataclasses.asdict(entry("a")) | {"size": "5"}]}
    ).encode(),
    b"\xff\xfe\x00",
    b"[" * 100_000,
]


@pytest.mark.parametrize("content", DAMAGED, ids=lambda content: repr(content[:40]))
def test_a_damaged_index_counts_as_empty(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = Index(tmp_path)
    index.path.write_bytes(content)
    assert index.entries() == []
    assert "damaged" in caplog.text
    index.put(entry("a"))
    assert index.entries() == [entry("a")]
    assert index.path.with_suffix(".damaged").read_bytes() == content


@pytest.mark.parametrize("content", [b'{"version": 2, "entries": [{"new": 1}]}', None])
def test_an_index_that_cannot_be_read_is_not_replaced(
    content: bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = Index(tmp_path)
    if content is None:
        index.path.mkdir()
    else:
        index.path.write_bytes(content)
    assert index.entries() == []
    index.put(entry("a"))
    index.remove(("a", "b"))
    assert str(index.path) in caplog.text
    assert index.path.is_dir() if content is None else index.path.read_bytes() == content
    assert not index.path.with_suffix(".damaged").exists()


def test_an_index_that_cannot_be_written_stops_no_sandbox(
    tmp_path: Path, local: LocalRuntime
) -> None:
    index = Index(tmp_path / "file" / "below")
    (tmp_path / "file").write_text("in the way")
    note_use(local, "a", index)
    index = Index(tmp_path)
    index.put(entry("a", store=store_of(local)))
    index.path.with_suffix(".lock").unlink()
    index.path.with_suffix(".lock").mkdir()
    note_use(local, "a", index)
    assert index.entries()[0].used == 2.0
