"""How an engine is named: by name, by path, by the environment, by an entry point, or not at all."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from runtimes import Runtime, get_runtime
from runtimes.errors import ContainersError, EngineNotFoundError, UnknownRuntimeError
from tests.unit.engines import FakeCli, fake_docker, fake_podman, podman_info
from tests.unit.guests import LocalRuntime


def plugin(directory: Path, monkeypatch: pytest.MonkeyPatch, entries: str, code: str) -> None:
    """Put a distribution on sys.path that adds runtimes by entry points."""
    info = directory / "site" / "engine_plugin-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: engine-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[rlm_containers.runtimes]\n{entries}\n")
    (directory / "site" / f"engine_plugin_{os.getpid()}.py").write_text(code)
    monkeypatch.syspath_prepend(directory / "site")


def test_by_path(bin_: Path, tmp_path: Path) -> None:
    for directory, make in (("a", fake_docker), ("b", fake_podman)):
        (tmp_path / directory).mkdir()
        cli = make(tmp_path / directory)
        runtime = get_runtime(str(cli.path))
        assert runtime.name == cli.path.name
        assert cli.called("info")


def test_by_a_path_with_a_space(bin_: Path, tmp_path: Path) -> None:
    (tmp_path / "my engines").mkdir()
    cli = fake_podman(tmp_path / "my engines")
    assert get_runtime(f"'{cli.path}'").name == "podman"
    assert get_runtime(str(cli.path)).name == "podman"


@pytest.mark.parametrize("name", ["podman-remote", "podman-4.9", "podman.sh"])
def test_by_a_name_with_a_suffix(bin_: Path, name: str) -> None:
    FakeCli(bin_, name).answer("info", podman_info())
    assert get_runtime(name).name == "podman"


def test_with_leading_arguments(bin_: Path) -> None:
    cli = FakeCli(bin_, "podman")
    cli.answer("--remote", podman_info(serviceIsRemote=True))
    runtime = get_runtime("podman --remote '--url=a c'")
    assert runtime.info().remote
    assert cli.calls == [["--remote", "--url=a c", "info", "--format=json"]]


def test_by_the_environment(bin_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_docker(bin_)
    fake_podman(bin_)
    monkeypatch.setenv("RLM_CONTAINERS_RUNTIME", "podman")
    assert get_runtime().name == "podman"
    assert get_runtime("docker").name == "docker"  # an argument comes first
    monkeypatch.setenv("RLM_CONTAINERS_RUNTIME", "")
    assert get_runtime().name == "docker"
    monkeypatch.setenv("RLM_CONTAINERS_RUNTIME", "nonsense")
    with pytest.raises(UnknownRuntimeError, match="nonsense"):
        get_runtime()  # no other engine takes its place


def test_by_a_runtime_object(bin_: Path) -> None:
    runtime = LocalRuntime()
    assert get_runtime(runtime) is runtime


@pytest.mark.parametrize(
    "name",
    ["", " ", "nerdctl", "dockerd", "dock", "Docker", "/usr/bin/env", "'unbalanced"],
)
def test_unknown_names(bin_: Path, name: str) -> None:
    with pytest.raises(UnknownRuntimeError):
        get_runtime(name)


@pytest.mark.parametrize("value", [5, b"docker", ["docker"], True, object()])
def test_values_of_wrong_types(bin_: Path, value: object) -> None:
    with pytest.raises(UnknownRuntimeError, match=type(value).__name__):
        get_runtime(value)  # type: ignore[arg-type]


def test_files_that_cannot_be_run(bin_: Path) -> None:
    (bin_ / "docker").write_text("not a program")
    with pytest.raises(EngineNotFoundError):
        get_runtime("docker")
    (bin_ / "docker").chmod(0o755)
    (bin_ / "docker").write_bytes(b"\x7fELF but not really")
    with pytest.raises(ContainersError):
        get_runtime("docker")
    (bin_ / "podman").mkdir()
    with pytest.raises(EngineNotFoundError):
        get_runtime("podman")


# Third parties


LOCAL = """
from tests.unit.guests import LocalRuntime
def make():
    return LocalRuntime()
class Broken:
    def __init__(self):
        raise RuntimeError("no licence")
other = dict
"""


def test_an_entry_point_adds_a_runtime(
    bin_: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"engine_plugin_{os.getpid()}"
    names = ("make", "Broken", "other", "missing")
    entries = "\n".join(f"my-{name.lower()} = {module}:{name}" for name in names)
    plugin(tmp_path, monkeypatch, f"{entries}\nmy-absent = no_such_module:make", LOCAL)
    found = get_runtime("my-make")
    assert isinstance(found, Runtime)
    assert found.name == "local"
    assert get_runtime("my-make") is found
    monkeypatch.setenv("RLM_CONTAINERS_RUNTIME", "my-make")
    assert get_runtime() is found
    for name, reason in (
        ("my-broken", "no licence"),
        ("my-other", "is a dict"),
        ("my-missing", "missing"),
        ("my-absent", "no_such_module"),
    ):
        with pytest.raises(UnknownRuntimeError, match=reason):
            get_runtime(name)
    sys.modules.pop(module, None)
