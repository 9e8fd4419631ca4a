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
    EngineNotFoundError,
    EngineUnavailableError,
    GuestPythonError,
    ImageNotFoundError,
    OptionError,
    SandboxClosedError,
    SandboxError,
    SandboxStartError,
    SetupCodeError,
    UnknownRuntimeError,
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
def test_no_engine_is_installed(
    engine: Engine,
    refuse: Refuse,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    named: bool,
) -> None:
    engine.image()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("RLM_CONTAINERS_RUNTIME", raising=False)
    error = refuse(EngineNotFoundError, runtime=engine.runtime if named else None)
    assert engine.runtime in str(error)
    assert error.remedy


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


@pytest.mark.parametrize("runtime", ["kubectl", "", "  ", "no/such/thing", "Docker!"])
def test_runtimes_that_are_none(engine: Engine, refuse: Refuse, runtime: str) -> None:
    if runtime.strip():
        assert runtime in str(refuse(UnknownRuntimeError, runtime=runtime))
    else:
        with pytest.raises((UnknownRuntimeError, OptionError)):
            Sandbox(engine.image(), runtime=runtime).start()


def test_a_program_that_is_no_engine(refuse: Refuse, tmp_path: Path, engine: Engine) -> None:
    fake = tmp_path / engine.runtime
    fake.write_text("#!/bin/sh\necho hello\n")
    fake.chmod(0o755)
    assert "JSON" in str(refuse(ContainersError, runtime=str(fake)))


def test_a_program_that_cannot_be_run(refuse: Refuse, tmp_path: Path, engine: Engine) -> None:
    fake = tmp_path / engine.runtime
    fake.write_bytes(b"\x7fELF no program")
    fake.chmod(0o755)
    refuse(EngineNotFoundError, runtime=str(fake))


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


def test_an_engine_that_takes_too_long(refuse: Refuse) -> None:
    assert "0.001" in str(refuse(SandboxStartError, start_timeout=0.001))


@pytest.mark.parametrize("code", ["1 / 0", "this is no python", "import no_such_module"])
def test_setup_code_that_fails(refuse: Refuse, code: str) -> None:
    error = refuse(SetupCodeError, setup_code=code)
    assert isinstance(error, SetupCodeError)
    assert "Error" in error.stderr
    assert error.stderr in str(error)
    assert "rlm_guest" not in error.stderr


def test_a_cache_that_is_no_directory(
    refuse: Refuse, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: Engine
) -> None:
    (tmp_path / "file").touch()
    with Sandbox(engine.image(), runtime=engine.runtime):
        pass  # so that the guest's files, which are made once, are not what fails
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        box = Sandbox(engine.image(), runtime=engine.runtime)
        with pytest.raises(SandboxError) as caught:
            box.start()
    assert str(tmp_path) in str(caught.value)
    assert "XDG_CACHE_HOME" in caught.value.remedy
    assert_gone(engine, box.name)
