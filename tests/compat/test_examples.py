"""The examples run as they are, on a real engine, and print what they should."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import Engine, on_ci

EXAMPLES = Path(__file__).parent.parent.parent / "examples"

#: The end of each example's output.
PRINTED = {
    "sandbox": "radius is still 3\n",
    "session": "{'apples': '3', 'pears': '4'}\n['example'] ['as counted']\n",
    "best_of_n": "['eggs', 'flour', 'sugar'] 4000\n",
    "many_at_once": "The Quick Brown Fox 19\nJumps Over 10\nThe Lazy Dog 12\n",
    "rlm_with_tools": "How many? 2 orders, metric\n",
    "dspy_rlm": "The answer: 7411\n",
}


def test_every_example_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == PRINTED.keys()


@pytest.mark.parametrize("name", PRINTED)
def test_an_example(engine: Engine, name: str) -> None:
    if name == "dspy_rlm" and not on_ci():
        pytest.importorskip("dspy", reason="dspy is not installed")
    done = subprocess.run(
        (sys.executable, EXAMPLES / f"{name}.py", engine.runtime, engine.image()),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(PRINTED[name])
