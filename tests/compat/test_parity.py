"""A script gives the same results in rlms's own local environment and in a container.

The whole logged trajectory and the completion are compared field by field. :func:`comparable` drops
what may differ, and says why.
"""

from __future__ import annotations

import ast
import contextlib
import re
from typing import Any

import pytest
from rlm.logger import RLMLogger

from tests.compat.conftest import MakeRLM
from tests.compat.scripted import EchoLM, ScriptedLM, repl

DONE = "answer['content'] = text\nanswer['ready'] = True"

#: Fields about when, how long and where something ran.
_OF_THE_RUN = {
    "environment_kwargs",
    "environment_type",
    "execution_time",
    "iteration_time",
    "start_time",
    "timestamp",
}

#: Variables that rlms's local environment leaves: the file of the context, and the module that
#: read it.
_LEFT = re.compile(r"'f': 'TextIOWrapper', |'json': 'module', ")

#: The list of variables that the model is given. In the local environment it has text, numbers and
#: collections; in containers, those of rlms too, also functions and modules.
_TOLD = re.compile(r"REPL variables: \[.*?\]")


def comparable(value: Any, *, failed: bool = False) -> Any:
    """Return what should not depend on where the cells ran.

    Args:
        value: the trajectory, or a part of it.
        failed: whether a cell of it fails. The local environment drops the variables of such a
            cell and prints one line of its error; a container keeps them and prints a traceback.
    """
    if isinstance(value, list):
        return [comparable(item, failed=failed) for item in value]
    if isinstance(value, str):
        return _TOLD.sub("", _LEFT.sub("", value))
    if not isinstance(value, dict):
        return value
    same = {k: comparable(v, failed=failed) for k, v in value.items() if k not in _OF_THE_RUN}
    if "code_blocks" in value:
        # In a container, each later cell of the message reports the answer again.
        answers = [block["result"].pop("final_answer") for block in same["code_blocks"]]
        same["first_answer"] = next((answer for answer in answers if answer is not None), None)
    if "stderr" in value:
        same["stderr"] = bool(value["stderr"].strip())
        same["locals"] = None if failed else _forms(value["locals"])
    if "rlm_calls" in value:  # the prompts of a batch come in any order
        same["rlm_calls"].sort(key=lambda call: (str(call["prompt"]), call["response"]))
    if failed:
        same.pop("prompt", None)  # the prompt quotes the errors
    return same


def _forms(variables: dict[str, Any]) -> dict[str, Any]:
    """Return the values of variables, as far as both logs show them."""
    forms: dict[str, Any] = {}
    for name, value in variables.items():
        text = str(value)
        if name in ("f", "json") and text.startswith(("<_io.TextIOWrapper", "<module")):
            continue
        # Functions and the like: one log has the name, the other the repr. The answer: the local
        # log has the dict itself, with what later cells of the same message put into it.
        hidden = name == "answer" or text.startswith("<") or len(text) > 50
        forms[name] = None if hidden else value
    return forms


def values_of(trajectory: dict[str, Any]) -> None:
    """Replace short reprs in a trajectory of a container with their values."""
    for turn in trajectory["iterations"]:
        for block in turn["code_blocks"]:
            variables = block["result"]["locals"]
            for name, form in variables.items():
                with contextlib.suppress(ValueError, SyntaxError):
                    variables[name] = ast.literal_eval(form)


def differences(ours: Any, local: Any, path: str = "") -> list[str]:
    """List where two structures differ, and how."""
    if isinstance(ours, dict) and isinstance(local, dict) and ours.keys() == local.keys():
        return [d for key in ours for d in differences(ours[key], local[key], f"{path}.{key}")]
    if isinstance(ours, list) and isinstance(local, list) and len(ours) == len(local):
        pairs = enumerate(zip(ours, local, strict=True))
        return [d for n, (one, other) in pairs for d in differences(one, other, f"{path}[{n}]")]
    return [] if ours == local else [f"{path}: {ours!r} here, {local!r} there"]


def answer(prompt: str) -> str:
    if "fail" in prompt:
        raise RuntimeError("the model is down")
    return f"re: {prompt}"


def run(
    make_rlm: MakeRLM, where: str, context: Any, script: tuple[str, ...], **more: Any
) -> dict[str, Any]:
    """Run a script, and return what should not depend on where it runs."""
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
    if where == "docker":
        values_of(trajectory)
    return {
        "trajectory": comparable(trajectory, failed=bool(FAILS.search("".join(script)))),
        "asked": sorted(map(str, sub.prompts)),
        "usage": done.usage_summary.to_dict(),
        "response": done.response,
    }


#: Matches only cells that fail.
FAILS = re.compile(r"1 / 0|undefined_name|y = \(\n|no_such_module")

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
    # No classes: rlms's local environment has no __build_class__.
    "functions and modules": (
        repl("import re\ndef swap(x): return re.sub('a', 'b', x)\nsquare = lambda n: n * n"),
        repl("text = swap('banana') + str(square(3))\n" + DONE),
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
    assert differences(ours, local) == []


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
    assert differences(run(make_rlm, "docker", context, script), local) == []
    assert local["response"] == repr(context)


def test_the_limit_of_iterations(make_rlm: MakeRLM) -> None:
    script = (repl("x = 1"), repl("x += 1"), "out of iterations")
    local = run(make_rlm, "local", "text", script, max_iterations=2)
    assert differences(run(make_rlm, "docker", "text", script, max_iterations=2), local) == []
    assert local["response"] == "out of iterations"


def test_compaction(make_rlm: MakeRLM) -> None:
    script = (
        # Each turn is over the threshold, so rlms asks for a summary before each.
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
    assert differences(ours, local) == []
    assert "the third summary" in ours["response"]


def test_a_verbose_run(make_rlm: MakeRLM, capsys: pytest.CaptureFixture[str]) -> None:
    def shown(where: str) -> list[str]:
        run(make_rlm, where, "the quick brown fox", SCRIPTS["questions"], verbose=True)
        text = capsys.readouterr().out
        # Times, and the spaces and lines that fill a row, differ.
        rows = re.sub(r"\d+\.\d+s", "", text).splitlines()
        return [re.sub(r"[\s─━]+", " ", row) for row in rows]

    local = shown("local")
    assert differences(shown("docker"), local) == []
    assert any("Output:" in row for row in local)
