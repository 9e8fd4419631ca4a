"""The root model of a demo without an API key: a script that reads each output and goes on from it.

It gets the whole message history, like a root model, and returns prose and ```repl blocks. So rlms,
the container and the sub-calls work as for a real model. What it writes depends on what it reads:
the header line to split at, the modules to ask about, and what to do with the answers.

Its cells are Python 3.9 with the standard library only. The script replaces words in capitals by
what it has read. Variables of earlier cells are still there.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from typing import Any

from rlm.clients.base_lm import BaseLM
from rlm.core.types import ModelUsageSummary, UsageSummary

from demo_rlm.corpus import QUESTION, RULE, TOP

_LOOK_CELL = """\
import os, platform
print(f"Python {platform.python_version()} on {platform.node()}, uid {os.getuid()}")
print(f"context: {type(context).__name__}, {len(context):,} characters")
print(context[:120])"""

_COUNT = r"""
import re
parts = re.split(r"(?m)^HEADER (\S+)\n", context)
modules = dict(zip(parts[1::2], parts[2::2]))
rule = re.compile(r"(?m)RULE")
counts = {name: len(rule.findall(text)) for name, text in modules.items()}
top = sorted(counts, key=lambda name: (-counts[name], name))[:TOP]
print(len(modules), "modules")
for name in top:
    print(f"{counts[name]:4} {name}")
"""

# This wording is for a very small model, which does best at completing a sentence after it has read
# another one. A first sentence as short as a title takes the next one along.
_TRY = r'''
docstring = re.compile(r"""(?:\s|#[^\n]*\n)*[rR]?("{3}|'{3}|"|')\\?(.*?)\1""", re.S)
def start(name):
    found = docstring.match(modules[name])
    text = re.sub(r"[.]?\n\s*\n", ". ", found.group(2).strip()) if found else name
    return re.match(r".{,24}.*?(?:[.](?= )|$)", " ".join(text.split())).group()[:400]
def prompt(name):
    return (f"Here is the documentation of the Python module {name}:\n\n{start(name)}\n\n"
            f"Complete this sentence: The {name} module is used to ...")
said = {"FIRST": llm_query(prompt("FIRST"))}
print(said["FIRST"])
'''

_ASK = """
rest = REST
said.update(zip(rest, llm_query_batched([prompt(name) for name in rest])))
print("answers:", len(said))
print("failed:", [n for n, s in said.items() if not s.strip() or s.startswith("Error")])
print("more than one sentence:", [n for n, s in said.items() if ". " in s.strip()])
"""

_ANSWER_CELL = r"""
width = max(map(len, top))
rows = []
for name in top:
    sentence = " ".join(said[name].split()).split(". ")[0].rstrip(".") + "."
    rows.append(f"{counts[name]:3}  {name:{width}}  {sentence}")
answer["content"] = "\n".join(rows)
print(len(rows), "rows")
answer["ready"] = True
"""


def _count_cell(header: str) -> str:
    """Split the text at `header` and apply the counting rule to every module."""
    return _COUNT.replace("HEADER", header).replace("RULE", RULE).replace("TOP", str(TOP))


def _try_cell(first: str) -> str:
    """Word the sub-call's prompt, and ask about one module."""
    return _TRY.replace("FIRST", first)


def _ask_cell(rest: list[str]) -> str:
    """Ask about the other modules at once, and look at what came back without printing it all."""
    return _ASK.replace("REST", repr(rest))


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
    return _reply("First a look at where I am and at what I was given.", _LOOK_CELL)


def _count(outputs: list[str]) -> str:
    size = _find(r"^context: str, ([\d,]+) characters$", outputs[-1])
    header = _find(r"^(### \w+) \S+$", outputs[-1])
    return _reply(
        f'{size} characters fit into no prompt, and counting needs none. A "{header}" line starts '
        "each module: I split there and count in Python.",
        _count_cell(header),
    )


def _try_one(outputs: list[str]) -> str:
    modules, ranked = _find(r"^(\d+) modules$", outputs[-1]), _ranked(outputs[-1])
    return _reply(
        f"That leaves {len(ranked)} of {modules} modules. What they are for stands in their "
        f"docstrings: a question for sub-calls. I try my wording on {ranked[0]} first.",
        _try_cell(ranked[0]),
    )


def _ask(outputs: list[str]) -> str:
    if not outputs[-1] or outputs[-1].startswith("Error"):
        raise ScriptError(f"the first sub-call failed:\n{outputs[-1]}")
    rest = _ranked(outputs[1])[1:]
    return _reply(
        f"A sentence I can use. The same for the other {len(rest)}, in one batch.", _ask_cell(rest)
    )


def _answer(outputs: list[str]) -> str:
    if _find(r"^failed: (.*)$", outputs[-1]) != "[]" or f"answers: {TOP}" not in outputs[-1]:
        raise ScriptError(f"some sub-calls failed:\n{outputs[-1]}")
    long = ast.literal_eval(_find(r"^more than one sentence: (\[.*\])$", outputs[-1]))
    remark = f"{' and '.join(long)} got more than one sentence: I keep the first. " if long else ""
    return _reply(f"{remark}Counts and sentences make the table.", _ANSWER_CELL)


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
