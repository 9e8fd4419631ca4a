"""Help, completion, ``ps``, ``prune`` and the log, which start no container."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import rlm_containers
from rlm_containers.cli.program import COMMANDS, program
from rlm_containers.options import SandboxOptions
from rlm_containers.state import Owner
from tests.unit.engines import fake_docker, fake_podman
from tests.unit.terminal import Program

DOCUMENT = Path(__file__).parents[3] / "docs" / "cli.md"


def help_of(*words: str) -> str:
    done = CliRunner().invoke(program, [*words, "--help"], prog_name="rlm-containers")
    assert done.exit_code == 0
    return done.output


def test_the_program_lists_its_commands() -> None:
    text = help_of()
    for command in COMMANDS:
        assert f"\n  {command} " in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command: str) -> None:
    text = help_of(command)
    assert f"\n    rlm-containers {command} " in text or f"\n    rlm-containers {command}\n" in text
    assert "-v, --verbose" in text or "Commands:" in text


@pytest.mark.parametrize("group", ["config", "images", "sessions"])
def test_every_command_of_a_group_has_help_with_examples(group: str) -> None:
    found = program.get_command(click.Context(program), group)
    assert isinstance(found, click.Group)
    for name in found.commands:
        text = help_of(group, name)
        assert f"\n    rlm-containers {group} {name}" in text
        assert f"{group} {name}" in DOCUMENT.read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented(command: str) -> None:
    assert f"rlm-containers {command}" in DOCUMENT.read_text()


@pytest.mark.parametrize("command", ["run", "repl", "ask"])
def test_every_option_of_the_sandbox_has_help(command: str) -> None:
    _, _, text = help_of(command).partition("Options of the sandbox:")
    flat = " ".join(text.split())
    for field in dataclasses.fields(SandboxOptions):
        spelling = f"--{field.name.replace('_', '-')}"
        found = spelling in text or f"{spelling.removesuffix('s')} " in text
        # The others start one sandbox, and have no use for containers that wait.
        assert found == (field.name != "pool" or command == "ask"), field.name
    for said in ("The image reference.", "[default: python:3.11-slim]", "[bridge|none"):
        assert said in flat
    assert "``" not in flat
    assert ":func:" not in flat


def test_a_misspelt_command(program: Program) -> None:
    done = program("rnu")
    assert done.returncode == 2
    assert "Did you mean 'run'?" in done.stderr


def test_no_command_prints_help(program: Program) -> None:
    done = program()
    assert "Usage: rlm-containers" in done.stdout + done.stderr


def test_the_version(program: Program) -> None:
    assert program("--version").stdout == f"rlm-containers {rlm_containers.__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    done = CliRunner().invoke(program, ["completion", shell])
    assert done.exit_code == 0
    assert "_RLM_CONTAINERS_COMPLETE" in done.output
    assert "rlm-containers" in done.output


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["ru"], ["run"]),
        (["run", "--netw"], ["--network"]),
        (["run", "--network", ""], ["bridge", "none"]),
        (["run", "--runtime", "po"], ["podman"]),
        (["run", "--runtime", "lo"], ["local"]),
        (["ask", "--backend", "anth"], ["anthropic"]),
    ],
)
def test_bash_completes(program: Program, words: list[str], found: list[str]) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    line = ["rlm-containers", *words]
    script = (
        'eval "$(rlm-containers completion bash)"\n'
        f"COMP_WORDS=({' '.join(word or chr(39) * 2 for word in line)})\n"
        f"COMP_CWORD={len(line) - 1}\n"
        "_rlm_containers_completion rlm-containers\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    (program.home / "bin").mkdir(exist_ok=True)
    command = program.home / "bin" / "rlm-containers"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m rlm_containers "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        (bash, "--norc", "-c", script),
        env={**program.environment, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert set(found) <= set(done.stdout.split()), done.stdout


RECORD = {
    "ID": "abc",
    "Names": "rlm-1",
    "Image": "python:3.11-slim",
    "State": "running",
    "Labels": ",".join(f"{name}={value}" for name, value in Owner.current().labels().items()),
}


@pytest.fixture
def engines(bin_: Path) -> Program:
    """Return the command line with a docker that has two containers and an empty podman."""
    docker, podman = fake_docker(bin_), fake_podman(bin_)
    gone = {**RECORD, "Names": "rlm-2\x1b[2J", "State": "exited"}
    dead = replace(Owner.current(), pid=999999999)
    gone["Labels"] = ",".join(f"{name}={value}" for name, value in dead.labels().items())
    docker.answer("ps", f"{json.dumps(RECORD)}\n{json.dumps(gone)}\n")
    docker.answer("network ls", "rlm-net\n")
    docker.answer("network inspect", [{"Name": "rlm-net", "Labels": dead.labels()}])
    podman.answer("ps", "[]")
    podman.answer("network ls", "")
    return Program(bin_.parent / "home")


def test_ps(engines: Program) -> None:
    done = engines("ps")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["RUNTIME", "CONTAINER", "IMAGE", "STATE", "OWNER"],
        ["docker", "rlm-1", "python:3.11-slim", "running", str(os.getpid())],
        ["docker", "rlm-2\\x1b[2J", "python:3.11-slim", "ended", "999999999", "(gone)"],
    ]


def test_ps_as_json(engines: Program) -> None:
    first, second = json.loads(engines("ps", "--json").stdout)
    assert first == {
        "runtime": "docker",
        "name": "rlm-1",
        "image": "python:3.11-slim",
        "running": True,
        "owner": os.getpid(),
        "owner_alive": True,
    }
    assert (second["owner"], second["owner_alive"]) == (999999999, False)


def test_prune_dry_run(engines: Program) -> None:
    found = json.loads(engines("prune", "--dry-run", "--json").stdout)
    assert found == {
        "containers": ["rlm-2\x1b[2J"], "networks": ["rlm-net"], "workspaces": [], "errors": []
    }  # fmt: skip
    done = engines("prune", "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["KIND", "NAME", "RESULT"],
        ["container", "rlm-2\\x1b[2J", "would", "be", "removed"],
        ["network", "rlm-net", "would", "be", "removed"],
    ]


def test_prune_reports_failures(engines: Program) -> None:
    # The fake engines know no command that removes networks.
    done = engines("prune")
    assert done.returncode == 1
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["KIND", "container"]
    assert done.stderr.startswith("error: docker could not remove the network rlm-net: ")


def test_prune_with_nothing_to_remove(engines: Program) -> None:
    done = engines("prune", "--runtime", "podman")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "nothing is left behind\n")


def test_ps_of_one_engine(engines: Program) -> None:
    assert json.loads(engines("ps", "--runtime", "podman", "--json").stdout) == []


def test_ps_in_a_terminal(engines: Program) -> None:
    with engines.terminal("ps") as terminal:
        assert terminal.end() == 0
        assert "rlm-2\\x1b[2J" in terminal.text
        assert "\x1b[" in terminal.raw
    with engines.terminal("ps", NO_COLOR="1") as terminal:
        assert terminal.end() == 0
        assert "\x1b[3" not in terminal.raw


def test_ps_without_any_engine(bin_: Path) -> None:
    done = Program(bin_.parent / "home")("ps")
    # The tests' runtime answers, and has no containers.
    assert (done.returncode, done.stderr) == (0, "")
    done = Program(bin_.parent / "home")("ps", "--runtime", "docker")
    assert done.returncode == 125
    assert "There is no program 'docker' on PATH." in done.stderr


def test_the_log(engines: Program) -> None:
    assert "debug: run docker" in engines("ps", "-vv").stderr
    assert engines("ps", "-v").stderr == ""
