"""Processes and threads: what cells start, and threads of the host that share a sandbox."""

from __future__ import annotations

from rlm_containers import Sandbox
from tests.conftest import MakeBox
from tests.support import execute, printed


def test_a_forked_child_that_raises(box: Sandbox) -> None:
    result = execute(
        box,
        """
        import os
        child = os.fork()
        if child == 0:
            raise RuntimeError('in the child')
        os.waitpid(child, 0)
        here = 'parent'
        """,
    )
    assert result.status == "ok"
    assert result.stderr.endswith("RuntimeError: in the child\n")
    assert printed(box, "print(here)") == "parent\n"


def test_a_forked_child_that_does_not_get_on_as_it_raises(box: Sandbox) -> None:
    # Code after a cell is interrupted after two seconds; the cell itself goes on here.
    result = execute(
        box,
        """
        import os, time
        class Slow(Exception):
            def __str__(self):
                time.sleep(6)
                os._exit(0)
        child = os.fork()
        if child == 0:
            raise Slow
        print(os.waitpid(child, 0) == (child, 0))
        """,
    )
    assert (result.status, result.stdout) == ("ok", "True\n")


def test_multiprocessing(box: Sandbox) -> None:
    # One that forks and one that starts an interpreter, which has to find the cell's function.
    assert printed(
        box,
        """
        import multiprocessing
        def square(n):
            return n * n
        with multiprocessing.get_context('fork').Pool(2) as pool:
            print(pool.map(square, range(5)))
        """,
    ) == "[0, 1, 4, 9, 16]\n"  # fmt: skip


def test_threads_print_and_bind(box: Sandbox) -> None:
    assert printed(
        box,
        """
        import threading
        found = {}
        def look(n):
            found[n] = n * 2
        threads = [threading.Thread(target=look, args=(n,)) for n in range(20)]
        for t in threads: t.start()
        for t in threads: t.join()
        go = threading.Event()
        late = threading.Thread(target=lambda: (go.wait(), print('late')))
        late.start()
        print(sum(found.values()))
        """,
    ) == "380\n"  # fmt: skip
    assert printed(box, "go.set(); late.join(); del go, late, threads") == "late\n"


def test_a_failing_thread_shows_its_traceback(box: Sandbox) -> None:
    result = execute(
        box,
        """
        import threading
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
        """,
    )
    assert result.status == "ok"
    assert result.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_a_child_that_never_stops_printing_does_not_hold_the_answer(make_box: MakeBox) -> None:
    box = make_box(max_output=1000)
    result = execute(
        box,
        """
        import subprocess
        child = subprocess.Popen(['sh', '-c', 'while :; do echo noise; done'])
        print('answer')
        """,
    )
    assert result.status == "ok"
    assert execute(box, "child.kill(); child.wait(); stopped = True").status == "ok"
    assert box.execute("print(stopped)").stdout.endswith("True\n")
