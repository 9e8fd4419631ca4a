"""Tracebacks: the cell's own source lines in them, and none of this project's."""

from __future__ import annotations

import re

import pytest

from rlm_containers import Sandbox
from tests.support import execute, printed


def traceback_of(box: Sandbox, code: str) -> str:
    """What a failing cell prints to stderr, its number and the position markers left out."""
    result = execute(box, code)
    assert result.status == "error"
    for ours in ("rlm_guest", "rlm-containers", "worker.py", "exec(", "runpy"):
        assert ours not in result.stderr
    text = re.sub(r"<cell \d+>", "<cell>", result.stderr)
    return re.sub(r"^ +[~^]+\n", "", text, flags=re.MULTILINE)


def test_the_cells_own_lines(box: Sandbox) -> None:
    assert traceback_of(
        box,
        """
        def divide(a, b):
            return a / b

        divide(1, 0)
        """,
    ) == (
        "Traceback (most recent call last):\n"
        '  File "<cell>", line 4, in <module>\n'
        "    divide(1, 0)\n"
        '  File "<cell>", line 2, in divide\n'
        "    return a / b\n"
        "ZeroDivisionError: division by zero\n"
    )


def test_lines_of_an_earlier_cell(box: Sandbox) -> None:
    printed(box, "def earlier(d):\n    # the line below is this cell's third\n    return d['key']")
    found = traceback_of(box, "x = 1\nearlier({})")
    assert '  File "<cell>", line 2, in <module>\n    earlier({})\n' in found
    assert "  File \"<cell>\", line 3, in earlier\n    return d['key']\n" in found
    assert found.endswith("KeyError: 'key'\n")


def test_lines_of_a_library_are_shown(box: Sandbox) -> None:
    found = traceback_of(box, "import json\njson.loads('{')")
    assert "    json.loads('{')\n" in found
    assert re.search(r'File ".*/json/decoder\.py", line \d+, in decode\n', found)
    assert found.splitlines()[-1].startswith("json.decoder.JSONDecodeError: ")


def test_chained_exceptions(box: Sandbox) -> None:
    assert traceback_of(
        box,
        """
        try:
            {}['missing']
        except KeyError as error:
            raise ValueError('explained') from error
        """,
    ) == (
        "Traceback (most recent call last):\n"
        '  File "<cell>", line 2, in <module>\n'
        "    {}['missing']\n"
        "KeyError: 'missing'\n"
        "\n"
        "The above exception was the direct cause of the following exception:\n"
        "\n"
        "Traceback (most recent call last):\n"
        '  File "<cell>", line 4, in <module>\n'
        "    raise ValueError('explained') from error\n"
        "ValueError: explained\n"
    )
    during = traceback_of(box, "try:\n    1 / 0\nfinally:\n    undefined")
    assert "During handling of the above exception, another exception occurred:" in during
    assert during.index("ZeroDivisionError") < during.index("NameError")
    hidden = traceback_of(box, "try:\n    1 / 0\nexcept Exception:\n    raise OSError from None")
    assert "ZeroDivisionError" not in hidden


def test_an_exception_that_causes_itself(box: Sandbox) -> None:
    found = traceback_of(box, "e = ValueError('circle')\ne.__cause__ = e\nraise e")
    assert found.endswith("ValueError: circle\n")


def test_exception_groups(box: Sandbox) -> None:
    found = traceback_of(
        box,
        """
        def fail(): raise KeyError('inner')
        problems = []
        try:
            fail()
        except KeyError as error:
            problems.append(error)
        raise ExceptionGroup('several', problems + [ValueError('other')])
        """,
    )
    assert "ExceptionGroup: several (2 sub-exceptions)" in found
    assert "KeyError: 'inner'" in found
    assert "ValueError: other" in found


def test_syntax_errors_point_at_the_place(box: Sandbox) -> None:
    result = box.execute("x = 1\nif x\n    print(x)")
    assert result.status == "error"
    assert re.fullmatch(
        r'  File "<cell \d+>", line 2\n    if x\n +\^\nSyntaxError: expected \':\'\n',
        result.stderr,
    )
    # The whole cell is compiled before any of it runs.
    printed(box, "ran = False")
    assert box.execute("ran = True\n  indented").stderr.splitlines()[-1].startswith("Indentation")
    assert printed(box, "print(ran)") == "False\n"


@pytest.mark.parametrize("code", ["x = '\0'", "x = '\ud800'", "(" * 5000, "-" * 100_000 + "1"])
def test_source_that_cannot_be_compiled(box: Sandbox, code: str) -> None:
    result = box.execute(code)
    assert result.status == "error"
    assert "Error" in result.stderr
    assert "rlm_guest" not in result.stderr
    assert printed(box, "print('on')") == "on\n"


def test_an_exception_without_a_message_to_show(box: Sandbox) -> None:
    found = traceback_of(
        box,
        """
        class Odd(Exception):
            def __str__(self): raise RuntimeError('no message for you')
        raise Odd()
        """,
    )
    assert "Odd" in found.splitlines()[-1]


def test_recursion_without_end(box: Sandbox) -> None:
    found = traceback_of(box, "def down(n):\n    return down(n + 1)\ndown(0)")
    assert "[Previous line repeated" in found
    assert found.splitlines()[-1].startswith("RecursionError: maximum recursion depth exceeded")
    assert printed(box, "print('on')") == "on\n"


def test_a_message_of_megabytes_is_bounded(box: Sandbox) -> None:
    result = box.execute("raise ValueError('m' * 5_000_000)")
    assert result.status == "error"
    assert len(result.stderr) < 1_100_000


def test_warnings_show_the_line(box: Sandbox) -> None:
    result = box.execute("import warnings\nwarnings.warn('look out')")
    assert result.status == "ok"
    assert re.fullmatch(
        r"<cell \d+>:2: UserWarning: look out\n  warnings\.warn\('look out'\)\n", result.stderr
    )


def test_a_cell_may_print_its_own_traceback(box: Sandbox) -> None:
    result = execute(
        box,
        """
        import traceback
        try:
            1 / 0
        except ZeroDivisionError:
            print(traceback.format_exc())
        """,
    )
    assert (result.status, result.stderr) == ("ok", "")
    assert "    1 / 0\n" in result.stdout
    assert "rlm_guest" not in result.stdout
