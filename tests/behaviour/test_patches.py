"""What cells set in modules and classes of libraries survives a death, or is named."""

from __future__ import annotations

import pytest

from rlm_containers import Sandbox
from tests.conftest import MakeBox
from tests.support import die, execute, printed


@pytest.fixture
def fresh(make_box: MakeBox) -> Sandbox:
    """A sandbox of its own: what a test sets stays. No heir may keep what the file has not."""
    return make_box(heirs="never")


@pytest.mark.parametrize(
    ("cells", "look", "expected"),
    [
        (
            ["import json", "json.JSONEncoder.default = lambda self, value: 'X'"],
            "print(json.dumps(object()))",
            '"X"',
        ),
        (
            ["import json\njson.JSONEncoder.default = lambda self, value: 'X'"],
            "print(json.dumps(object()))",
            '"X"',
        ),
        (
            [
                "import functools, json\nold = json.dumps",
                "@functools.wraps(old)\ndef dumps(value): return old(value).upper()",
                "json.dumps = dumps",
            ],
            "print(json.dumps('a'), json.dumps is dumps, old('b'), old is json.dumps.__wrapped__)",
            '"A" True "b" True',
        ),
        (
            [
                "import functools, textwrap",
                "textwrap.dedent = functools.lru_cache(textwrap.dedent)",
            ],
            "print(textwrap.dedent(' a'), textwrap.dedent.cache_info().maxsize)",
            "a 128",
        ),
        (
            [
                "import functools, textwrap",
                "textwrap.fill = functools.partial(textwrap.fill, width=4)",
            ],
            "print(textwrap.fill('aaa bbb'))",
            "aaa\nbbb",
        ),
        (
            [
                "import time",
                "def sleep(seconds): return seconds\nreal, time.sleep = time.sleep, sleep",
            ],
            "print(time.sleep(99), real is not sleep, real(0))",
            "99 True None",
        ),
        (
            ["import string", "class T(string.Template): delimiter = '%'\nstring.Template = T"],
            "print(string.Template('%x').substitute(x=3), string.Template is T)",
            "3 True",
        ),
        (["import math; math.tau2 = [12]"], "print(math.tau2)", "[12]"),
        (["import builtins; builtins.shout = str.upper"], "print(shout('a'))", "A"),
        (["import sys; sys.mine = 3; sys.dont_write_bytecode = True"], "print(sys.mine)", "3"),
        (
            ["from collections import Counter as C\nC.top = lambda self: self.most_common(1)"],
            "print(C('aab').top())",
            "[('a', 2)]",
        ),
        (
            ["import http.client", "http.client.HTTPConnection.debuglevel = 1"],
            "import http.client; print(http.client.HTTPConnection.debuglevel)",
            "1",
        ),
        (
            ["import ssl\nssl._create_default_https_context = ssl._create_unverified_context"],
            "print(ssl._create_default_https_context is ssl._create_unverified_context)",
            "True",
        ),
        (["import string; setattr(string, 'more', 4)"], "print(string.more)", "4"),
        (["import string; vars(string)['more'] = 4"], "print(string.more)", "4"),
        (["import string; string.__dict__['more'] = 4"], "print(string.more)", "4"),
        (
            [
                "from unittest import mock\nimport textwrap",
                "patch = mock.patch('textwrap.dedent', str.upper); _ = patch.start()",
            ],
            "print(textwrap.dedent('a'))",
            "A",
        ),
        (
            ["def later():\n    import string\n    string.more = 4", "later()"],
            "import string; print(string.more)",
            "4",
        ),
        (
            # Names in the tree, and nothing, where other code has nodes.
            [
                "import string\ncount = 0\ndef later(*, a, b=1):\n    global count, string\n"
                "    count += 1; string.more = {**{}, 'n': a}\n    def f():\n"
                "        nonlocal a; a = 2\n    return f",
                "_ = later(a=4)",
            ],
            "print(string.more, count)",
            "{'n': 4} 1",
        ),
        # What is not set, or no longer, is as the library has it.
        (
            ["import string\ndef later(): string.capwords = None"],
            "print(string.capwords('a'))",
            "A",
        ),
        (
            [
                "import string",
                "old = string.capwords; string.capwords = None; string.capwords = old",
            ],
            "print(string.capwords('a'))",
            "A",
        ),
        (
            ["class Own: pass\nown = Own(); own.x = 1; Own.y = 2"],
            "print(own.x, Own.y, own.y)",
            "1 2 2",
        ),
    ],
)
def test_what_cells_set_in_libraries_is_set_again(
    fresh: Sandbox, cells: list[str], look: str, expected: str
) -> None:
    for cell in cells:
        execute(fresh, cell)
    assert printed(fresh, look) == f"{expected}\n"
    for _ in range(2):
        assert die(fresh) == ()
        assert printed(fresh, look) == f"{expected}\n"


def test_what_cannot_be_set_again_is_named(fresh: Sandbox) -> None:
    execute(fresh, "import string")
    execute(fresh, "string.rest = (n for n in [1]); kept = [1]")
    assert [variable.name for variable in fresh.unsaved] == ["attribute string.rest"]
    assert die(fresh) == ("attribute string.rest",)
    assert printed(fresh, "print(kept, hasattr(string, 'rest'))") == "[1] False\n"


def test_it_is_no_variable(fresh: Sandbox) -> None:
    execute(fresh, "import string; string.more = [4]")
    assert die(fresh) == ()
    names = printed(fresh, "print([name for name in globals() if 'string' in name])")
    assert names == "['string']\n"


def test_a_branch_has_it(fresh: Sandbox) -> None:
    with fresh.branch(1) as (branch,):
        assert branch.execute("import string\nstring.more = 4").status == "ok"
        branch.keep()
    die(fresh)
    assert printed(fresh, "print(string.more)") == "4\n"


def test_a_cell_that_is_deeper_than_a_tree_may_be(fresh: Sandbox) -> None:
    execute(fresh, f"import string; string.more = 4; deep = {'-(' * 80}1{')' * 80}")
    execute(fresh, f"import sys; sys.setrecursionlimit(90); string.more = {'+'.join('1' * 900)}")
    assert printed(fresh, "print(deep, string.more)") == "1 900\n"
