"""The session's variables as cells and the host see them."""

from __future__ import annotations

import textwrap

import pytest

from rlm_containers import Sandbox
from tests.unit.sessions import Boxes, revive, run

SCAFFOLD = ("llm_query", "llm_query_batched", "rlm_query", "rlm_query_batched", "SHOW_VARS")


def form(box: Sandbox, code: str) -> str:
    """Run a cell, which must succeed. Return the short form of its variable ``v``."""
    return run(box, code).locals["v"]


# Short forms


@pytest.mark.parametrize(
    "init",
    [
        "def __repr__(self): return 'x' * 50_000_000",
        "def __repr__(self): raise ValueError('no')",
        "def __repr__(self): raise KeyboardInterrupt",
        "def __repr__(self): raise SystemExit(3)",
        "def __repr__(self): raise GeneratorExit",
        "def __repr__(self): raise MemoryError",
        "def __repr__(self): return 5",
        "def __repr__(self): return repr(self)",
        "def __repr__(self): return '\\ud800\\0\\n'",
        "__class__ = property(lambda self: 1 / 0)",
        "def __getattribute__(self, name): raise RuntimeError(name)",
        "def __eq__(self, other): raise RuntimeError\n    __hash__ = None",
        "def __bool__(self): raise RuntimeError\n    def __len__(self): raise RuntimeError",
    ],
)
def test_objects_that_misbehave_have_a_short_form(shared: Sandbox, init: str) -> None:
    code = f"class Evil:\n    {init}\nv = Evil()\nw = [v, {{'k': v}}]"
    result = shared.execute(code)
    assert result.status == "ok"
    assert 0 < len(result.locals["v"]) <= 200
    assert 0 < len(result.locals["w"]) <= 200
    assert shared.execute("print(1)").stdout == "1\n"


def test_a_repr_cannot_end_the_interpreter(box: Sandbox) -> None:
    run(box, "alive = object()")
    run(box, "class Evil:\n    def __repr__(self): raise SystemExit(3)\nv = Evil()")
    run(box, "assert alive is not None")  # the interpreter has not been restored
    assert box.execute("print('still here')").stdout == "still here\n"


def test_a_repr_that_prints_does_not_print_into_the_next_cell(box: Sandbox) -> None:
    run(box, "class Loud:\n    def __repr__(self): print('loud'); return 'x'\nv = Loud()")
    assert run(box, "print('mine')").stdout.count("mine") == 1


@pytest.mark.parametrize(
    "value",
    [
        "'x' * 50_000_000",
        "b'x' * 50_000_000",
        "bytearray(50_000_000)",
        "memoryview(bytes(50_000_000))",
        "list(range(300_000))",
        "['y' * 10_000_000] * 5",
        "{n: 'z' * 100 for n in range(300_000)}",
        "set(range(300_000))",
        "__import__('array').array('d', bytes(48_000_000))",
        "__import__('collections').deque(range(300_000))",
        "__import__('collections').OrderedDict.fromkeys(range(300_000))",
        "__import__('collections').Counter(range(300_000))",
        "__import__('types').SimpleNamespace(deep='w' * 10_000_000)",
        "[[[[[['deep'] * 100] * 100] * 100] * 100] * 100]",
        "1 << 10_000_000",
        "-(1 << 10_000_000)",
        "ValueError('m' * 10_000_000)",
    ],
)
def test_big_values_are_short(shared: Sandbox, value: str) -> None:
    result = shared.execute(f"big = {value}")
    assert (result.status, result.stderr) == ("ok", "")
    assert 1 <= len(result.locals["big"]) <= 200
    run(shared, "del big")


@pytest.mark.parametrize("kind", ["type name", "failing type name", "metaclass"])
def test_a_huge_type_name_is_cut(shared: Sandbox, kind: str) -> None:
    members = {
        "type name": "{}",
        "failing type name": "{'__repr__': lambda self: 1 / 0}",
        "metaclass": "{'__repr__': lambda self: 5}",
    }[kind]
    assert len(form(shared, f"v = type('N' * 5_000_000, (), {members})()")) <= 200


def test_all_short_forms_together_are_bounded(box: Sandbox) -> None:
    result = run(box, "for i in range(3000): globals()[f'v{i}'] = 'y' * 1000")
    assert len(result.locals) <= 500
    assert sum(len(name) + len(text) for name, text in result.locals.items()) < 100_000


def test_short_forms_with_long_type_names_are_bounded(box: Sandbox) -> None:
    code = """
    for i in range(400):
        globals()[f'v{i}'] = type('N' * 100_000, (), {})()
    """
    result = run(box, code)
    assert sum(len(name) + len(text) for name, text in result.locals.items()) < 100_000


def test_keys_that_are_not_names_are_left_out(box: Sandbox) -> None:
    code = """
    globals()[5] = 'a number'
    globals()[None] = 'nothing'
    globals()[(1, 2)] = 'a pair'
    globals()['n' * 1_000_000] = 'a long name'
    globals()['two words'] = globals()[''] = 'no names'
    class Name(str): pass
    globals()[Name('odd')] = 'a name of sorts'
    _private = 1
    public = 2
    """
    result = run(box, code)
    assert result.locals["public"] == "2"
    assert "_private" not in result.locals
    assert all(len(name) < 200 for name in result.locals)
    run(box, "assert public == 2 and globals()[5] == 'a number'")


def test_short_forms_do_not_sort_large_containers(box: Sandbox) -> None:
    # It would take long to sort a large dict or set after every cell, to show five elements.
    code = """
    class Key:
        compared = 0
        def __init__(self, n): self.n = n
        def __hash__(self): return self.n
        def __eq__(self, other): return self.n == other.n
        def __lt__(self, other):
            Key.compared += 1
            return self.n < other.n
    v = {Key(n * 7919 % 5000): n for n in range(5000)}
    w = set(v)
    """
    run(box, code)
    run(box, "Key.compared = 0")
    assert int(run(box, "print(Key.compared)").stdout) < 1000


# The scaffold


@pytest.mark.parametrize("how", ["{0} = None", "del {0}", "globals().clear()", "def {0}(): pass"])
def test_the_scaffold_comes_back(shared: Sandbox, how: str) -> None:
    for name in SCAFFOLD:
        shared.execute(how.format(name))
        assert run(shared, f"print(callable({name}), {name}.__name__)").stdout == f"True {name}\n"


def test_the_builtins_come_back(box: Sandbox) -> None:
    box.execute("globals().clear()")
    assert run(box, "print(len([1]), __name__)").stdout == "1 __main__\n"
    box.execute("del __builtins__")
    assert run(box, "print(len([1]))").stdout == "1\n"


def test_the_scaffold_is_not_listed(box: Sandbox) -> None:
    result = run(box, "x = 1")
    assert set(result.locals) == {"answer", "x"}


def test_show_vars_has_the_words_of_rlms(box: Sandbox) -> None:
    empty = run(box, "print(SHOW_VARS())").stdout
    assert empty == "No variables created yet. Use ```repl``` blocks to create variables.\n"
    run(box, "a = 1\nb = ['x']\n_hidden = 2\ndef f(): pass")
    shown = run(box, "print(SHOW_VARS())").stdout
    assert shown == "Available variables: {'a': 'int', 'b': 'list', 'f': 'function'}\n"


def test_the_scaffold_works_after_a_restore(boxes: Boxes) -> None:
    box = boxes(lm=lambda prompt: f"re: {prompt}")
    run(box, "ask = llm_query\nshow = SHOW_VARS\nx = 1")
    revive(box)
    assert run(box, "print(ask('a'), llm_query('b'))").stdout == "re: a re: b\n"
    assert "'x': 'int'" in run(box, "print(show())").stdout


# The answer


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("answer['content'] = 'done'; answer['ready'] = True", "done"),
        ("answer.update(content='done', ready=True)", "done"),
        ("answer = {'content': 'done', 'ready': True}", "done"),
        ("answer['content'] = 42; answer['ready'] = 1", "42"),
        ("answer['content'] = ''; answer['ready'] = True", ""),
        ("answer['ready'] = True", ""),
        ("answer = {'ready': True}", ""),
        ("answer['content'] = None; answer['ready'] = True", "None"),
        ("answer['content'] = 'not yet'", None),
        ("answer['content'] = 'x'; answer['ready'] = False", None),
        ("answer['content'] = 'x'; answer['ready'] = 0", None),
        ("answer = 'done'", None),
        ("del answer", None),
        ("answer.clear()", None),
        ("answer['content'] = 'x' * 3_000_000; answer['ready'] = True", "x" * 3_000_000),
        ("answer['content'] = '\\ud800'; answer['ready'] = True", "\ud800"),
    ],
)
def test_what_makes_a_final_answer(shared: Sandbox, code: str, expected: str | None) -> None:
    shared.reset_answer()
    assert run(shared, code).final_answer == expected


def test_an_answer_of_a_cell_with_an_error_counts(box: Sandbox) -> None:
    result = box.execute("answer.update(content='done', ready=True)\n1 / 0")
    assert (result.status, result.final_answer) == ("error", "done")


@pytest.mark.parametrize(
    "member", ["__str__", "__bool__", "__class__ = 1; __repr__", "__del__", "__len__"]
)
@pytest.mark.parametrize("error", ["ValueError('x')", "SystemExit(3)", "KeyboardInterrupt()"])
def test_a_misbehaving_answer_ends_nothing(shared: Sandbox, member: str, error: str) -> None:
    shared.reset_answer()
    code = f"""
    class Evil:
        {member.rpartition("; ")[0] or "pass"}
        def {member.rpartition("; ")[2]}(self): raise {error}
    answer['content'] = Evil()
    answer['ready'] = Evil()
    """
    result = shared.execute(textwrap.dedent(code))
    assert result.status == "ok"
    assert result.final_answer is None or isinstance(result.final_answer, str)
    shared.execute("answer = {}")
    assert shared.execute("print('alive')").stdout == "alive\n"


def test_a_partial_answer_is_kept_from_cell_to_cell(box: Sandbox) -> None:
    run(box, "answer['content'] = 'part one'")
    run(box, "answer['content'] += ', part two'")
    assert run(box, "answer['ready'] = True").final_answer == "part one, part two"


def test_the_answer_survives_the_interpreter(box: Sandbox) -> None:
    run(box, "answer['content'] = 'part one'")
    revive(box)
    assert run(box, "answer['ready'] = True").final_answer == "part one"


def test_a_new_question_forgets_the_answer(box: Sandbox) -> None:
    assert run(box, "answer.update(content='old', ready=True)").final_answer == "old"
    assert run(box, "x = 1").final_answer == "old"
    box.reset_answer()
    assert run(box, "print(answer)").final_answer is None


# Contexts and histories


def test_the_context_comes_back_and_context_0_may_change(box: Sandbox) -> None:
    box.load("context_0", "the text")
    assert run(box, "print(context)\ncontext = 'gone'").stdout == "the text\n"
    assert run(box, "print(context)\ndel context").stdout == "the text\n"
    run(box, "context_0 = 'mine'")
    assert run(box, "print(context)").stdout == "mine\n"
