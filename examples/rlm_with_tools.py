"""A recursive language model of rlms in a container, with tools that run on the host.

    pip install 'rlm-containers[rlms]'
    python examples/rlm_with_tools.py [RUNTIME [IMAGE]]

A scripted model stands in for a real one, so the example needs no key and costs nothing. To use a
real one, leave out ``use_scripted_model()`` and name a model of your provider.
"""

import sys
from typing import Any

import rlm.core.rlm
from rlm import RLM
from rlm.clients.base_lm import BaseLM
from rlm.core.types import ModelUsageSummary, UsageSummary
from rlm.logger import RLMLogger

import rlm_containers

ORDERS = {"A-17": "2 kg of flour", "B-4": "a dozen eggs"}

# Cells that a model might write. The second question finds the variables of the first.
CELLS = [
    "ids = [line.split()[-1] for line in context.splitlines() if 'order' in line]\nprint(ids)",
    "found = {i: look_up(i) for i in ids}\nprint(found)",
    "said = llm_query(f'Say it in one sentence: {found}')\n"
    "answer['content'] = said\nanswer['ready'] = True",
    "answer['content'] = f'{len(found)} orders, {UNIT}'\nanswer['ready'] = True",
]


def look_up(order: str) -> str:
    """Look up an order. Cells in the container call it, and it runs on the host."""
    return ORDERS[order]


class ScriptedModel(BaseLM):
    """Writes the cells one after the other, and answers ``llm_query()``."""

    def __init__(self) -> None:
        super().__init__(model_name="scripted")
        self.cells = list(CELLS)

    def completion(self, prompt: Any) -> str:
        """Answer a prompt: text from a cell, or messages from RLM."""
        if isinstance(prompt, str):
            return f"Somebody wants {' and '.join(ORDERS.values())}."
        return f"```repl\n{self.cells.pop(0)}\n```"

    async def acompletion(self, prompt: Any) -> str:
        """Answer a prompt."""
        return self.completion(prompt)

    def get_usage_summary(self) -> UsageSummary:
        """Return the usage, which RLM asks for."""
        return UsageSummary(model_usage_summaries={self.model_name: self.get_last_usage()})

    def get_last_usage(self) -> ModelUsageSummary:
        """Return the usage of the last call."""
        return ModelUsageSummary(total_calls=1, total_input_tokens=0, total_output_tokens=0)


def use_scripted_model() -> None:
    """Make RLM use the scripted model, whatever backend is named."""
    model = ScriptedModel()
    rlm.core.rlm.get_client = lambda backend, arguments: model


def main() -> None:
    """Ask two questions of one environment, and show what the cells did."""
    use_scripted_model()
    rlm_containers.register()  # now environment="docker" is this project's
    log = RLMLogger()
    with RLM(
        backend="openai",
        backend_kwargs={"model_name": "scripted"},
        environment="docker",
        environment_kwargs=dict(zip(("runtime", "image"), sys.argv[1:], strict=False)),
        custom_tools={
            "look_up": {"tool": look_up, "description": "What an order is about."},
            "UNIT": "metric",
        },
        persistent=True,
        logger=log,
    ) as model:
        letters = "\n".join(f"I write about order {order}" for order in ORDERS)
        for question, context in (("What do they want?", letters), ("How many?", "")):
            answer = model.completion(context, root_prompt=question).response
            for turn in log.get_trajectory()["iterations"]:
                for block in turn["code_blocks"]:
                    print(">>>", block["code"].replace("\n", "\n... "))
                    print(block["result"]["stdout"], end="")
            print(question, answer)


if __name__ == "__main__":
    main()
