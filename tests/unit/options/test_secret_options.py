"""Values of variables, tokens and passwords show in no repr, dump, log, error or traceback."""

from __future__ import annotations

import copy
import dataclasses
import io
import logging
import pickle
import pprint
from typing import Any

import pytest
from rich.console import Console
from rich.traceback import Traceback

from rlm_containers import Sandbox, SandboxOptions
from rlm_containers.errors import OptionError
from rlm_containers.interpreter import WorkerSetup
from rlm_containers.interpreter.setup import ProxyAddress
from rlm_containers.options import explain_options
from runtimes.command import EngineCommand
from tests.unit.guests import LocalRuntime

SECRET = "s3cret"
OPTIONS: dict[str, Any] = {
    "env": {"TOKEN": SECRET},
    "packages": [f"private @ https://user:{SECRET}@example.org/p.whl"],
    "run_args": ["-e", f"A={SECRET}", f"--env=B={SECRET}", f"-eC={SECRET}", "--env", f"D={SECRET}"],
}


def rich_traceback(options: SandboxOptions) -> str:
    """Return a traceback with the values of local variables, of a frame that has the options."""
    stream = io.StringIO()
    try:
        raise LookupError
    except LookupError:
        shown = Traceback(show_locals=True)
    Console(file=stream, width=200).print(shown)
    assert "options" in stream.getvalue()
    return stream.getvalue()


@pytest.mark.parametrize(
    "dump",
    [
        repr,
        str,
        pprint.pformat,
        rich_traceback,
        lambda options: repr(dataclasses.replace(options, pids=64)),
        lambda options: repr(copy.deepcopy(options)),
        lambda options: repr(dataclasses.asdict(options)["env"]),
        lambda options: repr(WorkerSetup(env=options.env, proxy=ProxyAddress("h", 1, SECRET))),
    ],
)
def test_dumps(dump: Any) -> None:
    shown = dump(SandboxOptions(**OPTIONS))
    assert SECRET not in shown
    if dump in (repr, str):
        assert "env={'TOKEN': …}" in shown
        assert "run_args=('-e', 'A=…', '--env=B=…', '-eC=…', '--env', 'D=…')" in shown
        assert "https://****@example.org" in shown


def test_the_values_are_there_for_whoever_asks() -> None:
    options = pickle.loads(pickle.dumps(SandboxOptions(**OPTIONS)))
    assert options.env["TOKEN"] == SECRET
    assert dict(options.env) == options.env == OPTIONS["env"]
    assert options.run_args[1] == f"A={SECRET}"
    assert options == SandboxOptions(**OPTIONS)


def test_settings() -> None:
    assert SECRET not in "".join(setting.shown for setting in explain_options(OPTIONS))


@pytest.mark.parametrize(
    "options",
    [
        {"env": {"TOKEN": SECRET, "A=B": SECRET}},
        {"env": f"TOKEN={SECRET}"},
        {"run_args": f"-e TOKEN={SECRET}"},
        {"packages": f"https://u:{SECRET}@example.org/"},
        {"env": {"TOKEN": SECRET}, "pids": "many"},
    ],
)
def test_errors(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError) as caught:
        Sandbox(**options)
    assert SECRET not in str(caught.value)


def test_a_sandbox(local: LocalRuntime) -> None:
    box = Sandbox(runtime=local, **OPTIONS)
    assert SECRET not in repr(box) + repr(box.options)


def test_the_log_of_commands(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "runtimes")
    command = EngineCommand(("true",))
    command.run(*OPTIONS["run_args"], f"--build-arg=X={SECRET}", f"https://u:{SECRET}@h/")
    command.follow("-e", f"A={SECRET}", on_line=lambda line: None, timeout=60)
    held = command.hold("x", "-e", f"A={SECRET}")
    held.wait(60)
    held.close()
    assert len(caplog.records) == 3
    assert SECRET not in caplog.text
    assert "'--env=B=…'" in caplog.text
