"""Files anywhere in a container, as its programs see them. Here that is this machine."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rlm_containers import Sandbox
from rlm_containers.container.bundle import GUEST_PYTHON, Bundle
from rlm_containers.errors import OptionError, SandboxClosedError, SandboxError
from rlm_containers.integrations import file_program
from rlm_containers.integrations.container_files import ContainerFile, ContainerFiles
from tests.unit.guests import LocalRuntime
from tests.unit.pythons import interpreters, version

PYTHONS = [python for python in interpreters() if version(python) >= GUEST_PYTHON]


@pytest.fixture(scope="module")
def box(made_bundle: Bundle) -> Iterator[Sandbox]:
    """A sandbox without a container, for all tests."""
    with Sandbox(runtime=LocalRuntime()) as box:
        yield box


@pytest.fixture
def files(box: Sandbox) -> ContainerFiles:
    return ContainerFiles(box)


def test_bytes_come_back(files: ContainerFiles, tmp_path: Path) -> None:
    path = str(tmp_path / "new" / "deep" / "file")
    for data in (b"", bytes(range(256)) * 4, b"x" * 3_000_000, b"short"):
        files.write(path, data)
        assert files.read(path) == data


def test_a_path_is_relative_to_the_workspace(box: Sandbox, files: ContainerFiles) -> None:
    files.write("b.txt", b"b")
    assert box.files.read("b.txt") == b"b"
    files.remove("b.txt")
    files.write("here/a.txt", b"a")
    assert box.files.read("here/a.txt") == b"a"
    assert files.stat("here/a.txt") == ContainerFile("here/a.txt", is_directory=False, size=1)
    assert [entry.path for entry in files.list("here")] == ["here/a.txt"]
    files.remove("here")
    assert not box.files.list()


def test_links_are_followed(files: ContainerFiles, tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "target").chmod(0o640)
    for name, target in (
        ("to", "target"),
        ("into", "directory"),
        ("nowhere", "x"),
        ("self", "self"),
    ):
        (tmp_path / name).symlink_to(target)
    files.write(str(tmp_path / "to"), b"new")
    assert (tmp_path / "target").read_bytes() == b"new"
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o640
    assert files.stat(str(tmp_path / "into")).is_directory
    assert files.realpath(str(tmp_path / "into" / "x")) == str(tmp_path / "directory" / "x")
    found = {entry.path: (entry.is_directory, entry.size) for entry in files.list(str(tmp_path))}
    assert found.pop(str(tmp_path / "directory"))[0]
    assert found.pop(str(tmp_path / "into"))[0]
    assert found == {
        str(tmp_path / "nowhere"): (False, None),
        str(tmp_path / "self"): (False, None),
        str(tmp_path / "target"): (False, 3),
        str(tmp_path / "to"): (False, 3),
    }
    files.remove(str(tmp_path / "into"))
    assert (tmp_path / "directory").is_dir()
    assert not (tmp_path / "into").is_symlink()


def test_names_of_any_bytes(files: ContainerFiles, tmp_path: Path) -> None:
    names = ["-rf", "two\nlines", "ünïcode", os.fsdecode(b"\xff\xfe"), " "]
    for name in names:
        files.write(str(tmp_path / name), name.encode(errors="surrogateescape"))
    found = files.list(str(tmp_path))
    assert sorted(os.path.basename(entry.path) for entry in found) == sorted(names)
    for entry in found:
        assert files.read(entry.path) == os.fsencode(os.path.basename(entry.path))


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda files, at: files.read(f"{at}/missing"), FileNotFoundError),
        (lambda files, at: files.stat(f"{at}/missing"), FileNotFoundError),
        (lambda files, at: files.list(f"{at}/missing"), FileNotFoundError),
        (lambda files, at: files.remove(f"{at}/missing"), FileNotFoundError),
        (lambda files, at: files.read(str(at)), IsADirectoryError),
        (lambda files, at: files.write(str(at), b""), IsADirectoryError),
        (lambda files, at: files.list(f"{at}/file"), NotADirectoryError),
        (lambda files, at: files.write(f"{at}/file/below", b""), NotADirectoryError),
        (lambda files, at: files.mkdir(f"{at}/file/below"), NotADirectoryError),
        (lambda files, at: files.mkdir(f"{at}/file"), FileExistsError),
        (lambda files, at: files.read(f"{at}/fifo"), OSError),
        (lambda files, at: files.write(f"{at}/fifo", b""), OSError),
        (lambda files, at: files.read(f"{at}/file", max_size=3), OSError),
        (lambda files, at: files.remove("."), OSError),
        (lambda files, at: files.remove("/"), OSError),
        (lambda files, at: files.read(f"{at}/\0"), OptionError),
    ],
)
def test_errors_are_the_built_in_ones(
    files: ContainerFiles,
    tmp_path: Path,
    call: Callable[[ContainerFiles, Path], Any],
    error: type[Exception],
) -> None:
    (tmp_path / "file").write_bytes(b"data")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(error):
        call(files, tmp_path)
    assert (tmp_path / "file").read_bytes() == b"data"


def test_mkdir_and_remove(files: ContainerFiles, tmp_path: Path) -> None:
    for _ in range(2):
        files.mkdir(str(tmp_path / "a" / "b"))
    files.write(str(tmp_path / "a" / "b" / "file"), b"x")
    files.remove(str(tmp_path / "a" / "b" / "file"))
    files.remove(str(tmp_path / "a"))
    assert not list(tmp_path.iterdir())


def test_async_twins(files: ContainerFiles, tmp_path: Path) -> None:
    async def use() -> bytes:
        await files.awrite(str(tmp_path / "file"), b"data")
        assert (await files.astat(str(tmp_path / "file"))).size == 4
        with pytest.raises(FileNotFoundError):
            await files.aread(str(tmp_path / "missing"))
        return await files.aread(str(tmp_path / "file"))

    assert asyncio.run(use()) == b"data"


def test_a_container_whose_python_says_something_else(
    files: ContainerFiles, tmp_path: Path, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[str] = []
    run = box.command

    def other(command: Any, **options: Any) -> Any:
        return run(answers[-1], **options)

    monkeypatch.setattr(box, "command", other)
    for answer in (
        "echo x",
        "printf 'f9 \\0d x/y\\0'",
        "printf '\\033[2J' >&2; exit 3",
        "exit 127",
        "kill -9 $$",
    ):
        answers.append(answer)
        with pytest.raises(SandboxError) as caught:
            files.list(str(tmp_path))
        assert "\033" not in str(caught.value)
    for answer in ("printf EFOO >&2; exit 65", "exit 65"):
        answers.append(answer)
        with pytest.raises(OSError, match="put/output"):
            files.list(str(tmp_path))


def test_a_directory_that_takes_much_memory(
    files: ContainerFiles, tmp_path: Path, box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three bytes are a file of some hundred."""
    run = box.command
    lie = "yes 'f ' | head -n 300000 | tr '\\n' '\\0'"
    monkeypatch.setattr(box, "command", lambda *_, **options: run(lie, **options))
    with pytest.raises(OSError, match="too large"):
        files.list(str(tmp_path))


def test_a_python_that_is_named(box: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    assert ContainerFiles(box, python=sys.executable).read(str(tmp_path / "file")) == b"data"
    with pytest.raises(SandboxError, match="Python did not work"):
        ContainerFiles(box, python="/missing/python3").read(str(tmp_path / "file"))


def test_a_sandbox_that_does_not_run() -> None:
    with pytest.raises(SandboxClosedError):
        ContainerFiles(Sandbox()).read("file")


@pytest.mark.parametrize("python", PYTHONS, ids=[python.parent.parent.name for python in PYTHONS])
def test_the_program_runs_on_every_python(python: Path, tmp_path: Path) -> None:
    def run(operation: str, name: str, data: bytes = b"") -> tuple[int, bytes, bytes]:
        source = Path(file_program.__file__).read_text()
        done = subprocess.run(
            (python, "-I", "-S", "-c", source, operation, tmp_path / name),
            input=data,
            capture_output=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    assert run("write", "a/file", b"data") == (0, b"", b"")
    assert run("read", "a/file") == (0, b"data", b"")
    assert run("listing", "a") == (0, b"f4 file\0", b"")
    assert run("describe", "a")[1].startswith(b"d")
    assert run("remove", "a") == (0, b"", b"")
    assert run("read", "a") == (file_program.FAILED, b"", b"ENOENT")
