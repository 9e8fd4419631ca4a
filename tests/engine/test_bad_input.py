"""Bad input: one clear exception of ours each, and nothing left running."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlm_containers import ContainersError, Sandbox
from rlm_containers.errors import (
    ContainerStartError,
    EngineCommandError,
    EngineUnavailableError,
    GuestPythonError,
    ImageNotFoundError,
    SandboxClosedError,
)
from tests.support import Engine, assert_gone

Refuse = Callable[..., ContainersError]


@pytest.fixture
def refuse(engine: Engine) -> Refuse:
    """Start a sandbox that must not start; the error, after which nothing may be left."""

    def start(expected: type[ContainersError], **options: Any) -> ContainersError:
        options = {"image": engine.image(), "runtime": engine.runtime, **options}
        box = Sandbox(**options)
        with pytest.raises(ContainersError) as caught:
            box.start()
        error = caught.value
        assert isinstance(error, expected), repr(error)
        assert error.what
        assert "Traceback" not in error.what
        # It is closed by its own failure.
        with pytest.raises(SandboxClosedError):
            box.start()
        box.close()
        os.environ["PATH"] = path  # to look, the engine's command is needed
        assert_gone(engine, box.name)
        return error

    path = os.environ["PATH"]
    return start


# Engines


@pytest.mark.parametrize("named", [True, False])
def test_the_engine_is_stopped(
    engine: Engine,
    refuse: Refuse,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    named: bool,
) -> None:
    engine.image()
    real = shutil.which(engine.runtime)
    assert real
    if engine.runtime == "docker":
        (tmp_path / "docker").symlink_to(real)
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
        monkeypatch.delenv("DOCKER_CONTEXT", raising=False)
    else:
        # Podman has a service only when it is told to use one.
        script = f'#!/bin/sh\nexec {real} --remote --url unix://{tmp_path}/no.sock "$@"\n'
        (tmp_path / "podman").write_text(script)
        (tmp_path / "podman").chmod(0o755)
    monkeypatch.delenv("RLM_CONTAINERS_RUNTIME", raising=False)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        box = Sandbox(engine.image(), runtime=engine.runtime if named else None)
        with pytest.raises(EngineUnavailableError) as caught:
            box.start()
    # What the engine said, and what to do.
    assert "no.sock" in caught.value.what
    assert caught.value.remedy
    monkeypatch.undo()
    assert_gone(engine, box.name)


# Images


@pytest.mark.parametrize(
    "image",
    [
        "localhost:1/no/such-image:1",
        "localhost/rlm-containers/python:no-such-tag",
    ],
)
def test_images_that_do_not_exist(refuse: Refuse, image: str) -> None:
    error = refuse(ImageNotFoundError, image=image)
    assert image in str(error)
    assert error.remedy


@pytest.mark.parametrize("image", ["UPPER/Case", "white space", "a:b:c:d", "https://x/y", "ü"])
def test_names_that_are_no_images(refuse: Refuse, image: str) -> None:
    assert image in str(refuse(EngineCommandError, image=image))


def test_an_image_without_python(engine: Engine, refuse: Refuse) -> None:
    image = engine.image_without_python()
    error = refuse(GuestPythonError, image=image)
    assert image in str(error)
    assert "python3" in str(error)
    assert "python:3.11-slim" in error.remedy


def test_an_image_with_too_old_a_python(engine: Engine, refuse: Refuse) -> None:
    error = refuse(GuestPythonError, image=engine.image("3.8"))
    assert "3.8" in str(error)
    assert "3.9" in error.remedy


def test_arguments_that_the_engine_refuses(refuse: Refuse) -> None:
    error = refuse(ContainerStartError, run_args=["--no-such-flag"])
    assert "no-such-flag" in str(error)
