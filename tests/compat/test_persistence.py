"""Environments that outlive a completion: contexts, histories, handlers, compaction."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from rlm.core.lm_handler import LMHandler

from rlm_containers.errors import ContextError, SandboxClosedError
from rlm_containers.integrations.rlms import ContainerEnvironment
from tests.compat.conftest import MakeRLM
from tests.compat.scripted import EchoLM, ScriptedLM, repl
from tests.support import Engine

DONE = "answer['content'] = text\nanswer['ready'] = True"


@contextlib.contextmanager
def handler(name: str) -> Iterator[LMHandler]:
    """Run a handler whose model answers with its own name."""
    with LMHandler(EchoLM(lambda prompt: f"{name}: {prompt}", model_name=name)) as running:
        yield running


@pytest.fixture
def env(engine: Engine) -> Iterator[ContainerEnvironment]:
    """An environment as a persistent RLM makes it."""
    with ContainerEnvironment(
        engine.image(), runtime=engine.runtime, persistent=True, context_payload="first"
    ) as env:
        yield env


def printed(env: ContainerEnvironment, code: str) -> str:
    result = env.execute_code(code)
    assert result.stderr == ""
    return str(result.stdout)


def test_contexts_are_numbered(env: ContainerEnvironment) -> None:
    assert env.get_context_count() == 1
    assert env.add_context("second") == 1
    assert env.add_context({"third": 3}) == 2
    assert env.get_context_count() == 3
    code = "print(context, context_0, context_1, context_2)"
    assert printed(env, code) == "first first second {'third': 3}\n"
    assert env.add_context("seventh", 7) == 7
    assert env.get_context_count() == 8
    assert env.add_context("another first", 0) == 0
    assert printed(env, "print(context, context_7)") == "another first seventh\n"
    assert env.get_context_count() == 8


def test_a_context_that_cannot_be_sent_changes_nothing(env: ContainerEnvironment) -> None:
    with pytest.raises(ContextError):
        env.add_context({"x": object()})
    assert env.get_context_count() == 1
    assert env.add_context("second") == 1


def test_histories_are_numbered_and_copies(env: ContainerEnvironment) -> None:
    assert env.get_history_count() == 0
    messages: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]
    assert env.add_history(messages) == 0
    messages[0]["content"] = "changed"
    assert env.add_history(messages) == 1
    assert env.get_history_count() == 2
    code = "print(history[0]['content'], history_0 is history, history_1[0]['content'])"
    assert printed(env, code) == "hello True changed\n"
    printed(env, "history = 'gone'")
    assert printed(env, "print(history is history_0)") == "True\n"


def test_the_handler_can_be_exchanged(env: ContainerEnvironment) -> None:
    with handler("one") as one, handler("two") as two:
        env.update_handler_address(one.address)
        assert printed(env, "print(llm_query('x'))") == "one: x\n"
        env.update_handler_address(two.address)
        assert printed(env, "print(llm_query('x'), llm_query_batched(['y']))") == (
            "two: x ['two: y']\n"
        )


def test_a_handler_that_came_later_than_the_environment(env: ContainerEnvironment) -> None:
    # The environment was made without a handler, so llm_query has nobody to ask.
    assert printed(env, "print(llm_query('x')[:7])") == "Error: \n"
    with handler("late") as late:
        env.update_handler_address(late.address)
        assert printed(env, "print(llm_query('x'))") == "late: x\n"


def test_the_answer_of_the_last_question_is_forgotten(env: ContainerEnvironment) -> None:
    result = env.execute_code("answer['content'] = 'old'\nanswer['ready'] = True")
    assert result.final_answer == "old"
    with handler("next") as following:
        env.update_handler_address(following.address)
        assert env.execute_code("print(answer)").final_answer is None


def test_a_result_has_the_calls_of_its_cell(env: ContainerEnvironment) -> None:
    with handler("one") as one:
        env.update_handler_address(one.address)
        result = env.execute_code("llm_query('a'); llm_query_batched(['b', 'c'])")
        assert sorted(str(call.prompt) for call in result.rlm_calls) == ["a", "b", "c"]
        assert {call.root_model for call in result.rlm_calls} == {"one"}
        assert env.execute_code("x = 1").rlm_calls == []


def test_everything_survives_the_interpreter(env: ContainerEnvironment) -> None:
    env.add_context(["second"])
    env.add_history([{"role": "user", "content": "hello"}])
    printed(env, "mine = [context_1, context]")
    assert "died" not in env.execute_code("import os; os._exit(1)").stdout
    code = "print(mine[0] is context_1, mine, context, history[0]['content'])"
    assert printed(env, code) == "True [['second'], 'first'] first hello\n"


def test_a_closed_environment(env: ContainerEnvironment) -> None:
    env.cleanup()
    env.cleanup()
    with pytest.raises(SandboxClosedError):
        env.execute_code("x = 1")
    with pytest.raises(SandboxClosedError):
        env.add_context("x")


def test_compaction_entries(engine: Engine) -> None:
    with ContainerEnvironment(
        engine.image(), runtime=engine.runtime, compaction=True, context_payload="text"
    ) as env:
        assert printed(env, "print(history)") == "[]\n"
        entry = [{"role": "assistant", "content": "one"}]
        env.append_compaction_entry(entry)
        entry[0]["content"] = "changed"
        env.append_compaction_entry({"type": "summary", "content": "two"})
        printed(env, "history.append('mine')")
        env.append_compaction_entry([{"role": "user", "content": "three"}])
        code = "print([h['content'] if isinstance(h, dict) else h[0]['content'] for h in history])"
        assert printed(env, code) == "['one', 'two', 'three']\n"
        printed(env, "history = None")
        assert printed(env, "print(len(history))") == "3\n"


def test_without_compaction_entries_are_ignored(env: ContainerEnvironment) -> None:
    env.append_compaction_entry({"type": "summary", "content": "x"})
    assert printed(env, "print('history' in globals())") == "False\n"


def test_three_completions_share_one_container(make_rlm: MakeRLM) -> None:
    host = "import socket\nhosts = globals().get('hosts', []) + [socket.gethostname()]\n"
    root = ScriptedLM(
        repl(host + "text = context\n" + DONE),
        repl(host + "text = context_1\n" + DONE),
        repl(host + "text = f'{len(set(hosts))} {len(hosts)} {history_1[0][\"role\"]}'\n" + DONE),
    )
    with make_rlm(root, persistent=True) as model:
        assert model.completion("first").response == "first"
        assert model.completion("second").response == "second"
        assert model.completion("third").response == "1 3 system"


def test_an_rlm_that_is_not_persistent_starts_anew(make_rlm: MakeRLM) -> None:
    root = ScriptedLM(
        repl("kept = 1\ntext = context\n" + DONE),
        repl("text = f\"{context} {'kept' in globals()}\"\n" + DONE),
    )
    model = make_rlm(root)
    assert model.completion("first").response == "first"
    assert model.completion("second").response == "second False"
