"""``llm_query()`` by both ways to the host. What it does is tested in tests/behaviour/test_lm.py."""

from __future__ import annotations

from typing import Literal

import pytest

from rlm_containers import Sandbox
from tests.support import Engine, printed


@pytest.mark.parametrize(("network", "route"), [("bridge", "http"), ("none", "pipe")])
def test_calls_of_a_model(engine: Engine, network: Literal["bridge", "none"], route: str) -> None:
    with Sandbox(engine.image(), runtime=engine.runtime, lm=str.upper, network=network) as box:
        assert box.lm_route == route
        assert printed(box, "print(llm_query('a'), llm_query_batched(['b', 'c']))") == (
            "A ['B', 'C']\n"
        )
        assert printed(box, "print(len(llm_query('x' * 5_000_000)))") == "5000000\n"
        assert box.execute("import os; os._exit(1)").status == "died"
        assert printed(box, "print(llm_query('again'))") == "AGAIN\n"
