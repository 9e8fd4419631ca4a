"""Output: whose it is, in which order, while it happens, how much of it is kept."""

from __future__ import annotations

import re

import pytest

from rlm_containers import Sandbox
from tests.conftest import MakeBox
from tests.support import execute, printed


def test_the_two_streams(box: Sandbox) -> None:
    result = box.execute("import sys\nprint('out')\nprint('err', file=sys.stderr)")
    assert (result.stdout, result.stderr) == ("out\n", "err\n")


def test_output_of_children_comes_in_order(box: Sandbox) -> None:
    assert printed(
        box,
        """
        import os, subprocess
        print(1)
        os.system('echo 2')
        print(3, end=' ')
        subprocess.run(['sh', '-c', 'echo 4'])
        print(5, end=' ')
        os.spawnlp(os.P_WAIT, 'echo', 'echo', '6')
        print(7, end=' ')
        if os.fork() == 0:
            os.write(1, b'8 ')
            os._exit(0)
        os.wait()
        print(9)
        """,
    ) == "1\n2\n3 4\n5 6\n7 8 9\n"  # fmt: skip


def test_stderr_of_children(box: Sandbox) -> None:
    result = box.execute("import os\nos.system('echo problem >&2')")
    assert (result.status, result.stdout, result.stderr) == ("ok", "", "problem\n")


def test_what_c_code_writes(box: Sandbox) -> None:
    assert printed(box, "import os\nprint('a')\nos.write(1, b'b\\n')\nprint('c')") == "a\nb\nc\n"


def test_output_without_a_newline_at_the_end(box: Sandbox) -> None:
    assert printed(box, "print('no end', end='')") == "no end"
    assert printed(box, "print('next')") == "next\n"


def test_output_can_be_watched_while_the_cell_runs(box: Sandbox) -> None:
    # Only what was seen before the end can interrupt the cell.
    seen = []

    def watch(stream: str, text: str) -> None:
        seen.append((stream, text))
        if "last" in text:
            box.interrupt()

    result = execute(
        box,
        """
        import os, sys, time
        print('first')
        print('to stderr', file=sys.stderr)
        os.system('echo child')
        print('last')
        time.sleep(30)
        print('never')
        """,
        on_output=watch,
    )
    assert result.status == "interrupted"
    assert result.stdout == "first\nchild\nlast\n"
    assert "".join(text for stream, text in seen if stream == "stdout") == result.stdout
    assert "".join(text for stream, text in seen if stream == "stderr") == result.stderr
    assert result.stderr.startswith("to stderr\nTraceback")


# How much is kept


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_big_output_is_cut_in_the_middle(make_box: MakeBox, stream: str) -> None:
    box = make_box(max_output=1000)
    watched = []
    result = box.execute(
        f"import sys\nprint('<' + 'm' * 3_000_000 + '>', file=sys.{stream})",
        on_output=lambda _, text: watched.append(len(text)),
    )
    text = getattr(result, stream)
    match = re.fullmatch(r"(<m*)\n\[\.\.\. (\d+) characters cut \.\.\.\]\n(m*>\n)", text)
    assert match, text[:200]
    assert (len(match[1]), len(match[3])) == (500, 500)
    assert int(match[2]) + 1000 == 3_000_003
    assert sum(watched) == 3_000_003
    assert result.status == "ok"


def test_each_stream_and_each_cell_has_its_own_limit(make_box: MakeBox) -> None:
    box = make_box(max_output=1000)
    for _ in range(3):
        result = box.execute("import sys\nprint('o' * 900)\nprint('e' * 900, file=sys.stderr)")
        assert (len(result.stdout), len(result.stderr)) == (901, 901)


def test_the_default_limit(box: Sandbox) -> None:
    result = box.execute("for n in range(1000): print('x' * 20_000)")
    assert 1_000_000 <= len(result.stdout) < 1_000_100
    assert "[... 19001000 characters cut ...]" in result.stdout


# Text


def test_unicode(box: Sandbox) -> None:
    text = "grüße, 世界 \U0001f680 \u202e \x1b[0m \x00"
    assert printed(box, f"print({text!r})") == text + "\n"
    assert printed(box, f"name = {text!r}\nprint(name, end='')") == text


def test_lone_surrogates(box: Sandbox) -> None:
    assert printed(box, "print('half \\ud800 a pair')") == "half \\ud800 a pair\n"
    result = box.execute("half = '\\udfff'\nraise ValueError(half)")
    assert result.stderr.endswith("ValueError: \\udfff\n")
    assert result.locals["half"] == "'\\udfff'"


# What cells do to their streams


HARMS = pytest.mark.parametrize(
    "harm",
    [
        "import io, sys; sys.stdout = io.StringIO()",
        "import sys; sys.stdout = sys.stderr = None",
        "import sys; del sys.stdout",
        "import sys; sys.stdout.close(); sys.stderr.close()",
        "import sys; sys.__stdout__.close()",
        "import sys; sys.stdin.close()",
        "import sys; sys.stdout.detach()",
        "import sys; sys.stdout.buffer.close()",
        "import sys; sys.stdout.buffer.raw.close()",
        "import sys; sys.stdout = object()",
        "import sys; sys.stderr.detach(); sys.stdin.detach()",
        "import sys; sys.stdout.buffer.detach()",
        "import sys; sys.stdin.buffer.raw.close()",
        "import sys; sys.stdout = sys.stderr = sys.stdin = 5",
        "import sys; del sys.stdin, sys.stderr, sys.__stderr__",
        "import sys; sys.stdout = type('S', (), {'__getattr__': lambda s, n: exit()})()",
        "import sys; sys.stdout = type('S', (), {'flush': lambda s: 1 / 0, 'write': print})()",
        "import sys; sys.stdout.reconfigure(encoding='ascii', errors='strict', newline='')",
        "import sys; sys.stdout.reconfigure(newline='\\r\\n', line_buffering=False)",
        "import io, sys; sys.stdout = io.TextIOWrapper(sys.stdout.buffer)",
        "import sys; sys.stdout.write = lambda text: 1 / 0",
        "import os; os.set_blocking(1, False); os.set_blocking(2, False)",
        "import os; os.close(1)",
        "import os; os.close(0); os.close(1); os.close(2)",
        "import os; os.dup2(os.open('elsewhere.txt', os.O_CREAT | os.O_WRONLY), 1)",
        "import os; os.closerange(0, 3)",
    ],
)


@HARMS
def test_the_streams_are_whole_again_in_the_next_cell(box: Sandbox, harm: str) -> None:
    printed(box, "mark = 'kept'")
    assert box.execute(f"print('before')\n{harm}").stdout == "before\n"
    result = box.execute(
        "import os, sys\nprint(mark, 'ü')\nos.system('echo child')\nprint('e', file=sys.stderr)"
    )
    assert (result.status, result.stdout, result.stderr) == ("ok", "kept ü\nchild\n", "e\n")
    assert box.execute("input()").stderr.splitlines()[-1].startswith("EOFError")


@HARMS
@pytest.mark.parametrize("method", ["__repr__", "__reduce__"])
def test_the_streams_are_whole_again_after_code_of_an_object(
    box: Sandbox, method: str, harm: str
) -> None:
    # The object is shown after the cell, and saved.
    made = "'harm'" if method == "__repr__" else "(Harm, ())"
    code = f"class Harm:\n def {method}(self):\n  exec({harm!r})\n  return {made}\nharm = Harm()"
    assert box.execute(code).status == "ok"
    check = "import os, sys\nprint('a\\nü')\nos.system('echo child')\nprint('e', file=sys.stderr)"
    seen = box.execute(check)
    assert (seen.status, seen.stdout, seen.stderr) == ("ok", "a\nü\nchild\n", "e\n")
    box.execute("del harm")


def test_a_second_wrapper_that_is_collected_closes_nothing(box: Sandbox) -> None:
    printed(box, "import io, sys\nwrapper = io.TextIOWrapper(sys.stdout.buffer)")
    assert printed(box, "del wrapper\nprint('after')") == "after\n"


def test_a_pipe_that_a_child_makes_non_blocking(box: Sandbox) -> None:
    # As node.js does. It holds for all that share the pipe.
    printed(box, "import os; os.set_blocking(1, False)")
    assert len(printed(box, "print('x' * 900_000)")) == 900_001


def test_a_cell_may_capture_its_own_output(box: Sandbox) -> None:
    assert printed(
        box,
        """
        import contextlib, io
        with contextlib.redirect_stdout(io.StringIO()) as captured:
            print('inside')
        print('outside', captured.getvalue())
        """,
    ) == "outside inside\n\n"  # fmt: skip


def test_descriptors_are_not_used_up(box: Sandbox) -> None:
    count = "import os\nprint(len(os.listdir('/proc/self/fd')))"
    before = printed(box, count)
    for _ in range(20):
        box.execute("import os, sys\nsys.stdout.close(); os.close(2)")
    assert printed(box, count) == before


# Threads


def test_threads_print_while_a_checkpoint_is_written(fresh: Sandbox) -> None:
    start = """
        import threading
        class Slow:
            def __reduce__(self):
                saving.set()
                printed.wait()
                print('from the saving')
                return Slow, ()
        saving, printed, stream = threading.Event(), threading.Event(), None
        def work():
            saving.wait()
            for n in range(400): print('line', n)
            import sys
            globals()['stream'] = sys.stdout
            printed.set()
        threading.Thread(target=work).start()
        slow = Slow()
        """
    first = execute(fresh, start)
    second = execute(fresh, "print('end', file=stream)")
    lines = (first.stdout + second.stdout).splitlines()
    assert lines == [*(f"line {n}" for n in range(400)), "end"]


def test_a_warning_is_shown_in_each_cell(box: Sandbox) -> None:
    for code in ("import warnings; warnings.warn('careful')", "warn()"):
        printed(box, "import warnings\ndef warn(): warnings.warn('careful')")
        for _ in range(2):
            assert box.execute(code).stderr.count("careful") >= 1
