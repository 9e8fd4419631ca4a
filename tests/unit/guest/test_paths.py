"""Where cells find modules, and that the guest finds none of the image's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rlm_containers.container.bundle import Bundle
from tests.unit.guests import Guest

VERSION = "lib/python{}.{}/site-packages".format(*sys.version_info[:2])

#: Modules that the guest may import, and packages that it brings.
SHADOWED = (*sys.stdlib_module_names, "dill", "rlm_guest")


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image's directory of modules that shadow others, on PYTHONPATH."""
    directory = tmp_path / "app"
    directory.mkdir()
    for name in SHADOWED:
        (directory / f"{name}.py").write_text("raise RuntimeError('not this one')\n")
    monkeypatch.setenv("PYTHONPATH", str(directory))
    return directory


def run(made: Bundle, directory: Path, *cells: str) -> list[str]:
    """Run cells in a new guest. Return what the last one printed, by lines."""
    directory.mkdir(exist_ok=True)
    with Guest(made, directory) as guest:
        guest.event("hello")
        guest.start()
        for cell in cells:
            result, stdout, stderr = guest.run(cell)
            assert (result["status"], stderr) == ("ok", "")
        return stdout.splitlines()


def test_the_guest_imports_nothing_that_the_image_shadows(
    made_bundle: Bundle, tmp_path: Path, app: Path
) -> None:
    (app / "of_the_app.py").write_text("answer = 1\n")
    lines = run(
        made_bundle,
        tmp_path / "w",
        "class C: pass\nc = C()",
        "import of_the_app",
        "try:\n    import wave\nexcept RuntimeError as error:\n    print(error)\n"
        "print(of_the_app.answer, c)",
    )
    assert lines[0] == "not this one"  # as in a plain interpreter
    assert lines[1].startswith("1 <__main__.C object")


def test_variables_are_saved_beside_an_old_dill(
    made_bundle: Bundle, tmp_path: Path, app: Path
) -> None:
    with Guest(made_bundle, tmp_path) as guest:
        guest.event("hello")
        guest.start()
        guest.run("def f(): return 3\nimport sys; sys.path.insert(0, '/nowhere')")
        guest.cell("import os; os._exit(1)")
        guest.event("died")
        assert guest.start(expected=True)["lost"] == []
        assert guest.run("print(f())")[1] == "3\n"


@pytest.mark.parametrize("name", ["sitecustomize", "usercustomize"])
@pytest.mark.parametrize(
    "code", ["print('noise')", "import os; os.write(1, b'noise')", "1 / 0", "raise SystemExit"]
)
def test_what_runs_at_pythons_start_cannot_disturb_the_guest(
    made_bundle: Bundle, tmp_path: Path, app: Path, name: str, code: str
) -> None:
    (app / f"{name}.py").write_text(code + "\n")
    assert run(made_bundle, tmp_path / "w", "print('cell')") == ["cell"]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PYTHONHOME", "/nowhere"),
        ("PYTHONSTARTUP", "/nowhere/startup.py"),
        ("PYTHONWARNINGS", "error"),
        ("PYTHONOPTIMIZE", "2"),
        ("PYTHONINSPECT", "1"),
        ("PYTHONVERBOSE", "1"),
        ("PYTHONIOENCODING", "ascii"),
        ("PYTHONPLATLIBDIR", "nowhere"),
        ("PYTHONNOUSERSITE", "1"),
    ],
)
def test_settings_of_python_in_an_image(
    made_bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
) -> None:
    monkeypatch.setenv(variable, value)
    assert run(made_bundle, tmp_path / "w", "x = 1", "print('ü', x)") == ["ü 1"]


def test_warnings_as_errors(
    made_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "ignore,error::UserWarning")
    code = "import warnings\ntry: warnings.warn('w')\nexcept UserWarning: print('raised')"
    assert run(made_bundle, tmp_path / "w", code) == ["raised"]


def test_packages_that_a_cell_installs_for_the_user(
    made_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # HOME is the workspace in a container, and empty at first.
    monkeypatch.setenv("HOME", str(tmp_path / "w"))
    install = f"""
import os
site = os.path.expanduser('~/.local/{VERSION}')
os.makedirs(site)
open(os.path.join(site, 'installed_later.py'), 'w').write('answer = 42')
"""
    missing = "try:\n    import installed_later\nexcept ImportError:\n    print('not yet')"
    use = "import installed_later; print(installed_later.answer)"
    assert run(made_bundle, tmp_path / "w", missing, missing + install, use) == ["42"]
    assert run(made_bundle, tmp_path / "w", use) == ["42"]


def test_pip_install_in_a_cell(
    made_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "pyproject.toml").write_text(
        "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
    )
    (project / "backend.py").write_text(BACKEND)
    monkeypatch.setenv("HOME", str(tmp_path / "w"))
    code = (
        "import subprocess, sys\n"
        "subprocess.run([sys._base_executable, '-m', 'pip', 'install', '-q', '--user', '--no-index',\n"
        f"    '--no-build-isolation', '--no-cache-dir', '--root-user-action=ignore', {str(project)!r}], check=True)\n"
        "import tiny; print(tiny.answer)"
    )
    assert run(made_bundle, tmp_path / "w", code) == ["42"]


#: A build backend (PEP 517) without dependencies.
BACKEND = """
import zipfile
def build_wheel(directory, settings=None, metadata=None):
    name = "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(f"{directory}/{name}", "w") as wheel:
        wheel.writestr("tiny.py", "answer = 42")
        info = "tiny-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: tiny\\nVersion: 1.0\\n")
        tags = "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
        wheel.writestr(f"{info}/WHEEL", tags)
        wheel.writestr(f"{info}/RECORD", "")
    return name
"""


def test_a_thread_imports_between_cells_what_cells_can_import(
    made_bundle: Bundle, tmp_path: Path, app: Path
) -> None:
    (app / "of_the_app.py").write_text("answer = 1\n")
    start = """
import threading
go, done, found = threading.Event(), threading.Event(), []
def look():
    go.wait()
    import of_the_app, of_the_workspace
    found.append(of_the_app.answer + of_the_workspace.answer)
    done.set()
open('of_the_workspace.py', 'w').write('answer = 2')
threading.Thread(target=look, daemon=True).start()
"""
    # A child answers once no cell runs any more.
    wake = "import os, time; threading.Timer(0.2, go.set).start()"
    assert run(made_bundle, tmp_path / "w", start, wake, "done.wait(); print(found)") == ["[3]"]


def test_what_a_cell_does_to_the_path_stays(made_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "wave.py").write_text("mine = 1\n")
    lines = run(
        made_bundle,
        tmp_path / "w",
        f"import sys; sys.path.insert(0, {str(tmp_path / 'lib')!r})",
        "print(sys.path[0])",
        "sys.path = tuple(sys.path)",
        "sys.path = [entry for entry in sys.path if entry]",
        "sys.path.append(5)",
        "import wave; print(wave.mine, '' in sys.path)",
    )
    assert lines == ["1 False"]
