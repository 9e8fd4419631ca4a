"""A recursive language model of DSPy that works in a container.

    pip install 'rlm-containers[dspy]'
    python examples/dspy_rlm.py [RUNTIME [IMAGE]]

It runs as it is: a scripted model stands in for a real one, so there is no key and no cost. To see
a real one at work, pass its name to ``dspy.LM`` and leave out ``sub_lm``.
"""

import re
import sys

import dspy
from dspy.utils import DummyLM

from rlm_containers.integrations.dspy import ContainerInterpreter

# What a model might write, step by step, to find one number in a long text.
STEPS = [
    "lines = context.splitlines()\nprint(len(lines), 'lines,', len(context), 'characters')",
    "found = [line for line in lines if 'magic' in line]\nprint(found)",
    "number = int(llm_query(f'Which number is in here? {found[0]}'))\nprint(is_prime(number))",
    "SUBMIT(answer=number)",
]


def scripted_sub_model(prompt: str) -> list[str]:
    """Answers ``llm_query()``: finds the last number in the prompt."""
    return [re.findall(r"\d+", prompt)[-1]]


def is_prime(number: int) -> bool:
    """Whether a number is prime. Runs here, on the host, when a cell in the container calls it."""
    return number > 1 and all(number % n for n in range(2, int(number**0.5) + 1))


def main() -> None:
    """Ask, and show what the model did."""
    options = dict(zip(("runtime", "image"), sys.argv[1:], strict=False))
    dspy.configure(
        lm=DummyLM([{"reasoning": f"Step {n}.", "code": code} for n, code in enumerate(STEPS, 1)]),
        # Without options: interpreter_factory=ContainerInterpreter
        interpreter_factory=ContainerInterpreter.factory(**options),
    )
    context = "\n".join(f"This is line {number}." for number in range(200_000))
    context = context.replace("line 123456.", "line 123456, and the magic is in 7411.")
    finder = dspy.RLM(
        "context, question -> answer: int", tools=[is_prime], sub_lm=scripted_sub_model
    )
    result = finder(context=context, question="Which number is magic?")
    for step in result.trajectory:
        print(">>>", step["code"].replace("\n", "\n... "))
        print(step["output"])
    print("The answer:", result.answer)


if __name__ == "__main__":
    main()
