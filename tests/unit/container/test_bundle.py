"""The bundle: what is in it, who can read it, and on which Pythons it runs."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlm_containers import Sandbox
from rlm_containers.container import bundle
from rlm_containers.container.bundle import Bundle, guest_bundle
from rlm_containers.errors import SandboxError
from rlm_containers.guest import bundle as guest_side
from rlm_containers.guest import wire
from tests.support import TIMEOUT
from tests.unit.guests import Guest, bundled_files
from tests.unit.pythons import interpreters, version

REPOSITORY = Path(__file__).parents[3]
GUEST = REPOSITORY / "rlm_containers" / "guest"


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give this process another cache, without a bundle in it. Return where the bundles will be."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    guest_bundle.cache_clear()
    yield tmp_path / "cache" / "rlm-containers" / "guest"
    guest_bundle.cache_clear()


def boot(made: Bundle, python: Path, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    """Boot a guest whose host hangs up at once."""
    return subprocess.run(
        (python, *bundle.PYTHON_OPTIONS, "-c", made.boot),
        input=made.modules + wire.encode(wire.MODULES),
        cwd=cwd,
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
    )


def test_the_bundle_has_the_guest_and_its_packages(made_bundle: Bundle) -> None:
    found = bundled_files(made_bundle)
    guest = {f"guest/rlm_guest/{source.relative_to(GUEST)}" for source in GUEST.rglob("*.py")}
    assert guest == {name for name in found if name.startswith("guest/")}
    assert {"dill/dill/__init__.py", "dill/dill/_dill.py"} <= found.keys()
    for package in ("requests", "urllib3", "idna", "certifi", "charset_normalizer"):
        assert f"requests/{package}/__init__.py" in found
    assert "requests/certifi/cacert.pem" in found
    assert {Path(name).parts[0] for name in found} == {"guest", "dill", "requests"}


def test_the_bundle_has_nothing_compiled_for_this_machine(made_bundle: Bundle) -> None:
    suffixes = {Path(name).suffix for name in bundled_files(made_bundle)}
    assert not suffixes & {".so", ".pyd", ".dll", ".pyc"}


def test_the_bundle_is_small(made_bundle: Bundle) -> None:
    assert len(made_bundle.modules) < 3_000_000


def test_the_guest_is_the_one_of_this_version(made_bundle: Bundle) -> None:
    found = bundled_files(made_bundle)
    for source in GUEST.rglob("*.py"):
        assert found[f"guest/rlm_guest/{source.relative_to(GUEST)}"] == source.read_bytes()


def test_the_bundle_is_made_once(fresh: Path) -> None:
    made = guest_bundle()
    assert guest_bundle() is made
    (file,) = fresh.iterdir()
    stamp = file.stat().st_mtime_ns
    guest_bundle.cache_clear()
    assert guest_bundle() == made
    assert file.stat().st_mtime_ns == stamp


def test_the_bundle_is_made_again_after_its_removal(fresh: Path) -> None:
    made = guest_bundle()
    (file,) = fresh.iterdir()
    file.unlink()
    guest_bundle.cache_clear()
    assert guest_bundle() == made
    assert file.read_bytes() == made.modules


@pytest.mark.parametrize("mask", [0o077, 0o777, 0o022, 0])
def test_only_its_owner_can_write_the_bundle(fresh: Path, mask: int) -> None:
    before = os.umask(0o022)
    os.umask(mask if mask != 0o777 else 0o277)  # the user itself must be able to write
    try:
        guest_bundle()
    finally:
        os.umask(before)
    (file,) = fresh.iterdir()
    for path in (file, fresh, fresh.parent):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o022


def test_a_full_disk_leaves_nothing_behind(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(SandboxError, match="could not be written") as caught:
            guest_bundle()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert "XDG_CACHE_HOME" in caught.value.remedy
    assert list(fresh.iterdir()) == []
    guest_bundle()  # and the next attempt is a new one
    assert len(list(fresh.iterdir())) == 1


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    guest_bundle.cache_clear()
    with pytest.raises(SandboxError, match="could not be written"):
        guest_bundle()
    guest_bundle.cache_clear()


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
        "import hashlib\nprint(hashlib.sha256(guest_bundle().modules).hexdigest())"
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
    (file,) = fresh.iterdir()
    assert hashlib.sha256(file.read_bytes()).hexdigest() == out.strip()


def test_another_version_of_the_guest_is_another_bundle(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {guest_bundle().modules}
    changed = tmp_path / "guest"
    shutil.copytree(GUEST, changed)
    monkeypatch.setattr(bundle, "_GUEST", changed)
    for name in ("wire.py", "inner/__init__.py", "inner/more.py"):
        (changed / "inner").mkdir(exist_ok=True)
        with open(changed / name, "a") as file:
            file.write("# changed\n")
        guest_bundle.cache_clear()
        made = guest_bundle()
        assert made.modules not in seen, name
        seen.add(made.modules)
        assert b"# changed" in bundled_files(made)[f"guest/rlm_guest/{name}"]


# The boot program


def test_byte_code_of_another_python_takes_no_memory() -> None:
    file = (zlib.compress(b"x = 1"), b"what this Python cannot read")
    made = guest_side.Bundle("/bundle", b"another", {"guest/a.py": file})
    assert made.files == {"guest/a.py": (file[0], None)}
    assert made.code("/bundle/guest/a.py").co_names == ("x",)


@pytest.mark.skipif(not interpreters(), reason="there is no pyenv with other Pythons")
def test_the_guest_runs_on_every_python_that_is_new_enough(
    made_bundle: Bundle, tmp_path: Path
) -> None:
    for python in interpreters():
        done = boot(made_bundle, python, tmp_path)
        if version(python) < (3, 4):
            assert "Unknown option: -I" in done.stderr.decode()
        elif version(python) < made_bundle.python:
            assert done.returncode == bundle.TOO_OLD
            expected = "this Python is too old: {}.{}".format(*version(python))
            assert expected in done.stderr.decode()
            assert done.stdout == b""
        else:
            assert (done.returncode, done.stderr) == (0, b""), python
            assert b'"event": "hello"' in done.stdout


@pytest.mark.skipif(len(interpreters()) < 2, reason="there is no pyenv with other Pythons")
def test_cells_and_checkpoints_work_on_every_python(made_bundle: Bundle, tmp_path: Path) -> None:
    for python in interpreters():
        if version(python) < made_bundle.python:
            continue
        directory = tmp_path / python.parent.parent.name
        directory.mkdir()
        with Guest(made_bundle, directory, str(python)) as guest:
            guest.event("hello")
            guest.start()
            guest.run("import dataclasses\n@dataclasses.dataclass\nclass P: x: int\np = [P(5)]")
            guest.run("def f(n): return n and f(n - 1) + 1")
            guest.cell("import os; os._exit(1)")
            guest.event("died")
            assert guest.start(expected=True)["lost"] == [], python
            assert guest.run("print(f(3), p, p[0] == P(5))")[1] == "3 [P(x=5)] True\n", python


def test_the_guest_ignores_modules_in_the_working_directory(
    made_bundle: Bundle, tmp_path: Path
) -> None:
    for name in ("json", "socket", "rlm_guest", "select", "dill"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not this one')")
    done = boot(made_bundle, Path(sys.executable), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")


def test_each_folder_of_the_guests_path_has_one_package(made_bundle: Bundle) -> None:
    tops = {tuple(Path(name).parts[:2]) for name in bundled_files(made_bundle)}
    assert {top for top in tops if top[0] != "requests"} == {
        ("guest", "rlm_guest"),
        ("dill", "dill"),
    }


# What Python and its libraries do with modules that are in memory only

# This machine's own packages would win, as an image's do.
ALONE = "import sys; sys.path[:] = [entry for entry in sys.path if 'site-packages' not in entry]"


@pytest.mark.parametrize(
    ("code", "printed"),
    [
        ("import requests; print(requests.__file__)", "/opt/rlm-containers/requests/requests/__init__.py"),
        ("import dill, os; print(os.path.exists(dill.__file__))", "False"),
        ("import inspect, dill; print(inspect.getsource(dill.dumps)[:10])", "def dumps("),
        ("import dill.nothing", "ModuleNotFoundError: No module named 'dill.nothing'"),
        ("import requests\nrequests.get(3)", '    return request("get", url, params=params, **kwargs)'),
        ("import certifi; print(open(certifi.where()).read().count('BEGIN') > 50)", "True"),
        ("import pkgutil; print(len(pkgutil.get_data('certifi', 'cacert.pem')) > 99999)", "True"),
        ("import importlib.resources as r; print(r.is_resource('certifi', 'cacert.pem'))", "True"),
        ("import importlib, idna; print(importlib.reload(idna) is idna)", "True"),
        ("import sys; sys.path_importer_cache.clear(); import requests; print(5)", "5"),
        ("open('requests.py', 'w').write('x = 7'); import requests; print(requests.x)", "7"),
    ],
)  # fmt: skip
def test_modules_in_memory(box: Sandbox, code: str, printed: str) -> None:
    box.execute(ALONE)
    result = box.execute(code)
    assert printed in (result.stdout + result.stderr).splitlines()


def test_a_spawned_child_has_them(box: Sandbox) -> None:
    box.execute(ALONE)
    code = """
import multiprocessing
import dill, requests
def work(n):
    return n, dill.loads(dill.dumps(5)), requests.__name__
with multiprocessing.get_context("spawn").Pool(2) as pool:
    print(pool.map(work, range(2)))
"""
    result = box.execute(code)
    assert (result.stdout, result.stderr) == ("[(0, 5, 'requests'), (1, 5, 'requests')]\n", "")
