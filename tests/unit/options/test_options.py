"""Options: which values are accepted, which are refused, and what the error says."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import pytest

from rlm_containers import Sandbox, SandboxOptions
from rlm_containers.errors import ContainersError, OptionError
from rlm_containers.options import configured_options
from rlm_containers.repl import ContainerREPL
from runtimes import GpuRequest

GOOD: list[tuple[str, Any]] = [
    ("image", "python"),
    ("image", "registry.example:5000/a/b@sha256:0123"),
    ("runtime", None),
    ("runtime", "podman --remote"),
    ("network", "bridge"),
    ("network", "none"),
    ("network", "internal"),
    ("network", None),
    ("isolation", "default"),
    ("isolation", "strict"),
    ("env", {}),
    ("env", {"KEY": "", "OTHER": "a=b\nc", "ÜNÏCODE": "€"}),
    ("env", MappingProxyType({"A": "b"})),
    ("memory", None),
    ("memory", 32 * 1024**2),
    ("memory", "auto"),
    ("workspace_size", None),
    ("workspace_size", "auto"),
    ("workspace_size", 1024**2),
    ("shm_size", None),
    ("shm_size", 1024**3),
    ("pids", None),
    ("pids", 16),
    ("pids", "auto"),
    ("cpus", None),
    ("cpus", 0.01),
    ("cpus", 128),
    ("disk", None),
    ("disk", 1024**2),
    ("user", None),
    ("user", "0:0"),
    ("user", "1000:4294967294"),
    ("gpus", None),
    ("mounts", ()),
    ("run_args", []),
    ("run_args", ["--cpus=1", "--label", "a=b"]),
    ("run_args", ("--cpus=1",)),
    *(("durability", value) for value in ("async", "sync")),
    *(("heirs", value) for value in ("auto", "never")),
    ("session", None),
    *(("session", name) for name in ("a", "0", "Report-2.final_x", "x" * 64)),
    ("start_timeout", 1),
    ("start_timeout", 0.5),
    ("cell_timeout", None),
    ("cell_timeout", 0.5),
    ("lm_timeout", 3600),
    ("max_lm_calls", None),
    ("max_lm_calls", 1),
    ("max_session_lm_calls", 10_000),
    ("max_output", 100),
]

BAD: list[tuple[str, Any]] = [
    *(("image", value) for value in (None, "", 5, b"python", ["python"], "-it", "--privileged")),
    ("image", "python\0"),
    *(("runtime", value) for value in (5, b"podman", ["podman"], True, pathlib.Path("podman"))),
    *(("isolation", value) for value in (None, "", "Strict", True, "none")),
    *(("network", value) for value in ("", "host", "Bridge", 1, ["none"], True)),
    *(("env", value) for value in (None, "A=b", ["A=b"], {"A": 1}, {1: "a"}, {"A": None})),
    *(("env", value) for value in ({"": "a"}, {"A=B": "c"}, {"A\0": "b"}, {"A": "b\0"})),
    ("env", {"A": "\ud800"}),  # no environment can hold it
    *(("memory", value) for value in (0, -1, 1e9, True, [10**9], 32 * 1024**2 - 1, 2**63)),
    *(("memory", value) for value in ("", "1", "512", "g", "1gbs", "1 g", "1.5g", "-1g", "+1g")),
    *(("memory", value) for value in ("1xb", "2 gib", "0x1g", "٣g", "31m", "1g\n", "half", "50%")),
    *(("workspace_size", value) for value in (0, -1, 1e9, "1", "1k", "all", True, 1024**2 - 1)),
    *(("shm_size", value) for value in (0, -1, 1024, "1k", True, "auto")),
    *(("pids", value) for value in (0, -1, 100.0, "100", True, False, 15)),
    *(("cpus", value) for value in (0, -1, 0.009, "1", True, float("nan"), float("inf"))),
    *(("disk", value) for value in (0, -1, 1e9, "1", "auto", True, 1024**2 - 1)),
    *(("user", value) for value in ("", "root", "1000:", ":1000", "1:2:3", "-1", "1000:users")),
    *(("user", value) for value in (0, 1000, " 1000", "1000\n", "4294967295", "99999999999", "²")),
    *(("gpus", value) for value in (0, -1, True, "", "0", "some", [], [True], [-1], [1.0])),
    *(("gpus", value) for value in (["0,1"], ["all\n"], ['"'], ["--x"], [None], {"0": 1}, 1.0)),
    *(("mounts", value) for value in (None, "/tmp:/data", 5, b"/tmp:/data", {"/tmp": "/data"})),
    *(("run_args", value) for value in (None, "--cpus=1", 5, [1], [None], [b"--cpus=1"], [""])),
    *(("durability", value) for value in ("", "fsync", None, True, 1)),
    *(("heirs", value) for value in ("", "always", None, True, 1)),
    *(("session", value) for value in ("", ".a", "-a", "a/b", "a b", "ü", "x" * 65, 5, b"a", True)),
    *(("start_timeout", value) for value in (None, 0, -1, "60", True, float("nan"), [60])),
    *(("lm_timeout", value) for value in (None, 0, -0.1, "600", False, float("nan"))),
    *(("cell_timeout", value) for value in (0, -1, "5", True, float("nan"), float("inf"))),
    *(("max_lm_calls", value) for value in (0, -1, 1.5, "10", True)),
    *(("max_session_lm_calls", value) for value in (0, -1, 1.5, "10", True)),
    # No clock waits that long: queue.get and socket.settimeout raise OverflowError.
    ("start_timeout", float("inf")),
    ("lm_timeout", float("inf")),
    ("lm_timeout", 1e300),
    *(("max_output", value) for value in (None, 0, 99, -1, 1e6, "1000", True)),
]


def named(case: tuple[str, Any]) -> str:
    return f"{case[0]}={case[1]!r}"[:60]


@pytest.mark.parametrize("case", GOOD, ids=named)
def test_right_values_are_accepted(case: tuple[str, Any]) -> None:
    name, value = case
    options = SandboxOptions(**{name: value})
    kept = getattr(options, name)
    assert kept == (tuple(value) if name == "run_args" else value)


@pytest.mark.parametrize("case", BAD, ids=named)
def test_wrong_values_are_refused_with_the_options_name(case: tuple[str, Any]) -> None:
    name, value = case
    with pytest.raises(OptionError, match=f"^{name} must be ") as caught:
        SandboxOptions(**{name: value})
    assert isinstance(caught.value, (TypeError, ValueError))
    assert len(str(caught.value)) < 200


def test_a_sandbox_refuses_the_same_without_an_engine() -> None:
    with pytest.raises(OptionError, match="memory must be"):
        Sandbox(memory="1")


def test_the_message_shows_the_value_unless_it_is_long() -> None:
    with pytest.raises(OptionError, match='"bridge", "none", "internal".*not .host'):
        SandboxOptions(network="host")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"not a list\.$"):
        SandboxOptions(image=["x" * 1000])  # type: ignore[arg-type]


def test_the_message_never_shows_the_environment() -> None:
    with pytest.raises(OptionError) as caught:
        SandboxOptions(env={"TOKEN": "s3cret", "OTHER": 5})  # type: ignore[dict-item]
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(caught.value)


def test_defaults() -> None:
    options = SandboxOptions()
    assert options.image == "python:3.11-slim"
    assert options.runtime is None
    assert (options.network, options.effective_network) == (None, "bridge")
    assert (options.isolation, options.memory, options.pids) == ("default", "auto", "auto")
    assert (options.cpus, options.disk, options.user, options.gpus) == (None, None, None, None)
    assert options.mounts == ()
    assert options.run_args == ()


def test_a_copy_that_is_strict_has_no_network() -> None:
    options = SandboxOptions(memory="1g", disk="2m", user="7", gpus=["0"], pids=100)
    strict = dataclasses.replace(options, isolation="strict")
    assert (strict.network, strict.effective_network) == (None, "none")
    assert dataclasses.replace(strict, isolation="default") == options


@pytest.mark.parametrize(
    ("text", "number"),
    [("32m", 32 << 20), ("2G", 2 << 30), ("2GiB", 2 << 30), ("2GB", 2 * 10**9)],
)
def test_sizes_with_a_unit(text: str, number: int) -> None:
    options = SandboxOptions(memory=text, disk=text)
    assert (options.memory, options.disk) == (number, number)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("all", GpuRequest()),
        (1, GpuRequest(count=1)),
        ([0, "1"], GpuRequest(ids=("0", "1"))),
        (("GPU-8f3a-11", "MIG-7:0"), GpuRequest(ids=("GPU-8f3a-11", "MIG-7:0"))),
    ],
)
def test_gpus(given: Any, kept: GpuRequest) -> None:
    assert SandboxOptions(gpus=given).gpus == kept


def test_a_user_without_a_group_gets_the_same_number() -> None:
    assert SandboxOptions(user="1234").user == "1234:1234"


def test_options_cannot_be_changed() -> None:
    options = SandboxOptions()
    for field in dataclasses.fields(options):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(options, field.name, getattr(options, field.name))


def test_later_changes_by_the_caller_have_no_effect() -> None:
    env, run_args = {"A": "1"}, ["--cpus=1"]
    options = SandboxOptions(env=env, run_args=run_args)  # type: ignore[arg-type]
    env["B=C"] = "never checked"
    run_args.append("--privileged")
    assert options.env == {"A": "1"}
    assert options.run_args == ("--cpus=1",)


def test_a_copy_with_changes_is_checked_again() -> None:
    options = SandboxOptions(image="a", env={"A": "b"}, run_args=("--cpus=1",))
    changed = dataclasses.replace(options, pids=50)
    assert (changed.pids, changed.env, changed.run_args) == (50, {"A": "b"}, ("--cpus=1",))
    with pytest.raises(OptionError, match="pids must be"):
        dataclasses.replace(options, pids=0)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("imgae", "image"),
        ("Image", "image"),
        ("run_time", "runtime"),
        ("netwrok", "network"),
        ("enviroment", None),
        ("mem", None),
        ("memory_limit", "memory"),
        ("timeout", "lm_timeout"),
        ("max_ouput", "max_output"),
        ("setupcode", "setup_code"),
    ],
)
@pytest.mark.parametrize("maker", [Sandbox, ContainerREPL], ids=lambda maker: maker.__name__)
def test_an_unknown_argument_names_the_nearest(
    maker: Callable[..., object], wrong: str, right: str | None
) -> None:
    with pytest.raises(OptionError, match=f"There is no argument '{wrong}'") as caught:
        maker(**{wrong: "x"})
    if right is not None:
        assert f"Did you mean {right!r}?" in caught.value.remedy


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("context", "context_payload"),
        ("lm_handler_adress", "lm_handler_address"),
        ("subcall", "subcall_fn"),
        ("persist", "persistent"),
        ("max_concurrent_calls", "max_concurrent_subcalls"),
        ("max_calls", "max_lm_calls"),
        ("max_llm_calls", "max_lm_calls"),
        ("compact", "compaction"),
    ],
)
def test_the_environment_suggests_its_own_arguments_too(wrong: str, right: str) -> None:
    with pytest.raises(OptionError) as caught:
        ContainerREPL(**{wrong: 1})  # type: ignore[arg-type]
    assert f"Did you mean {right!r}?" in caught.value.remedy


def test_an_argument_unlike_any_other_lists_all() -> None:
    with pytest.raises(OptionError) as caught:
        configured_options({"qqqqq": 1}, also=("lm",))
    for field in dataclasses.fields(SandboxOptions):
        assert field.name in caught.value.remedy
    assert ", lm," in caught.value.remedy


def test_wrong_arguments_of_the_sandbox_itself() -> None:
    with pytest.raises(OptionError, match="lm must be callable, not str"):
        Sandbox(lm="gpt")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="setup_code must be a string or None, not b"):
        Sandbox(setup_code=b"x = 1")  # type: ignore[arg-type]
    assert issubclass(OptionError, ContainersError)
