"""``rlm-containers exec`` where it does not come to run anything. The rest needs an engine."""

from __future__ import annotations

import os

import pytest

from rlm_containers.errors import UnsupportedByEngineError
from rlm_containers.state import Owner
from tests.unit.guests import LocalRuntime
from tests.unit.terminal import Program


def test_there_is_no_such_sandbox(program: Program) -> None:
    done = program("exec", "no-such\x1b[31m", "--", "true")
    assert done.returncode == 125
    assert "No sandbox of yours that runs has the session or the container" in done.stderr
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize("arguments", [(), ("work",), ("work", "--")])
def test_something_is_missing(program: Program, arguments: tuple[str, ...]) -> None:
    assert program("exec", *arguments).returncode == 2


def test_an_engine_that_cannot(local: LocalRuntime) -> None:
    with pytest.raises(UnsupportedByEngineError, match="run a command in a running container"):
        local.exec_command("name", ("true",))


def test_whose_sandbox_it_is() -> None:
    mine = Owner.current()
    assert mine.is_mine()
    labels = mine.labels()
    host = next(name for name in labels if name.endswith(".host"))
    other = Owner.from_labels({**labels, host: "another"})
    assert other is not None
    assert not other.is_mine()
    assert other.pid == os.getpid()
