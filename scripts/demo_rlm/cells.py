"""The cells that the scripted root model writes: Python 3.9 and its standard library, no more.

They are text, for they run in the container. What a cell needs to know of an earlier cell's
*output*, the script puts in the place of a word in capitals; what it needs of an earlier cell's
*variables* is still there when it runs.
"""

from __future__ import annotations

from demo_rlm.corpus import RULE, TOP

LOOK = """\
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

# The wording is for a very small model: of a dozen that were tried, completing a sentence, shown
# one other, is what it does best. A first sentence that is hardly a title brings the next along.
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

ANSWER = r"""
width = max(map(len, top))
rows = []
for name in top:
    sentence = " ".join(said[name].split()).split(". ")[0].rstrip(".") + "."
    rows.append(f"{counts[name]:3}  {name:{width}}  {sentence}")
answer["content"] = "\n".join(rows)
print(len(rows), "rows")
answer["ready"] = True
"""


def count(header: str) -> str:
    """Split the text at `header` and apply the counting rule to every module."""
    return _COUNT.replace("HEADER", header).replace("RULE", RULE).replace("TOP", str(TOP))


def try_one(first: str) -> str:
    """Word the sub-call's prompt, and ask about one module."""
    return _TRY.replace("FIRST", first)


def ask(rest: list[str]) -> str:
    """Ask about the other modules at once, and look at what came back without printing it all."""
    return _ASK.replace("REST", repr(rest))
