"""Time limits of cells, checkpoints and restores, and what happens past them."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from rlm_containers import Sandbox
from rlm_containers.errors import SandboxLostError, SetupCodeError
from rlm_containers.lm import LMBroker
from tests.support import TIMEOUT, execute, interpreter_of, set_grace
from tests.unit.guests import LocalRuntime
from tests.unit.sessions import DIE, Boxes, revive, run, settle, workspace_of

#: These tests are of the file: no heir may keep what is lost, or leave out a checkpoint.
OPTIONS = {"heirs": "never"}

LIMIT = 0.5

AT_THE_LIMIT = f"The cell reached its limit of {LIMIT:g} s (cell_timeout) and was interrupted.\n"

#: Ignores interrupts.
STUBBORN = """
while True:
    try:
        time.sleep(60)
    except BaseException:
        pass
"""


@pytest.fixture
def box(boxes: Boxes) -> Sandbox:
    box = boxes(cell_timeout=LIMIT)
    run(box, "import time\nkept = 'kept'")
    return box


def test_at_the_limit_a_cell_is_interrupted(box: Sandbox) -> None:
    result = execute(
        box,
        """
        changed = 'changed'
        print('begun')
        time.sleep(60)
        print('never')
        """,
    )
    assert (result.status, result.stdout) == ("timeout", "begun\n")
    assert result.stderr.endswith("KeyboardInterrupt\n" + AT_THE_LIMIT)
    assert (result.lost, result.locals["changed"]) == ((), "'changed'")
    assert run(box, "print(kept, changed)").stdout == "kept changed\n"


def test_a_cell_that_handles_its_interrupt_has_timed_out(box: Sandbox) -> None:
    result = execute(
        box,
        """
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            print('tidied up')
        """,
    )
    assert (result.status, result.stdout, result.stderr) == (
        "timeout",
        "tidied up\n",
        AT_THE_LIMIT,
    )


def test_an_interrupt_that_is_swallowed_once_is_repeated(box: Sandbox) -> None:
    set_grace(box, 2.0)
    result = execute(
        box,
        """
        try:
            time.sleep(60)
        except:
            pass
        changed = 'changed'
        time.sleep(60)
        """,
    )
    assert result.status == "timeout"
    assert run(box, "print(changed)").stdout == "changed\n"


@pytest.mark.parametrize(
    "code",
    [
        STUBBORN,
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(60)",
        "import signal\nsignal.signal(signal.SIGINT, lambda *_: None)\nwhile True: pass",
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])\ntime.sleep(60)",
        "sum(range(10 ** 15))",
    ],
)
def test_a_cell_that_ignores_its_interrupt_is_killed(box: Sandbox, code: str) -> None:
    set_grace(box, 0.4)
    result = box.execute(f"print('begun')\nchanged = 1\n{code}")
    assert (result.status, result.stdout, result.lost) == ("killed", "begun\n", ())
    assert result.stderr.startswith(
        AT_THE_LIMIT
        + "It did not end within 0.4 s after its interrupt and was killed.\n"
        + "The Python process of this sandbox was killed by SIGKILL."
    )
    assert "had not been saved" not in result.stderr
    assert run(box, "print(kept, 'changed' in globals())").stdout == "kept False\n"


def test_a_cell_cannot_disable_the_signal_for_later_cells(box: Sandbox) -> None:
    run(
        box,
        """
        import signal
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        """,
    )
    assert box.execute("time.sleep(60)").status == "timeout"


def test_printing_does_not_extend_the_limit(box: Sandbox) -> None:
    result = box.execute("while True: print('x' * 1000)")
    assert result.status == "timeout"
    assert len(result.stdout) < 2_000_000


def test_processes_of_the_cell_die_with_it(box: Sandbox) -> None:
    run(box, "import subprocess\nold = subprocess.Popen(['sleep', '60'])")
    result = execute(
        box,
        """
        subprocess.Popen(['sleep', '60'])
        # In a session of its own, ignoring interrupts.
        new = subprocess.Popen('trap "" INT; sleep 60; sleep 60', shell=True, start_new_session=True)
        new.wait()
        """,
    )
    assert result.status == "timeout"
    # SIGINT goes to the process group, as Ctrl-C does, so it also ended the earlier cell's process.
    assert run(box, "print(new.wait(), old.wait())").stdout == "-9 -2\n"


def test_sessions_of_earlier_cells_live_on(box: Sandbox) -> None:
    code = "import subprocess\nold = subprocess.Popen(['sleep', '60'], start_new_session=True)"
    # Two ticks of the clock in which the kernel gives start times of processes.
    run(box, f"{code}\ntime.sleep(0.02)")
    assert box.execute("time.sleep(60)").status == "timeout"
    assert run(box, "print(old.poll())\nold.kill()\nn = old.wait()").stdout == "None\n"


def test_an_endless_repr_costs_no_variable(box: Sandbox) -> None:
    result = execute(
        box,
        """
        class Slow:
            def __repr__(self):
                while True: time.sleep(0.01)
        changed = 'changed'
        slow = [Slow(), Slow()]
        slower = Slow()
        """,
    )
    assert result.status == "timeout"
    assert run(box, "print(changed)\ndel slow, slower").stdout == "changed\n"


def test_an_endless_answer(box: Sandbox) -> None:
    result = execute(
        box,
        """
        class Slow:
            def __str__(self):
                while True: time.sleep(0.01)
        answer['content'] = Slow()
        answer['ready'] = True
        """,
    )
    assert result.status == "timeout"
    assert result.final_answer == "Error: the answer could not be read: KeyboardInterrupt"


def test_each_cell_has_its_own_time(box: Sandbox) -> None:
    for _ in range(5):
        run(box, f"time.sleep({LIMIT / 3})")


def test_a_limit_holds_for_the_setup_code_too(boxes: Boxes) -> None:
    with pytest.raises(SetupCodeError, match=r"its limit of 0\.2 s \(cell_timeout\)"):
        boxes(setup_code="while True: pass", cell_timeout=0.2)


# Waiting for the host


def slow(prompt: str) -> str:
    time.sleep(1.5 * LIMIT)
    return prompt.upper()


@pytest.mark.parametrize(
    "code",
    [
        "print(*llm_query_batched(['a', 'c']))\nprint(llm_query('b'))",
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(4) as pool: print(*pool.map(llm_query, 'abcd'))",
    ],
)
def test_time_spent_waiting_for_a_model_does_not_count(boxes: Boxes, route: str, code: str) -> None:
    box = boxes(lm=slow, cell_timeout=LIMIT)
    assert box.lm_route == route
    assert run(box, code).stdout.startswith("A")


def test_time_between_two_calls_counts(boxes: Boxes) -> None:
    box = boxes(lm=slow, cell_timeout=LIMIT)
    result = box.execute("print(llm_query('a'))\nwhile True: pass")
    assert (result.status, result.stdout) == ("timeout", "A\n")
    assert [call.prompt for call in result.lm_calls] == ["a"]


def test_a_call_that_nobody_answers_does_not_stop_the_clock_for_ever(boxes: Boxes) -> None:
    answered = threading.Event()

    def never(prompt: str, model: str | None) -> Any:
        answered.wait(TIMEOUT)
        return SimpleNamespace(response="", root_model="m", execution_time=0.0)

    box = boxes(lm=LMBroker(None, never), cell_timeout=LIMIT, lm_timeout=0.5)
    result = execute(
        box,
        """
        import threading
        thread = threading.Thread(target=rlm_query, args=('x',), daemon=True)
        thread.start()
        while True: pass
        """,
    )
    answered.set()
    assert result.status == "timeout"


def test_a_call_of_an_earlier_cell_does_not_stop_the_clock(boxes: Boxes) -> None:
    asked, answered = threading.Event(), threading.Event()

    def never(prompt: str) -> str:
        asked.set()
        answered.wait(TIMEOUT)
        return prompt

    box = boxes(lm=never, cell_timeout=LIMIT)
    interrupter = threading.Thread(target=lambda: asked.wait(TIMEOUT) and box.interrupt())
    interrupter.start()
    assert box.execute("llm_query('x')").status == "interrupted"
    interrupter.join()
    assert box.execute("while True: pass").status == "timeout"
    answered.set()


def test_recursive_calls_of_a_batch_may_each_take_their_time(boxes: Boxes) -> None:
    def child(prompt: str, model: str | None) -> Any:
        time.sleep(0.4)
        return SimpleNamespace(response=prompt, root_model="m", execution_time=0.4)

    # Together they take longer than the limit, and longer than one request may stop the clock.
    box = boxes(
        lm=LMBroker(None, child, max_concurrent_subcalls=1), cell_timeout=LIMIT, lm_timeout=0.6
    )
    assert run(box, "print(*rlm_query_batched(list('abcd')))").stdout == "a b c d\n"


def test_time_spent_in_functions_of_the_host_does_not_count(boxes: Boxes) -> None:
    box = boxes(tools={"slow": slow}, cell_timeout=LIMIT)
    assert run(box, "print(slow('a'), slow('b'))").stdout == "A B\n"


def test_a_function_of_the_host_that_hangs_does_not_stop_the_clock_for_ever(boxes: Boxes) -> None:
    go_on = threading.Event()
    box = boxes(tools={"hang": lambda: go_on.wait(TIMEOUT)}, cell_timeout=LIMIT, lm_timeout=0.3)
    result = box.execute("hang()")
    go_on.set()
    assert result.status == "timeout"


def test_a_late_model_is_an_error_in_the_cell(boxes: Boxes, route: str) -> None:
    answered = threading.Event()
    box = boxes(lm=lambda prompt: answered.wait(TIMEOUT) and prompt, lm_timeout=0.1)
    result = run(box, "print(llm_query('x'))\nprint(*llm_query_batched(['y', 'z']), sep='\\n')")
    late = "Error: Request failed: lm did not answer in 0.1 s (lm_timeout)\n"
    assert (result.stdout, result.lm_calls) == (late * 3, ())
    answered.set()


# The checkpoint

SLOW = """
class Slow:
    def __reduce__(self):
        while True: time.sleep(0.01)
"""

STUCK = """
class Stuck:
    def __reduce__(self):
        sum(range(10 ** 15))
"""


def test_an_endless_checkpoint_does_not_block_the_next_cell(box: Sandbox) -> None:
    run(box, SLOW + "slow = Slow()\nafter = 'after'")
    result = box.execute("print(kept)")
    assert (result.status, result.stdout) == ("ok", "kept\n")
    assert result.stderr == (
        f"The checkpoint before this cell reached its limit of {LIMIT:g} s (cell_timeout) and was "
        "interrupted. Not saved: slow (Slow): saving it took too long.\n"
    )
    # It is not tried again after every cell.
    assert run(box, "print(after)").stdout == "after\n"
    (unsaved,) = box.unsaved
    assert (unsaved.name, unsaved.type) == ("slow", "Slow")
    assert box.execute(DIE).lost == ("slow",)
    assert run(box, "print(kept, after)").stdout == "kept after\n"


def test_a_variable_that_took_too_long_is_saved_once_it_changes(box: Sandbox) -> None:
    run(box, SLOW + "slow = Slow()")
    assert "Not saved: slow" in box.execute("slow = 'quick'").stderr
    assert not box.unsaved
    assert box.execute(DIE).lost == ()
    assert run(box, "print(slow)").stdout == "quick\n"


def test_many_variables_that_take_too_long(box: Sandbox) -> None:
    set_grace(box, 0.4)
    run(box, SLOW + "before = 1\ns1 = Slow()\ns2 = Slow()\ns3 = Slow()\nzafter = 2")
    result = box.execute("print('ran')")
    assert (result.status, result.stdout) == ("ok", "ran\n")
    assert {variable.name for variable in box.unsaved} >= {"s1", "s2"}
    assert run(box, "print(before, zafter)").stdout == "1 2\n"


def test_a_checkpoint_that_ignores_its_interrupt_is_killed(box: Sandbox) -> None:
    set_grace(box, 0.4)
    run(box, STUCK + "stuck = Stuck()\nkept = 'changed'")
    result = box.execute("print(kept, 'stuck' in globals())")
    assert (result.status, result.stdout) == ("ok", "kept False\n")
    assert result.stderr.startswith("The checkpoint before this cell reached its limit of 0.5 s")
    assert "What that cell changed had not been saved yet and is lost" in result.stderr
    assert {"Stuck", "stuck"} <= set(result.lost)
    assert result.older == ("kept",)
    assert run(box, "print(kept)").stdout == "kept\n"


def test_a_checkpoint_does_not_use_the_time_of_the_next_cell(boxes: Boxes) -> None:
    box = boxes(cell_timeout=2.0)
    code = "import time\nclass Slow:\n    def __reduce__(self): time.sleep(1.2); return int, ()"
    run(box, code + "\nslow = Slow()")
    run(box, "time.sleep(1)")


def test_the_list_of_unsaved_variables_waits_no_longer_than_a_cell(box: Sandbox) -> None:
    run(box, SLOW + "slow = Slow()")
    assert [variable.name for variable in box.unsaved] == ["slow"]


# Restoring


def test_only_a_variable_that_cannot_be_restored_in_time_is_lost(boxes: Boxes) -> None:
    box = boxes(start_timeout=5)
    run(
        box,
        """
        import os, time
        class Slow:
            def __getstate__(self): return {'a': 1}
            def __setstate__(self, state):
                while os.path.exists('armed'): time.sleep(0.01)
        slow = Slow()
        kept = 'kept'
        """,
    )
    settle(box)
    (workspace_of(box) / "armed").touch()
    interpreter_of(box).deadlines.start_timeout = 1.0  # the first start may have taken longer
    result = box.execute(DIE)
    assert (result.status, result.lost) == ("died", ("slow",))
    assert "Restoring the variables reached its limit of 1 s (start_timeout)" in result.stderr
    assert "slow (Slow): it cannot be loaded: restoring it took too long" in result.stderr
    assert run(box, "print(kept)").stdout == "kept\n"


def test_a_variable_that_cannot_be_loaded_in_time_is_not_saved(boxes: Boxes) -> None:
    box = boxes()
    run(
        box,
        """
        import time
        class Bad:
            def __init__(self): self.a = 1
            def __setstate__(self, state): raise ValueError('no')
        class Slow(Bad):
            def __setstate__(self, state):
                while True: time.sleep(0.01)
        class Good(Bad):
            def __setstate__(self, state): self.__dict__.update(state)
        bad, slow, worse, good, kept = Bad(), Slow(), Bad(), Good(), 'kept'
        """,
    )
    unsaved = {variable.name: variable.reason for variable in box.unsaved}
    assert unsaved.keys() == {"bad", "slow", "worse"}, unsaved
    assert unsaved["slow"] == "loading it took too long"
    revive(box, "bad", "slow", "worse")
    assert run(box, "print(kept, good.a)").stdout == "kept 1\n"


# Guests that do not answer


def test_a_stopped_supervisor_is_given_up(boxes: Boxes, local: LocalRuntime) -> None:
    box = boxes(cell_timeout=LIMIT)
    set_grace(box, 0.4, kill_timeout=0.5)
    worker = int(run(box, "import os, signal\nprint(os.getpid())").stdout)
    with pytest.raises(SandboxLostError, match="does not answer any more") as caught:
        box.execute("os.kill(os.getppid(), signal.SIGSTOP)\nsignal.pause()")
    assert caught.value.container == box.name
    assert local.removed == [box.name]
    os.kill(worker, signal.SIGKILL)  # in a container it would end with its supervisor
    with pytest.raises(SandboxLostError):
        box.execute("x = 1")
    box.close()
