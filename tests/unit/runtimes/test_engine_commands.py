"""Listing and removing containers, and why one did not start, by real engines' messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runtimes import ContainerRecord, ContainerSpec
from runtimes.engine import ContainerEngine
from runtimes.errors import (
    ContainerStartError,
    EngineCommandError,
    EngineUnavailableError,
    ImageNotFoundError,
)
from tests.unit.engines import FakeCli, docker, fake_docker, fake_podman, podman

SPEC = ContainerSpec(image="python:3.11-slim", command=("python3", "-c", "1"), name="rlm-test")

NO_IMAGE = [
    "docker: Error response from daemon: No such image: python:3.11-slim.\n"
    "See 'docker run --help'.\n",
    "docker: Error response from daemon: No such image: python:3.11-slim\n\n"
    "Run 'docker run --help' for more information\n",
    "Error: python:3.11-slim: image not known\n",
    'Error: short-name "python:3.11-slim" did not resolve to an alias and no '
    'unqualified-search registries are defined in "/etc/containers/registries.conf"\n',
]


def test_docker_finds_containers(tmp_path: Path) -> None:
    cli = fake_docker(tmp_path)
    line = {
        "ID": "2001333845c4",
        "Image": "python:3.11-slim",
        "Labels": "io.github.rlm-containers.owner=12,empty=,url=http://x/?a=b",
        "Names": "rlm-1",
        "State": "running",
        "Status": "Up 5 seconds",
    }
    lines = [line, {**line, "Names": "rlm-2", "State": "exited", "Labels": ""}]
    # Like the client of 20.10, which prints the word "json" for `--format json`.
    cli.script(
        "ps",
        'for word in "$@"; do case $word in --format=*{{*)\n'
        f"printf '%s\\n' '{json.dumps(lines[0])}' '{json.dumps(lines[1])}'; exit 0;; esac; done\n"
        "echo json; exit 0",
    )
    labels = {"io.github.rlm-containers.owner": "12", "empty": "", "url": "http://x/?a=b"}
    first = ContainerRecord(
        id="2001333845c4", name="rlm-1", image="python:3.11-slim", running=True, labels=labels
    )
    second = ContainerRecord(
        id="2001333845c4", name="rlm-2", image="python:3.11-slim", running=False, labels={}
    )
    assert docker(cli).find({"a": "b", "any": ""}) == [first, second]
    (call,) = cli.called("ps")
    assert "--all" in call
    assert "--filter=label=a=b" in call
    assert "--filter=label=any" in call


def test_podman_finds_containers(tmp_path: Path) -> None:
    cli = fake_podman(tmp_path)
    raw: dict[str, Any] = {
        "Id": "9fd55f25fa22",
        "Image": "docker.io/library/python:3.11-slim",
        "Labels": {"io.github.rlm-containers.owner": "12"},
        "Names": ["rlm-1"],
        "State": "running",
    }
    cli.answer("ps", [raw, {**raw, "State": "exited", "Labels": None}])
    first, second = podman(cli).find({"io.github.rlm-containers.owner": ""})
    assert (first.id, first.name, first.running) == ("9fd55f25fa22", "rlm-1", True)
    assert first.labels == {"io.github.rlm-containers.owner": "12"}
    assert (second.running, second.labels) == (False, {})


@pytest.mark.parametrize("said", ["", "[]", "null"])
def test_no_containers(fake: tuple[ContainerEngine, FakeCli], said: str) -> None:
    runtime, cli = fake
    cli.answer("ps", said)
    assert runtime.find({"a": ""}) == []


def test_finding_containers_fails(fake: tuple[ContainerEngine, FakeCli]) -> None:
    runtime, cli = fake
    cli.answer("ps", stderr="Error: database is locked\n", exit_code=125)
    with pytest.raises(EngineCommandError, match="database is locked") as caught:
        runtime.find({})
    assert caught.value.exit_code == 125
    assert "database is locked" in caught.value.stderr


@pytest.mark.parametrize(
    ("stderr", "exit_code"),
    [
        ("", 0),
        ("Error: No such container: rlm-1\n", 1),
        ("Error response from daemon: No such container: rlm-1\n", 1),
        ("Error response from daemon: removal of container rlm-1 is already in progress\n", 1),
        ('Error: no container with name or ID "rlm-1" found: no such container\n', 1),
    ],
)
def test_removing_a_missing_container_is_no_error(
    fake: tuple[ContainerEngine, FakeCli], stderr: str, exit_code: int
) -> None:
    runtime, cli = fake
    cli.answer("rm", stderr=stderr, exit_code=exit_code)
    runtime.remove("rlm-1")
    (call,) = cli.called("rm")
    assert (call[1], call[-1]) == ("--force", "rlm-1")


def test_removing_a_container_that_ends_meanwhile_is_tried_again(
    fake: tuple[ContainerEngine, FakeCli], tmp_path: Path
) -> None:
    runtime, cli = fake
    flag = tmp_path / "tried"
    # As podman 4.3.1 says it.
    said = "sending SIGKILL to container 654162: container state improper: stopped"
    cli.script("rm", f"[ -e {flag} ] && exit 0; : >{flag}; echo 'Error: {said}' >&2; exit 2")
    runtime.remove("rlm-1")
    assert len(cli.called("rm")) == 2


def test_removing_a_container_fails(fake: tuple[ContainerEngine, FakeCli]) -> None:
    runtime, cli = fake
    cli.answer("rm", stderr="Error: permission denied\n", exit_code=125)
    with pytest.raises(EngineCommandError, match="permission denied") as caught:
        runtime.remove("rlm-1")
    assert caught.value.container == "rlm-1"
    assert "rm -f rlm-1" in caught.value.remedy


def test_remove_runs_the_remove_command(fake: tuple[ContainerEngine, FakeCli]) -> None:
    runtime, cli = fake
    cli.answer("rm")
    runtime.remove("rlm-1")
    program, *arguments = runtime.remove_command("rlm-1")
    assert program == str(cli.path)
    assert cli.called("rm") == [arguments]


def test_podman_removes_without_waiting(tmp_path: Path) -> None:
    assert "--time=0" in podman(fake_podman(tmp_path)).remove_command("rlm-1")


@pytest.mark.parametrize("stderr", NO_IMAGE)
def test_start_error_for_a_missing_image(
    fake: tuple[ContainerEngine, FakeCli], stderr: str
) -> None:
    runtime, _ = fake
    error = runtime.start_error(SPEC, 125, stderr)
    assert isinstance(error, ImageNotFoundError)
    assert (error.container, error.exit_code, error.stderr) == ("rlm-test", 125, stderr)
    assert "'python:3.11-slim'" in error.what
    assert "pull python:3.11-slim" in error.remedy


@pytest.mark.parametrize(
    "stderr",
    [
        "docker: Cannot connect to the Docker daemon at unix:///run/docker.sock. Is the docker "
        "daemon running?.\nSee 'docker run --help'.\n",
        'error during connect: Head "http://docker/_ping": EOF',
        "Cannot connect to Podman. Please verify your connection to the Linux system using `podman "
        "system connection list`\nError: unable to connect to Podman socket: dial unix: no such file",
    ],
)
def test_start_error_for_a_stopped_engine(
    fake: tuple[ContainerEngine, FakeCli], stderr: str
) -> None:
    error = fake[0].start_error(SPEC, 125, stderr)
    assert isinstance(error, EngineUnavailableError)
    assert error.container == "rlm-test"
    assert "Start it again" in error.remedy


@pytest.mark.parametrize(
    ("stderr", "cause"),
    [
        (
            "docker: Error response from daemon: Conflict. The container name is in use.\n"
            "See 'docker run --help'.\n",
            "is in use.",
        ),
        (
            "docker: Error response from daemon: pull access denied\n\n"
            "Run 'docker run --help' for more information\n",
            "pull access denied",
        ),
        ("a\nb\nc\nError: OCI runtime error: cgroups in hybrid mode not supported\n", "supported"),
    ],
)
def test_start_error_names_the_cause(
    fake: tuple[ContainerEngine, FakeCli], stderr: str, cause: str
) -> None:
    runtime, _ = fake
    error = runtime.start_error(SPEC, 125, stderr)
    assert isinstance(error, ContainerStartError)
    assert error.what.endswith(cause)
    assert "run --rm python:3.11-slim" in error.remedy
    assert "it said nothing" in str(runtime.start_error(SPEC, None, "\n"))
