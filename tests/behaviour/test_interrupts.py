"""Interrupts: from another thread, from a callback, by Ctrl-C on the host."""

from __future__ import annotations

import re
import threading

import pytest

from rlm_containers import Sandbox
from tests.conftest import MakeBox
from tests.support import execute, printed


def test_interrupt_from_another_thread(box: Sandbox) -> None:
    printed(box, "import time; kept = 'kept'")
    started = threading.Event()

    def interrupt() -> None:
        started.wait()
        box.interrupt()

    thread = threading.Thread(target=interrupt)
    thread.start()
    result = execute(
        box,
        """
        done = False
        print('started') or time.sleep(30)
        done = True
        """,
        on_output=lambda *_: started.set(),
    )
    thread.join()
    assert result.status == "interrupted"
    assert re.fullmatch(
        r"Traceback \(most recent call last\):\n"
        r'  File "<cell \d+>", line 2, in <module>\n'
        r"    print\('started'\) or time\.sleep\(30\)\n(?:    [ ~^]+\n)?KeyboardInterrupt\n",
        result.stderr,
    )
    assert printed(box, "print(kept, done)") == "kept False\n"


def test_interrupt_reaches_a_cell_that_waits_for_a_child(box: Sandbox) -> None:
    result = box.execute(
        "import subprocess\nprint('started')\nsubprocess.run(['sleep', '30'])",
        on_output=lambda *_: box.interrupt(),
    )
    assert result.status == "interrupted"


def test_interrupt_reaches_a_cell_that_waits_for_os_system(box: Sandbox) -> None:
    # Which itself ignores it while the child runs: it is the child that has to end.
    box.execute(
        "import os\nstatus = os.system('echo started; sleep 30')",
        on_output=lambda *_: box.interrupt(),
    )
    assert printed(box, "print(globals().get('status'))") != "0\n"


def test_a_cell_may_handle_its_interrupt(box: Sandbox) -> None:
    result = execute(
        box,
        """
        import time
        try:
            print('started')
            time.sleep(30)
        except KeyboardInterrupt:
            handled = True
        """,
        on_output=lambda *_: box.interrupt(),
    )
    assert (result.status, result.stderr) == ("ok", "")
    assert printed(box, "print(handled)") == "True\n"


def test_interrupt_of_nothing(box: Sandbox) -> None:
    box.interrupt()
    assert printed(box, "print('undisturbed')") == "undisturbed\n"


def test_a_cell_may_raise_keyboard_interrupt(box: Sandbox) -> None:
    result = box.execute("kept = 'k'\nraise KeyboardInterrupt('mine')")
    assert result.status == "interrupted"
    assert result.stderr.endswith("KeyboardInterrupt: mine\n")
    assert printed(box, "print(kept)") == "k\n"


@pytest.mark.parametrize("raised", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("times", [1, 9])
def test_a_callback_that_raises_ends_the_cell_and_not_the_session(
    make_box: MakeBox, raised: type[BaseException], times: int
) -> None:
    # As Ctrl-C on the host does: it arrives wherever the host is, this callback for instance.
    calls = []

    def callback(*_: str) -> None:
        calls.append(1)
        if len(calls) <= times:
            raise raised

    box = make_box()
    printed(box, "import time; kept = 'kept'")
    with pytest.raises(raised):
        box.execute("print('one')\ntime.sleep(0.2)\nprint('two')", on_output=callback)
    assert printed(box, "print('three', kept)") == "three kept\n"
