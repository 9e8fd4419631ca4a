"""Images: those that are there, those that are not, and their short names."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator

import pytest

from rlm_containers import Sandbox
from runtimes import ContainerSpec, Runtime, get_runtime
from runtimes.errors import ImageNotFoundError
from tests.support import Engine, printed


@pytest.fixture
def runtime(engine: Engine) -> Runtime:
    """The runtime under test."""
    return get_runtime(engine.runtime)


def test_images(engine: Engine, runtime: Runtime) -> None:
    image = engine.image()
    assert runtime.image_exists(image)
    record = runtime.inspect_image(image)
    raw = json.loads(engine.run("image", "inspect", image).stdout)[0]
    assert record.id.removeprefix("sha256:") == raw["Id"].removeprefix("sha256:")
    assert image in record.tags
    assert record.size > 10_000_000
    assert record.architecture == raw["Architecture"]
    assert runtime.inspect_image(record.id).id == record.id


def test_a_missing_image(runtime: Runtime) -> None:
    image = "localhost:1/no/such-image:1"
    assert not runtime.image_exists(image)
    with pytest.raises(ImageNotFoundError, match="no/such-image"):
        runtime.inspect_image(image)
    with pytest.raises(ImageNotFoundError, match="no/such-image"):
        runtime.pull(image)
    spec = ContainerSpec(image=image, command=("sh",), name=f"rlm-test-{secrets.token_hex(6)}")
    process = runtime.open(spec)
    with open(process.stderr, "rb", closefd=False) as stderr:
        said = stderr.read().decode()
    error = runtime.start_error(spec, process.wait(30), said)
    process.close()
    assert isinstance(error, ImageNotFoundError)


@pytest.fixture
def short_name(engine: Engine) -> Iterator[str]:
    """A local image as a registry's name would have it, without the registry."""
    name = f"rlm-containers-test-{os.getpid()}"
    engine.run("tag", engine.image(), f"docker.io/library/{name}:1")
    engine.run("tag", engine.image(), f"docker.io/rlm-containers-test/{name}:1")
    yield name
    engine.run("rmi", f"docker.io/library/{name}:1", f"docker.io/rlm-containers-test/{name}:1")


def test_short_names(engine: Engine, runtime: Runtime, short_name: str) -> None:
    for name in (
        f"{short_name}:1",
        f"library/{short_name}:1",
        f"docker.io/library/{short_name}:1",
        f"rlm-containers-test/{short_name}:1",
    ):
        assert runtime.image_exists(name)
        with Sandbox(name, runtime=engine.runtime) as box:
            assert printed(box, "print('on')") == "on\n"
    assert not runtime.image_exists(f"{short_name}:2")


def test_names_without_a_registry_but_with_a_place(engine: Engine, runtime: Runtime) -> None:
    # What `podman build -t NAME` makes is localhost/NAME.
    image = engine.image()
    if engine.runtime == "podman" and image.startswith("localhost/"):
        assert runtime.image_exists(image.removeprefix("localhost/"))
        with Sandbox(image.removeprefix("localhost/"), runtime=engine.runtime) as box:
            assert printed(box, "print('on')") == "on\n"
    else:
        assert runtime.image_exists(image)
