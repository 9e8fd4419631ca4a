"""Running one cell: output as it comes, and Ctrl-C for the cell and not for the program."""

from __future__ import annotations

import sys
import threading
from typing import Any

from rlm_containers import CellResult, Sandbox
from rlm_containers.cli.messages import say
from rlm_containers.cli.terminal import OutputWriter
from rlm_containers.interpreter import OutputCallback


class CellPrinter:
    """Prints what a cell prints, where it belongs."""

    def __init__(self) -> None:
        self._writers = {"stdout": OutputWriter(sys.stdout), "stderr": OutputWriter(sys.stderr)}

    def __call__(self, stream: str, text: str) -> None:
        self._writers[stream].write(text)

    def finish(self, result: CellResult) -> None:
        """Print what is to be said of a cell that has ended, on lines of its own."""
        if not result.notices:
            return
        for writer in self._writers.values():
            if writer.in_line:
                writer.write("\n")
        for notice in result.notices:
            say(notice)

    def end_line(self) -> None:
        """Begin a new line where the cell has not ended its own."""
        if self._writers["stdout"].in_line:
            self._writers["stdout"].write("\n")


def run_cell(box: Sandbox, code: str, on_output: OutputCallback | None, **more: Any) -> CellResult:
    """Run a cell. Ctrl-C interrupts it; the third one gives up the sandbox.

    Args:
        box: the sandbox.
        code: Python source.
        on_output: as for :meth:`Sandbox.execute`, but called in another thread.
        more: further arguments of :meth:`Sandbox.execute`.

    Raises:
        KeyboardInterrupt: the sandbox was given up.
        ContainersError: as :meth:`Sandbox.execute`.
    """
    outcome: list[CellResult | BaseException] = []
    over = threading.Event()

    def run() -> None:
        try:
            outcome.append(box.execute(code, on_output=on_output, **more))
        except BaseException as error:
            outcome.append(error)
        finally:
            over.set()

    # In a thread of its own: in this one Ctrl-C would end the waiting, and what the cell had to
    # say about its interrupt would be lost.
    threading.Thread(target=run, name="rlm-cell", daemon=True).start()
    presses = 0
    while not over.is_set():
        try:
            over.wait()  # Thread.join() forgets the thread when it is interrupted, before 3.13
        except KeyboardInterrupt:
            presses += 1
            if presses > 2:
                box.close()
                raise
            if presses == 2:
                say("The cell has been interrupted. Press Ctrl-C again to give up the sandbox.")
            box.interrupt()
    ended = outcome[0]
    if isinstance(ended, BaseException):
        raise ended
    return ended


def describe_result(result: CellResult) -> dict[str, Any]:
    """A result as JSON has it."""
    return {
        "status": result.status,
        "exit_code": result.exit_code,
        "stdout": result.stdout,
        "stderr": result.stderr,
        "locals": dict(result.locals),
        "execution_time": round(result.execution_time, 6),
        "final_answer": result.final_answer,
        "lost": list(result.lost),
        "lm_calls": [
            {
                "model": call.model,
                "prompt": call.prompt,
                "response": call.response,
                "execution_time": round(call.execution_time, 6),
            }
            for call in result.lm_calls
        ],
    }
