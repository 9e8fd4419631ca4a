"""The wheel in an empty environment: nothing but what it says that it needs is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support import Engine, on_ci

REPOSITORY = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def installed(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the programs of an environment that has the wheel."""
    if engine.name != "docker":
        pytest.skip("tried on docker: installing it takes its time, and is the same for all")
    directory = tmp_path_factory.mktemp("wheel")
    build = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory))
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    (wheel,) = directory.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"rlm_containers", "runtimes"}
    venv.create(directory / "venv", with_pip=True)
    programs = directory / "venv" / "bin"
    done = subprocess.run(
        (programs / "python", "-m", "pip", "install", "--disable-pip-version-check", "-q", wheel),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0 and not on_ci():
        pytest.skip(f"pip cannot install what the wheel needs: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return programs


def test_the_wheel_runs_where_nothing_else_is_installed(
    engine: Engine, installed: Path, tmp_path: Path
) -> None:
    def call(*command: str | Path) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        return subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )

    for absent in ("docker", "rlm", "podman", "pytest"):
        assert call(installed / "python", "-c", f"import {absent}").returncode == 1
    where = call(installed / "python", "-c", "import rlm_containers as r; print(r.__file__)").stdout
    assert where.startswith(str(installed.parent))
    program = installed / "rlm-containers"
    options = ("--runtime", engine.runtime, "--image", engine.image())
    done = call(program, "doctor", "--json", *options)
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"]) == (0, True), done.stdout
    assert {"name": "rlms", "status": "skipped"}.items() <= next(
        check for check in found["host"] if check["name"] == "rlms"
    ).items()
    done = call(program, "run", *options, "-c", "import sys; print(6 * 7); sys.exit(3)")
    assert (done.returncode, done.stdout, done.stderr) == (3, "42\n", "")
    done = call(program, "ask", "Why?", "--model", "m", "--base-url", "http://localhost:1")
    assert done.returncode == 2
    assert "pip install 'rlm-containers[rlms]'" in done.stderr
    # Its style sheet comes with it.
    code = (
        "from rlm_containers.integrations.rlms import Trajectory, render_report\n"
        "print('color-scheme' in render_report(Trajectory(model='m', turns=())))"
    )
    assert call(installed / "python", "-c", code).stdout == "True\n"
