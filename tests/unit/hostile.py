"""Hostile guests: small programs that write frames of the protocol, valid or not."""

from __future__ import annotations

import json
import sys

from rlm_containers import CellResult
from tests.unit.guests import LocalRuntime
from tests.unit.sessions import Boxes

# Helpers for the guest programs of tests. READY and CELL run before a test's own lines.
PRELUDE = """
import json, os, sys
def raw(data):
    while data:
        data = data[os.write(1, data):]
def put(kind, payload):
    raw(len(payload).to_bytes(4, "big") + kind + payload)
def say(**message):
    put(b"m", json.dumps(message).encode())
def event(**message):
    put(b"e", json.dumps(message).encode())
def frame():
    head = sys.stdin.buffer.read(5)
    if not head:
        sys.exit(0)
    return head[4:], sys.stdin.buffer.read(int.from_bytes(head[:4], "big"))
def hear():
    return json.loads(frame()[1] or b"null")
"""
HELLO = "event(event='hello', python='3.11.0', pid=1)\n"
GREETING = "frame()\nframe()\n" + HELLO
READY = GREETING + "hear()\nsay(op='ready', locals={}, route='none', reason='', lost=[])\n"
CELL = READY + "cell = hear()\n"
LINGER = "\nwhile True: hear()\n"


def script(local: LocalRuntime, code: str) -> None:
    """Let the next container run this program."""
    local.programs.append((sys.executable, "-E", "-c", PRELUDE + code))


def execute(boxes: Boxes, code: str) -> CellResult:
    """Return the result of a cell whose guest runs this code once it has received the cell."""
    script(boxes.local, CELL + code + LINGER)
    return boxes(max_output=1000).execute("x = 1")


def result(**more: object) -> str:
    """Return the guest's line that answers the cell."""
    said = json.dumps(json.dumps({"op": "result", "status": "ok", **more}))
    return f"say(**{{'id': cell['id'], **json.loads({said})}})\n"
