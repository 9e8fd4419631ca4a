"""What cannot be saved, or not be loaded again: named, and no harm to the rest."""

from __future__ import annotations

import textwrap

import pytest

from rlm_containers import Sandbox
from tests.conftest import MakeBox
from tests.support import execute, printed

#: These tests are of the file: no heir may keep what is lost, or leave out a checkpoint.
OPTIONS = {"heirs": "never"}

GENERATOR = "numbers = (n for n in range(9))"


def die(box: Sandbox) -> tuple[set[str], str]:
    """Have the interpreter die; the names that are lost, and what is said."""
    result = box.execute("import os; os._exit(1)")
    assert result.status == "died"
    return set(result.lost), result.stderr


@pytest.mark.parametrize(
    ("define", "name", "kind"),
    [
        (GENERATOR, "numbers", "generator"),
        ("import socket; plug = socket.socketpair()[0]", "plug", "socket"),
        ("import sqlite3; db = sqlite3.connect(':memory:')", "db", "Connection"),
        ("import sys; frame = sys._getframe()", "frame", "frame"),
        ("import threading; thread = threading.Thread(target=print)", "thread", "Thread"),
        ("opened = open('/dev/null')", "opened", "TextIOWrapper"),
        ("import subprocess; run = subprocess.Popen(['cat'], stdin=-1)", "run", "Popen"),
        ("import subprocess; run = subprocess.Popen(['sleep', '600'])", "run", "Popen"),
        ("class C:\n    def __reduce__(self): return self.__reduce__()\nc = C()", "c", "C"),
        ("bag = [1, {'deep': (n for n in 'x')}]", "bag", "list"),
        ("class C:\n    def __reduce__(self): raise ValueError('not me')\nc = C()", "c", "C"),
        ("class C:\n    def __reduce__(self): raise SystemExit(3)\nc = C()", "c", "C"),
        ("class C:\n    def __reduce__(self): raise KeyboardInterrupt\nc = C()", "c", "C"),
        ("class C:\n    def __getstate__(self): return 1 / 0\nc = C()", "c", "C"),
        ("deep = []\nfor _ in range(100_000): deep = [deep]", "deep", "list"),
    ],
)
def test_what_cannot_be_saved_is_named(fresh: Sandbox, define: str, name: str, kind: str) -> None:
    printed(fresh, "before = ['b']")
    printed(fresh, define + "\nafter = ['a']")
    assert [(u.name, u.type) for u in fresh.unsaved] == [(name, kind)]
    assert fresh.unsaved[0].reason
    assert len(str(fresh.unsaved[0])) < 500
    lost, said = die(fresh)
    assert lost == {name}
    assert f"{name} ({kind})" in said
    assert printed(fresh, f"print(before, after, {name!r} in globals())") == "['b'] ['a'] False\n"


def test_the_living_do_not_lose_what_cannot_be_saved(box: Sandbox) -> None:
    printed(box, GENERATOR)
    assert [u.name for u in box.unsaved] == ["numbers"]
    assert printed(box, "print(next(numbers), next(numbers))") == "0 1\n"
    printed(box, "del numbers")
    assert box.unsaved == ()


def test_losses_are_listed_once(fresh: Sandbox) -> None:
    printed(fresh, GENERATOR)
    assert die(fresh)[0] == {"numbers"}
    printed(fresh, "kept = 1")
    assert fresh.unsaved == ()
    assert die(fresh)[0] == set()
    assert printed(fresh, "print(kept)") == "1\n"


def test_an_object_shared_with_an_unsavable_variable(fresh: Sandbox) -> None:
    # The first record fails after the shared object was written in it.
    execute(
        fresh,
        """
        class Thing: pass
        thing = Thing(); thing.text = 'shared' * 10
        first = [thing, thing.text, (n for n in 'x')]
        second = {'thing': thing, 'text': thing.text}
        third = [thing.text, thing]
        del thing
        """,
    )
    assert die(fresh)[0] == {"first"}
    assert printed(
        fresh,
        "print(second['thing'] is third[1], third[0] is second['text'], type(third[1]) is Thing)",
    ) == "True True True\n"  # fmt: skip


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("def __setstate__(self, s): raise ValueError('will not load')", "will not load"),
        ("def __setstate__(self, s): raise SystemExit", "SystemExit"),
        ("def __setstate__(self, s): raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("def __reduce__(self): return (int, ('no number',))", "ValueError"),
        ("def __reduce__(self): return (open, ('/nowhere/at/all',))", "FileNotFoundError"),
    ],
)
def test_what_cannot_be_loaded_is_named(fresh: Sandbox, method: str, reason: str) -> None:
    printed(
        fresh,
        textwrap.dedent(
            """
            before = ['b']
            class Odd:
                def __init__(self): self.a = before
                METHOD
            odd = Odd()
            after = [before, 'a']
            more = {'after': after}
            """
        ).replace("METHOD", method),
    )
    lost, said = die(fresh)
    assert lost == {"odd"}
    assert "odd (Odd)" in said
    assert reason in said
    assert printed(
        fresh, "print(after[0] is before, more['after'] is after, Odd.__name__, 'odd' in globals())"
    ) == "True True Odd False\n"  # fmt: skip


KILLER = """
import os
class Killer:
    def __reduce__(self): {crime}
killer = Killer()
print('done')
"""


@pytest.mark.parametrize("crime", ["os._exit(3)", "os.kill(os.getpid(), 9)"])
def test_what_kills_the_interpreter_while_it_is_saved(make_box: MakeBox, crime: str) -> None:
    box = make_box(heirs="never")
    printed(box, "acknowledged = 'still here'")
    assert printed(box, KILLER.format(crime=crime)) == "done\n"
    result = box.execute("print(acknowledged, 'killer' in globals())")
    assert (result.status, result.stdout) == ("ok", "still here False\n")
    assert "A new one goes on" in result.stderr
    assert printed(box, "print(acknowledged)") == "still here\n"


@pytest.mark.parametrize("crime", ["os._exit(3)", "os.kill(os.getpid(), 9)"])
def test_what_kills_whoever_saves_it_costs_nothing_else(make_box: MakeBox, crime: str) -> None:
    box = make_box()
    printed(box, "acknowledged = 'still here'")
    assert printed(box, KILLER.format(crime=crime)) == "done\n"
    # Where an heir saves it, the interpreter lives.
    result = box.execute("print(acknowledged)")
    assert (result.status, result.stdout) == ("ok", "still here\n")
    assert "killer" in {*result.lost, *(variable.name for variable in box.unsaved)}
    assert box.execute("print(acknowledged)").stdout == "still here\n"


def test_a_reduce_that_prints_disturbs_nobody(box: Sandbox) -> None:
    execute(
        box,
        """
        import sys
        class Loud:
            def __reduce__(self):
                print('saving'); print('saving', file=sys.stderr)
                return (Loud, ())
        loud = Loud()
        """,
    )
    assert [printed(box, f"print({n})") for n in range(3)] == ["0\n", "1\n", "2\n"]
    printed(box, "del loud")


def test_a_reduce_that_changes_the_variables(fresh: Sandbox) -> None:
    execute(
        fresh,
        """
        class Busy:
            def __reduce__(self):
                for n in range(100): globals()[f'made_{n}'] = n
                globals().pop('victim', None)
                return (Busy, ())
        a = Busy(); victim = 1; z = 2
        """,
    )
    assert printed(fresh, "print(z)") == "2\n"
    assert die(fresh)[0] <= {"victim"}
    assert printed(fresh, "print(z, type(a) is Busy)\ndel a") == "2 True\n"
