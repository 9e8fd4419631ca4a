"""Limits of time and of calls: what reaches them ends, the session does not."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from rlm_containers import Sandbox
from tests.conftest import MakeBox
from tests.support import Engine, execute, interpreter_of, printed, set_grace

LIMIT = 1.0
NOTICE = "The cell reached its limit of 1 s (cell_timeout) and was interrupted.\n"


def answer(prompt: str) -> str:
    """What the model of this module says, and how long it takes for that."""
    if prompt == "slow":
        time.sleep(1.5 * LIMIT)
    return prompt.upper()


@pytest.fixture(scope="module")
def box(engine: Engine) -> Iterator[Sandbox]:
    """A sandbox with a limit."""
    with Sandbox(engine.image(), runtime=engine.runtime, cell_timeout=LIMIT) as box:
        printed(box, "import os, signal, subprocess, time\nkept = 'kept'")
        yield box


@pytest.fixture(scope="module", params=["http", "pipe"])
def lm_box(engine: Engine, request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A sandbox with limits, by each of the ways to a model."""
    with Sandbox(
        engine.image(),
        runtime=engine.runtime,
        network="bridge" if request.param == "http" else "none",
        lm=answer,
        cell_timeout=LIMIT,
        max_lm_calls=3,
    ) as box:
        assert box.lm_route == request.param
        yield box


@pytest.fixture
def short_grace(box: Sandbox) -> Iterator[None]:
    """Shorten the grace time, for cells that ignore an interrupt."""
    deadlines = interpreter_of(box).deadlines
    before = deadlines.grace
    set_grace(box, 0.5)
    yield
    set_grace(box, before)


def test_a_runaway_cell_is_interrupted_and_keeps_its_variables(box: Sandbox) -> None:
    result = box.execute("changed = 1\nprint('begun')\nwhile True: pass")
    assert (result.status, result.stdout, result.lost) == ("timeout", "begun\n", ())
    assert result.stderr.endswith("KeyboardInterrupt\n" + NOTICE)
    assert printed(box, "print(kept, changed)") == "kept 1\n"


@pytest.mark.parametrize(
    "code",
    [
        "sum(range(10 ** 15))",
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(60)",
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])\ntime.sleep(60)",
        "while True:\n    try: time.sleep(60)\n    except BaseException: pass",
    ],
)
@pytest.mark.usefixtures("short_grace")
def test_a_cell_that_takes_no_notice_is_killed(box: Sandbox, code: str) -> None:
    result = box.execute(f"gone = 1\nprint('begun')\n{code}")
    assert (result.status, result.stdout, result.lost) == ("killed", "begun\n", ())
    assert result.stderr.startswith(NOTICE + "It did not end within 0.5 s after its interrupt")
    assert printed(box, "print(kept, 'gone' in globals())") == "kept False\n"


def test_waiting_for_a_model_takes_no_time(lm_box: Sandbox) -> None:
    code = "print(*llm_query_batched(['slow', 'quick']))"
    assert printed(lm_box, code) == "SLOW QUICK\n"
    result = lm_box.execute("print(llm_query('slow'))\nwhile True: pass")
    assert (result.status, result.stdout) == ("timeout", "SLOW\n")


@pytest.mark.usefixtures("short_grace")
def test_an_interrupt_that_is_ignored_ends_in_a_kill(box: Sandbox) -> None:
    result = execute(
        box,
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('begun')\ntime.sleep(60)",
        on_output=lambda *_: box.interrupt(),
    )
    assert (result.status, result.stdout) == ("killed", "begun\n")
    assert result.stderr.startswith(
        "It did not end within 0.5 s after its interrupt and was killed."
    )
    assert printed(box, "print(kept)") == "kept\n"


def test_a_checkpoint_without_end(box: Sandbox) -> None:
    code = "class Slow:\n    def __reduce__(self):\n        while True: pass\nslow = Slow()"
    printed(box, code)
    result = box.execute("print(kept)")
    assert (result.status, result.stdout) == ("ok", "kept\n")
    assert "Not saved: slow (Slow): saving it took too long." in result.stderr
    printed(box, "del slow")
    assert not box.unsaved


def test_the_limit_of_calls(lm_box: Sandbox) -> None:
    refusal = (
        "Error: this cell has made the 3 calls of a language model it may make (max_lm_calls)\n"
    )
    result = execute(
        lm_box,
        """
        print(llm_query('a'))
        print(*llm_query_batched(['b', 'c', 'd']), sep='\\n')
        print(rlm_query('e'))
        """,
    )
    assert result.stdout == f"A\nB\nC\n{refusal}{refusal}"
    assert [call.prompt for call in result.lm_calls] == ["a", "b", "c"]
    assert printed(lm_box, "print(llm_query('f'))") == "F\n"


def test_a_model_that_does_not_answer_in_time(make_box: MakeBox) -> None:
    go_on = threading.Event()
    box = make_box(lm=lambda prompt: go_on.wait(30) and prompt, lm_timeout=0.3)
    error = "Error: Request failed: lm did not answer in 0.3 s (lm_timeout)\n"
    assert printed(box, "print(llm_query('x'))") == error
    go_on.set()
