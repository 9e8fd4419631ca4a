"""Following a command: its lines as they come, and ending it early."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from runtimes.command import EngineCommand
from runtimes.errors import EngineTimeoutError
from tests.support import TIMEOUT, eventually

SH = EngineCommand(("/bin/sh", "-c"))


def lines_of(script: str) -> list[str]:
    lines: list[str] = []
    assert SH.follow(script, on_line=lines.append, timeout=TIMEOUT) == 0
    return lines


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def test_both_streams_in_order() -> None:
    assert lines_of("echo one; echo two >&2; echo; printf three") == ["one", "two", "three"]


def test_exit_status() -> None:
    assert SH.follow("exit 3", on_line=print, timeout=TIMEOUT) == 3
    assert SH.follow("kill -9 $$", on_line=print, timeout=TIMEOUT) == -signal.SIGKILL


def test_lines_arrive_as_they_are_printed(tmp_path: Path) -> None:
    answer = tmp_path / "answer"
    os.mkfifo(answer)
    seen: list[str] = []

    def on_line(line: str) -> None:
        seen.append(line)
        if line == "first":  # the command waits for this
            answer.write_text("go on\n")

    assert SH.follow(f"echo first; read -r x <{answer}; echo $x", on_line=on_line, timeout=30) == 0
    assert seen == ["first", "go on"]


def test_control_characters_are_removed() -> None:
    assert lines_of(
        r"printf '\033[91mred\033[0m \033]0;title\007 \001\377\rbar 1\rbar 2\tx\n'"
    ) == [
        "red ]0;title \ufffd",
        "bar 1",
        "bar 2\tx",
    ]


def test_an_endless_line_is_split() -> None:
    lines = lines_of("head -c 1000000 /dev/zero | tr '\\0' x")
    assert len(lines) > 1
    assert all(0 < len(line) <= 10_000 for line in lines)


def test_environment_and_directory(tmp_path: Path) -> None:
    lines: list[str] = []
    SH.follow(
        'echo "$MORE" "$HOME"; pwd',
        on_line=lines.append,
        timeout=TIMEOUT,
        environment={"MORE": "of it"},
        directory=tmp_path,
    )
    assert lines == [f"of it {os.environ['HOME']}", str(tmp_path.resolve())]


def test_a_timeout() -> None:
    lines: list[str] = []
    with pytest.raises(EngineTimeoutError, match=r"did not end within 0\.5 s"):
        SH.follow("echo $$; exec sleep 1000", on_line=lines.append, timeout=0.5)
    assert not alive(int(lines[0]))


def test_it_may_clean_up_after_a_timeout(tmp_path: Path) -> None:
    put_away = tmp_path / "put-away"
    with pytest.raises(EngineTimeoutError):
        SH.follow(
            f"trap ': >{put_away}; kill $!; exit' INT; sleep 1000 & wait",
            on_line=print,
            timeout=0.5,
        )
    assert put_away.exists()


def test_a_child_that_keeps_the_pipe_open() -> None:
    lines: list[str] = []
    child = "import os, time; os.setsid(); print(os.getpid(), flush=True); time.sleep(1000)"
    script = f"{sys.executable} -c '{child}' & echo done; sleep 1"
    try:
        assert SH.follow(script, on_line=lines.append, timeout=TIMEOUT) == 0
    finally:
        for line in lines:
            if line.isdigit():
                os.kill(int(line), signal.SIGKILL)
    assert "done" in lines


def test_children_in_sessions_of_their_own_end_too() -> None:
    # Like podman's build steps: podman sees its step fail, and cleans up.
    step = "import os, time; os.setsid(); print(os.getpid(), flush=True); time.sleep(1000)"
    seen: list[str] = []

    def interrupt(line: str) -> None:
        seen.append(line)
        if line.isdigit():
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        SH.follow(
            f"({sys.executable} -c '{step}') || echo the step has failed; exit 1",
            on_line=interrupt,
            timeout=TIMEOUT,
        )
    assert time.monotonic() - started < TIMEOUT
    assert eventually(lambda: not alive(int(seen[-1])))
