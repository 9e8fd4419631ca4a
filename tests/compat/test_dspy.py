"""``ContainerInterpreter`` as dspy's modules use it: RLM, CodeAct, ProgramOfThought, Flex."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support import Engine, assert_gone, on_ci

if on_ci():
    import dspy  # on CI it must be installed
else:
    dspy = pytest.importorskip("dspy", reason="dspy is not installed: pip install 'dspy>=3.4,<3.5'")

from dspy.utils import DummyLM

from rlm_containers.integrations.dspy import ContainerInterpreter

pytestmark = [
    # dspy warns that CodeAct and ProgramOfThought go away with 3.5, and of the way in which it calls
    # the models of its own sub-agents.
    pytest.mark.filterwarnings("ignore:.* is deprecated and will be removed in 3.5"),
    pytest.mark.filterwarnings("ignore:Passing OpenAI-style message dictionaries"),
]


Factory = Callable[[], ContainerInterpreter]


@pytest.fixture
def made() -> list[ContainerInterpreter]:
    """The interpreters that the factory has made."""
    return []


@pytest.fixture
def factory(engine: Engine, made: list[ContainerInterpreter]) -> Iterator[Factory]:
    """Configure a factory in dspy. Fails if dspy leaves any of its containers."""
    make = ContainerInterpreter.factory(image=engine.image(), runtime=engine.runtime)

    def counted() -> ContainerInterpreter:
        interpreter = make()
        made.append(interpreter)
        return interpreter

    with dspy.context(interpreter_factory=counted):
        yield counted
    assert_gone(engine, *(interpreter._sandbox.name for interpreter in made))


def steps(*codes: str, **last: Any) -> Any:
    """Return a model that writes these cells one after the other, and then answers ``last``."""
    answers = [{"reasoning": f"step {n}", "code": code} for n, code in enumerate(codes)]
    return DummyLM([*answers, last] if last else answers)


def outputs(prediction: Any) -> list[str]:
    return [entry["output"] for entry in prediction.trajectory]


# RLM


def test_rlm_with_sub_queries(factory: Factory, made: list[ContainerInterpreter]) -> None:
    context = "\n".join(f"line {number}" for number in range(50_000))
    lm = steps(
        "lines = context.splitlines()\nprint(len(lines))",
        "one = llm_query(lines[7])\nmany = llm_query_batched(lines[:3])\nprint(one, many)",
        "```python\nSUBMIT(one + ' of ' + str(len(lines)))\n```",
    )
    asked = []

    def sub_lm(prompt: str) -> list[str]:
        asked.append(prompt)
        return [prompt.upper()]

    rlm = dspy.RLM("context, question -> answer", sub_lm=sub_lm)  # type: ignore[arg-type]  # any callable
    with dspy.context(lm=lm):
        done = rlm(context=context, question="What is it?")
    assert done.answer == "LINE 7 of 50000"
    assert outputs(done)[:2] == ["50000\n", "LINE 7 ['LINE 0', 'LINE 1', 'LINE 2']\n"]
    assert sorted(asked) == ["line 0", "line 1", "line 2", "line 7"]
    assert len(made) == 1


def test_rlm_may_use_the_names_that_rlms_reserves(factory: Factory) -> None:
    lm = steps(
        "answer, history, context_0 = 'Paris', [1], 'mine'",
        "print(answer, history, context_0, context)",
        "SUBMIT(answer)",
    )
    with dspy.context(lm=lm):
        done = dspy.RLM("context -> answer")(context="theirs")
    assert done.answer == "Paris"
    assert outputs(done)[1] == "Paris [1] mine theirs\n"


def test_rlm_with_tools_and_typed_outputs(factory: Factory) -> None:
    def price(item: str, count: int = 1) -> float:
        """The price of some pieces."""
        return {"apple": 0.5, "pear": 0.75}[item] * count

    lm = steps(
        "total = price('apple', 4) + price(item='pear')\nprint(total)",
        "price('plum')",
        "SUBMIT('not a number', ['x'])",
        "SUBMIT(total=total, fruits={'apple'})",
    )
    with dspy.context(lm=lm):
        done = dspy.RLM("question -> total: float, fruits: list[str]", tools=[price])(question="?")
    assert (done.total, done.fruits) == (2.75, ["apple"])
    printed, failed, mistyped, _ = outputs(done)
    assert printed == "2.75\n"
    assert failed.startswith("[Error] Traceback")
    assert "KeyError: 'plum'" in failed
    assert mistyped.startswith("[Type Error] total")


def test_rlm_goes_on_after_errors_and_a_death(factory: Factory) -> None:
    lm = steps(
        "x = 41\nprint('before')\n1 / 0",
        "x = = 1",
        "import os\nos.kill(os.getpid(), 9)",
        "SUBMIT(x + 1)",
    )
    with dspy.context(lm=lm):
        done = dspy.RLM("question -> answer: int")(question="?")
    assert done.answer == 42
    divided, syntax, killed, _ = outputs(done)
    assert "line 3" in divided
    assert "1 / 0" in divided
    assert divided.endswith("Printed before that:\nbefore\n")
    assert syntax.startswith("[Error]")
    assert syntax.endswith("SyntaxError: invalid syntax")
    assert "SIGKILL" in killed


def test_rlm_that_never_submits(factory: Factory) -> None:
    lm = steps("print(1)", "print(2)", answer="extracted")
    with dspy.context(lm=lm):
        done = dspy.RLM("question -> answer", max_iters=2)(question="?")
    assert (done.answer, outputs(done)) == ("extracted", ["1\n", "2\n"])


def test_rlm_leaves_nothing_when_its_model_fails(
    factory: Factory, made: list[ContainerInterpreter]
) -> None:
    with dspy.context(lm=DummyLM([])), pytest.raises(Exception):  # noqa: B017, PT011
        dspy.RLM("question -> answer")(question="?")
    assert len(made) == 1  # the factory's fixture checks that it is gone


def test_rlm_with_sub_agents(factory: Factory, made: list[ContainerInterpreter]) -> None:
    lm = DummyLM(
        [
            {
                "reasoning": "delegate",
                "code": "import dspy\n"
                "first = dspy.Predict('text -> language')(text='bonjour').language\n"
                "second = dspy.RLM('n: int -> twice: int')(n=21).twice\n"
                "print(first, second)",
            },
            {"language": "French"},
            {"reasoning": "inside", "code": "SUBMIT(2 * n)"},
            {"reasoning": "done", "code": "SUBMIT(f'{first} {second}')"},
        ]
    )
    with dspy.context(lm=lm):
        done = dspy.RLM("question -> answer")(question="?")
    assert done.answer == "French 42"
    assert len(made) == 2  # a container each


def test_rlm_in_an_event_loop_with_an_async_tool(factory: Factory) -> None:
    async def fetch(page: int) -> dict[str, int]:
        await asyncio.sleep(0.01)
        return {"page": page}

    async def run() -> Any:
        lm = steps("SUBMIT(fetch(3)['page'])")
        with dspy.context(lm=lm):
            return await dspy.RLM("q -> answer: int", tools=[fetch]).acall(q="?")

    assert asyncio.run(run()).answer == 3


def test_rlm_twice_at_once(factory: Factory, made: list[ContainerInterpreter]) -> None:
    rlm = dspy.RLM("n: int -> answer: int")
    lms = [steps("x = n * 2", "SUBMIT(x)") for _ in range(2)]

    def run(n: int) -> int:
        with dspy.context(lm=lms[n], interpreter_factory=factory):
            answer: int = rlm(n=n).answer
            return answer

    results: dict[int, int] = {}
    threads = [threading.Thread(target=lambda n=n: results.update({n: run(n)})) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {0: 0, 1: 2}
    assert len(made) == 2


def test_values_that_serialize_themselves(factory: Factory) -> None:
    class Table(dspy.SandboxSerializable):
        def sandbox_setup(self) -> str:
            return "import csv, io"

        def to_sandbox(self) -> bytes:
            return b"a,b\n" + b"1,2\n" * 100_000

        def sandbox_assignment(self, var_name: str, data_expr: str) -> str:
            return f"{var_name} = list(csv.reader(io.StringIO({data_expr})))"

        def rlm_preview(self, max_chars: int = 500) -> str:
            return "a table"

    lm = steps("table.append('more')", "SUBMIT(len(table))")
    with dspy.context(lm=lm):
        done = dspy.RLM("table: str -> answer: int")(table=Table())
    assert done.answer == 100_002  # it was bound once, and the cell's change was kept


# The others


def double(n: int) -> int:
    """Twice as much."""
    return 2 * n


def test_code_act(factory: Factory) -> None:
    lm = DummyLM(
        [
            {"generated_code": "```python\nx = double(20)\nprint(x)\n```", "finished": False},
            {"generated_code": "```python\nx = x + 2\n```", "finished": False},
            {"generated_code": "```python\nnowhere\n```", "finished": True},
            {"reasoning": "done", "answer": "42"},
        ]
    )
    with dspy.context(lm=lm):
        done = dspy.CodeAct("n: int -> answer: int", tools=[double])(n=20)
    assert done.answer == 42
    assert json.loads(done.trajectory["code_output_0"]) == "40\n"
    assert json.loads(done.trajectory["code_output_1"]) == 42  # the value of the last expression
    assert "NameError: name 'nowhere'" in done.trajectory["observation_2"]


def test_program_of_thought(factory: Factory) -> None:
    lm = DummyLM(
        [
            {"reasoning": "try", "generated_code": "```python\nx = 1 / 0\nSUBMIT(x)\n```"},
            {
                "reasoning": "again",
                "generated_code": "```python\nx = 6 * 7\nSUBMIT({'answer': x})\n```",
            },
            {"reasoning": "done", "answer": "42"},
        ]
    )
    with dspy.context(lm=lm):
        done = dspy.ProgramOfThought("question -> answer: int")(question="What is 6 * 7?")
    assert done.answer == 42
    prompt = str(lm.history[-1]["messages"])
    assert '{\\"output\\": {\\"answer\\": 42}}' in prompt or '{"output": {"answer": 42}}' in prompt
    assert "ZeroDivisionError" in str(lm.history[1]["messages"])


def test_program_of_thought_on_an_interpreter_of_the_callers(engine: Engine) -> None:
    lm = DummyLM(
        [
            {"reasoning": "r", "generated_code": "```python\nSUBMIT(x)\n```"},
            {"reasoning": "r", "answer": "7"},
        ]
    )
    interpreter = ContainerInterpreter(image=engine.image(), runtime=engine.runtime)
    with interpreter, dspy.context(lm=lm):
        interpreter.execute("x = 7")
        assert dspy.ProgramOfThought("q -> answer: int")(interpreter, q="?").answer == 7
        assert interpreter.execute("x") == 7  # dspy did not close it
    assert_gone(engine, interpreter._sandbox.name)


def test_flex(factory: Factory) -> None:
    source = (
        "class Answer(dspy.Module):\n"
        "    def __init__(self):\n"
        "        self.ask = dspy.Predict('question -> answer')\n"
        "    def forward(self, question):\n"
        "        print('printed, and in nobody\\'s way')\n"
        "        answer = self.ask(question=question).answer\n"
        "        return dspy.Prediction(answer=answer * 2)\n"
    )
    flex = dspy.Flex("question -> answer")
    flex._bridge.bind(source)
    with dspy.context(lm=DummyLM([{"answer": "ha"}])):
        assert flex(question="?").answer == "haha"
