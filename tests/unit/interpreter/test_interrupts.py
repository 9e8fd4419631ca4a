"""Interrupts by the user, and interrupts that come too early or too late."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from rlm_containers import CellResult, Sandbox
from rlm_containers.errors import SandboxLostError, SandboxStartError, WorkspaceError
from rlm_containers.guest import wire
from tests.support import TIMEOUT, eventually, execute, interpreter_of, set_grace
from tests.unit.guests import Guest, LocalRuntime
from tests.unit.hostile import CELL, GREETING, LINGER, READY, result, script
from tests.unit.sessions import DIE, Boxes, run, settle, workspace_of

STUBBORN = """
begun = False
while True:
    try:
        if not begun:
            begun = True
            print('begun')
        time.sleep(60)
    except BaseException:
        pass
"""

SLOW = """
class Slow:
    def __reduce__(self):
        open('begun', 'w').close()
        while True: time.sleep(0.01)
"""


@pytest.fixture
def ctrl_c() -> Iterator[Callable[[], None]]:
    """Interrupts the main thread, as a terminal does."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    main = threading.main_thread().ident
    assert main is not None
    yield lambda: signal.pthread_kill(main, signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def interrupting(box: Sandbox, code: str) -> CellResult:
    """Run a cell and interrupt it as soon as it prints."""
    return execute(box, code, on_output=lambda *_: box.interrupt())


# By the user


def test_a_cell_that_ignores_its_interrupt_is_killed(box: Sandbox) -> None:
    set_grace(box, 0.4)
    run(box, "import time\nkept = 1")
    result = interrupting(box, f"changed = 1\n{STUBBORN}")
    assert (result.status, result.lost) == ("killed", ())
    assert result.stderr.startswith(
        "It did not end within 0.4 s after its interrupt and was killed.\n"
    )
    assert "was killed by SIGKILL" in result.stderr
    assert run(box, "print(kept, 'changed' in globals())").stdout == "1 False\n"


def test_many_interrupts_at_once(box: Sandbox) -> None:
    run(box, "import time\nkept = 1")
    threads = [threading.Thread(target=box.interrupt) for _ in range(20)]

    def interrupt(stream: str, text: str) -> None:
        if stream == "stdout":
            for thread in threads:
                thread.start()

    result = box.execute("print('begun')\ntime.sleep(60)", on_output=interrupt)
    for thread in threads:
        thread.join()
    assert result.status == "interrupted"
    for _ in range(20):
        assert run(box, "print(kept)").stdout == "1\n"


def test_interrupts_between_cells_harm_none(box: Sandbox) -> None:
    # As fast as they can be sent while cells run.
    run(box, "kept = [[0]]")
    done = threading.Event()

    def interrupt() -> None:
        while not done.is_set():
            box.interrupt()

    thread = threading.Thread(target=interrupt)
    thread.start()
    results = [box.execute(f"kept.append([{number}])") for number in range(80)]
    done.set()
    thread.join()
    assert {result.status for result in results} <= {"ok", "interrupted"}
    # Each cell ran or did not run, and every checkpoint has all changes.
    finished = [number for number, result in enumerate(results) if result.status == "ok"]
    values = [int(word) for word in run(box, "print(*[value for [value] in kept])").stdout.split()]
    assert set(finished) <= set(values[1:]) | {0}
    assert not box.unsaved
    assert box.execute(DIE).lost == ()
    assert run(box, "print(*[value for [value] in kept])").stdout.split() == list(map(str, values))


def test_a_cell_that_waits_for_a_checkpoint_is_not_begun(box: Sandbox) -> None:
    set_grace(box, 2.0)
    run(box, f"import time\n{SLOW}\nslow = Slow()\nkept = 1")
    thread = threading.Thread(target=interrupt_checkpoint, args=(box,))
    thread.start()
    result = box.execute("ran = True")
    thread.join()
    assert (result.status, result.stderr) == (
        "interrupted",
        "It was interrupted before it began.\n",
    )
    assert run(box, "print(kept, 'ran' in globals())").stdout == "1 False\n"
    assert "had not been saved" not in box.execute(DIE).stderr
    run(box, f"import time\n{SLOW}\nslow = (n for n in '')")
    assert [variable.name for variable in box.unsaved] == ["slow"]


def interrupt_checkpoint(box: Sandbox) -> None:
    """Interrupt the cell that waits for a checkpoint, as soon as both are under way."""
    begun = workspace_of(box) / "begun"
    interpreter = interpreter_of(box)
    eventually(lambda: begun.exists() and interpreter._conversation.request, TIMEOUT)
    box.interrupt()  # in any case, or the cell would wait without a limit


def test_a_death_is_reported_once(box: Sandbox) -> None:
    run(box, "kept = 1")
    for _ in range(3):
        result = box.execute(DIE)
        assert result.status == "died"
        assert "had not been saved" not in result.stderr


# Ctrl-C


def test_ctrl_c_while_a_cell_runs(boxes: Boxes, ctrl_c: Callable[[], None]) -> None:
    box = boxes()
    set_grace(box, 20.0)
    run(box, "import time\nkept = 1")
    with pytest.raises(KeyboardInterrupt):
        box.execute("changed = 2\nprint('begun')\ntime.sleep(60)", on_output=lambda *_: ctrl_c())
    assert run(box, "print(kept, changed)").stdout == "1 2\n"


def test_ctrl_c_twice_kills_at_once(boxes: Boxes, ctrl_c: Callable[[], None]) -> None:
    box = boxes()
    set_grace(box, 20.0)  # too long for this test, should the second Ctrl-C not end it
    run(box, "import time\nkept = 1")
    sender = Sender(box, ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        box.execute(STUBBORN, on_output=lambda *_: sender.start())
    sender.join()
    assert run(box, "print(kept)").stdout == "1\n"


class Sender(threading.Thread):
    """Presses Ctrl-C, and once more when the first one has had its effect."""

    def __init__(self, box: Sandbox, ctrl_c: Callable[[], None]) -> None:
        super().__init__()
        self.box = box
        self.ctrl_c = ctrl_c

    def run(self) -> None:
        self.ctrl_c()  # before anything that can fail, or the cell would wait without a limit
        interpreter = interpreter_of(self.box)
        assert eventually(
            lambda: interpreter._conversation.request and interpreter._conversation.request.stop,
            TIMEOUT,
        )
        self.ctrl_c()


def test_ctrl_c_while_variables_are_restored_costs_none(
    boxes: Boxes, ctrl_c: Callable[[], None]
) -> None:
    box = boxes()
    set_grace(box, 20.0)
    run(
        box,
        """
        import os, time
        class Slow:
            def __getstate__(self): return {'a': 1}
            def __setstate__(self, state):
                if os.path.exists('armed'):
                    open('begun', 'w').close()
                    while not os.path.exists('go on'): time.sleep(0.01)
        slow = Slow()
        kept = 1
        """,
    )

    settle(box)
    place = workspace_of(box)
    (place / "armed").touch()
    interpreter = interpreter_of(box)
    pressed: list[object] = []

    def press() -> None:
        try:
            pressed.append(eventually((place / "begun").exists, TIMEOUT))
            ctrl_c()
            request = interpreter._conversation.request
            pressed.append(eventually(lambda: request and request.interrupted, TIMEOUT))
        finally:  # or a failure here would make the cell wait without a limit
            (place / "go on").touch()

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        box.execute(DIE)
    thread.join()
    assert pressed == [True, True]
    assert run(box, "print(type(slow).__name__, kept)").stdout == "Slow 1\n"


# Frames


def step(number: int) -> bytes:
    return number.to_bytes(8, "big")


def test_an_interrupt_of_an_earlier_step_has_no_effect(ready: Guest) -> None:
    first = ready.cell("x = 1")
    ready.message("result", id=first)
    second = ready.cell("import time\nprint('begun', flush=True)\ntime.sleep(0.3)\ndone = True")
    assert ready.frame() == (wire.STDOUT, b"begun\n")
    ready.send(wire.INTERRUPT, step(2 * first))
    ready.send(wire.INTERRUPT, step(2 * first + 1))  # the checkpoint before it
    assert ready.message("result", id=second)["status"] == "ok"
    ready.send(wire.INTERRUPT, step(2 * second))
    assert ready.run("print(done)")[1] == "True\n"


def test_an_interrupt_may_come_before_its_request(ready: Guest) -> None:
    number = ready.number + 1
    ready.send(wire.INTERRUPT, step(2 * number))
    ready.cell("x = 1")
    assert ready.message("result")["status"] == "interrupted"
    assert ready.run("print('x' in globals())")[1] == "False\n"


@pytest.mark.parametrize("how", ["signal.raise_signal(signal.SIGINT)", "_thread.interrupt_main()"])
def test_a_cell_may_interrupt_itself_after_a_stale_interrupt(ready: Guest, how: str) -> None:
    number = ready.cell("x = 1")
    ready.message("result", id=number)
    ready.send(wire.INTERRUPT, step(2 * number))
    assert ready.run(f"import signal, _thread, time\n{how}\ntime.sleep(9)")[0]["status"] == (
        "interrupted"
    )


def test_a_guest_announces_that_it_begins_once(ready: Guest) -> None:
    number = ready.request("cell", code="print('x')", name="cell", announce=True)
    _, before = ready.until(wire.MESSAGE, op="result", id=number)
    assert before.count((wire.MESSAGE, b'{"op": "begun", "id": %d}' % number)) == 1


# Hostile guests


@pytest.mark.parametrize(
    "code",
    ["import signal\nsignal.pause()", "while True: say(op='saved', unsaved=[], error=None)"],
)
def test_a_guest_that_greets_and_is_never_ready(
    boxes: Boxes, local: LocalRuntime, code: str
) -> None:
    script(local, GREETING + "hear()\n" + code)
    with pytest.raises(SandboxStartError, match=r"not ready within 0\.5 s") as caught:
        boxes(start_timeout=0.5)
    assert len(local.removed) >= 1
    assert caught.value.container == local.removed[0]
    assert "start_timeout" in caught.value.remedy


@pytest.mark.parametrize(
    "answers",
    [
        "",
        "say(op='begun', id=cell['id'])",
        "while True: say(op='begun', id=cell['id'])",
        "while True: say(op='saved', unsaved=[], error=None)",
        "while True: put(b'o', b'x' * 100)",
        "say(op='begun', id=cell['id'])\nwhile True: put(b'r', b'x' * 60_000)",
    ],
)
def test_a_guest_that_never_answers_is_given_up(
    boxes: Boxes, local: LocalRuntime, answers: str
) -> None:
    deaf = LINGER.replace("hear()", "sys.stdin.buffer.read(5)")
    script(local, CELL + "say(op='begun', id=1)\n" + result() + "cell = hear()\n" + answers + deaf)
    box = boxes(cell_timeout=0.2, max_output=1000)
    set_grace(box, 0.4, kill_timeout=0.5)
    assert box.execute("x = 1").status == "ok"
    with pytest.raises(SandboxLostError, match="not even to being killed"):
        box.execute("x = 1")
    assert local.removed == [box.name]
    with pytest.raises(SandboxLostError):
        box.execute("x = 1")


def test_a_guest_that_never_loads(boxes: Boxes, local: LocalRuntime) -> None:
    script(local, READY + LINGER.replace("hear()", "sys.stdin.buffer.read(5)"))
    box = boxes(cell_timeout=0.2, start_timeout=1)
    set_grace(box, 0.4, kill_timeout=0.5)
    with pytest.raises((SandboxLostError, WorkspaceError)):
        box.load("context", "x")


def test_an_answer_in_time_counts_even_if_it_is_read_late(boxes: Boxes) -> None:
    # The callback takes longer than the limit, but the cell has ended before it.
    box = boxes(cell_timeout=0.5)
    late = threading.Event()

    def dawdle(stream: str, text: str) -> None:
        late.wait(1.0)

    result = box.execute("print('x')", on_output=dawdle)
    assert (result.status, result.stderr) == ("ok", "")


def test_an_answer_in_time_counts_behind_much_output(boxes: Boxes) -> None:
    script(
        boxes.local,
        CELL
        + "say(op='begun', id=cell['id'])\n"
        + "for _ in range(1000): put(b'o', b'x')\n"
        + result()
        + "while sys.stdin.buffer.read(1): pass",
    )
    box = boxes(cell_timeout=0.3)
    slow = threading.Event()

    def dawdle(stream: str, text: str) -> None:
        slow.wait(0.001)

    found = box.execute("x = 1", on_output=dawdle)
    assert (found.status, found.stdout, found.stderr) == ("ok", "x" * 1000, "")
