"""Runs a cell in an interpreter of a sandbox: its own, or that of a branch."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from rlm_containers.errors import OptionError
from rlm_containers.interpreter import CellResult, Interpreter, OutputCallback
from rlm_containers.lm import LMBroker
from rlm_containers.sandbox.files import find_artifacts
from rlm_containers.sandbox.running import Running


def cell_content(code: str, name: str | None, *, display: bool) -> dict[str, Any]:
    """Return the content of the request that runs a cell, see :meth:`Sandbox.execute`.

    Raises:
        OptionError: ``code`` is not a string.
    """
    if not isinstance(code, str):
        raise OptionError(f"code must be a string, not {type(code).__name__}.")
    content: dict[str, Any] = {"code": code}
    if name is not None:
        content["name"] = name
    if display:
        content["display"] = True
    return content


def run_cell(
    running: Running,
    interpreter: Interpreter,
    broker: LMBroker,
    content: dict[str, Any],
    on_output: OutputCallback | None,
    *,
    saves: bool = False,
) -> CellResult:
    """Run a cell, see :meth:`Sandbox.execute`.

    Args:
        running: the sandbox.
        interpreter: runs it.
        broker: answers its calls of language models.
        content: as :func:`cell_content` returns it.
        on_output: called with its output.
        saves: whether to wait until its changes are on this host.
    """
    broker.begin_cell()
    start = time.perf_counter()
    reply = interpreter.request("cell", on_output, **content)
    elapsed = time.perf_counter() - start
    if running.watch is not None:
        running.watch.end_cell(reply)
    running.note_changes()
    if saves:
        running.save(reply)
    result = reply.result(elapsed, broker.take_calls())
    if not reply.artifacts:
        return result
    artifacts = find_artifacts(reply.artifacts, running.workspace)
    return dataclasses.replace(result, artifacts=artifacts)
