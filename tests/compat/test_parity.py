"""The same script gives the same in rlms's own local environment and in a container."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from rlm.logger import RLMLogger

from tests.compat.conftest import MakeRLM
from tests.compat.scripted import EchoLM, ScriptedLM, repl

# rlms's LM Handler never closes the socket that it listened on.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
)

#: What rlms's local environment leaves of its own: the file that it has read the context from.
LEFT = "_io.TextIOWrapper"

DONE = "answer['content'] = text\nanswer['ready'] = True"


@dataclass(frozen=True)
class Run:
    """What is compared of a run."""

    response: str
    cells: list[Any] = field(default_factory=list)
    asked: list[Any] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)


def answer(prompt: str) -> str:
    if "fail" in prompt:
        raise RuntimeError("the model is down")
    return f"re: {prompt}"


def run(make_rlm: MakeRLM, where: str, context: Any, script: tuple[str, ...], **more: Any) -> Run:
    """Run a script, and what came of it that should not depend on where."""
    logger = RLMLogger()
    root = ScriptedLM(*script)
    sub = EchoLM(answer)
    model = make_rlm(root, sub, logger=logger, **more)
    model.environment_type = where  # type: ignore[assignment]
    if where == "local":
        model.environment_kwargs = {}
    done = model.completion(context)
    trajectory = logger.get_trajectory()
    assert trajectory is not None
    cells = []
    for turn in trajectory["iterations"]:
        for block in turn["code_blocks"]:
            result = block["result"]
            calls = [(call["prompt"], call["response"]) for call in result["rlm_calls"]]
            cells.append(
                (
                    block["code"],
                    result["stdout"],
                    bool(result["stderr"]),  # a traceback here, one line there
                    sorted(n for n, form in result["locals"].items() if LEFT not in str(form)),
                    sorted(calls, key=str),
                    result["final_answer"],
                )
            )
    # The order in which the prompts of a batch arrive is not fixed.
    asked = sorted(map(str, sub.prompts))
    usage = done.usage_summary.to_dict()
    assert isinstance(done.response, str)
    return Run(done.response, cells, asked, usage)


SCRIPTS: dict[str, tuple[str, ...]] = {
    "plain": (
        repl("words = context.split()\nprint(len(words), words[0])"),
        repl("text = ' '.join(sorted(set(words)))\n" + DONE),
    ),
    "questions": (
        repl("one = llm_query(context.split()[0])\nprint(one)"),
        repl("many = llm_query_batched(['a', 'b', 'c'])\nprint(many)"),
        repl("none = llm_query_batched([])\nnamed = llm_query('x', model='echo')"),
        repl("text = f'{one} {many} {none} {named}'\n" + DONE),
    ),
    "failing questions": (
        repl("one = llm_query('fail')\nmany = llm_query_batched(['a', 'fail'])"),
        repl("text = f'{one} {many}'\nprint(text)\n" + DONE),
    ),
    "recursion without depth": (
        repl("one = rlm_query('x')\nmany = rlm_query_batched(['y', 'z'])"),
        repl("text = f'{one} {many}'\n" + DONE),
    ),
    "errors": (
        repl("x = 1\n1 / 0"),
        repl("print('before')\nundefined_name"),
        repl("y = ("),
        repl("import no_such_module"),
        repl("text = 'after all'\n" + DONE),
    ),
    "several cells in a message": (
        f"First {repl('a = 1')} and then {repl('b = a + 1; print(b)')} so.",
        f"{repl('text = str(b)')}\n{repl(DONE)}\n{repl('c = 3')}",
    ),
    "no cell in a message": ("I think about it.", repl("text = 'thought'\n" + DONE)),
    "scaffold overwritten": (
        repl("llm_query = None\ncontext = 'gone'\nSHOW_VARS = 5"),
        repl("text = llm_query('still') + context\n" + DONE),
    ),
    "answer rebound": (repl("answer = {'content': 'rebound', 'ready': True}"),),
    "answer in parts": (
        repl("answer['content'] = 'part'"),
        repl("answer['content'] += ' and part'\nprint(answer['ready'])"),
        repl("answer['ready'] = True"),
    ),
    "answer that is no text": (repl("answer['content'] = 42\nanswer['ready'] = True"),),
    "show vars": (
        repl("print(SHOW_VARS())\nnumber = 1\n_private = 2"),
        repl("print(SHOW_VARS())\ntext = 'x'\n" + DONE),
    ),
    "functions and classes": (
        repl("import re\ndef f(x): return re.sub('a', 'b', x)\nclass C: pass\nc = C()"),
        repl("text = f('banana') + type(c).__name__\n" + DONE),
    ),
    "unicode": (
        repl("print('ünï€🐍')\nx = llm_query('ünï€🐍')"),
        repl("text = x\n" + DONE),
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script(make_rlm: MakeRLM, name: str) -> None:
    local = run(make_rlm, "local", "the quick brown fox", SCRIPTS[name])
    ours = run(make_rlm, "docker", "the quick brown fox", SCRIPTS[name])
    assert ours == local


@pytest.mark.parametrize(
    "context",
    [
        "",
        "text",
        ["a", "b"],
        {"key": "value", "n": "1"},
        [{"role": "user", "content": "hello"}],
    ],
    ids=str,
)
def test_a_context(make_rlm: MakeRLM, context: Any) -> None:
    script = (
        repl("print(type(context).__name__, context, context_0 == context)"),
        repl("text = repr(context)\n" + DONE),
    )
    local = run(make_rlm, "local", context, script)
    assert run(make_rlm, "docker", context, script) == local
    assert local.response == repr(context)


def test_the_limit_of_iterations(make_rlm: MakeRLM) -> None:
    script = (repl("x = 1"), repl("x += 1"), "out of iterations")
    local = run(make_rlm, "local", "text", script, max_iterations=2)
    assert run(make_rlm, "docker", "text", script, max_iterations=2) == local
    assert local.response == "out of iterations"


def test_compaction(make_rlm: MakeRLM) -> None:
    script = (
        # Each turn is over the threshold, so a summary is asked for before each.
        "nothing yet: a first summary",
        repl("kept = len(history)\nprint(history)"),
        "the second summary",
        repl("print([type(entry).__name__ for entry in history])\nhistory = 'gone'"),
        "the third summary",
        repl(
            "summaries = [e['content'] for e in history if isinstance(e, dict)]\n"
            "text = f'{kept} {len(history)} {summaries}'\n" + DONE
        ),
    )
    options = {"compaction": True, "compaction_threshold_pct": 0.0}
    local = run(make_rlm, "local", "text", script, **options)
    ours = run(make_rlm, "docker", "text", script, **options)
    assert ours == local
    assert "the third summary" in ours.response
