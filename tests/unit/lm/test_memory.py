"""What a flood of large requests costs the host: its memory is measured, in a process of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support import TIMEOUT

# Gigabytes are copied.
_TIMEOUT = 4 * TIMEOUT

#: MiB that the requests of one container may take in all, and how far the memory of the process
#: may go beyond. The allocator keeps some of what was freed.
LIMIT = 512
BOUND = 1.25 * LIMIT

_HOST = """
import resource, sys, time
from rlm_containers.interpreter import CellClock, Pipe
from rlm_containers.lm import CallableBackend, Gateway, LMBroker
from runtimes import EngineCommand, HostRoute

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

gateway = Gateway(LMBroker(CallableBackend(lambda prompt: "x")), CellClock(60), "rlm-test")
gateway.call_tool = lambda request: {"result": request}
"""

_HTTP = """
address = gateway.open_proxy(HostRoute(bind="127.0.0.1", address=None), "alias")
before = peak()
print(address.port, address.token, flush=True)
sys.stdin.read()
print(peak() - before)
"""

_PIPE = """
process = EngineCommand((sys.executable, "-c", sys.argv[1])).hold("rlm-test")
before = peak()
pipe = Pipe(process, gateway.on_call)
gateway.attach(pipe.send)
while pipe.closed is None:
    time.sleep(0.05)
print(pipe.closed.stderr.strip(), peak() - before)
"""

# A container. It sends calls that are large, and then one of a tool, and counts what is answered.
_FLOOD = """
import json, os, sys

def send(number, payload):
    frame = (len(payload) + 4).to_bytes(4, "big") + b"c" + number.to_bytes(4, "big") + payload
    rest = memoryview(frame)
    while rest:
        rest = rest[os.write(1, rest):]

def receive(count):
    data = b""
    while len(data) < count:
        data += os.read(0, count - len(data))
    return data

prompt = {prompt}
for number in range({count}):
    send(number, b'{{"path": "/llm_query", "request": {{"prompt": "' + prompt + b'"}}}}')
send(1000, b'{{"path": "/tool", "request": 5}}')
replies = {{}}
while len(replies) <= {count}:
    length = int.from_bytes(receive(5)[:4], "big")
    frame = receive(length)
    replies[int.from_bytes(frame[:4], "big")] = json.loads(frame[4:])
tool = replies.pop(1000)
refused = [reply for reply in replies.values() if "too much is being" in reply.get("error", "")]
answered = [reply for reply in replies.values() if "response" in reply]
assert len(refused) + len(answered) == {count}, replies
print(tool["result"], bool(answered), file=sys.stderr)
"""

#: Texts of eight million bytes, as an expression: what they become in memory differs.
_TEXTS = {
    "ascii": 'b"x" * 8_000_000',
    "one emoji": 'b"x" * 8_000_000 + "\\U0001f600".encode()',
    "one escaped emoji": 'b"x" * 8_000_000 + b"\\\\ud83d\\\\ude00"',
}
_COUNT = 40


@pytest.mark.parametrize("text", _TEXTS)
def test_a_flood_over_http(text: str) -> None:
    body = b'{"prompt": "' + eval(_TEXTS[text]) + b'"}'
    statuses: list[bytes] = []

    def ask(port: int, token: str) -> None:
        with socket.create_connection(("127.0.0.1", port), _TIMEOUT) as connection:
            head = f"Authorization: Bearer {token}\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(f"POST /llm_query HTTP/1.1\r\n{head}".encode())
            connection.sendall(body)
            statuses.append(connection.recv(12))

    with subprocess.Popen(
        (sys.executable, "-c", _HOST + _HTTP),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    ) as host:
        assert host.stdout is not None
        port, token = host.stdout.readline().split()
        threads = [threading.Thread(target=ask, args=(int(port), token)) for _ in range(_COUNT)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        grown = int(host.communicate(timeout=_TIMEOUT)[0])
    assert statuses == [b"HTTP/1.1 200"] * _COUNT  # the others wait
    assert grown < BOUND


@pytest.mark.parametrize("text", _TEXTS)
def test_a_flood_over_the_pipe(text: str) -> None:
    flood = _FLOOD.format(prompt=_TEXTS[text], count=_COUNT)
    done = subprocess.run(
        (sys.executable, "-c", _HOST + _PIPE, flood),
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert done.stderr == ""
    # The tool is answered all the same, and some of the calls are.
    tool, answered, grown = done.stdout.split()
    assert (tool, answered) == ("5", "True")
    assert int(grown) < BOUND
