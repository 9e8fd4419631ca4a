"""``custom_tools`` of an RLM: as in rlms's local environment, with functions that run on the host."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from rlm.environments import SupportsCustomTools

from rlm_containers.integrations.rlms import ContainerEnvironment
from tests.compat.conftest import MakeRLM
from tests.compat.scripted import EchoLM, ScriptedLM, repl
from tests.support import Engine

DONE = "answer['content'] = text\nanswer['ready'] = True"


def search(word: str, *, limit: int = 10) -> list[str]:
    """Find documents."""
    return [f"{word} {number}" for number in range(limit)]


TOOLS: dict[str, Any] = {
    "search": {"tool": search, "description": "Finds documents that have a word in them."},
    "KEY": "a key",
    "TABLE": {"tool": {"a": [1, 2]}, "description": "The table."},
    "N": 7,
}


@pytest.mark.parametrize("where", ["local", "docker"])
def test_functions_and_data(make_rlm: MakeRLM, where: str) -> None:
    # Without code strings, which are data in rlms's local environment.
    root = ScriptedLM(
        repl("found = search('x', limit=2)\nprint(found, KEY, TABLE['a'], N)"),
        repl("search = None\nN = N + 1"),
        repl("text = f'{search(context)[9]} {N} {sorted(TABLE)}'\n" + DONE),
    )
    model = make_rlm(root, custom_tools=TOOLS)
    model.environment_type = where  # type: ignore[assignment]
    if where == "local":
        model.environment_kwargs = {}
    assert model.completion("text").response == "text 9 8 ['a']"
    assert "['x 0', 'x 1'] a key [1, 2] 7" in str(root.prompts[1])
    # rlms itself tells the model about them.
    assert "Finds documents that have a word in them." in str(root.prompts[0])


def test_code_becomes_functions_of_the_container(make_rlm: MakeRLM) -> None:
    tools = {
        "host_name": "def host_name():\n    import socket\n    return socket.gethostname()",
        "twice": {"tool": "lambda x: 2 * x", "description": "Doubles."},
        "Counter": "class Counter:\n    n = 0\n    def count(self):\n        self.n += 1\n        return self.n",
    }
    root = ScriptedLM(
        repl("import socket\nhere = socket.gethostname()\nc = Counter(); c.count()"),
        repl("import os; os._exit(1)"),
        repl(
            "text = f'{host_name() == here} {twice(4)} {c.count()} {type(c) is Counter}'\n" + DONE
        ),
    )
    assert make_rlm(root, custom_tools=tools).completion("text").response == "True 8 2 True"


def test_host_functions_may_be_async_or_slow_or_many(engine: Engine) -> None:
    together = threading.Barrier(3, timeout=30)

    async def wait(n: int) -> int:
        await asyncio.sleep(0)
        together.wait()
        return n

    with ContainerEnvironment(
        engine.image(), runtime=engine.runtime, custom_tools={"wait": wait}
    ) as env:
        code = (
            "from concurrent.futures import ThreadPoolExecutor\n"
            "with ThreadPoolExecutor(3) as pool: print(list(pool.map(wait, range(3))))"
        )
        result = env.execute_code(code)
        assert (result.stdout, result.stderr) == ("[0, 1, 2]\n", "")
        assert isinstance(env, SupportsCustomTools)


def test_host_functions_that_fail_are_exceptions_in_the_cell(make_rlm: MakeRLM) -> None:
    def fail(text: str) -> None:
        raise LookupError(f"no {text}")

    root = ScriptedLM(
        repl("fail('luck')"),
        repl("fail({1, 2})"),
        repl("try: fail('way')\nexcept LookupError as e: text = str(e)\n" + DONE),
    )
    assert make_rlm(root, custom_tools={"fail": fail}).completion("text").response == "no way"
    assert "LookupError: no luck" in str(root.prompts[1])
    assert "argument 1 (set) cannot be sent to the host as JSON" in str(root.prompts[2])


@pytest.mark.parametrize(
    ("sub_tools", "expected"),
    [(None, "child: top"), ({"level": lambda: "sub"}, "child: sub"), ({}, "child: none")],
    ids=["inherited", "their own", "none"],
)
def test_children_have_the_sub_tools(make_rlm: MakeRLM, sub_tools: Any, expected: str) -> None:
    child = repl("try: text = 'child: ' + level()\nexcept NameError: text = 'child: none'\n" + DONE)
    root = ScriptedLM(repl("text = rlm_query('go')\n" + DONE), child)
    model = make_rlm(
        root, max_depth=2, custom_tools={"level": lambda: "top"}, custom_sub_tools=sub_tools
    )
    assert model.completion("text").response == expected


def test_tools_and_model_calls_in_one_cell(make_rlm: MakeRLM) -> None:
    # Calls of tools are not recorded as calls of a model.
    root = ScriptedLM(
        repl("text = f\"{llm_query('a')} {tool('b')} {llm_query_batched(['c'])}\"\n" + DONE)
    )
    sub = EchoLM(str.upper)
    model = make_rlm(root, sub, custom_tools={"tool": lambda text: f"tool {text}"})
    done = model.completion("text")
    assert done.response == "A tool b ['C']"
    assert done.usage_summary.model_usage_summaries["echo"].total_calls == 2
