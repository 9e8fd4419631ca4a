"""Standard streams that are full, closed, or read by a program that has ended."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support import TIMEOUT
from tests.unit.terminal import Program

PROGRAM = (sys.executable, "-m", "rlm_containers")

COMMANDS = (
    ("config", "show"),
    ("config", "show", "--json"),
    ("--help",),
    ("run", "--help"),
    ("completion", "bash"),
    ("sessions", "list", "--json"),
    ("doctor", "--runtime", "local"),
    ("ps", "--runtime", "local", "--json"),
    ("run", "--runtime", "local", "-c", "print('x' * 100_000)"),
    ("run", "--runtime", "local", "--json", "-c", "1"),
)


def shell(program: Program, redirection: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program with its streams redirected by a shell."""
    return subprocess.run(
        ("/bin/sh", "-c", f'"$@" {redirection}', "sh", *PROGRAM, *arguments),
        env=program.environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    ("redirection", "message"),
    [
        (">/dev/full", "error: standard output: No space left on device\n"),
        (">&-", "error: standard output: Bad file descriptor\n"),
    ],
)
def test_output_that_cannot_be_written(
    program: Program, arguments: tuple[str, ...], redirection: str, message: str
) -> None:
    done = shell(program, redirection, *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", message)


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_reader_that_has_ended(program: Program, arguments: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            (*PROGRAM, *arguments),
            env=program.environment,
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=TIMEOUT,
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", "<&- 2>&-", "<&- >&- 2>&-"])
def test_messages_that_cannot_be_written(program: Program, redirection: str) -> None:
    done = shell(program, redirection, "no-such-command")
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stdout + done.stderr


def test_closed_streams_do_not_change_what_a_cell_does(program: Program) -> None:
    code = "import sys; sys.exit(7)"
    done = shell(program, "<&- >&- 2>&-", "run", "--runtime", "local", "-c", code)
    assert done.returncode == 7
