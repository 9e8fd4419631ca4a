"""``llm_query()`` in the cells, over HTTP and over the pipe: the same either way."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Literal

import pytest

from rlm_containers import Sandbox
from tests.conftest import MakeBox
from tests.support import KUBERNETES, Engine, execute, printed, skip_on_cluster

ROUTES = ["http", "pipe"]


def answer(prompt: object, model: str | None = None) -> str:
    """What the model of this module says: what it was asked."""
    if prompt == "fail":
        raise ValueError("as asked")
    if prompt == "number":
        return 42  # type: ignore[return-value]
    if prompt == "big":
        return "B" * 20_000_000
    return f"{model or 'default'}: {prompt}"


@pytest.fixture(scope="module", params=ROUTES)
def lm_box(engine: Engine, request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A sandbox with a model, by each of the ways to it."""
    network: Literal["bridge", "none"] = "bridge" if request.param == "http" else "none"
    if engine.name == KUBERNETES:  # no pod reaches this host, and not every cluster can cut one off
        network = "bridge"
        if request.param == "http":
            pytest.skip("no pod reaches this host")
    with Sandbox(engine.image(), runtime=engine.runtime, lm=answer, network=network) as box:
        assert box.lm_route == request.param
        yield box


def test_llm_query(lm_box: Sandbox) -> None:
    assert printed(lm_box, "print(llm_query('hello'))") == "default: hello\n"
    assert printed(lm_box, "print(llm_query('hello', model='m1'))") == "m1: hello\n"
    assert printed(lm_box, "print(llm_query('hello', 'm2'))") == "m2: hello\n"


def test_llm_query_batched(lm_box: Sandbox) -> None:
    many = "llm_query_batched([f'p{n}' for n in range(40)], model='m')"
    assert printed(lm_box, f"print({many} == [f'm: p{{n}}' for n in range(40)])") == "True\n"
    assert printed(lm_box, "print(llm_query_batched([]))") == "[]\n"
    assert printed(lm_box, "print(llm_query_batched(('a', 'b')))") == (
        "['default: a', 'default: b']\n"
    )


def test_rlm_query_falls_back_to_the_model(lm_box: Sandbox) -> None:
    assert printed(lm_box, "print(rlm_query('a'), rlm_query_batched(['b', 'c'], 'm'))") == (
        "default: a ['m: b', 'm: c']\n"
    )


def test_prompts_that_are_messages(lm_box: Sandbox) -> None:
    assert printed(lm_box, "print(llm_query([{'role': 'user', 'content': 'x'}]))") == (
        "default: [{'role': 'user', 'content': 'x'}]\n"
    )


def test_text_of_all_kinds(lm_box: Sandbox) -> None:
    prompt = "grüße 世界 \U0001f680 \ud800 \x00 \r\n\t '\" \\ <&>"
    assert printed(
        lm_box, f"print(llm_query({prompt!r}) == 'default: ' + {prompt!r}, llm_query(''))"
    ) == "True default: \n"  # fmt: skip


def test_megabytes_both_ways(lm_box: Sandbox) -> None:
    assert printed(lm_box, "print(len(llm_query('x' * 20_000_000)), len(llm_query('big')))") == (
        f"{20_000_000 + len('default: ')} 20000000\n"
    )


def test_more_than_one_message_holds(lm_box: Sandbox) -> None:
    assert printed(lm_box, "print(llm_query('x' * 80_000_000)[:7])") == "Error: \n"
    assert printed(lm_box, "print(llm_query('on'))") == "default: on\n"


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("llm_query('fail')", "Error: ValueError: as asked"),
        ("llm_query('number')", "Error: TypeError: lm returned int, not str"),
        ("llm_query(7)", "Error: "),
        ("llm_query(None)", "Error: "),
        ("llm_query(object())", "Error: "),
        ("llm_query('x', model=3)", "Error: "),
        ("llm_query_batched('one string')[0]", "Error: "),
        ("llm_query_batched(['fine', 'fail'])[1]", "Error: ValueError: as asked"),
        ("llm_query_batched(['fine', 7])[0]", "Error: "),
        ("rlm_query('fail')", "Error: ValueError: as asked"),
    ],
)
def test_errors_are_strings(lm_box: Sandbox, call: str, error: str) -> None:
    result = lm_box.execute(f"got = {call}\nprint(type(got).__name__, got)")
    assert (result.status, result.stderr) == ("ok", "")
    assert result.stdout.startswith("str " + error)
    assert printed(lm_box, "print(llm_query('on'))") == "default: on\n"


def test_one_failure_of_a_batch_is_one_failure(lm_box: Sandbox) -> None:
    assert printed(lm_box, "print(llm_query_batched(['a', 'fail', 'b']))") == (
        "['default: a', 'Error: ValueError: as asked', 'default: b']\n"
    )


def test_calls_are_in_the_result_of_their_cell(lm_box: Sandbox) -> None:
    result = lm_box.execute("llm_query('one', model='m'); llm_query('fail'); llm_query('two')")
    calls = [(call.prompt, call.response, call.model) for call in result.lm_calls]
    assert calls == [("one", "m: one", "m"), ("two", "default: two", None)]
    assert all(call.error is None and call.execution_time >= 0 for call in result.lm_calls)
    batch = lm_box.execute("_ = llm_query_batched([str(n) for n in range(9)])")
    assert [call.prompt for call in batch.lm_calls] == [str(n) for n in range(9)]
    assert lm_box.execute("x = 1").lm_calls == ()


def test_many_threads_at_once(lm_box: Sandbox) -> None:
    assert printed(
        lm_box,
        """
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(100) as pool:
            answers = list(pool.map(llm_query, (str(n) for n in range(500))))
        print(answers == [f'default: {n}' for n in range(500)])
        del pool
        """,
    ) == "True\n"  # fmt: skip


def test_from_a_forked_child(lm_box: Sandbox) -> None:
    # The parent has a connection of its own by then, which the child must not use.
    assert printed(
        lm_box,
        """
        import os
        print(llm_query('before'), flush=True)
        child = os.fork()
        if child == 0:
            print(llm_query('in the child'), llm_query('again'), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        print(llm_query('after'))
        """,
    ) == "default: before\ndefault: in the child default: again\ndefault: after\n"  # fmt: skip


def test_parent_and_children_at_the_same_time(lm_box: Sandbox) -> None:
    assert printed(
        lm_box,
        """
        import multiprocessing
        with multiprocessing.get_context('fork').Pool(4) as pool:
            pending = pool.map_async(llm_query, [f'c{n}' for n in range(40)])
            own = [llm_query(f'p{n}') for n in range(40)]
            print(pending.get() == [f'default: c{n}' for n in range(40)],
                  own == [f'default: p{n}' for n in range(40)])
        del pool, pending
        """,
    ) == "True True\n"  # fmt: skip


def test_after_a_death(lm_box: Sandbox) -> None:
    result = lm_box.execute("import os\nprint(llm_query('last'))\nos._exit(1)")
    assert (result.status, result.stdout) == ("died", "default: last\n")
    assert [call.prompt for call in result.lm_calls] == ["last"]
    assert printed(lm_box, "print(llm_query('on'))") == "default: on\n"


@pytest.mark.parametrize("network", ["bridge", "none"])
def test_an_interrupted_call(make_box: MakeBox, engine: Engine, network: str) -> None:
    if network == "none":
        skip_on_cluster(engine, "not every cluster can cut a pod off")
    # The answer that comes too late must not be taken for the answer to the next question.
    asked, release = threading.Event(), threading.Event()

    def slow(prompt: str) -> str:
        if prompt == "slow":
            asked.set()
            release.wait(30)
        return f"answer to {prompt}"

    box = make_box(lm=slow, network=network)

    def interrupt() -> None:
        asked.wait(30)
        box.interrupt()

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    result = box.execute("llm_query('slow')")
    interrupter.join()
    release.set()
    assert result.status == "interrupted"
    assert "KeyboardInterrupt" in result.stderr
    assert [printed(box, f"print(llm_query('{n}'))") for n in range(3)] == [
        f"answer to {n}\n" for n in range(3)
    ]


def test_a_slow_answer_is_waited_for(make_box: MakeBox) -> None:
    # Longer than the probe at the start takes to give up.
    def slow(prompt: str) -> str:
        time.sleep(4)
        return "at last"

    assert printed(make_box(lm=slow), "print(llm_query('?'))") == "at last\n"


def test_without_a_model(make_box: MakeBox) -> None:
    box = make_box()
    assert box.lm_route == "none"
    result = execute(box, "print(llm_query('x'))\nprint(llm_query_batched(['a', 'b']))")
    assert (result.status, result.stderr) == ("ok", "")
    first, second = result.stdout.splitlines()
    assert first.startswith("Error: ")
    assert "no language model" in first
    assert second.count("'Error: ") == 2
    assert result.lm_calls == ()
