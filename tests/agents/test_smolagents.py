"""``ContainerExecutor``: what smolagents wants of a ``PythonExecutor``, and agents that use it."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from rlm_containers import Sandbox
from rlm_containers.errors import OptionError, SandboxClosedError
from tests.agents.conftest import RunPage
from tests.support import Engine, on_ci

if not on_ci():  # on CI it must be installed
    pytest.importorskip("smolagents", reason="pip install 'rlm-containers[smolagents]'")

from smolagents import ChatMessage, CodeAgent, FinalAnswerTool, Model
from smolagents.local_python_executor import CodeOutput, InterpreterError, PythonExecutor
from smolagents.models import MessageRole

from rlm_containers.integrations.smolagents import ContainerExecutor


class ScriptedModel(Model):
    """Writes one piece of code after the other."""

    def __init__(self, *steps: str) -> None:
        super().__init__(model_id="scripted")
        self.steps = list(steps)
        self.seen: list[str] = []

    def generate(self, messages: list[Any], *args: Any, **kwargs: Any) -> ChatMessage:
        self.seen.append(messages[-1].content[0]["text"])
        code = f"<code>\n{self.steps.pop(0)}\n</code>"
        return ChatMessage(role=MessageRole.ASSISTANT, content=code)


@pytest.fixture(scope="module")
def box(engine: Engine) -> Iterator[Sandbox]:
    with Sandbox(engine.image(), runtime=engine.runtime, scaffold=False) as box:
        yield box


@pytest.fixture
def executor(box: Sandbox) -> ContainerExecutor:
    made = ContainerExecutor(box)
    made.send_tools({"final_answer": FinalAnswerTool()})
    return made


def test_an_agent(run_how_to: RunPage) -> None:
    model = ScriptedModel(
        "import csv\nrows = list(csv.DictReader(open('sales.csv')))\nprint(rows[0])",
        "sold = sum(int(row['sold']) for row in rows if row['fruit'] == 'apple')\nprice('plum')",
        "final_answer(sold * price('apple'))",
    )
    run_how_to("smolagents", model=model)
    assert "{'fruit': 'apple', 'sold': '3'}" in model.seen[1]
    assert "KeyError: 'plum'" in model.seen[2]


def test_a_managed_agent(engine: Engine, box: Sandbox) -> None:
    with Sandbox(engine.image(), runtime=engine.runtime, scaffold=False) as other:
        helper = CodeAgent(
            [],
            ScriptedModel("import os\nfinal_answer(os.uname().nodename)"),
            executor=ContainerExecutor(other),
            name="helper",
            description="Helps.",
            verbosity_level=0,
        )
        script = "import os\nfinal_answer((os.uname().nodename, helper(task='Where are you?')))"
        agent = CodeAgent(
            [],
            ScriptedModel(script),
            executor=ContainerExecutor(box),
            managed_agents=[helper],
            verbosity_level=0,
        )
        answered = agent.run("Where are you both?")
        assert isinstance(answered, tuple)
        here, answer = answered
        there = other.execute("print(os.uname().nodename)").stdout.strip()
        agent.cleanup()
        assert box.execute("print(1)").stdout == "1\n"
    assert here != there
    assert there in answer


def test_it_is_an_executor(executor: ContainerExecutor) -> None:
    assert isinstance(executor, PythonExecutor)
    assert executor("x = 6") == CodeOutput(output="", logs="", is_final_answer=False)
    assert executor("print('said')\nx * 7").logs == "said\n42\n"


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        10**40,
        "grüße 🚀 \0",
        "x" * 3_000_000,
        [1, [2.5, None]],
        {"a": [1]},
        {1: "one", (2, 3): {4}},
        (1, (2,)),
        {"a", 1},
        frozenset({1}),
        b"\xff\0",
        1 + 2j,
        datetime.datetime(2024, 2, 29, 12, 30),
        datetime.timedelta(seconds=1.5),
        Decimal("1.10"),
        Path("a/b"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_travel_and_come_back(executor: ContainerExecutor, value: Any) -> None:
    got: list[Any] = []

    def same(sent: Any, *, also: Any = None) -> Any:
        got.append((sent, also))
        return sent

    executor.send_variables({"value": value})
    executor.send_tools({"same": same, "final_answer": FinalAnswerTool()})
    done = executor("assert same(value, also=[value]) == value\nfinal_answer(value)")
    assert (done.output, done.is_final_answer) == (value, True)
    assert type(done.output) is type(value) or isinstance(value, Path)
    assert got == [(value, [value])]


def test_a_final_answer_ends_the_step(executor: ContainerExecutor) -> None:
    code = "print('before')\ntry:\n    final_answer(7)\nexcept Exception: pass\nprint('after')"
    assert executor(code) == CodeOutput(output=7, logs="before\n", is_final_answer=True)
    assert executor("final_answer(None)") == CodeOutput(None, "", True)
    executor("final_answer = 3")
    assert executor("final_answer(answer=[1])").output == [1]
    with pytest.raises(InterpreterError, match="Cannot safely serialize object of type object"):
        executor("final_answer(object())")


def test_code_that_fails(executor: ContainerExecutor) -> None:
    with pytest.raises(InterpreterError, match=r"line 2.*\n.*1 / 0\n(.*\n)*ZeroDivisionError"):
        executor("print('before')\n1 / 0")
    assert executor.state["_print_outputs"] == "before\n"
    with pytest.raises(InterpreterError, match="SyntaxError"):
        executor("x =")
    executor("import sys\nsys.stderr.write('warned')\nsys.exit()")
    assert executor.state["_print_outputs"] == "warned"


def test_everything_is_there_after_a_death(executor: ContainerExecutor) -> None:
    executor.send_variables({"when": datetime.date(2024, 2, 29)})
    executor("import os\nnumbers = [1, 2]")
    with pytest.raises(InterpreterError, match="ended itself with status 1"):
        executor("os._exit(1)")
    answer = executor("final_answer((numbers, when))")
    assert answer.output == ([1, 2], datetime.date(2024, 2, 29))


def test_tools_that_fail(executor: ContainerExecutor) -> None:
    def fail(how: str) -> object:
        if how == "result":
            return object()
        raise LookupError(how)

    executor.send_tools({"fail": fail, "final_answer": FinalAnswerTool()})
    assert executor("try: fail('so')\nexcept LookupError as e: print(e)").logs == "so\n"
    with pytest.raises(InterpreterError, match="Cannot safely serialize object of type object"):
        executor("fail('result')")
    with pytest.raises(InterpreterError, match="TypeError: .*'why'"):
        executor("fail(why=1)")
    executor.send_tools({"final_answer": FinalAnswerTool()})
    with pytest.raises(InterpreterError, match="NameError: There is no tool 'fail'"):
        executor("fail('so')")


def test_tools_of_the_sandbox_stay(engine: Engine) -> None:
    options: dict[str, Any] = {"runtime": engine.runtime, "tools": {"one": lambda: 1}}
    with Sandbox(engine.image(), lm=str.upper, **options) as box:
        executor = ContainerExecutor(box)
        executor.send_tools({"two": lambda: 2, "final_answer": FinalAnswerTool()})
        assert executor("final_answer((one(), two(), llm_query('hi')))").output == (1, 2, "HI")
        with pytest.raises(OptionError, match="reserved"):
            executor.send_tools({"llm_query": print})


def test_arrays(executor: ContainerExecutor) -> None:
    # The image has no numpy: these are what it would send.
    array = "a = {'__type__': 'ndarray', 'data': [[1, 2]], 'dtype': 'int32'}\n"
    answer = executor(f"{array}final_answer(a)").output
    assert (answer.tolist(), str(answer.dtype)) == ([[1, 2]], "int32")
    with pytest.raises(InterpreterError, match="Only arrays of numbers"):
        executor("final_answer([{**a, 'dtype': 'S2000000000'}])")


def test_images_are_png(executor: ContainerExecutor) -> None:
    """Pillow runs Ghostscript for the others' sake."""
    image = "{'__type__': 'PIL.Image', 'data': 'JSFQUy1BZG9iZS0zLjAgRVBTRi0zLjA='}"
    with pytest.raises(InterpreterError, match="Only images as PNG"):
        executor(f"final_answer([{image}])")


def test_long_output_is_cut(box: Sandbox) -> None:
    executor = ContainerExecutor(box, max_print_outputs_length=1000)
    done = executor("print('first'); print('x' * 100_000); print('last')")
    assert done.logs.startswith("first\n")
    assert done.logs.endswith("last\n")
    assert len(done.logs) < 2000
    with pytest.raises(InterpreterError) as caught:
        executor("raise ValueError('x' * 100_000)")
    assert len(str(caught.value)) < 2000


def test_variables_that_cannot_be_sent(executor: ContainerExecutor) -> None:
    for name, value in (("x", object()), ("a b", "text")):
        with pytest.raises(OptionError):
            executor.send_variables({name: value})


def test_a_sandbox_that_does_not_run() -> None:
    with pytest.raises(SandboxClosedError):
        ContainerExecutor(Sandbox())("1")
