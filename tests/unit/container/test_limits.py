"""Which limits a sandbox gets on which engine, and what is logged about the others."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pytest

from rlm_containers import SandboxOptions
from rlm_containers.container.limits import Limits
from rlm_containers.errors import UnsupportedByEngineError, format_size
from rlm_containers.interpreter.reports import memory_death
from runtimes import EngineInfo

GIB = 1024**3
V1 = "it runs without root on cgroups v1"
NO_CPU = "the cgroup controller 'cpu' is not delegated to its user"
NONE = {"memory": V1, "cpus": V1, "pids": V1}


def limits(unenforced: Mapping[str, str] | None = None, **options: Any) -> Limits:
    return Limits.on(engine(unenforced or {}), SandboxOptions(**options), "rlm-x")


def engine(unenforced: Mapping[str, str], **more: Any) -> EngineInfo:
    known: dict[str, Any] = {
        "engine": "podman",
        "version": (4, 3, 1),
        "rootless": bool(unenforced),
        "cgroup_version": 1 if V1 in unenforced.values() else 2,
        "selinux": False,
        "remote": False,
        "has_init": True,
        "memory": 16 * GIB,
        "cpus": 8,
        "unenforced": unenforced,
        "no_disk_limit": "its storage driver vfs cannot",
    }
    return EngineInfo(**{**known, **more})


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    return [(record.levelno, record.getMessage()) for record in caplog.records]


@pytest.fixture(autouse=True)
def everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


def test_the_defaults_keep_the_machine_alive() -> None:
    assert limits() == Limits(
        memory=8 * GIB,
        cpus=None,
        pids=1024,
        disk=None,
        file=None,
        tmp=None,
        workspace=4 * GIB,
        replica=4 * GIB,
    )


def test_a_machine_of_unknown_size() -> None:
    found = Limits.on(engine({}, memory=None, cpus=None), SandboxOptions(cpus=64), "rlm-x")
    assert (found.memory, found.cpus, found.pids) == (None, 64, 1024)


def test_none_means_no_limit() -> None:
    found = limits(memory=None, pids=None)
    assert (found.memory, found.pids) == (None, None)


def test_limits_that_were_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    found = limits(memory="1g", cpus=0.5, pids=99)
    assert (found.memory, found.cpus, found.pids) == (GIB, 0.5, 99)
    assert not said(caplog)


def test_more_memory_than_the_machine_has() -> None:
    assert limits(memory="1t").memory == 1024 * GIB


@pytest.mark.parametrize(("cpus", "kept"), [(7.99, 7.99), (8, None), (64, None)])
def test_a_limit_of_all_processors_is_left_out(cpus: float, kept: float | None) -> None:
    # Docker refuses more.
    assert limits(cpus=cpus).cpus == kept


def test_the_users_own_arguments_take_the_place_of_the_defaults() -> None:
    found = limits(run_args=["--memory=1g"])
    assert (found.memory, found.pids) == (None, 1024)
    found = limits(run_args=["--pids-limit", "7"])
    assert (found.memory, found.pids) == (8 * GIB, None)


# Engines that cannot


def test_defaults_that_are_not_enforced_do_not_warn(caplog: pytest.LogCaptureFixture) -> None:
    found = limits(NONE)
    assert (found.memory, found.cpus, found.pids) == (None, None, None)
    ((level, message),) = said(caplog)
    assert level == logging.INFO
    assert message == f"rlm-x: memory and pids will not be enforced by podman: {V1}"


def test_a_requested_limit_that_is_not_enforced_warns(caplog: pytest.LogCaptureFixture) -> None:
    found = limits(NONE, memory="1g", cpus=1, pids=99)
    assert (found.memory, found.cpus, found.pids) == (None, None, None)
    ((level, message),) = said(caplog)
    assert level == logging.WARNING
    assert message == f"rlm-x: memory, cpus and pids will not be enforced by podman: {V1}"


def test_a_controller_that_is_not_delegated(caplog: pytest.LogCaptureFixture) -> None:
    found = limits({"cpus": NO_CPU}, cpus=1)
    assert (found.memory, found.cpus, found.pids) == (8 * GIB, None, 1024)
    assert said(caplog) == [
        (logging.WARNING, f"rlm-x: cpus will not be enforced by podman: {NO_CPU}")
    ]
    caplog.clear()
    limits({"cpus": NO_CPU})
    assert not said(caplog)  # nobody asked for it


@pytest.mark.parametrize(
    ("unenforced", "options", "named", "waiver"),
    [
        (NONE, {}, "memory and pids", "memory=None, pids=None"),
        (NONE, {"pids": None, "cpus": 2}, "memory and cpus", "memory=None, cpus=None"),
        ({"cpus": NO_CPU}, {"cpus": 2}, "enforce cpus", "cpus=None"),
        (NONE, {"run_args": ["--memory=1g"], "pids": None}, "enforce memory", "memory=None"),
    ],
)
def test_strict_isolation_refuses(
    unenforced: dict[str, str], options: dict[str, Any], named: str, waiver: str
) -> None:
    with pytest.raises(UnsupportedByEngineError, match='isolation="strict" wants') as caught:
        limits(unenforced, isolation="strict", **options)
    assert named in caught.value.what
    assert waiver in caught.value.remedy
    assert ("Delegate=" in caught.value.remedy) is (unenforced is not NONE)
    assert caught.value.container == "rlm-x"


def test_strict_isolation_goes_without_limits_that_are_none() -> None:
    found = limits(NONE, isolation="strict", memory=None, pids=None)
    assert (found.memory, found.pids) == (None, None)
    found = limits({"cpus": NO_CPU}, isolation="strict")
    assert (found.memory, found.pids) == (8 * GIB, 1024)


# Disk


def test_a_disk_that_the_engine_cannot_limit() -> None:
    with pytest.raises(UnsupportedByEngineError, match="its storage driver vfs cannot") as caught:
        limits(disk="1g")
    assert 'isolation="strict"' in caught.value.remedy


def test_a_disk_that_the_engine_can_limit() -> None:
    found = Limits.on(engine({}, no_disk_limit=""), SandboxOptions(disk="1g"), "rlm-x")
    assert (found.disk, found.file, found.tmp) == (GIB, GIB, None)


@pytest.mark.parametrize(
    ("options", "tmp"),
    [
        ({}, GIB // 4),
        ({"disk": "1g"}, GIB),
        ({"disk": "1m"}, 1024**2),
        # Files in memory must leave room for a worker.
        ({"memory": "128m"}, 64 * 1024**2),
        ({"memory": "128m", "disk": "1g"}, 64 * 1024**2),
        ({"memory": "1g", "disk": "16m"}, 16 * 1024**2),
        ({"memory": None}, GIB // 4),
    ],
)
def test_strict_isolation_bounds_tmp(options: dict[str, Any], tmp: int) -> None:
    found = limits(isolation="strict", **options)
    assert (found.tmp, found.disk) == (tmp, None)
    assert found.file == SandboxOptions(**options).disk


# Words


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (1, "1 bytes"),
        (1024, "1 KiB"),
        (200 * 1024**2, "200 MiB"),
        (12638255104, "11.8 GiB"),
        (8 * GIB, "8 GiB"),
        (2048 * GIB, "2048 GiB"),
    ],
)
def test_sizes_in_words(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("report", "text"),
    [
        ({"limit": 128 * 1024**2}, "no more than 128 MiB (memory=…)"),
        ({"limit": None}, "the machine had no more"),
        ({}, "the machine had no more"),
        (None, "perhaps for its memory"),
        # A guest may say anything.
        ({"limit": -1}, "the machine had no more"),
        ({"limit": 10**400}, "the machine had no more"),
        ({"limit": "x" * 10**6}, "the machine had no more"),
        ([], "perhaps for its memory"),
        ("x" * 10**6, "perhaps for its memory"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_deaths_in_words(report: object, text: str) -> None:
    assert text in memory_death(report)
    assert len(memory_death(report)) < 200
