"""Options and calls that make no sense: an exception of ours each, before anything is started."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rlm_containers import ContainersError, Sandbox
from rlm_containers.errors import (
    ContextError,
    EngineCommandError,
    EngineNotFoundError,
    GuestPythonError,
    OptionError,
    SandboxClosedError,
    UnknownRuntimeError,
)
from tests.support import Engine, printed

# Options


@pytest.mark.parametrize(
    "wrong",
    [
        {"image": 3},
        {"image": ""},
        {"image": None},
        {"image": "-v"},
        {"image": "--privileged"},
        {"runtime": 3.5},
        {"runtime": ["docker"]},
        {"network": "host"},
        {"isolation": "loose"},
        {"mounts": "/tmp:/data"},
        {"mounts": ["/nowhere/at/all:/data"]},
        {"mounts": ["/tmp:/workspace"]},
        {"user": "nobody"},
        {"env": {"A": 1}},
        {"env": ["A=1"]},
        {"env": {"A=B": "c"}},
        {"env": {"": "c"}},
        {"env": {"A": "nul\0"}},
        {"memory": "1"},
        {"memory": "1xb"},
        {"memory": -1},
        {"memory": 0},
        {"memory": True},
        {"memory": 1.5},
        {"cpus": 0},
        {"pids": 0},
        {"pids": "many"},
        {"disk": "much"},
        {"gpus": "some"},
        {"run_args": "--privileged"},
        {"run_args": [1]},
        {"run_args": 7},
        {"start_timeout": 0},
        {"start_timeout": "soon"},
        {"start_timeout": float("nan")},
        {"lm_timeout": -1},
        {"max_output": 10},
        {"max_output": "all"},
        {"max_output": None},
        {"lm": "gpt"},
        {"lm": 7},
        {"setup_code": 3},
        {"setup_code": b"x = 1"},
    ],
    ids=lambda wrong: "{}={!r}".format(*next(iter(wrong.items()))),
)
def test_options_of_wrong_types(engine: Engine, wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(OptionError, match=name):
        Sandbox(**{"image": engine.image(), **wrong})


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("runtme", "runtime"),
        ("imagee", "image"),
        ("setupcode", "setup_code"),
        ("Network", "network"),
        ("max_outputs", "max_output"),
        ("environment", "env"),
        ("LM", "lm"),
        ("mem", "memory"),
    ],
)
def test_unknown_options_name_the_nearest(engine: Engine, wrong: str, right: str) -> None:
    with pytest.raises(OptionError) as caught:
        Sandbox(engine.image(), **{wrong: "podman"})  # type: ignore[arg-type]
    assert repr(wrong) in str(caught.value)
    assert right in caught.value.remedy


def test_options_that_resemble_nothing_list_them_all(engine: Engine) -> None:
    with pytest.raises(OptionError, match="runtime") as caught:
        Sandbox(engine.image(), qqqqqqq=1)  # type: ignore[call-arg]
    for name in ("image", "network", "setup_code", "lm", "max_output"):
        assert name in caught.value.remedy


def test_an_unknown_network(engine: Engine) -> None:
    with pytest.raises(OptionError, match='"bridge", "none", "internal"'):
        Sandbox(engine.image(), network="hots")  # type: ignore[arg-type]


# Calls


@pytest.mark.parametrize("code", [None, 3, b"x = 1", ["x = 1"]])
def test_code_that_is_no_string(box: Sandbox, code: Any) -> None:
    with pytest.raises(OptionError, match="code must be a string"):
        box.execute(code)
    assert printed(box, "print('on')") == "on\n"


@pytest.mark.parametrize("name", ["", "1a", "two words", "a.b", "../x", "a/b", "x\0", 3, None])
def test_names_that_are_no_variables(box: Sandbox, name: Any) -> None:
    with pytest.raises(OptionError, match="variable"):
        box.load(name, "text")


def recursive() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


def deep() -> list[Any]:
    found: list[Any] = []
    for _ in range(100_000):
        found = [found]
    return found


@pytest.mark.parametrize(
    "value",
    [
        None,
        3,
        b"raw",
        {1, 2},
        object(),
        {"a": object()},
        {"a": {1, 2}},
        {("tuple",): 1},
        [b"raw"],
        recursive(),
        deep(),
        range(3),
        open,
    ],
    ids=lambda value: f"{value!r:.20}" if not isinstance(value, list) else "list",
)
def test_contexts_that_cannot_be_encoded(box: Sandbox, value: Any) -> None:
    box.load("context_0", "before")
    with pytest.raises(ContextError, match="context_0"):
        box.load("context_0", value)
    assert printed(box, "print(context_0, context)") == "before before\n"


def test_before_the_start_and_after_the_end(engine: Engine) -> None:
    box = Sandbox(engine.image(), runtime=engine.runtime)
    calls: list[Callable[[], object]] = [
        lambda: box.execute("1"),
        lambda: box.load("context_0", "x"),
        lambda: box.unsaved,
        box.reset_answer,
    ]
    for call in calls:
        with pytest.raises(SandboxClosedError, match="not been started"):
            call()
    box.interrupt()  # of nothing
    box.start()
    box.close()
    for call in [*calls, box.start]:
        with pytest.raises(SandboxClosedError, match="was closed"):
            call()
    box.interrupt()


def test_every_error_is_of_one_family() -> None:
    for error in (
        EngineNotFoundError,
        EngineCommandError,
        OptionError,
        ContextError,
        GuestPythonError,
        UnknownRuntimeError,
    ):
        assert issubclass(error, ContainersError)
