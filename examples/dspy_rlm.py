"""A recursive language model of DSPy whose code runs in a container.

    pip install 'rlm-containers[dspy]'
    python examples/dspy_rlm.py [RUNTIME [IMAGE]]

A scripted model stands in for a real one, so the example needs no key and costs nothing. To use a
real one, pass its name to ``dspy.LM`` and leave out ``sub_lm``.
"""

import re
import sys

import dspy
from dspy.utils import DummyLM

from rlm_containers.integrations.dspy import ContainerInterpreter

# Cells that a model might write to find one number in a long text.
STEPS = [
    "lines = context.splitlines()\nprint(len(lines), 'lines,', len(context), 'characters')",
    "found = [line for line in lines if 'magic' in line]\nprint(found)",
    "number = int(llm_query(f'Which number is in here? {found[0]}'))\nprint(is_prime(number))",
    "SUBMIT(answer=number)",
]


def scripted_sub_model(prompt: str) -> list[str]:
    """Answer ``llm_query()`` with the last number in the prompt."""
    return [re.findall(r"\d+", prompt)[-1]]


def is_prime(number: int) -> bool:
    """Tell whether a number is prime. Cells in the container call it, and it runs on the host."""
    return number > 1 and all(number % n for n in range(2, int(number**0.5) + 1))


def main() -> None:
    """Ask a question, and show what the model did."""
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
