"""Recursive calls: every child is an RLM with a container of its own."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from rlm.logger import RLMLogger

from rlm_containers.container import close_pools, shared_pool
from rlm_containers.options import configured_options
from tests.compat.conftest import MakeRLM
from tests.compat.scripted import Prompt, ScriptedLM, _CountingLM, repl
from tests.support import eventually

DONE = "answer['content'] = text\nanswer['ready'] = True"
WHERE = "import socket\nwhere = socket.gethostname()\n"


class TwoLevels(_CountingLM):
    """A root model with a script. Each child runs one cell, whatever its question."""

    def __init__(self, *script: str, child: str, model_name: str = "scripted") -> None:
        super().__init__(model_name)
        self._script = list(script)
        self._child = child

    def _answer(self, prompt: Prompt) -> str:
        # The root's context begins with a word that no child's context has.
        text = json.dumps(prompt)
        with self._lock:
            return self._script.pop(0) if "the root" in text else self._child


def test_children_have_their_own_containers_and_answer_in_order(make_rlm: MakeRLM) -> None:
    root = TwoLevels(
        repl(WHERE + "told = rlm_query_batched(['a', 'b', 'c'])"),
        repl(
            "text = f'{[t.split()[0] for t in told]} '\n" + "hosts = {t.split()[1] for t in told}"
        ),
        repl("text += f'{len(hosts)} {where in hosts}'\n" + DONE),
        child=repl(WHERE + "text = f'{context} {where}'\n" + DONE),
    )
    done = make_rlm(root, max_depth=2, max_concurrent_subcalls=2).completion(
        "a long text", root_prompt="the root question"
    )
    assert done.response == "['a', 'b', 'c'] 3 False"


def test_children_take_containers_that_wait(make_rlm: MakeRLM) -> None:
    root = TwoLevels(
        repl("told = rlm_query_batched(['a', 'b', 'c', 'd'])\ntext = str(told)\n" + DONE),
        repl("text = str(rlm_query('e'))\n" + DONE),
        child=repl("text = context\n" + DONE),
    )
    model = make_rlm(root, max_depth=2, environment_kwargs={"pool": 2})
    try:
        done = model.completion("a long text", root_prompt="the root question")
        assert done.response == "['a', 'b', 'c', 'd']"
        options = configured_options({**model.environment_kwargs})
        assert eventually(lambda: shared_pool(options).waiting == 2)
        done = model.completion("a long text", root_prompt="the root question")
        assert done.response == "e"
    finally:
        close_pools()


def test_the_trajectory_of_a_parent_contains_that_of_its_child(make_rlm: MakeRLM) -> None:
    logger = RLMLogger()
    root = TwoLevels(
        repl("text = rlm_query('look')\n" + DONE),
        child=repl("print('in the child')\ntext = 'seen'\n" + DONE),
    )
    done = make_rlm(root, max_depth=2, logger=logger).completion(
        "text", root_prompt="the root question"
    )
    assert done.response == "seen"
    trajectory: Any = json.loads(json.dumps(logger.get_trajectory()))
    (call,) = trajectory["iterations"][0]["code_blocks"][0]["result"]["rlm_calls"]
    assert call["response"] == "seen"
    (turn,) = call["metadata"]["iterations"]
    assert turn["code_blocks"][0]["result"]["stdout"] == "in the child\n"
    assert call["metadata"]["run_metadata"]["environment_type"] == "docker"


def test_at_the_greatest_depth_a_child_is_a_plain_model(make_rlm: MakeRLM) -> None:
    root = TwoLevels(
        repl("told = rlm_query('one')\nprint(told)"),
        repl("text = told\n" + DONE),
        # In the child at depth 1, rlm_query reaches the limit of 2, so it asks the plain model.
        child=repl("deeper = rlm_query('two')\ntext = deeper[:7]\n" + DONE),
    )
    done = make_rlm(root, max_depth=2).completion("text", root_prompt="the root question")
    assert done.response == "```repl"


def test_callbacks_report_children(make_rlm: MakeRLM) -> None:
    lock = threading.Lock()
    told: list[tuple[Any, ...]] = []

    def started(depth: int, model: str, prompt: str) -> None:
        with lock:
            told.append(("start", depth, model, prompt))

    def completed(depth: int, model: str, seconds: float, error: str | None) -> None:
        with lock:
            told.append(("end", depth, model, error))

    root = TwoLevels(
        repl("told = rlm_query_batched(['a', 'b'])\ntext = str(told)\n" + DONE),
        child=repl("text = context\n" + DONE),
    )
    model = make_rlm(root, max_depth=2, on_subcall_start=started, on_subcall_complete=completed)
    assert model.completion("t", root_prompt="the root question").response == "['a', 'b']"
    assert sorted(told, key=str) == [
        ("end", 1, "scripted", None),
        ("end", 1, "scripted", None),
        ("start", 1, "scripted", "a"),
        ("start", 1, "scripted", "b"),
    ]


def test_a_child_whose_cells_fail_does_not_fail_its_parent(make_rlm: MakeRLM) -> None:
    root = TwoLevels(
        repl("told = rlm_query('x')\ntext = f'parent: {told}'\n" + DONE),
        child=repl("import os\nos._exit(1)"),
    )
    done = make_rlm(root, max_depth=2, max_iterations=2).completion(
        "text", root_prompt="the root question"
    )
    assert done.response.startswith("parent: ")


def test_a_child_that_cannot_start_is_an_error_in_the_cell(
    make_rlm: MakeRLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = ScriptedLM(repl("text = rlm_query('x')\n" + DONE))
    model = make_rlm(root, max_depth=2)
    settings = dict(model.environment_kwargs)
    subcall = model._subcall

    def with_a_wrong_image(prompt: str, name: str | None = None) -> Any:
        model.environment_kwargs = {**settings, "image": "localhost/no-such-image:0"}
        return subcall(prompt, name)

    monkeypatch.setattr(model, "_subcall", with_a_wrong_image)
    done = model.completion("text")
    assert done.response.startswith("Error: Child RLM completion failed - The image")


def test_all_levels_share_the_limit_of_the_root(make_rlm: MakeRLM) -> None:
    started: list[int] = []
    root = TwoLevels(
        repl("text = str(rlm_query_batched(['a', 'b']))\n" + DONE),
        # The child asks a model, then a child of its own, which does the same once more.
        child=repl("text = llm_query('x')[:7] + rlm_query('c')\n" + DONE),
    )
    done = make_rlm(
        root,
        max_depth=3,
        on_subcall_start=lambda depth, model, prompt: started.append(depth),
        environment_kwargs={"max_session_lm_calls": 6},
    ).completion("text", root_prompt="the root question")
    # A child is asked about "x" once; everything else that it asks starts another child.
    assert len(started) + root.prompts.count("x") == 6
    assert set(started) == {1, 2}
    assert "used up its 6 language model calls (max_session_lm_calls)" in done.response
