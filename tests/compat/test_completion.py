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


def test_a_failing_child_is_an_error_in_the_cell(make_rlm: MakeRLM) -> None:
    root = ScriptedLM(repl("text = rlm_query('x')\n" + READY))  # no line is left for the child
    done = make_rlm(root, max_depth=2).completion("text")
    assert done.response.startswith("Error: ")


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
