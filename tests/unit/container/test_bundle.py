"""The bundle: what is in it, who can read it, and on which Pythons it runs."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlm_containers.container import bundle
from rlm_containers.container.bundle import Bundle, _plan, guest_bundle
from rlm_containers.errors import SandboxError
from rlm_containers.guest import wire
from tests.support import TIMEOUT
from tests.unit.guests import Guest, guest_path, run_python

REPOSITORY = Path(__file__).parents[3]
GUEST = REPOSITORY / "rlm_containers" / "guest"
PYENV = Path.home() / ".pyenv" / "versions"


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give this process another cache, without a bundle in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _plan.cache_clear()
    yield tmp_path / "cache"
    _plan.cache_clear()


def interpreters() -> list[Path]:
    """Find the Pythons of pyenv on this machine."""
    found = {path.resolve().parent.parent for path in PYENV.glob("*/bin/python")}
    return sorted(path / "bin" / "python" for path in found)


def version(python: Path) -> tuple[int, int]:
    program = "import sys; sys.stdout.write('%d.%d' % sys.version_info[:2])"
    said = subprocess.run((python, "-c", program), capture_output=True, text=True, check=True)
    major, minor = said.stdout.split(".")
    return int(major), int(minor)


def boot(made: Bundle, python: Path, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    """Boot a guest whose host hangs up at once."""
    program = made.boot.replace(wire.BUNDLE, str(made.path))
    return subprocess.run(
        (python, "-E", "-c", program),
        input=b"",
        cwd=cwd,
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
    )


def files(made: Bundle) -> set[str]:
    return {
        str(path.relative_to(made.path))
        for path in made.path.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def test_the_bundle_has_the_guest_and_its_packages(made_bundle: Bundle) -> None:
    found = files(made_bundle)
    guest = {f"guest/rlm_guest/{source.relative_to(GUEST)}" for source in GUEST.rglob("*.py")}
    assert guest == {name for name in found if name.startswith("guest/")}
    assert {"dill/dill/__init__.py", "dill/dill/_dill.py"} <= found
    for package in ("requests", "urllib3", "idna", "certifi", "charset_normalizer"):
        assert f"requests/{package}/__init__.py" in found
    assert "requests/certifi/cacert.pem" in found
    assert {Path(name).parts[0] for name in found} == {"guest", "dill", "requests"}


def test_the_bundle_has_nothing_compiled_for_this_machine(made_bundle: Bundle) -> None:
    assert not [name for name in files(made_bundle) if name.endswith((".so", ".pyd", ".dll"))]
    assert not [path for path in made_bundle.path.rglob("*") if path.is_symlink()]


def test_the_bundle_is_small(made_bundle: Bundle) -> None:
    size = sum(p.stat().st_size for p in made_bundle.path.rglob("*") if p.is_file())
    assert size < 10_000_000


def test_the_guest_is_the_one_of_this_version(made_bundle: Bundle) -> None:
    for source in GUEST.rglob("*.py"):
        copy = made_bundle.path / "guest" / "rlm_guest" / source.relative_to(GUEST)
        assert copy.read_bytes() == source.read_bytes()


def test_the_bundle_is_made_once(made_bundle: Bundle) -> None:
    assert guest_bundle() is made_bundle
    _plan.cache_clear()
    stamp = made_bundle.path.stat().st_mtime_ns
    assert guest_bundle() == made_bundle
    assert made_bundle.path.stat().st_mtime_ns == stamp


def test_the_bundle_is_made_again_after_its_removal(fresh: Path) -> None:
    made = guest_bundle()
    shutil.rmtree(fresh)
    assert guest_bundle().path.is_dir()
    assert files(guest_bundle()) >= {"guest/rlm_guest/boot.py"}
    assert guest_bundle().path == made.path


@pytest.mark.parametrize("mask", [0o077, 0o777, 0o022, 0])
def test_everybody_can_read_the_bundle_and_only_its_owner_write_it(fresh: Path, mask: int) -> None:
    before = os.umask(0o022)
    os.umask(mask if mask != 0o777 else 0o277)  # the user itself must be able to write
    try:
        made = guest_bundle()
    finally:
        os.umask(before)
    for path in (made.path, *made.path.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o755 if path.is_dir() else 0o644), path


def test_a_failure_leaves_nothing_behind(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfile", fail)
        with pytest.raises(SandboxError, match="No space left") as caught:
            guest_bundle()
    assert "XDG_CACHE_HOME" in caught.value.remedy
    folder = fresh / "rlm-containers" / "guest"
    assert not folder.exists() or os.listdir(folder) == []
    assert guest_bundle().path.is_dir()  # and the next attempt is a new one


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    _plan.cache_clear()
    with pytest.raises(SandboxError, match="could not be written"):
        guest_bundle()
    _plan.cache_clear()


def test_a_package_that_is_missing_is_named(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.distribution

    def without_idna(name: str) -> object:
        return real("no-such-idna" if name == "idna" else name)

    monkeypatch.setattr(bundle, "distribution", without_idna)
    with pytest.raises(SandboxError, match="idna is not installed") as caught:
        guest_bundle()
    assert "pip install" in caught.value.remedy


def test_many_processes_may_make_the_bundle_at_once(fresh: Path) -> None:
    program = (
        "import sys\nfrom rlm_containers.container.bundle import guest_bundle\nsys.stdin.readline()\n"
        "made = guest_bundle()\n"
        "print(made.path, len([p for p in made.path.rglob('*.py')]))"
    )
    processes = [
        subprocess.Popen(
            (sys.executable, "-c", program),
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = {process.communicate(timeout=TIMEOUT) for process in processes}
    assert len(said) == 1
    ((out, err),) = said
    assert err == ""
    folder = fresh / "rlm-containers" / "guest"
    assert [str(path) for path in folder.iterdir()] == [out.split()[0]]


def test_another_version_of_the_guest_is_another_bundle(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = guest_bundle()
    changed = tmp_path / "guest"
    shutil.copytree(GUEST, changed)
    monkeypatch.setattr(bundle, "_GUEST", changed)
    seen = {first.path}
    for name in ("wire.py", "inner/__init__.py", "inner/more.py"):
        (changed / "inner").mkdir(exist_ok=True)
        with open(changed / name, "a") as file:
            file.write("# changed\n")
        _plan.cache_clear()
        made = guest_bundle()
        assert made.path not in seen, name
        seen.add(made.path)
        assert "# changed" in (made.path / "guest" / "rlm_guest" / name).read_text()
    assert first.path.is_dir()  # containers may still have it mounted


# The boot program


@pytest.mark.skipif(not interpreters(), reason="there is no pyenv with other Pythons")
def test_the_guest_runs_on_every_python_that_is_new_enough(
    made_bundle: Bundle, tmp_path: Path
) -> None:
    for python in interpreters():
        done = boot(made_bundle, python, tmp_path)
        if version(python) < made_bundle.python:
            assert done.returncode == bundle.TOO_OLD
            expected = "this Python is too old: {}.{}".format(*version(python))
            assert expected in done.stderr.decode()
            assert done.stdout == b""
        else:
            assert (done.returncode, done.stderr) == (0, b""), python
            assert b'"event": "hello"' in done.stdout


@pytest.mark.skipif(len(interpreters()) < 2, reason="there is no pyenv with other Pythons")
def test_cells_and_checkpoints_work_on_every_python(
    made_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for python in interpreters():
        if version(python) < made_bundle.python:
            continue
        directory = tmp_path / python.parent.parent.name
        directory.mkdir()
        monkeypatch.setattr(sys, "executable", str(python))
        with Guest(made_bundle, directory) as guest:
            guest.event("hello")
            guest.start()
            guest.run("import dataclasses\n@dataclasses.dataclass\nclass P: x: int\np = [P(5)]")
            guest.run("def f(n): return n and f(n - 1) + 1")
            guest.cell("import os; os._exit(1)")
            guest.event("died")
            assert guest.start(expected=True)["lost"] == [], python
            assert guest.run("print(f(3), p, p[0] == P(5))")[1] == "3 [P(x=5)] True\n", python


def test_requests_can_be_imported(made_bundle: Bundle) -> None:
    program = "import requests, dill; print(requests.__file__, dill.__file__)"
    path = [str(made_bundle.path / "requests"), str(made_bundle.path / "dill")]
    done = run_python(program, path=path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count(str(made_bundle.path)) == 2


def test_an_image_that_has_its_own_dill_uses_that(made_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "dill.py").write_text("mine = True\n")
    whole = made_bundle.boot.replace(wire.BUNDLE, str(made_bundle.path))
    program = whole.replace(
        "from rlm_guest.boot import main\nmain()", "import dill; print(dill.mine)"
    )
    assert program != whole
    assert run_python(program, path=[str(tmp_path)]).stdout == "True\n"


def test_the_guest_ignores_modules_in_the_working_directory(
    made_bundle: Bundle, tmp_path: Path
) -> None:
    for name in ("json", "socket", "rlm_guest", "select", "dill"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not this one')")
    done = boot(made_bundle, Path(sys.executable), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")


def test_each_folder_of_the_guests_path_has_one_package(made_bundle: Bundle) -> None:
    for folder in guest_path(made_bundle):
        assert len(os.listdir(folder)) == 1
