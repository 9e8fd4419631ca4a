"""Cells that await something outside of a function."""

from __future__ import annotations

import pytest

from rlm_containers import Sandbox
from tests.support import execute, printed

AWAITING = """
import asyncio
async def double(n):
    await asyncio.sleep(0)
    return 2 * n
class Lock:
    async def __aenter__(self): print('in')
    async def __aexit__(self, *_): print('out')
async def numbers():
    for n in range(3): yield n
"""


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("print(await double(4))", "8\n"),
        ("print(await asyncio.gather(double(1), double(2)))", "[2, 4]\n"),
        ("async with Lock():\n    print('here')", "in\nhere\nout\n"),
        ("async for n in numbers(): print(n, end=' ')", "0 1 2 "),
        ("print([n async for n in numbers()])", "[0, 1, 2]\n"),
        ("x = await double(5)\ndef f(): return x\nprint(f())", "10\n"),
        ("print(asyncio.run(double(3)))", "6\n"),
        ("print(asyncio.new_event_loop().run_until_complete(double(3)))", "6\n"),
    ],
)
def test_await_in_a_cell(box: Sandbox, code: str, expected: str) -> None:
    execute(box, AWAITING)
    assert printed(box, code) == expected
    assert printed(box, code) == expected  # on the same loop


def test_the_value_of_an_awaiting_cell_is_displayed(box: Sandbox) -> None:
    execute(box, AWAITING)
    assert box.execute("await double(21)", display=True).stdout == "42\n"


def test_tasks_go_on_in_later_cells(box: Sandbox) -> None:
    execute(box, AWAITING)
    execute(box, "task = asyncio.ensure_future(double(8)) if False else None")
    execute(box, "await double(0)\ntask = asyncio.create_task(double(8))")
    assert printed(box, "print(await task)") == "16\n"
    execute(box, "del task")


@pytest.mark.parametrize(
    ("code", "status", "line"),
    [
        ("await double(None)", "error", "TypeError"),
        ("raise SystemExit(3)\nawait double(1)", "exit", ""),
        ("async def leave(): raise SystemExit(3)\nawait asyncio.gather(leave())", "exit", ""),
        ("raise KeyboardInterrupt\nawait double(1)", "interrupted", "KeyboardInterrupt"),
        ("raise asyncio.CancelledError\nawait double(1)", "error", "CancelledError"),
        ("asyncio.get_running_loop().close()\nawait double(1)", "error", "RuntimeError"),
        ("asyncio.get_running_loop().stop()\nawait asyncio.sleep(60)", "error", "RuntimeError"),
    ],
)
def test_how_an_awaiting_cell_ends(box: Sandbox, code: str, status: str, line: str) -> None:
    execute(box, AWAITING)
    result = box.execute(code)
    assert result.status == status
    assert line in result.stderr
    assert "awaiting.py" not in result.stderr
    assert printed(box, "print(await double(4))") == "8\n"


def test_an_awaiting_cell_can_be_interrupted(box: Sandbox) -> None:
    execute(box, AWAITING)
    seen: list[str] = []

    def stop(stream: str, text: str) -> None:
        seen.append(text)
        if "started" in text:
            box.interrupt()

    code = """
try:
    print('started')
    await asyncio.sleep(60)
finally:
    print('cleaned up')
"""
    result = box.execute(code, on_output=stop)
    assert result.status == "interrupted"
    assert result.stdout == "started\ncleaned up\n"
    assert printed(box, "print(await double(4))") == "8\n"
