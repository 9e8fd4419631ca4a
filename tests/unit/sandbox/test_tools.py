"""Functions of the host that cells call, with a real guest and no container."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from rlm_containers import Sandbox
from rlm_containers.errors import OptionError, SandboxClosedError
from rlm_containers.sandbox.tools import HostTools
from tests.unit.sessions import Boxes, revive, run


def fetch(x: Any, y: Any = 2, *, key: str = "sk-secret", limit: int | None = None) -> list[Any]:
    """Fetch something."""
    return [x, y]


def test_a_cell_calls_a_function_here(boxes: Boxes) -> None:
    threads: list[threading.Thread] = []

    def where() -> None:
        threads.append(threading.current_thread())

    box = boxes(tools={"fetch": fetch, "where": where})
    assert run(box, "print(fetch(1), fetch(x='ü\\ud800'.encode('utf-8', 'ignore').decode(), y=None))").stdout == (
        "[1, 2] ['ü', None]\n"
    )  # fmt: skip
    run(box, "where()")
    assert threads[0] is not threading.current_thread()


def test_what_is_json_arrives_as_it_is(boxes: Boxes) -> None:
    seen: list[Any] = []

    def echo(*args: Any, **kwargs: Any) -> Any:
        seen.append((args, kwargs))
        return args[0]

    box = boxes(tools={"echo": echo})
    values: list[Any] = [None, True, 7, 10**40, -1.5, "", "ü\ud800\0", [], {}, {"a": [{"b": None}]}]
    for value in values:
        assert run(box, f"print(echo({value!r}, k={value!r}) == {value!r})").stdout == "True\n"
        assert seen[-1] == ((value,), {"k": value})
    run(box, "assert len(echo('x' * 5_000_000)) == 5_000_000")
    assert run(box, "print(echo((1, (2,))), echo({1: 2}))").stdout == "[1, [2]] {'1': 2}\n"


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("fetch({1})", "TypeError: fetch(): argument 1 (set) cannot be sent to the host as JSON"),
        ("fetch(1, y=b'')", "TypeError: fetch(): argument y (bytes) cannot be sent"),
        ("fetch(print)", "TypeError: fetch(): argument 1 (builtin_function_or_method)"),
        ("fetch()", "TypeError: fetch() missing 1 required positional argument: 'x'"),
        ("fetch(1, z=2)", "TypeError: fetch() got an unexpected keyword argument 'z'"),
        ("fail('ValueError')", "ValueError: no good"),
        ("fail('KeyError')", "KeyError: 'no good'"),
        ("fail('FileNotFoundError')", "FileNotFoundError: no good"),
        ("fail('StopIteration')", "StopIteration: no good"),
        ("fail('UnicodeDecodeError')", "RuntimeError: UnicodeDecodeError: "),
        ("fail('Odd')", "RuntimeError: Odd: no good"),
        ("fail('SystemExit')", "RuntimeError: SystemExit: no good"),
        ("fail('object')", "TypeError: the result of fail() (object) cannot be sent as JSON"),
        ("fail('deep')", "TypeError: the result of fail() (list) cannot be sent as JSON"),
    ],
)
def test_errors_are_exceptions_in_the_cell(boxes: Boxes, call: str, error: str) -> None:
    class Odd(Exception):
        pass

    def fail(kind: str) -> Any:
        if kind == "object":
            return object()
        if kind == "deep":
            deep: list[Any] = []
            for _ in range(100_000):
                deep = [deep]
            return deep
        if kind == "UnicodeDecodeError":
            b"\xff".decode()
        made: Any = {"Odd": Odd}.get(kind) or __builtins__[kind]  # type: ignore[index]
        raise made("no good")

    box = boxes(tools={"fetch": fetch, "fail": fail})
    result = box.execute(f"def f():\n    return {call}\nf()")
    assert result.status == "error"
    lines = result.stderr.splitlines()
    assert lines[-1].startswith(error)
    assert lines[-2:-1] == [f"    return {call}"] or "^" in lines[-2]
    assert "rlm_guest" not in result.stderr
    assert run(box, "print(fetch(1))").stdout == "[1, 2]\n"


def test_async_functions(boxes: Boxes) -> None:
    async def later(n: int) -> int:
        await asyncio.sleep(0)
        return n + 1

    box = boxes(tools={"later": later})
    assert run(box, "print(later(1))").stdout == "2\n"


def test_a_function_says_what_it_is_and_keeps_its_secrets(boxes: Boxes) -> None:
    box = boxes(tools={"fetch": fetch, "biggest": max})
    stdout = run(box, "print(fetch, biggest, fetch.__name__)\nhelp(fetch)").stdout
    assert "<host tool fetch(x, y=2, *, key=..., limit=None)>" in stdout
    assert "Fetch something." in stdout
    assert "sk-secret" not in stdout


def test_tools_come_back_and_are_not_variables(boxes: Boxes) -> None:
    box = boxes(tools={"fetch": fetch})
    result = run(box, "fetch = None")
    assert "fetch" not in result.locals
    assert run(box, "print(fetch(1), 'fetch' in SHOW_VARS())").stdout == "[1, 2] False\n"
    run(box, "del fetch")
    assert run(box, "print(fetch(1))").stdout == "[1, 2]\n"


def test_references_to_a_tool_survive_a_death(boxes: Boxes) -> None:
    box = boxes(tools={"fetch": fetch})
    run(box, "ask, asks = fetch, {'f': [fetch]}")
    revive(box)
    assert run(box, "print(ask is fetch, asks['f'][0] is fetch, ask(3))").stdout == (
        "True True [3, 2]\n"
    )


def test_tools_can_be_replaced(boxes: Boxes) -> None:
    box = boxes(tools={"one": lambda: 1, "two": lambda: 2})
    run(box, "kept = one, two")
    box.set_tools({"two": lambda: "zwei", "three": lambda: 3})
    assert run(box, "print(two(), three(), kept[1]())").stdout == "zwei 3 zwei\n"
    assert box.execute("one()").stderr.endswith("NameError: name 'one' is not defined\n")
    assert "there is no host tool 'one' any more" in box.execute("kept[0]()").stderr
    revive(box)
    assert run(box, "print(two(), three())").stdout == "zwei 3\n"
    box.set_tools({})
    assert "NameError" in box.execute("two()").stderr


def test_threads_and_children_call_at_the_same_time(boxes: Boxes) -> None:
    together = threading.Barrier(4, timeout=20)
    box = boxes(tools={"meet": lambda n: together.wait() >= 0 and n})
    run(
        box,
        """
        import os
        from concurrent.futures import ThreadPoolExecutor
        reading, writing = os.pipe()
        if os.fork() == 0:
            os.write(writing, b'%d' % meet(3))
            os._exit(0)
        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(meet, range(3))) == [0, 1, 2]
        assert os.read(reading, 1) == b'3'
        """,
    )


def test_a_cell_that_waits_for_a_function_can_be_interrupted(boxes: Boxes) -> None:
    called, done = threading.Event(), threading.Event()

    def wait() -> None:
        called.set()
        done.wait(20)

    box = boxes(tools={"wait": wait})
    threading.Thread(target=lambda: called.wait(20) and box.interrupt()).start()
    assert box.execute("wait()").status == "interrupted"
    done.set()
    assert run(box, "print(1)").stdout == "1\n"


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ({"a b": fetch}, "no identifier"),
        ({"class": fetch}, "no identifier"),
        ({1: fetch}, "no identifier"),
        ({"llm_query": fetch}, "reserved"),
        ({"answer": fetch}, "reserved"),
        ({"__builtins__": fetch}, "reserved"),
        ({"data": 5}, "must be callable, not int"),
        ([fetch], "must be a mapping"),
    ],
)
def test_wrong_tools_are_refused(tools: Any, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        Sandbox(tools=tools)


def test_a_closed_sandbox_takes_no_tools(boxes: Boxes) -> None:
    box = boxes()
    with pytest.raises(OptionError):
        box.set_tools({"a b": fetch})
    box.close()
    with pytest.raises(SandboxClosedError):
        box.set_tools({"fetch": fetch})


def test_a_plain_interpreter(boxes: Boxes) -> None:
    box = boxes(scaffold=False, tools={"llm_query": str.upper})
    result = run(box, "print(llm_query('hi'), sorted(n for n in globals() if n[0] != '_'))")
    assert result.stdout == "HI ['llm_query']\n"
    assert result.locals == {}
    result = run(box, "answer = {'content': 'mine', 'ready': True}\nSHOW_VARS = context = 1")
    assert result.final_answer is None
    assert sorted(result.locals) == ["SHOW_VARS", "answer", "context"]
    revive(box)
    assert run(box, "print(SHOW_VARS, answer['content'])").stdout == "1 mine\n"


@pytest.mark.parametrize(
    "request_",
    [
        None,
        [],
        {},
        {"name": "fetch"},
        {"name": ["fetch"], "args": [], "kwargs": {}},
        {"name": "fetch", "args": {}, "kwargs": {}},
        {"name": "fetch", "args": [], "kwargs": []},
        {"name": "__class__", "args": [], "kwargs": {}},
        {"name": "call", "args": [], "kwargs": {}},
    ],
)
def test_requests_that_are_none(request_: Any) -> None:
    # A guest may send anything, but reaches only the functions that were given.
    called: list[Any] = []
    answer = HostTools({"fetch": called.append}).call(request_)
    assert answer["error"]["type"] in ("TypeError", "NameError")
    assert called == []


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_whatever_a_function_raises_is_an_answer(raised: type[BaseException]) -> None:
    def fail() -> None:
        raise raised("out")

    tools: dict[str, Callable[..., Any]] = {"fail": fail}
    answer = HostTools(tools).call({"name": "fail", "args": [], "kwargs": {}})
    assert answer == {"error": {"type": raised.__name__, "args": ["out"], "text": "out"}}
