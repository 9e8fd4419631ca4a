"""``llm_query()`` in a cell, answered by a callable of this process, over HTTP and the pipe."""

from __future__ import annotations

import asyncio
import logging
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from rlm_containers import Sandbox
from rlm_containers.lm import CallableBackend, LMBroker
from runtimes import HostRoute
from tests.unit.guests import LocalRuntime
from tests.unit.sessions import Boxes, revive, run

MAX_FRAME = 64 * 1024 * 1024


def test_a_cell_asks(boxes: Boxes, route: str) -> None:
    box = boxes(lm=lambda prompt: f"re: {prompt}")
    result = run(box, "print(llm_query('a'), llm_query_batched(['b', 'c']), rlm_query('d'))")
    assert result.stdout == "re: a ['re: b', 're: c'] re: d\n"
    assert box.lm_route == route
    assert [(call.prompt, call.response) for call in result.lm_calls] == [
        (prompt, f"re: {prompt}") for prompt in "abcd"
    ]
    assert run(box, "x = 1").lm_calls == ()


def test_the_model_and_messages_arrive(boxes: Boxes, route: str) -> None:
    seen: list[tuple[Any, Any]] = []

    async def answer(prompt: Any, model: str | None = None) -> str:
        await asyncio.sleep(0)
        seen.append((prompt, model))
        return "ü\ud800"

    box = boxes(lm=answer)
    assert run(box, "print(ascii(llm_query([{'role': 'user'}], model='m')))").stdout == (
        ascii("ü\ud800") + "\n"
    )
    assert seen == [([{"role": "user"}], "m")]


def test_errors_come_back_as_strings(boxes: Boxes, route: str) -> None:
    def fail(prompt: str) -> str:
        raise LookupError(f"no {prompt}")

    box = boxes(lm=fail)
    result = run(box, "print(llm_query('x'))\nprint(llm_query_batched(['y']))")
    assert result.stdout == "Error: LookupError: no x\n['Error: LookupError: no y']\n"
    assert result.lm_calls == ()


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_whatever_the_callable_raises_the_cell_gets_an_answer(
    boxes: Boxes, route: str, error: type[BaseException]
) -> None:
    def fail(prompt: str) -> str:
        raise error("enough")

    box = boxes(lm=fail)
    assert run(box, "print(llm_query('x')[:7])").stdout == "Error: \n"
    assert run(box, "print(llm_query_batched(['x', 'y'])[1][:7])").stdout == "Error: \n"


@pytest.mark.parametrize("response", [None, 5, b"bytes", object()])
def test_whatever_a_subcall_returns_the_cell_gets_an_answer(
    boxes: Boxes, route: str, response: Any
) -> None:
    done = SimpleNamespace(response=response, root_model="m", execution_time=0.1)
    box = boxes(lm=LMBroker(None, lambda prompt, model: done))
    assert run(box, "print(type(rlm_query('x')).__name__)").stdout == "str\n"


def test_an_answer_that_is_too_large_is_an_error(boxes: Boxes, local: LocalRuntime) -> None:
    box = boxes(lm=lambda prompt: "x" * MAX_FRAME)
    assert box.lm_route == "pipe"
    assert run(box, "print(llm_query('x')[:7])").stdout == "Error: \n"


def test_a_prompt_that_is_too_large_is_an_error(boxes: Boxes, route: str) -> None:
    box = boxes(lm=len_of)
    code = f"print(llm_query('x' * {MAX_FRAME})[:7])\nprint(llm_query('x' * 5_000_000))"
    assert run(box, code).stdout == "Error: \n5000000\n"


def len_of(prompt: str) -> str:
    return str(len(prompt))


@pytest.mark.parametrize("count", [8, 100])
def test_many_threads_of_a_cell_may_ask(boxes: Boxes, route: str, count: int) -> None:
    box = boxes(lm=str.upper)
    code = f"""
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor({count}) as pool:
        answers = list(pool.map(llm_query, [f"p{{i}}" for i in range({4 * count})]))
    print(answers == [f"P{{i}}" for i in range({4 * count})])
    """
    result = run(box, code)
    assert result.stdout == "True\n"
    assert len(result.lm_calls) == 4 * count


def test_processes_of_a_cell_may_ask_at_the_same_time(boxes: Boxes, route: str) -> None:
    both = threading.Barrier(2)

    def answer(prompt: str) -> str:
        if prompt != "first":
            both.wait(10)  # passes only when parent and child ask at once
        return prompt.upper()

    box = boxes(lm=answer)
    code = """
    import os
    llm_query('first')  # the connection is open when the child is made
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, llm_query('child').encode())
        os._exit(0)
    parent = llm_query('parent')
    os.wait()
    print(os.read(read, 100).decode(), parent)
    """
    assert run(box, code).stdout == "CHILD PARENT\n"


def test_an_interrupted_question_is_given_up_and_the_next_is_asked(
    boxes: Boxes, route: str
) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def slow(prompt: str) -> str:
        if prompt == "slow":
            asked.set()
            go_on.wait(30)
        return prompt.upper()

    box = boxes(lm=slow)

    def interrupt() -> None:
        assert asked.wait(30)
        box.interrupt()

    helper = threading.Thread(target=interrupt)
    helper.start()
    result = box.execute("llm_query('slow')")
    helper.join()
    assert result.status == "interrupted"
    assert run(box, "print(llm_query('next'))").stdout == "NEXT\n"
    go_on.set()


def test_after_a_death_the_next_interpreter_may_ask(boxes: Boxes, route: str) -> None:
    box = boxes(lm=str.upper)
    run(box, "x = llm_query('before')")
    revive(box)
    assert run(box, "print(x, llm_query('after'))").stdout == "BEFORE AFTER\n"
    assert box.lm_route == route


def test_a_death_in_the_middle_of_a_question(boxes: Boxes, route: str) -> None:
    box = boxes(lm=str.upper)
    result = box.execute("import os\nllm_query('x')\nos._exit(1)")
    assert result.status == "died"
    assert [call.prompt for call in result.lm_calls] == ["x"]


def test_without_a_model_there_is_an_error(boxes: Boxes) -> None:
    box = boxes()
    assert box.lm_route == "none"
    assert run(box, "print(llm_query('x'))").stdout.startswith("Error: ")


def test_without_a_network_the_pipe_is_used(
    boxes: Boxes, local: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.route = HostRoute(bind="127.0.0.1", address=None)
    box = boxes(lm=str.upper, network="none")
    assert box.lm_route == "pipe"
    assert run(box, "print(llm_query('x'))").stdout == "X\n"


def test_where_the_proxy_cannot_be_reached_the_pipe_is_used_and_it_is_said(
    boxes: Boxes, local: LocalRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    local.route = HostRoute(bind="127.0.0.1", address=None)  # no such alias on this host
    with caplog.at_level(logging.WARNING, logger="rlm_containers"):
        box = boxes(lm=str.upper)
    assert box.lm_route == "pipe"
    assert "does not reach the proxy" in caplog.text
    assert run(box, "print(llm_query('x'))").stdout == "X\n"


def test_where_the_proxy_cannot_listen_the_pipe_is_used_and_it_is_said(
    boxes: Boxes, local: LocalRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    local.route = HostRoute(bind="192.0.2.1", address=None)
    with caplog.at_level(logging.WARNING, logger="rlm_containers"):
        box = boxes(lm=str.upper)
    assert box.lm_route == "pipe"
    assert "cannot listen on 192.0.2.1" in caplog.text


def test_the_caller_can_pass_a_broker(boxes: Boxes) -> None:
    broker = LMBroker(CallableBackend(str.upper))
    box: Sandbox = boxes(lm=broker)
    assert box.broker is broker
    assert run(box, "print(llm_query('x'))").stdout == "X\n"
    broker.backend = CallableBackend(str.title)  # as for the next completion
    assert run(box, "print(llm_query('xyz'))").stdout == "Xyz\n"
