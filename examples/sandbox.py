"""The sandbox alone: cells, ``llm_query()``, live output, and a crash that loses no variable.

pip install rlm-containers
python examples/sandbox.py [RUNTIME [IMAGE]]
"""

import sys

from rlm_containers import Sandbox


def model(prompt: str) -> str:
    """Answer a prompt. Stands in for a language model: any such callable can be one."""
    return f"{len(prompt.split())} words"


def main() -> None:
    """Run some cells."""
    options = dict(zip(("runtime", "image"), sys.argv[1:], strict=False))
    with Sandbox(lm=model, **options) as box:
        box.execute("import math\nradius = 3")
        print(box.execute("print(f'{math.pi * radius ** 2:.2f}')").stdout, end="")
        print(box.execute("print(llm_query('how many words are these'))").stdout, end="")
        box.execute("print('seen while it runs')", on_output=lambda _, text: print(text, end=""))
        failed = box.execute("1 / 0")
        print(failed.status, "-", failed.stderr.splitlines()[-1])
        died = box.execute("import os; os._exit(1)")
        print(died.status, "-", died.stderr.splitlines()[0])
        print("radius is still", box.execute("print(radius)").stdout, end="")


if __name__ == "__main__":
    main()
