"""The root model of a demo without an API key: a script that reads each output and goes on from it.

It is no model. It is handed what a root model is handed (the whole message history) and returns
what a root model returns (prose and ```repl blocks), so RLM, the container and the sub-calls do
exactly what they would do for a real one. What it writes depends on what it reads: the header line
it splits at, the modules it asks about and what it does to the answers come from the REPL's output.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from typing import Any

from rlm.clients.base_lm import BaseLM
from rlm.core.types import ModelUsageSummary, UsageSummary

from demo_rlm import cells
from demo_rlm.corpus import QUESTION, TOP


class ScriptError(Exception):
    """The REPL's output is not one that the script can go on from."""


class ScriptedRoot(BaseLM):
    """Five turns: look, count, try one sub-call, ask the rest, answer."""

    def __init__(self, model_name: str = "script") -> None:
        super().__init__(model_name=model_name)

    def completion(self, prompt: Any) -> str:
        """One turn, told from the message history alone: the script keeps no state."""
        if not any(QUESTION in str(message["content"]) for message in prompt):
            raise ScriptError("the script knows one question only; another one needs a model")
        outputs = [_printed(m["content"]) for m in prompt if m["content"].startswith("REPL output")]
        turns: list[Callable[[list[str]], str]] = [_look, _count, _try_one, _ask, _answer]
        if len(outputs) == len(turns):
            raise ScriptError(f"the last cell did not end the run:\n{outputs[-1]}")
        return turns[len(outputs)](outputs)

    async def acompletion(self, prompt: Any) -> str:
        """The same; RLM asks its root model one thing at a time."""
        return self.completion(prompt)

    def get_usage_summary(self) -> UsageSummary:
        """Nothing: a script uses no tokens."""
        return UsageSummary(model_usage_summaries={})

    def get_last_usage(self) -> ModelUsageSummary:
        """Nothing: a script uses no tokens."""
        return ModelUsageSummary(total_calls=1, total_input_tokens=0, total_output_tokens=0)


def _look(_: list[str]) -> str:
    return _reply("First a look at where I am and at what I was given.", cells.LOOK)


def _count(outputs: list[str]) -> str:
    size = _find(r"^context: str, ([\d,]+) characters$", outputs[-1])
    header = _find(r"^(### \w+) \S+$", outputs[-1])
    return _reply(
        f'{size} characters fit into no prompt, and counting needs none. A "{header}" line starts '
        "each module: I split there and count in Python.",
        cells.count(header),
    )


def _try_one(outputs: list[str]) -> str:
    modules, ranked = _find(r"^(\d+) modules$", outputs[-1]), _ranked(outputs[-1])
    return _reply(
        f"That leaves {len(ranked)} of {modules} modules. What they are for stands in their "
        f"docstrings: a question for sub-calls. I try my wording on {ranked[0]} first.",
        cells.try_one(ranked[0]),
    )


def _ask(outputs: list[str]) -> str:
    if not outputs[-1] or outputs[-1].startswith("Error"):
        raise ScriptError(f"the first sub-call failed:\n{outputs[-1]}")
    rest = _ranked(outputs[1])[1:]
    return _reply(
        f"A sentence I can use. The same for the other {len(rest)}, in one batch.", cells.ask(rest)
    )


def _answer(outputs: list[str]) -> str:
    if _find(r"^failed: (.*)$", outputs[-1]) != "[]" or f"answers: {TOP}" not in outputs[-1]:
        raise ScriptError(f"some sub-calls failed:\n{outputs[-1]}")
    long = ast.literal_eval(_find(r"^more than one sentence: (\[.*\])$", outputs[-1]))
    remark = f"{' and '.join(long)} got more than one sentence: I keep the first. " if long else ""
    return _reply(f"{remark}Counts and sentences make the table.", cells.ANSWER)


def _reply(prose: str, cell: str) -> str:
    return f"{prose}\n\n```repl\n{cell.strip()}\n```"


def _printed(message: str) -> str:
    """What a cell printed, out of the message in which RLM hands it to the root model."""
    return message.partition("\n")[2].partition("\nREPL variables:")[0].strip()


def _ranked(output: str) -> list[str]:
    return re.findall(r"(?m)^ *\d+ ([\w.]+)$", output.partition(" modules\n")[2])


def _find(pattern: str, output: str) -> str:
    found = re.search(pattern, output, re.MULTILINE)
    if found is None:
        raise ScriptError(f"the script looked for {pattern} in this output:\n{output}")
    return found.group(1)
