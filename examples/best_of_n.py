"""Best of n: a recursive language model goes on three times from one state, and one is kept.

    pip install 'rlm-containers[rlms]'
    python examples/best_of_n.py [RUNTIME [IMAGE]]

A scripted model stands in for a real one, so the example needs no key and costs nothing. A real one
is a client of rlms, such as ``rlm.clients.get_client("openai", {"model_name": …})``.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rlm.clients.base_lm import BaseLM
from rlm.core.types import ModelUsageSummary, UsageSummary
from rlm.utils.parsing import find_code_blocks

from rlm_containers import Branch, Sandbox

ORDERS = "flour 2\neggs 12\nflour 5\nsugar 1\n" * 1000
QUESTION = "How much of each was ordered in all? Put it into `totals`."

#: What the model writes in each of three attempts, cell by cell.
ATTEMPTS = [
    ["totals = {}\nfor name, count in rows:\n    totals[name] += count"],
    [
        "totals = {name: count for name, count in rows}",
        "answer['content'] = str(totals)\nanswer['ready'] = True",
    ],
    [
        "from collections import Counter\n"
        "totals = Counter()\n"
        "for name, count in rows:\n"
        "    totals[name] += count",
        "said = llm_query(f'Say it in one sentence: {dict(totals)}')\n"
        "answer['content'] = said\n"
        "answer['ready'] = True",
    ],
]

Messages = list[dict[str, str]]


class ScriptedModel(BaseLM):
    """Writes the cells of one attempt after the other, and answers ``llm_query()``."""

    def __init__(self) -> None:
        super().__init__(model_name="scripted")

    def completion(self, prompt: Any) -> str:
        """Answer a prompt: text from a cell, or the messages of an attempt."""
        if isinstance(prompt, str):
            return "They ordered " + prompt.partition(": ")[2].strip("{}").replace("'", "")
        attempt = ATTEMPTS[int(prompt[0]["content"].split()[-1])]
        turn = sum(message["role"] == "assistant" for message in prompt)
        return f"```repl\n{attempt[turn]}\n```" if turn < len(attempt) else "I give up."

    async def acompletion(self, prompt: Any) -> str:
        """Answer a prompt."""
        return self.completion(prompt)

    def get_usage_summary(self) -> UsageSummary:
        """Return the usage, which rlms asks for."""
        return UsageSummary(model_usage_summaries={self.model_name: self.get_last_usage()})

    def get_last_usage(self) -> ModelUsageSummary:
        """Return the usage of the last call."""
        return ModelUsageSummary(total_calls=1, total_input_tokens=0, total_output_tokens=0)


def go_on(model: BaseLM, branch: Branch, attempt: int) -> str | None:
    """Let the model work in a branch until it has an answer or gives up. Return the answer."""
    messages: Messages = [{"role": "user", "content": f"{QUESTION} This is attempt {attempt}"}]
    for _ in range(10):
        reply = model.completion(messages)
        messages.append({"role": "assistant", "content": reply})
        cells = find_code_blocks(reply)
        if not cells:
            break
        results = [branch.execute(cell) for cell in cells]
        for result in results:
            if result.final_answer is not None:
                return result.final_answer
        said = "\n".join(result.stdout + result.stderr for result in results)
        messages.append({"role": "user", "content": said or "(no output)"})
    return None


def score(branch: Branch) -> float:
    """Return how good what an attempt has made is. This check needs no model."""
    check = "print(sum(totals.values()) / sum(count for _, count in rows))"
    result = branch.execute(check)
    return float(result.stdout) if result.status == "ok" else 0.0


def main() -> None:
    """Read the orders once, go on from there three times, and keep the best."""
    options = dict(zip(("runtime", "image"), sys.argv[1:], strict=False))
    model = ScriptedModel()
    with Sandbox(lm=model.completion, **options) as box:
        box.load("context", ORDERS)
        box.run_setup(
            "rows = [(name, int(count)) for name, count in map(str.split, context.splitlines())]"
        )
        with box.branch(len(ATTEMPTS)) as branches, ThreadPoolExecutor(len(branches)) as threads:
            numbers = range(len(branches))
            answers = list(threads.map(lambda n: go_on(model, branches[n], n), numbers))
            scores = [score(branch) for branch in branches]
            best = max(numbers, key=scores.__getitem__)
            branches[best].keep()
        for n in numbers:
            print(f"attempt {n}: {scores[n]:.2f}, {answers[n]}")
        # The sandbox goes on from the best one.
        print(box.execute("print(sorted(totals), len(rows))").stdout, end="")


if __name__ == "__main__":
    main()
