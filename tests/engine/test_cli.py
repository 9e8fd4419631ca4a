"""The command line on a real engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlm_containers import Sandbox
from tests.support import Engine
from tests.unit.terminal import Program


@pytest.fixture(scope="module")
def program(engine: Engine, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Program:
    """The command line, with what the engine needs of the environment."""
    home = tmp_path_factory.mktemp("home")
    # The engine's own configuration and store are where they always are.
    kept = {name: os.environ.get(name) for name in ("HOME", "XDG_CONFIG_HOME")}
    return Program(
        home, **kept, RLM_CONTAINERS_RUNTIME=engine.runtime, RLM_CONTAINERS_CONFIG="/dev/null"
    )


def test_run(program: Program, engine: Engine) -> None:
    code = "import os, sys; print(os.getcwd(), sys.argv); print('no', file=sys.stderr); sys.exit(9)"
    done = program.process("run", "--image", engine.image(), "-c", code, "a", "b")
    assert (done.returncode, done.stderr) == (9, "no\n")
    assert done.stdout == "/workspace ['-c', 'a', 'b']\n"


def test_run_of_an_image_that_is_nowhere(program: Program) -> None:
    done = program("run", "--json", "--image", "localhost/nonesuch:1", "-c", "1")
    assert done.returncode == 125
    assert json.loads(done.stdout)["error"]["type"] == "ImageNotFoundError"


def test_a_program_that_takes_all_the_memory(program: Program, engine: Engine) -> None:
    done = program(
        "run", "--image", engine.image(), "--memory", "64m", "--pids", "64", "--json",
        "-c", "x = b'x' * 2**30",
    )  # fmt: skip
    found = json.loads(done.stdout)
    # Where nothing enforces the limit there is a gigabyte for it.
    assert (done.returncode, found["status"]) in ((137, "died"), (1, "error"), (0, "ok"))
    assert (found["status"] == "ok") == ("will not be enforced" in done.stderr)


def test_doctor(program: Program, engine: Engine) -> None:
    done = program("doctor", "--json", "--runtime", engine.runtime, "--image", engine.image())
    found = json.loads(done.stdout)
    (report,) = found["engines"]
    statuses = {check["name"]: check["status"] for check in report["checks"]}
    assert (done.returncode, report["ok"]) == (0, True), report
    for name in ("found", "answers", "version", "image", "start", "cell", "workspace", "clean-up"):
        assert statuses[name] == "ok", report
    details = {check["name"]: check["detail"] for check in report["checks"]}
    rootless = "rootless" in engine.name
    assert details["root"].startswith("rootless" if rootless else "rootful")
    assert details["version"].split()[0] == engine.runtime


def test_ps(program: Program, engine: Engine, box: Sandbox) -> None:
    found = json.loads(program("ps", "--json", "--runtime", engine.runtime).stdout)
    (row,) = [row for row in found if row["name"] == box.name]
    assert row["owner"] == os.getpid()
    assert (row["runtime"], row["running"], row["owner_alive"]) == (engine.runtime, True, True)


def test_exec(program: Program, engine: Engine, box: Sandbox) -> None:
    seen = "import os; print(os.getuid(), os.getgid(), os.getcwd(), os.environ['HOME'])"
    done = program.process("exec", box.name, "--", "python3", "-c", seen)
    assert (done.returncode, done.stdout) == (0, box.command(["python3", "-c", seen]).stdout.text)
    script = "cat; echo err >&2; exit 7"
    done = program.process("exec", box.name, "--", "sh", "-c", script, input_="in")
    assert (done.returncode, done.stdout, done.stderr) == (7, "in", "err\n")
    session = f"exec-{engine.name}-{os.getpid()}"  # it is looked for on every engine
    # What the sandbox was given is not the container's, and so not in any command line.
    with Sandbox(
        engine.image(), runtime=engine.runtime, session=session, env={"SECRET": "hidden"}
    ) as named:
        named.files.write("file", "of the session")
        done = program.process("exec", session, "cat", "file")
        assert (done.returncode, done.stdout) == (0, "of the session")
        assert program.process("exec", session, "--", "sh", "-c", "echo $SECRET").stdout == "\n"
        assert named.command("echo $SECRET").stdout == b"hidden\n"
    done = program.process("exec", session, "--", "true")
    assert done.returncode == 125
    assert (
        f"No sandbox of yours that runs has the session or the container '{session}'" in done.stderr
    )


def test_an_end_by_a_signal(program: Program, engine: Engine) -> None:
    code = "print('going', flush=True)\nimport time; time.sleep(60)"
    process = subprocess.Popen(
        (sys.executable, "-m", "rlm_containers", "run", "--image", engine.image(), "-c", code),
        env=program.environment,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"going\n"
    process.terminate()
    assert process.wait(30) == -signal.SIGTERM
    process.stdout.close()
    # That nothing is left of any of these the engine's fixture sees at the end.


def test_images(program: Program, engine: Engine, tmp_path: Path) -> None:
    image, file = engine.image_without_python(), tmp_path / "image.tar"
    one = ("--runtime", engine.runtime)

    def listed() -> list[dict[str, object]]:
        found = json.loads(program("images", "list", "--json", *one).stdout)
        return [entry for entry in found if entry["origin"] == image or entry["name"] == image]

    assert program("images", "warm", "--image", image, *one).stdout == f"{image}\n"
    archive = Path(program("images", "export", image, *one).stdout.strip())
    assert [entry["kind"] for entry in listed()] == ["exported"]
    # Only look at first; then it goes.
    done = program("images", "prune", "--keep", "0", "--dry-run", *one)
    assert archive.name in done.stdout
    assert archive.exists()
    done = program("images", "prune", "--unused", "0s", *one)
    assert done.returncode == 0
    assert not archive.exists()
    assert program("images", "export", image, str(file), *one).stdout == f"{file}\n"
    assert program("images", "import", str(file), *one).stdout.splitlines() == [image]
    assert [entry["kind"] for entry in listed()] == ["imported"]
    assert program("images", "prune").returncode == 2
    damaged = tmp_path / "damaged.tar"
    damaged.write_bytes(file.read_bytes()[:10_000])
    done = program("images", "import", str(damaged), *one)
    assert done.returncode == 125
    assert "error: " in done.stderr
    assert program("images", "export", "localhost/nonesuch:1", str(file), *one).returncode == 125


def test_a_session(program: Program, engine: Engine) -> None:
    options = ("--image", engine.image(), "--session", f"cli-{engine.name}")
    assert program("run", *options, "-c", "x = 6 * 7").returncode == 0
    assert program("run", *options, "-c", "print(x)").stdout == "42\n"
    assert program("sessions", "remove", "--yes", f"cli-{engine.name}").returncode == 0
