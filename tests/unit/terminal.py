"""Runs the command line in this process, in one of its own, or in a pseudo-terminal."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pexpect
import pyte
from click.testing import CliRunner

from rlm_containers.cli.program import program
from tests.support import TIMEOUT

REPOSITORY = Path(__file__).parent.parent.parent

_ENTRY_POINTS = """\
[rlm_containers.runtimes]
local = tests.unit.guests:LocalRuntime
"""


class Program:
    """``python -m rlm_containers`` with a home directory of its own and the runtime ``local``.

    Args:
        home: the directory for its history, cache and configuration.
        environment: further variables; ``None`` removes one.
    """

    def __init__(self, home: Path, **environment: str | None) -> None:
        self.home = home
        distribution = home / "path" / "local_runtime-1.dist-info"
        distribution.mkdir(parents=True, exist_ok=True)
        (distribution / "METADATA").write_text("Name: local-runtime\nVersion: 1\n")
        (distribution / "entry_points.txt").write_text(_ENTRY_POINTS)
        wanted: dict[str, str | None] = {
            "HOME": str(home),
            "XDG_STATE_HOME": str(home / "state"),
            "XDG_CONFIG_HOME": str(home / "config"),
            "PYTHONPATH": os.pathsep.join((str(REPOSITORY), str(home / "path"))),
            "RLM_CONTAINERS_CONFIG": None,
            "RLM_CONTAINERS_RUNTIME": None,
            "NO_COLOR": None,
            "TERM": "xterm-256color",
            "COLUMNS": None,
            **environment,
        }
        variables: Mapping[str, str | None] = {**os.environ, **wanted}
        self.environment = {k: v for k, v in variables.items() if v is not None}

    def __call__(
        self, *arguments: str, input_: str | bytes = "", **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run it in this process, which saves half a second, with pipes."""
        environment: dict[str, str | None] = dict.fromkeys(os.environ)
        environment |= {**self.environment, **more}
        before = list(sys.path)
        sys.path.append(str(self.home / "path"))
        try:
            done = CliRunner().invoke(
                program, list(arguments), input_, environment, prog_name="rlm-containers"
            )
        finally:
            sys.path[:] = before
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)

    def process(
        self, *arguments: str, input_: str = "", **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run it in a process of its own, with pipes."""
        return subprocess.run(
            (sys.executable, "-m", "rlm_containers", *arguments),
            env={**self.environment, **more},
            input=input_,
            capture_output=True,
            text=True,
            timeout=2 * TIMEOUT,
            check=False,
        )

    def terminal(self, *arguments: str, **more: str) -> Terminal:
        """Start it in a terminal."""
        command = (sys.executable, "-m", "rlm_containers", *arguments)
        return Terminal(command, {**self.environment, **more})


class Terminal:
    """A program in a terminal with a screen that can be read.

    Args:
        command: the program and its arguments.
        environment: its variables.
        rows, columns: the size of the screen.

    Attributes:
        raw: all output, with its escape sequences.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        rows: int = 40,
        columns: int = 120,
    ) -> None:
        self.raw = ""
        self._columns = columns
        self._child: Any = pexpect.spawn(
            command[0],
            list(command[1:]),
            env=dict(environment),
            dimensions=(rows, columns),
            timeout=TIMEOUT,
            encoding="utf-8",
            codec_errors="replace",
        )
        self._child.logfile_read = self
        self._screen = pyte.HistoryScreen(columns, rows, history=1000)
        self._stream = pyte.Stream(self._screen)
        # A program may ask for the position of the cursor, and waits for the answer.
        self._screen.write_process_input = self._child.send  # type: ignore[method-assign]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._child.close(force=True)

    # pexpect logs what it reads by calling these

    def write(self, text: str) -> None:
        self.raw += text
        self._stream.feed(text)

    def flush(self) -> None: ...

    @property
    def lines(self) -> list[str]:
        """Return the lines on the screen, and those that have scrolled off its top."""
        history = [
            "".join(line[column].data for column in range(self._columns))
            for line in self._screen.history.top
        ]
        return [line.rstrip() for line in [*history, *self._screen.display]]

    @property
    def text(self) -> str:
        return "\n".join(self.lines).rstrip("\n")

    def type(self, keys: str) -> None:
        """Press keys."""
        self._child.send(keys)

    def see(self, text: str) -> None:
        """Wait until the text is on the screen."""
        self._wait(lambda: text in self.text, text)

    def see_line(self, line: str) -> None:
        """Wait until a line is exactly this."""
        self._wait(lambda: line in self.lines, line)

    def _wait(self, true: Callable[[], bool], wanted: str) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not true():
            left = max(0.0, deadline - time.monotonic())
            found = self._child.expect([r"(?s).+", pexpect.EOF, pexpect.TIMEOUT], timeout=left)
            if found and not true():
                raise AssertionError(f"{wanted!r} did not appear:\n{self.text}")

    def end(self) -> int:
        """Wait for the program to end, and return its exit status."""
        if self._child.expect([pexpect.EOF, pexpect.TIMEOUT]):
            raise AssertionError(f"the program did not end:\n{self.text}")
        self._child.close()
        assert isinstance(self._child.exitstatus, int), self.text
        return self._child.exitstatus
