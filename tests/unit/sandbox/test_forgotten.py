"""Sandboxes that nobody closes: the garbage collector does, and says so."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest

from rlm_containers import Sandbox
from tests.support import TIMEOUT, eventually
from tests.unit.guests import LocalRuntime, await_end


def start(local: LocalRuntime, **options: object) -> tuple[str, int, Path]:
    """Start a sandbox and forget it. Return its name, its guest's pid and its workspace."""
    box = Sandbox(runtime=local, **options)  # type: ignore[arg-type]
    box.start()
    box.execute("x = 1")
    spec = local.specs[-1]
    workspace = next(mount.source for mount in spec.mounts if not mount.read_only)
    name = box.name
    del box
    gc.collect()
    return name, local.processes[-1].pid, workspace


def test_a_forgotten_sandbox_ends_with_a_warning(local: LocalRuntime) -> None:
    threads = threading.active_count()
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.warns(ResourceWarning, match="was not closed") as caught:
        name, pid, workspace = start(local)
    assert name in str(caught[0].message)
    assert await_end(pid)
    assert eventually(lambda: not workspace.exists())
    assert eventually(lambda: threading.active_count() <= threads)
    assert eventually(lambda: len(os.listdir("/proc/self/fd")) <= descriptors)


@pytest.mark.usefixtures("own_sessions")
def test_its_session_is_free(local: LocalRuntime) -> None:
    with pytest.warns(ResourceWarning, match="was not closed"):
        _, pid, _ = start(local, session="one")
    assert await_end(pid)
    with Sandbox(runtime=local, session="one") as box:
        assert box.execute("print(x)").stdout == "1\n"


def test_a_closed_sandbox_is_collected_in_silence(local: LocalRuntime) -> None:
    box = Sandbox(runtime=local, lm=lambda prompt: "").start()
    box.execute("llm_query('?')")
    box.close()
    found = weakref.ref(box)
    del box
    gc.collect()
    assert found() is None


def test_one_in_a_cycle_is_collected_while_another_calls_its_model(local: LocalRuntime) -> None:
    class Holder:
        def __init__(self) -> None:
            self.box = Sandbox(runtime=local).start()
            self.itself = self

    def collect(prompt: str) -> str:
        gc.collect()
        return "collected"

    gc.disable()
    try:
        found = weakref.ref(Holder().box)
        pid = local.processes[-1].pid
        with Sandbox(runtime=local, lm=collect) as other, pytest.warns(ResourceWarning):
            assert other.execute("print(llm_query('?'))").stdout == "collected\n"
    finally:
        gc.enable()
    assert found() is None
    assert await_end(pid)


def test_the_end_of_a_program_closes_in_silence() -> None:
    program = """
import sys, warnings
warnings.simplefilter("error")
from rlm_containers import Sandbox
from tests.unit.guests import LocalRuntime
local = LocalRuntime()
box = Sandbox(runtime=local).start()
print(local.processes[0].pid, next(m.source for m in local.specs[0].mounts if not m.read_only))
"""
    done = subprocess.run(
        (sys.executable, "-c", program), capture_output=True, text=True, timeout=TIMEOUT, check=True
    )
    pid, workspace = done.stdout.split()
    assert done.stderr == ""
    assert not Path(workspace).exists()
    assert await_end(int(pid))


def test_no_line_of_the_log_is_long(local: LocalRuntime, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with Sandbox(runtime=local, lm=lambda prompt: "") as box:
        box.execute("llm_query('?' * 10_000)")
    for record in caplog.records:
        assert len(record.getMessage()) < 2_000, record
        assert "\n" not in record.getMessage(), record
