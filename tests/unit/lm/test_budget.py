"""Limits of language model calls: a call past a limit is refused and reaches no model."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from rlm_containers import ContainerREPL, Sandbox
from rlm_containers.interpreter import LMCall, Prompt
from rlm_containers.lm import CallBudget, LMBroker
from tests.unit.sessions import Boxes, revive, run

CELL = "this cell has used up its {} (max_lm_calls)"
SESSION = "this session has used up its {} (max_session_lm_calls)"
TREE = (
    "the session that this recursive call belongs to has, with all calls below it, "
    "used up its {} (max_session_lm_calls)"
)


class Echo:
    """A backend that records what it is asked."""

    def __init__(self) -> None:
        self.asked: list[Prompt] = []

    def query(self, prompt: Prompt, model: str | None) -> LMCall:
        return self.query_batch([prompt], model)[0]

    def query_batch(self, prompts: Sequence[Prompt], model: str | None) -> list[LMCall]:
        self.asked += prompts
        return [
            LMCall(
                prompt=prompt,
                response=str(prompt),
                model=model,
                execution_time=0.0,
                error="as asked" if prompt == "fail" else None,
            )
            for prompt in prompts
        ]


@pytest.fixture
def echo() -> Echo:
    return Echo()


def limited(echo: Echo, cell: int | None = None, session: int | None = None) -> LMBroker:
    broker = LMBroker(echo)
    broker.join(CallBudget(cell, session), nullcontext)
    return broker


def ask(broker: LMBroker, *prompts: str, path: str = "llm") -> Any:
    if len(prompts) == 1:
        answer = broker.handle(f"/{path}_query", {"prompt": prompts[0]})
        return answer.get("response", answer.get("error"))
    return broker.handle(f"/{path}_query_batched", {"prompts": list(prompts)})["responses"]


def test_there_is_no_limit_by_default(echo: Echo) -> None:
    broker = limited(echo)
    assert [ask(broker, "x") for _ in range(100)] == ["x"] * 100


@pytest.mark.parametrize("path", ["llm", "rlm"])
def test_the_limit_of_a_cell(echo: Echo, path: str) -> None:
    broker = limited(echo, cell=2)
    refusal = CELL.format("2 language model calls")
    assert [ask(broker, word, path=path) for word in "abc"] == ["a", "b", refusal]
    assert echo.asked == ["a", "b"]
    broker.begin_cell()
    assert ask(broker, "d", path=path) == "d"


def test_a_batch_counts_each_prompt_and_is_answered_up_to_the_limit(echo: Echo) -> None:
    broker = limited(echo, cell=5)
    refusal = "Error: " + CELL.format("5 language model calls")
    assert ask(broker, "a", "b", "c") == ["a", "b", "c"]
    assert ask(broker, "d", "e", "f", "g") == ["d", "e", refusal, refusal]
    assert ask(broker, "h", "i") == [refusal, refusal]
    assert echo.asked == list("abcde")
    assert [call.prompt for call in broker.take_calls()] == list("abcde")


def test_the_limit_of_a_session_is_that_of_all_cells(echo: Echo) -> None:
    broker = limited(echo, cell=3, session=4)
    assert ask(broker, "a", "b", "c") == ["a", "b", "c"]
    assert ask(broker, "d") == CELL.format("3 language model calls")
    broker.begin_cell()
    assert ask(broker, "e", "f") == ["e", "Error: " + SESSION.format("4 language model calls")]
    broker.begin_cell()
    assert ask(broker, "g") == SESSION.format("4 language model calls")
    assert echo.asked == list("abce")


def test_a_limit_of_one_is_singular(echo: Echo) -> None:
    broker = limited(echo, cell=1)
    ask(broker, "a")
    assert ask(broker, "b") == CELL.format("1 language model call")


def test_a_call_that_fails_counts_and_one_that_is_malformed_does_not(echo: Echo) -> None:
    broker = limited(echo, cell=2)
    assert ask(broker, "fail") == "as asked"
    assert "bad request" in broker.handle("/llm_query", {"prompt": 5})["error"]
    assert "bad request" in broker.handle("/llm_query_batched", {"prompts": ["a", 5]})["error"]
    assert "there is no" in broker.handle("/other", {"prompt": "a"})["error"]
    assert ask(broker, "a") == "a"
    assert ask(broker, "b") == CELL.format("2 language model calls")


def test_an_empty_batch_counts_nothing(echo: Echo) -> None:
    broker = limited(echo, cell=1)
    assert ask(broker) == []
    assert ask(broker, "a") == "a"
    assert ask(broker) == []


def test_recursive_calls_count_with_the_others(echo: Echo) -> None:
    asked: list[str] = []

    def subcall(prompt: str, model: str | None) -> Any:
        asked.append(prompt)
        return SimpleNamespace(response=prompt.upper(), root_model="m", execution_time=0.1)

    broker = LMBroker(echo, subcall)
    broker.join(CallBudget(3, None), nullcontext)
    assert ask(broker, "a", path="rlm") == "A"
    assert ask(broker, "b", "c", "d", path="rlm") == [
        "B",
        "C",
        "Error: " + CELL.format("3 language model calls"),
    ]
    assert ask(broker, "e") == CELL.format("3 language model calls")
    assert (sorted(asked), echo.asked) == (["a", "b", "c"], [])


def test_the_limit_holds_for_many_threads(echo: Echo) -> None:
    broker = limited(echo, session=100)
    answers: list[str] = []

    def work() -> None:
        answers.extend(ask(broker, "x") for _ in range(50))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers.count("x") == len(echo.asked) == 100


def test_cells_and_their_limits(boxes: Boxes) -> None:
    asked: list[str] = []

    def answer(prompt: str) -> str:
        asked.append(prompt)
        return prompt.upper()

    box = boxes(lm=answer, max_lm_calls=2, max_session_lm_calls=3)
    result = run(
        box, "print(llm_query('a'))\nfor line in llm_query_batched(['b', 'c']): print(line)"
    )
    assert result.stdout.splitlines() == [
        "A",
        "B",
        "Error: " + CELL.format("2 language model calls"),
    ]
    assert [call.prompt for call in result.lm_calls] == ["a", "b"]
    assert run(box, "print(rlm_query('d'))").stdout == "D\n"
    revive(box)  # the next interpreter belongs to the same session
    assert (
        run(box, "print(llm_query('e'))").stdout
        == "Error: " + SESSION.format("3 language model calls") + "\n"
    )
    assert sorted(asked) == ["a", "b", "d"]


# Sandboxes below a sandbox


def below(parent: CallBudget, **limits: Any) -> CallBudget:
    with parent.answering():
        return CallBudget(**limits, parent=CallBudget.of_caller())


def test_a_prompt_counts_in_the_whole_line_above_it() -> None:
    root = CallBudget(per_cell=3, per_session=6)
    child = below(root, per_session=4)
    grandchild = below(child, per_cell=2)
    assert grandchild.allow(5) == 2
    assert grandchild.refusal() == CELL.format("2 language model calls")
    assert child.allow(5) == 2
    assert child.refusal() == SESSION.format("4 language model calls")
    grandchild.begin_cell()
    assert grandchild.allow(1) == 0
    assert grandchild.refusal() == TREE.format("4 language model calls")
    # The cells of the root have their own limit, of which its children use nothing.
    assert root.allow(5) == 2
    assert root.refusal() == SESSION.format("6 language model calls")
    assert below(root).allow(1) == 0
    assert CallBudget.of_caller() is None


def test_the_limit_of_a_tree_holds_for_many_threads() -> None:
    root = CallBudget(per_session=100)
    leaves = [below(below(root, per_session=90)) for _ in range(8)]
    allowed: list[int] = []

    def work(budget: CallBudget) -> None:
        allowed.extend(budget.allow(1) for _ in range(50))

    threads = [threading.Thread(target=work, args=(leaf,)) for leaf in leaves]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(allowed) == 100


@pytest.mark.parametrize("way", ["model", "async model", "tool"])
def test_whatever_is_started_for_a_call_shares_the_budget(boxes: Boxes, way: str) -> None:
    ask_twice = "print(llm_query_batched([{!r}] * 2)[1])"

    def child(prompt: str) -> str:
        with Sandbox(runtime=boxes.local, lm=str.upper) as box:
            return run(box, ask_twice.format(prompt)).stdout.strip()

    async def later(prompt: str) -> str:
        async with Sandbox(runtime=boxes.local, lm=str.upper) as box:
            return (await box.aexecute(ask_twice.format(prompt))).stdout.strip()

    if way == "tool":
        box, limit = boxes(tools={"ask": child}, max_session_lm_calls=3), "3"
    else:  # its own calls count as well
        lm = child if way == "model" else later
        box, limit = boxes(lm=lm, setup_code="ask = llm_query", max_session_lm_calls=5), "5"
    told = run(box, "for word in 'ab': print(ask(word))").stdout.splitlines()
    assert told == ["A", "Error: " + TREE.format(f"{limit} language model calls")]


def test_recursive_calls_at_any_depth_share_one_budget(boxes: Boxes) -> None:
    asked: list[str] = []
    lock = threading.Lock()

    def repl(depth: int, context: str) -> ContainerREPL:
        def subcall(prompt: str, model: str | None) -> Any:
            with lock:
                asked.append(prompt)
            if depth == 2:
                return SimpleNamespace(response="done")
            with repl(depth + 1, prompt) as child:
                result = child.execute_code("print(rlm_query_batched([context] * 2))")
            return SimpleNamespace(response=result.stdout)

        return ContainerREPL(
            runtime=boxes.local,
            context_payload=context,
            subcall_fn=subcall,
            max_session_lm_calls=5,
        )

    with repl(0, "x") as root:
        told = root.execute_code("print(rlm_query_batched(['x'] * 2))").stdout
        assert TREE.format("5 language model calls") in told
        told = root.execute_code("print(rlm_query('y'))").stdout
        assert told == f"Error: {SESSION.format('5 language model calls')}\n"
    assert asked == ["x"] * 5


def test_a_fork_counts_anew(boxes: Boxes) -> None:
    box = boxes(lm=str.upper, max_session_lm_calls=1)
    ask = "print(llm_query('a'))"
    refused = f"Error: {SESSION.format('1 language model call')}\n"
    assert [run(box, ask).stdout for _ in range(2)] == ["A\n", refused]
    with box.fork() as other:
        assert [run(other, ask).stdout for _ in range(2)] == ["A\n", refused]
