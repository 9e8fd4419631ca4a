"""Containers that send without end take a bounded amount of the host's memory.

All guests of one test share one host, a process of its own, whose peak of memory the kernel says.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.unit.container.test_reaper import REPOSITORY
from tests.unit.hostile import CELL, GREETING, HELLO, LINGER, PRELUDE, READY

# A host that answers no call. Prints for each guest how its cell ended and by how many MB the
# host's memory has grown so far.
HOST = """
import json, os, resource, sys, tempfile, threading
from rlm_containers import ContainersError, Sandbox
from rlm_containers.interpreter import pipe
from rlm_containers.lm import Gate, gateway
from tests.unit.guests import LocalRuntime

MB = 1024 * 1024
# Smaller bounds than usual, so that smaller floods show what they hold.
pipe._MAX_WAITING = 8 * MB
gateway.Gate = lambda: Gate(32 * MB)
never = threading.Event()

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

def end_of(program):
    runtime = LocalRuntime()
    runtime.programs.append((sys.executable, "-E", "-c", program))
    lm = lambda prompt: "no" if never.wait() else ""
    try:
        with Sandbox(runtime=runtime, lm=lm, max_output=10_000) as box:
            return box.execute("x").status
    except ContainersError as error:
        return str(error)[:2000]

before = peak()
for program in json.load(sys.stdin):
    print(json.dumps([end_of(program), peak() - before]), flush=True)
"""

ANSWER = "\nsay(op='result', id=cell['id'], status='ok', locals={})\n"


def run_guests(tmp_path: Path, guests: list[str]) -> list[tuple[str, int]]:
    """Return for each guest how its cell ended and by how many MB the host has grown."""
    done = subprocess.run(
        (sys.executable, "-c", HOST),
        input=json.dumps([PRELUDE + guest for guest in guests]),
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_floods_of_valid_frames(tmp_path: Path) -> None:
    floods = [
        "for _ in range(150): put(b'o', b'x' * 1_000_000)",
        "for _ in range(50): put(b'r', '\U0001f600'.encode() * 250_000)",
        "raw(b'\\0\\0\\0\\1ox' * 100_000)",
        "text = json.dumps({'op': 'saved', 'error': 'x' * 10_000_000}).encode()\n"
        "for _ in range(10): put(b'm', text)",
        "text = b'{\"op\": \"saved\", \"unsaved\": [' + b'[1,2,3],' * 40_000 + b'[]]}'\n"
        "for _ in range(5): put(b'm', text)",
        "raw(b'\\0\\0\\0\\2m{}' * 50_000)",
        "for number in range(10_000): say(op='result', id=number + 100, locals={})",
        "for _ in range(200): os.write(2, b'x' * 1_000_000)",
    ]
    found = run_guests(tmp_path, [CELL + flood + ANSWER + LINGER for flood in floods])
    assert [end for end, _ in found] == ["ok"] * len(floods)
    assert found[-1][1] < 120, found


REFUSED = {
    "put(b'm', b'{\"op\": \"saved\", \"unsaved\": [' + b'{},' * 3_000_000 + b'{}]}')": "parts",
    "put(b'm', b'[' * 10_000_000)": "parts|nested",
    "put(b'm', b'{\"op\": ' + b'1' * 10_000_000 + b'}')": "digits",
    "put(b'e', b'{\"event\": \"' + b'x' * 10_000_000 + b'\"}')": "no frame",
    "put(b'o', b'x' * 10_000_000)": "no frame",
    "raw(b'\\xff' * 10_000_000)": "no frame",
    "for _ in range(50_000): event(event='died', exit=1, begun=0)": "died . times",
}


def test_floods_that_are_refused(tmp_path: Path) -> None:
    found = run_guests(tmp_path, [CELL + flood + ANSWER + LINGER for flood in REFUSED])
    for (end, _), reason in zip(found, REFUSED.values(), strict=True):
        assert re.search(reason, end), (reason, end)
    assert found[-1][1] < 120, found


CALLS = """
import threading
def drain():
    # Discard the replies.
    while os.read(0, 1 << 20): pass
def call(number, prompt):
    body = json.dumps({"path": "/llm_query", "request": {"prompt": prompt}}).encode()
    put(b"c", number.to_bytes(4, "big") + body)
"""
READS = "threading.Thread(target=drain, daemon=True).start()\n"


def test_floods_of_calls(tmp_path: Path) -> None:
    floods = [
        "for number in range(40_000): call(number, 'x')",
        "for number in range(25): call(number, 'x' * 6_000_000)",
        "body = b'{\"path\": \"/llm_query\", \"request\": [' + b'{},' * 50_000 + b'{}]}'\n"
        "for number in range(25): put(b'c', number.to_bytes(4, 'big') + body)",
        "raw(b'\\0\\0\\0\\6c\\0\\0\\0\\0{}' * 50_000)",
        "raw(b'\\0\\0\\0\\2cxx' * 50_000)",
    ]
    guests = [CALLS + CELL + READS + flood + ANSWER + "sys.exit()" for flood in floods]
    # Guests that do not read refusals must not block the thread that sends them.
    guests += [CALLS + CELL + flood + ANSWER + LINGER for flood in floods]
    found = run_guests(tmp_path, guests)
    for end, _ in found:
        assert end == "ok" or "calls faster than they could be refused" in end
    assert found[-1][1] < 200, found


def test_floods_of_greetings(tmp_path: Path) -> None:
    many = "for _ in range(20_000): " + HELLO
    for end, grown in run_guests(tmp_path, [GREETING + many + LINGER, READY + many + LINGER]):
        assert end != "ok"
        assert grown < 120
