"""Looking up and pulling images, and the names that engines have for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtimes import ContainerSpec, ImageRecord
from runtimes.engine import ContainerEngine
from runtimes.errors import EngineCommandError, ImageNotFoundError
from tests.unit.engines import FakeCli, docker, fake_docker, fake_podman, podman

SPEC = ContainerSpec(image="python:3.11-slim", command=("python3", "-c", "1"), name="rlm-test")

INSPECT_NO_IMAGE = [
    "Error: No such image: python:3.11-slim\n",
    "Error response from daemon: no such image: python: No such image: python:latest\n",
    "Error: inspecting object: python:3.11-slim: image not known\n",
    "Error: No such object: python:3.11-slim\n",
]


def test_inspecting_an_image(fake: tuple[ContainerEngine, FakeCli]) -> None:
    runtime, cli = fake
    said = {
        "Id": "sha256:abc",
        "RepoTags": ["python:3.11-slim"],
        "Size": 130_000_000,
        "Architecture": "amd64",
        "Config": {"Labels": {"a": "b"}},
    }
    cli.answer("image inspect", said)
    assert runtime.image_exists("python:3.11-slim")
    assert runtime.inspect_image("python:3.11-slim") == ImageRecord(
        id="sha256:abc",
        tags=("python:3.11-slim",),
        size=130_000_000,
        architecture="amd64",
        labels={"a": "b"},
    )


def test_inspecting_an_image_without_details(fake: tuple[ContainerEngine, FakeCli]) -> None:
    runtime, cli = fake
    cli.answer("image inspect", {"Id": "abc", "RepoTags": None, "Config": {"Labels": None}})
    record = runtime.inspect_image("x")
    assert (record.tags, record.size, record.labels) == ((), 0, {})


@pytest.mark.parametrize("stderr", INSPECT_NO_IMAGE)
def test_inspecting_a_missing_image(fake: tuple[ContainerEngine, FakeCli], stderr: str) -> None:
    runtime, cli = fake
    cli.answer("image inspect", "[]\n", stderr=stderr, exit_code=1)
    assert not runtime.image_exists("python:3.11-slim")
    with pytest.raises(ImageNotFoundError, match=r"'python:3\.11-slim' is not in the store"):
        runtime.inspect_image("python:3.11-slim")


def test_a_failing_engine_is_not_a_missing_image(
    fake: tuple[ContainerEngine, FakeCli],
) -> None:
    runtime, cli = fake
    stderr = "Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?\n"
    cli.answer("image inspect", stderr=stderr, exit_code=1)
    for ask in (runtime.image_exists, runtime.inspect_image):
        with pytest.raises(EngineCommandError, match="Is the docker daemon running") as caught:
            ask("python")
        assert not isinstance(caught.value, ImageNotFoundError)


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("python:3.11-slim", "docker.io/library/python:3.11-slim"),
        ("python", "docker.io/library/python"),
        ("user/image:1", "docker.io/user/image:1"),
        ("user/image@sha256:abc", "docker.io/user/image@sha256:abc"),
        ("localhost/image", "localhost/image"),
        ("localhost:5000/image", "localhost:5000/image"),
        ("quay.io/a/b", "quay.io/a/b"),
        ("registry:5000/image", "registry:5000/image"),
    ],
)
def test_podman_gets_full_names(tmp_path: Path, short: str, full: str) -> None:
    cli = fake_podman(tmp_path)
    cli.answer("pull")
    podman(cli).pull(short)
    assert cli.called("pull") == [["pull", full]]


def test_docker_completes_names_itself(tmp_path: Path) -> None:
    cli = fake_docker(tmp_path)
    cli.answer("pull")
    docker(cli).pull("python:3.11-slim")
    assert cli.called("pull") == [["pull", "python:3.11-slim"]]


def test_podman_starts_an_image_by_the_name_it_was_found_under(tmp_path: Path) -> None:
    cli = fake_podman(tmp_path)
    cli.script(
        "image inspect",
        'case $3 in docker.io/*) echo "{}"; exit 0;; esac\n'
        'echo "Error: inspecting object: $3: image not known" >&2; exit 125',
    )
    cli.answer("run")
    runtime = podman(cli)
    assert runtime.image_exists("python:3.11-slim")
    process = runtime.open(SPEC)
    process.wait(30)
    process.close()
    (call,) = cli.called("run")
    assert call[-3:] == ["docker.io/library/python:3.11-slim", "-c", "1"]


def test_pulling_fails(fake: tuple[ContainerEngine, FakeCli]) -> None:
    runtime, cli = fake
    stderr = "Trying to pull…\nwarning 1\nError: manifest unknown\n"
    cli.answer("pull", stderr=stderr, exit_code=125)
    with pytest.raises(ImageNotFoundError, match="manifest unknown") as caught:
        runtime.pull("python:9.99")
    assert "'python:9.99'" in caught.value.what
    assert "images" in caught.value.remedy
