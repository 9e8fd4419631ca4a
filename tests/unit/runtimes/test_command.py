"""Running a command line to its end, or holding it by its pipes."""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
from pathlib import Path

import pytest

from runtimes import ContainerProcess
from runtimes.command import CommandResult, EngineCommand
from runtimes.errors import (
    ContainersError,
    EngineCommandError,
    EngineNotFoundError,
    EngineTimeoutError,
)
from tests.support import TIMEOUT
from tests.unit.guests import run_python

SH = EngineCommand(("/bin/sh", "-c"))


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def read(descriptor: int) -> bytes:
    """Read until the other end is closed."""
    received = b""
    while True:
        assert select.select((descriptor,), (), (), TIMEOUT)[0]
        part = os.read(descriptor, 65536)
        if not part:
            return received
        received += part


def ended(process: ContainerProcess) -> int | None:
    """Wait for a process to end by itself, and return its exit status."""
    try:
        return process.wait(TIMEOUT)
    finally:
        process.close()


def test_output_and_exit_status() -> None:
    result = SH.run("echo out; echo err >&2; exit 3", check=False)
    assert (result.exit_code, result.stdout, result.stderr) == (3, "out\n", "err\n")
    assert SH.run("exit 0").exit_code == 0


def test_arguments_arrive_unchanged() -> None:
    tricky = ["", " ", "*", "$HOME", "a\nb", "ü€🐍", "'\"\\", "--x=y z", "-", "`id`"]
    command = EngineCommand((sys.executable, "-c", "import sys; print(sys.argv[1:])"))
    assert command.run(*tricky).stdout == f"{tricky}\n"


def test_a_failure_names_the_command_and_the_cause() -> None:
    with pytest.raises(EngineCommandError) as caught:
        SH.run("echo first >&2; echo the cause >&2; exit 125")
    error = caught.value
    assert (error.exit_code, error.stderr) == (125, "first\nthe cause\n")
    assert error.what.endswith("failed with status 125: the cause")
    with pytest.raises(EngineCommandError, match="it said nothing"):
        SH.run("exit 1")


def test_a_failure_does_not_show_a_long_command_line() -> None:
    with pytest.raises(EngineCommandError) as caught:
        EngineCommand(("/bin/false",)).run("run", "--rm", *(f"--volume=/{i}:/x" for i in range(99)))
    assert "--volume" not in str(caught.value)
    assert "run --rm" in str(caught.value)


def test_a_signal_is_a_negative_exit_code() -> None:
    result = SH.run("kill -9 $$", check=False)
    assert result.exit_code == -signal.SIGKILL


def test_bytes_that_are_not_utf8_are_replaced() -> None:
    assert SH.run(r"printf 'a\377b'").stdout == "a\ufffdb"


def test_large_output_is_collected() -> None:
    result = SH.run("head -c 5000000 /dev/zero | tr '\\0' x; head -c 60000 /dev/zero >&2")
    assert len(result.stdout) == 5_000_000
    assert len(result.stderr) == 60_000


def test_of_a_long_standard_error_the_ends_are_kept() -> None:
    result = SH.run("echo first >&2; head -c 300000 /dev/zero >&2; echo; echo last >&2")
    assert result.stderr.startswith("first\n\0")
    assert result.stderr.endswith("\0last\n")
    cut = 300_000 + len("first\nlast\n") - 64 * 1024
    assert f"\n[… {cut} bytes …]\n" in result.stderr
    assert len(result.stderr) < 70_000


def test_a_flood_is_an_error(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with pytest.raises(EngineCommandError, match="printed more than 32 MiB") as caught:
        SH.run(f"echo $$ >{pid}; echo why >&2; cat /dev/zero", timeout=TIMEOUT)
    assert "by hand" in caught.value.remedy
    assert caught.value.stderr == "why\n"
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


#: Prints by how many MiB this process's memory has grown at its peak.
_GROWTH = """
import resource
from runtimes.command import EngineCommand
from runtimes.errors import EngineCommandError
engine = EngineCommand(("/bin/sh", "-c"))
engine.run("echo")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    engine.run({script!r}, check=False)
except EngineCommandError:
    pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("stream", [1, 2])
def test_a_flood_costs_bounded_memory(stream: int) -> None:
    repository = str(Path(__file__).parents[3])
    program = _GROWTH.format(script=f"head -c 300000000 /dev/zero >&{stream}")
    done = run_python(program, path=[repository])
    assert done.stderr == ""
    assert int(done.stdout) < 100


def test_a_command_has_no_terminal_and_empty_input() -> None:
    assert SH.run("[ -t 0 ] || [ -t 1 ] || [ -t 2 ] || echo none; cat").stdout == "none\n"


def test_a_command_has_a_session_of_its_own() -> None:
    assert int(SH.run("ps -o sid= -p $$ 2>/dev/null || cut -d' ' -f6 /proc/$$/stat").stdout) != (
        os.getsid(0)
    )


def test_a_timeout(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with pytest.raises(EngineTimeoutError, match=r"did not end within 0\.2 s") as caught:
        SH.run(f"echo $$ >{pid}; exec sleep 1000", timeout=0.2)
    assert "info" in caught.value.remedy
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_timeout_when_a_child_keeps_the_pipes_open(tmp_path: Path) -> None:
    # Like a client that has started ssh.
    pid = tmp_path / "pid"
    try:
        with pytest.raises(EngineTimeoutError):
            SH.run(f"sleep 20 & echo $! >{pid}; wait", timeout=0.2)
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)


@pytest.mark.parametrize("name", ["no-such-program", "/no/such/program", "", "/tmp", "/etc/passwd"])
def test_a_missing_program(name: str) -> None:
    with pytest.raises(EngineNotFoundError, match="no program"):
        EngineCommand((name,))


def test_a_file_that_is_no_program(tmp_path: Path) -> None:
    program = tmp_path / "docker"
    program.write_bytes(b"\x7fELF nonsense")
    program.chmod(0o755)
    with pytest.raises(EngineNotFoundError, match="could not be run"):
        EngineCommand((str(program),)).run("info")


def test_a_program_that_was_removed(tmp_path: Path) -> None:
    program = tmp_path / "docker"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    command = EngineCommand((str(program),))
    program.unlink()
    with pytest.raises(EngineNotFoundError):
        command.run("info")


def test_str_is_quoted_for_a_shell() -> None:
    assert str(EngineCommand(("/bin/sh", "--url=a b"))) == "/bin/sh '--url=a b'"


def test_no_descriptor_stays_open() -> None:
    SH.run("true")
    before = descriptors()
    for _ in range(3):
        SH.run("true")
        ended(SH.hold("x", "true"))
    assert descriptors() == before


# JSON


@pytest.mark.parametrize(
    ("printed", "objects"),
    [
        ("", []),
        ("null", []),
        ("[]", []),
        ('{"a": 1}', [{"a": 1}]),
        ('[{"a": 1}, null, 2, {}]', [{"a": 1}, {}]),
        ('{"a": 1}\n\n{"b": 2}\n', [{"a": 1}, {"b": 2}]),
        ('{\n  "a": 1\n}\n', [{"a": 1}]),
    ],
)
def test_objects(printed: str, objects: list[dict[str, int]]) -> None:
    assert CommandResult(0, printed, "").objects() == objects


@pytest.mark.parametrize("printed", ["json", "{", '{"a": 1}\nWARNING: old'])
def test_output_that_is_not_json(printed: str) -> None:
    with pytest.raises(ContainersError, match="not JSON"):
        CommandResult(0, printed, "").objects()


# Held


def test_the_three_pipes_of_a_held_process() -> None:
    process = SH.hold("x", "echo ready >&2; cat; exit 5")
    assert process.name == "x"
    os.write(process.stdin, b"\0\xffbytes\n")
    process.close_stdin()
    process.close_stdin()
    assert read(process.stdout) == b"\0\xffbytes\n"
    assert read(process.stderr) == b"ready\n"
    assert ended(process) == 5
    assert (process.stdin, process.stdout, process.stderr) == (-1, -1, -1)
    process.close()


def test_pipes_are_not_inherited_by_other_programs() -> None:
    process = SH.hold("x", "cat")
    for descriptor in (process.stdin, process.stdout, process.stderr):
        assert not os.get_inheritable(descriptor)
    # Its own three, and the one with which it lists them.
    other = SH.hold("y", "set -- /proc/$$/fd/*; echo $#; cat")
    os.close(process.stdin)
    process.stdin = -1
    assert ended(process) == 0  # `other` does not keep its pipe open
    other.close_stdin()
    assert int(read(other.stdout)) <= 4
    ended(other)


def test_a_held_process_that_does_not_end_is_killed() -> None:
    process = SH.hold("x", "trap '' TERM HUP INT; while :; do :; done")
    assert process.wait(0.2) is None
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
    process.close()


def test_killing_an_ended_process_does_nothing() -> None:
    process = SH.hold("x", "exit 3")
    assert process.wait(TIMEOUT) == 3
    process.kill()
    assert process.wait(TIMEOUT) == 3
    process.close()


def test_a_signal_is_a_negative_status() -> None:
    assert ended(SH.hold("x", "kill -15 $$")) == -signal.SIGTERM


def test_a_failed_start_leaves_no_pipe_open(tmp_path: Path) -> None:
    program = tmp_path / "docker"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    command = EngineCommand((str(program),))
    program.unlink()
    before = descriptors()
    with pytest.raises(EngineNotFoundError):
        command.hold("x", "run")
    assert descriptors() == before


def test_calls_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="runtimes"):
        SH.run("exit 0 # 'a b'")
        ended(SH.hold("x", "true"))
    said = [record.getMessage() for record in caplog.records if record.name == "runtimes"]
    assert len(said) == 2
    assert all("/bin/sh -c" in line for line in said)
