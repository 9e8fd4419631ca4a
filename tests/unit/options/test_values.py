"""Values of options: how texts, sizes and mounts are read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rlm_containers import Sandbox, SandboxOptions
from rlm_containers.errors import OptionError
from rlm_containers.options import parse_size, read_option
from rlm_containers.options.values import user_mounts
from runtimes import Mount

KIB, MIB, GIB, TIB = 1024, 1024**2, 1024**3, 1024**4


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0b", 0), ("1B", 1), ("5k", 5 * KIB), ("512m", 512 * MIB), ("2G", 2 * GIB), ("1t", TIB),
        ("3kb", 3000), ("500MB", 500 * 10**6), ("20GB", 20 * 10**9), ("1Tb", 10**12),
        ("3KiB", 3 * KIB), ("500MiB", 500 * MIB), ("20gib", 20 * GIB), ("1TIB", TIB),
        ("", None), ("512", None), ("GB", None), ("-1GB", None), ("1e9", None), ("20XB", None),
        ("1,5GB", None), ("1.5g", None), ("nan", None), ("20GBs", None), ("1 g", None),
        ("1ib", None), ("1gi", None), ("١GB", None), ("1g\n", None),
    ],
)  # fmt: skip
def test_sizes(text: str, number: int | None) -> None:
    assert parse_size(text) == number


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("memory", "2g", "2g"),
        ("memory", "100_000_000", 10**8),
        ("memory", "none", None),
        ("network", "none", "none"),
        ("cpus", ".5", 0.5),
        ("pids", "0x10", 16),
        ("gpus", "all", "all"),
        ("gpus", "2", 2),
        ("gpus", "0,1", ["0", "1"]),
        ("gpus", "[0, 1]", [0, 1]),
        ("run_args", "--cpus=1 --label a=b", ["--cpus=1", "--label", "a=b"]),
        ("setup_code", "[1]", "[1]"),
    ],
)
def test_texts_mean_what_the_option_accepts(name: str, text: str, value: object) -> None:
    assert read_option(name, text) == value


def test_a_typed_text_means_itself_or_none() -> None:
    assert read_option("memory", "none", typed=True) is None
    assert read_option("network", "none", typed=True) == "none"
    for name, text in (("pids", "100"), ("packages", "six"), ("gpus", "0,1")):
        with pytest.raises(OptionError, match=f"^{name} must be .*, not '{text}'"):
            read_option(name, text, typed=True)


def test_the_error_is_that_of_the_text_itself() -> None:
    with pytest.raises(OptionError, match=r"^pids must be .*, not '1\.5'"):
        read_option("pids", "1.5")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A directory with a file in it, and a symlink to it."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "file").write_text("x")
    (tmp_path / "link").symlink_to(data)
    return data


def test_a_mount_in_a_string_is_read_only(data: Path) -> None:
    expected = (Mount(source=data, target="/data", read_only=True, shared=True),)
    assert user_mounts([f"{data}:/data"]) == expected
    assert user_mounts([f"{data}:/data:ro"]) == expected


def test_a_mount_in_a_string_may_be_writable(data: Path) -> None:
    assert user_mounts([f"{data}:/data:rw"]) == (
        Mount(source=data, target="/data", read_only=False, shared=True),
    )


def test_sources_are_resolved(data: Path) -> None:
    (file,) = user_mounts([f"{data.parent}/link/file:/etc/file"])
    assert file.source == data / "file"
    (mount,) = user_mounts([Mount(source=data.parent / "link", target="/data", read_only=False)])
    assert mount == Mount(source=data, target="/data", read_only=False)


def test_paths_relative_to_here_and_to_home(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data.parent)
    monkeypatch.setenv("HOME", str(data.parent))
    for source in ("./data", "../" + data.parent.name + "/data", "~/data", "./link", "./x/../data"):
        if source == "./x/../data":
            os.mkdir("x")
        assert user_mounts([f"{source}:/data"])[0].source == data


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "/tmp",
        "/tmp:",
        ":/data",
        "/tmp:/data:",
        "/tmp:/data:RW",
        "/tmp:/data:rw,z",
        "/tmp:/data:rw:ro",
        "/tmp:data",
        "/tmp:./data",
        "/tmp:/",
        "/tmp://data",
        "/tmp:/data/",
        "/tmp:/data/../etc",
        "/tmp:/data/.",
        "data:/data",  # a volume, to an engine
        "tmp/x:/data",
        "~nobody-of-that-name/x:/data",
        "/tmp\0:/data",
        "/tmp:/data\0",
        "/tmp:/data\nx",
        "/tmp:/data\ud800",
    ],
)
def test_malformed_mounts_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match="mounts"):
        SandboxOptions(mounts=[text])  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [None, 5, b"/tmp:/data", ("/tmp", "/data"), Path("/tmp")])
def test_mounts_of_other_types_are_refused(value: object) -> None:
    with pytest.raises(OptionError, match="mounts must be"):
        user_mounts([value])


def test_a_source_that_does_not_exist(data: Path) -> None:
    (data / "loop").symlink_to("loop")
    (data / "dangling").symlink_to("nowhere")
    for name in ("missing", "loop", "dangling", "file/below"):
        with pytest.raises(OptionError, match=f"{name} cannot be found"):
            Sandbox(mounts=[f"{data / name}:/data"])
        with pytest.raises(OptionError, match="cannot be found"):
            Sandbox(mounts=[Mount(source=data / name, target="/data")])


@pytest.mark.parametrize(
    "target",
    ["/workspace", "/workspace/data"],
)
def test_a_target_that_hides_what_the_sandbox_needs(data: Path, target: str) -> None:
    for mount in (f"{data}:{target}", Mount(source=data, target=target)):
        with pytest.raises(OptionError, match=r"mounts must leave .* alone"):
            user_mounts([mount])


@pytest.mark.parametrize("target", ["/workspace-of-mine", "/opt", "/work", "/opt/x", "/tmp/x"])
def test_targets_beside_those_of_the_sandbox(data: Path, target: str) -> None:
    assert user_mounts([f"{data}:{target}"])[0].target == target


def test_two_mounts_cannot_have_one_target(data: Path) -> None:
    with pytest.raises(OptionError, match="two have /data"):
        user_mounts([f"{data}:/data", f"{data}/file:/data"])


def test_a_source_with_a_comma_is_refused(data: Path) -> None:
    (data / "a,b").mkdir()
    with pytest.raises(OptionError, match="colon or comma"):
        user_mounts([f"{data}/a,b:/data"])


def test_a_symlink_that_is_changed_later_has_no_effect(data: Path) -> None:
    options = SandboxOptions(mounts=[f"{data.parent}/link:/data"])  # type: ignore[arg-type]
    (data.parent / "link").unlink()
    (data.parent / "link").symlink_to("/etc")
    assert options.mounts[0].source == data
