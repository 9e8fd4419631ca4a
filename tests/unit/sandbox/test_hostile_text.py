"""Hostile text of a guest, on its way to the host's log, its exceptions and its terminal."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import socket
from collections.abc import Callable

import pytest

from rlm_containers import ContainersError
from rlm_containers.lm.proxy import LMProxy
from tests.support import eventually
from tests.unit.guests import LocalRuntime
from tests.unit.hostile import CELL, READY, execute, result, script
from tests.unit.sessions import Boxes
from tests.unit.terminal import Program

#: Most kinds at once; tests/unit/runtimes/test_text.py has each alone. Valid in JSON and in Python.
HOSTILE = (
    "a\x1b[2J\x1b]52;c;aGk=\x07\x9b2J\r\b\u202e\u2066\u200b\x00\u2028\x85\n"
    "error: forged\nWARNING rlm_containers forged"
)

#: The guest ends when it hears of the cell.
END = "\nhear()\nsys.exit(3)\n"

PLACES: dict[str, Callable[[str], str]] = {
    "notice of a checkpoint": lambda text: (
        CELL
        + f"event(event='saved', error={text!r})\n"
        + "say(op='result', id=cell['id'], status='ok')\n"
        + f"say(op='saved', id=cell['id'], error={text!r})\n"
        + END
    ),
    "lost variables": lambda text: (
        READY.replace("lost=[]", f"lost=[[{text!r}, {text!r}, {text!r}]]") + END
    ),
    "damage": lambda text: READY.replace("lost=[]", f"lost=[], damage={text!r}") + END,
    "route": lambda text: (
        READY.replace("reason=''", f"reason={text!r}").replace("route='none'", f"route={text!r}")
        + END
    ),
    "version": lambda text: f"event(event='hello', python={text!r}, pid=1)\n" + END,
    "standard error": lambda text: f"sys.stderr.write({text!r})\nsys.exit(3)\n",
    "no frames": lambda text: f"raw({text!r}.encode())\nsys.exit(3)\n",
    "the end of a cell": lambda text: CELL + f"sys.stderr.write({text!r})\nsys.exit(3)\n",
    "a kind": lambda text: CELL + f"say(op={text!r}, id=cell['id'])\nsys.exit(3)\n",
}


def assert_harmless(text: str, lines: int | None = 1) -> None:
    if lines == 1:
        assert "\n" not in text
    for number, line in enumerate(text.split("\n")):
        assert line.isprintable()
        assert number == 0 or line.startswith("  | ")


@pytest.mark.parametrize("program", PLACES.values(), ids=PLACES)
def test_logs_and_exceptions(
    boxes: Boxes,
    local: LocalRuntime,
    caplog: pytest.LogCaptureFixture,
    program: Callable[[str], str],
) -> None:
    caplog.set_level(logging.DEBUG)
    script(local, program(HOSTILE))
    try:
        box = boxes(start_timeout=5.0)
        box.execute("x = 1")
        box.close()
    except ContainersError as error:
        raised = str(error)
    else:
        raised = ""
    assert_harmless(raised, None)
    for record in caplog.records:
        assert_harmless(record.getMessage())
        assert record.exc_info is None


def test_output_is_data_and_stays_as_it_is(boxes: Boxes) -> None:
    said = execute(boxes, f"put(b'o', {HOSTILE!r}.encode())\n" + result())
    assert said.stdout == HOSTILE


def test_the_log_of_the_proxy(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "rlm_containers.lm")
    with contextlib.closing(LMProxy("127.0.0.1", lambda path, request: {})) as proxy:
        for head in (
            b"GET /\x1b[2J\x9b HTTP/1.1\r\nHost: \x1b]0;x\x07\r\n\r\n",
            b"\x1b[2J / HTTP/9\x08.1\r\n\r\n",
            b"POST /x\r\x1b[2Jforged HTTP/1.1\r\n\r\n",
        ):
            with socket.create_connection((proxy.address, proxy.port)) as connection:
                connection.sendall(head)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass
        client = http.client.HTTPConnection(proxy.address, proxy.port)
        client.request(
            "POST",
            "/%1b",
            json.dumps({HOSTILE: HOSTILE}),
            {"Authorization": f"Bearer {proxy.token}"},
        )
        client.getresponse().read()
        client.close()
        assert eventually(lambda: bool(caplog.records))
    for record in caplog.records:
        assert_harmless(record.getMessage())


def test_a_terminal(program: Program) -> None:
    code = (
        "import sys; sys.stdout.write('\\x1b[8mhidden\\x1b[31m red\\b\\u202e\\x1b]52;c;eA==\\x07');"
        "sys.stdout.flush(); raise ValueError('\\x1b[2J\\x9b')"
    )
    with program.terminal("run", "--runtime", "local", "-c", code) as terminal:
        assert terminal.end() == 1
        raw = terminal.raw
    for bad in ("\x1b[8m", "\b", "\u202e", "\x1b]52", "\x9b", "\x1b[2J"):
        assert bad not in raw.partition("hidden")[2].partition("ValueError")[0]
    assert "\x1b[0m" in raw
