"""Processes that multiprocessing spawns: they find what the cells have defined."""

from __future__ import annotations

import pytest

from rlm_containers import Sandbox
from tests.support import printed

DEFINE = """
import concurrent.futures, multiprocessing, functools, sys
OFFSET = 5
big = 'x' * 10 ** 6
class Point:
    def __init__(self, x): self.x = x
    def moved(self): return Point(self.x + OFFSET)
def square(n): return n * n + OFFSET
def later(n): return pow(n, 2)
def nested(n):
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        return pool.map(square, range(n))
def call(function, argument, method):
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, argument).result()
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_children_know_what_cells_have_defined(box: Sandbox, method: str) -> None:
    code = (
        DEFINE
        + f"""
print(call(square, 3, {method!r}), call(functools.partial(square), 4, {method!r}))
print(call(Point.moved, Point(1), {method!r}).x, call(nested, 2, {method!r}))
print(call(square, 1, {method!r}), call(abs, -1, {method!r}))
"""
    )  # a pool in the very cell that defines its function
    assert printed(box, code) == "14 21\n6 [5, 6]\n6 1\n"


def test_what_a_child_cannot_know_is_an_error_and_no_hang(box: Sandbox) -> None:
    code = (
        DEFINE
        + """
def ask(n): return llm_query('?')
def use(n): return len(big)
pool = multiprocessing.get_context('spawn').Pool(1)
def unknown(n): return n
for function in (unknown, ask, use):
    try:
        print(pool.map(function, [1]))
    except NameError as error:
        print(error)
pool.terminate()
"""
    )
    lines = printed(box, code).splitlines()
    assert "'unknown' is not known in this process: no cell had defined it when" in lines[0]
    assert "does not reach the host; use threads" in lines[1]
    assert lines[2] == "name 'big' is not defined"
    assert printed(
        box, "import glob, tempfile; print(glob.glob(tempfile.gettempdir() + '/spawned-*'))"
    )
