"""``RLM(environment="docker")`` of rlms with this project registered."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rlm import environments
from rlm.core.types import RLMChatCompletion
from rlm.environments import LocalREPL, SupportsCustomTools, SupportsPersistence
from rlm.logger import RLMLogger

import rlm_containers
from rlm_containers.integrations.rlms import ContainerEnvironment
from tests.compat.conftest import MakeRLM
from tests.compat.scripted import EchoLM, ScriptedLM, repl
from tests.support import Engine

READY = "answer['content'] = text\nanswer['ready'] = True"


def first_line(prompt: str) -> str:
    return prompt.splitlines()[0].upper()


def test_an_answer_over_a_long_text(make_rlm: MakeRLM) -> None:
    text = "".join(f"line {number}: {'word ' * 20}\n" for number in range(20_000))
    root = ScriptedLM(
        repl("lines = context.splitlines()\nprint(len(lines), len(context))"),
        repl("one = llm_query(lines[7])\nprint(one[:7])"),
        repl(
            "many = llm_query_batched([lines[1], lines[2]])\n"
            "text = f'{one[:7]} {[m[:6] for m in many]}'\n" + READY
        ),
    )
    sub = EchoLM(first_line)
    logger = RLMLogger()
    done = make_rlm(root, sub, logger=logger).completion(text, root_prompt="What is it?")
    assert isinstance(done, RLMChatCompletion)
    assert done.response == "LINE 7: ['LINE 1', 'LINE 2']"
    assert len(root.prompts) == 3
    assert f"20000 {len(text)}" in str(root.prompts[1])  # the model sees what its cell printed
    assert "LINE 7:" in str(root.prompts[2])
    assert len(sub.prompts) == 3
    assert set(done.usage_summary.model_usage_summaries) == {"scripted", "echo"}
    trajectory: Any = json.loads(json.dumps(logger.get_trajectory()))
    calls = [
        [call["response"][:6] for call in block["result"]["rlm_calls"]]
        for turn in trajectory["iterations"]
        for block in turn["code_blocks"]
    ]
    assert calls == [[], ["LINE 7"], ["LINE 1", "LINE 2"]]


def test_the_same_run_as_in_the_local_environment(
    make_rlm: MakeRLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        repl("words = context.split()\nprint(sorted(set(words)))"),
        repl("heard = llm_query_batched(words)\nprint(heard)"),
        repl("text = '-'.join(heard)\n" + READY),
    )

    def run(environment: str) -> tuple[Any, ...]:
        logger = RLMLogger()
        model = make_rlm(ScriptedLM(*script), EchoLM(first_line), logger=logger)
        model.environment_type = environment  # type: ignore[assignment]
        if environment == "local":
            model.environment_kwargs = {}
        done = model.completion("b a b c")
        results = [
            [
                block["code"],
                block["result"]["stdout"],
                block["result"]["stderr"],
                block["result"]["final_answer"],
                # rlms's local environment leaves the file of the context as a variable.
                sorted(set(block["result"]["locals"]) - {"f"}),
                [call["response"] for call in block["result"]["rlm_calls"]],
            ]
            for turn in logger.get_trajectory()["iterations"]  # type: ignore[index]
            for block in turn["code_blocks"]
        ]
        return (done.response, results)

    assert run("docker") == run("local")


def test_children_get_containers_of_their_own(make_rlm: MakeRLM) -> None:
    # While the parent's cell waits, the child takes the next lines of the script.
    root = ScriptedLM(
        repl("mine = 'parent'\ntold = rlm_query('look at this')\nprint(told)"),
        repl("import socket\ntext = f\"{context} {'mine' in globals()}\"\n" + READY),
        repl("text = told + ' ' + mine\n" + READY),
    )
    done = make_rlm(root, max_depth=2).completion("the parent's text")
    assert done.response == "look at this False parent"


def test_a_failing_child_is_an_error_in_the_cell(make_rlm: MakeRLM) -> None:
    root = ScriptedLM(repl("text = rlm_query('x')\n" + READY))  # no line is left for the child
    done = make_rlm(root, max_depth=2).completion("text")
    assert done.response.startswith("Error: ")


def test_completions_that_share_an_environment(make_rlm: MakeRLM) -> None:
    root = ScriptedLM(
        repl("kept = context\ntext = kept\n" + READY),
        repl("print(answer['ready'])"),
        repl("text = f'{kept} {context_0} {context_1} {len(history) > 1}'\n" + READY),
    )
    model = make_rlm(root, persistent=True)
    assert model.completion("first").response == "first"
    assert model.completion("second").response == "first first second True"
    assert "False" in str(root.prompts[2])  # the first completion's answer was reset


def test_compaction(make_rlm: MakeRLM) -> None:
    root = ScriptedLM(
        repl("print(history)\nhistory = 'gone'"),
        repl("text = f'{type(history).__name__} {len(history)}'\n" + READY),
    )
    done = make_rlm(root, compaction=True).completion("text")
    assert done.response == "list 1"


@pytest.mark.parametrize(
    "context", ["text", "", {"a": [1, None]}, ["x", {"y": 2.5}], "\x00 \U0001f600"]
)
def test_contexts(engine: Engine, context: Any) -> None:
    with ContainerEnvironment(
        engine.image(), runtime=engine.runtime, context_payload=context
    ) as env:
        result = env.execute_code("print(ascii(context), context is context_0)")
        assert result.stdout == f"{context!a} True\n"


def test_setup_code_and_protocols(engine: Engine) -> None:
    with ContainerEnvironment(
        engine.image(), runtime=engine.runtime, setup_code="def twice(x): return 2 * x"
    ) as env:
        assert isinstance(env, SupportsPersistence)
        assert isinstance(env, SupportsCustomTools)
        assert env.execute_code("print(twice(4))").stdout == "8\n"


def test_register_changes_only_docker(registered: None) -> None:
    ours = environments.get_environment
    rlm_containers.register()
    assert environments.get_environment is ours
    local = environments.get_environment("local", {})
    assert isinstance(local, LocalREPL)
    local.cleanup()
    with pytest.raises(ValueError, match="Unknown environment"):
        environments.get_environment("nowhere", {})  # type: ignore[arg-type]
