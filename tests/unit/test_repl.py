"""ContainerREPL: its options and results, and ``custom_tools`` in cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rlm_containers.errors import OptionError, SetupCodeError
from rlm_containers.repl import ContainerREPL, CustomTools
from tests.unit.guests import LocalRuntime

TEXT = "Two lines of text,\nwhich are no code."


def shout(text: str) -> str:
    return text.upper()


@pytest.fixture
def repl(made_bundle: object) -> Iterator[Callable[..., ContainerREPL]]:
    """Makes environments without a container, and closes them at the end."""
    made: list[ContainerREPL] = []

    def make(**arguments: Any) -> ContainerREPL:
        made.append(ContainerREPL(runtime=LocalRuntime(), **arguments))
        return made[-1]

    yield make
    for environment in made:
        environment.cleanup()


def printed(environment: ContainerREPL, code: str) -> str:
    result = environment.execute_code(code)
    assert (result.status, result.stderr) == ("ok", "")
    return result.stdout


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (shout, "functions"),
        (len, "functions"),
        (dict, "functions"),
        ({"tool": shout, "description": "Shouts."}, "functions"),
        ("def t(x):\n    return x", "code"),
        ("def t(x): return x", "code"),
        ("    def t(x):\n        return x\n", "code"),
        ("async def t(): ...", "code"),
        ("@decorator\ndef t(): ...", "code"),
        ("class t: pass", "code"),
        ("lambda x: x + 1", "code"),
        ("lambda: 1", "code"),
        ("import math\nt = math.pi", "code"),
        ("import math as t\nt.pi", "code"),
        ("for i in range(3):\n    t = i", "code"),
        ({"tool": "def t(): ...", "description": None}, "code"),
        ("text", "data"),
        ("", "data"),
        (TEXT, "data"),
        ("x = 1\ny = 2", "data"),
        ("t = 1", "data"),
        ("definitely text", "data"),
        (5, "data"),
        (None, "data"),
        (["def t(): ..."], "data"),
        ({"a": 1}, "data"),
        ({"tool": {"a": 1}}, "data"),
    ],
)
def test_entries_are_sorted_by_kind(value: Any, kind: str) -> None:
    sorted_ = CustomTools.sort({"t": value})
    assert list(getattr(sorted_, kind)) == ["t"]
    assert len(sorted_.functions) + len(sorted_.code) + len(sorted_.data) == 1


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"llm_query": shout}, "reserved"),
        ({"context": "x"}, "reserved"),
        ({"a b": 1}, "no identifier"),
        ({"t": "def other(): ..."}, "does not define 't'.*other"),
        ({"t": "class action law is\nno Python"}, "looks like code, but is not valid Python"),
        ({"t": {1, 2}}, r"\(set\) cannot be expressed as JSON"),
        ({"t": {"tool": object()}}, "cannot be expressed as JSON"),
        ([shout], "must be a mapping"),
    ],
)
def test_wrong_entries_are_refused(entries: Any, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        CustomTools.sort(entries)
    with pytest.raises(OptionError, match=said):
        ContainerREPL(runtime=LocalRuntime(), custom_tools=entries)


def test_all_kinds_work_in_a_cell(repl: Callable[..., ContainerREPL]) -> None:
    environment = repl(
        custom_tools={
            "shout": {"tool": shout, "description": "Shouts."},
            "twice": "def twice(x):\n    return 2 * x",
            "increase": "lambda x: x + 1",
            "Point": "class Point:\n    def __init__(self, x): self.x = x",
            "KEY": "key",
            "TEXT": TEXT,
            "N": 7,
            "FLAG": None,
            "ROWS": [{"a": 1}],
        }
    )
    assert printed(
        environment,
        "print(shout('hi'), twice(2), increase(1), Point(3).x, KEY, N, FLAG, ROWS, len(TEXT))",
    ) == f"HI 4 2 3 key 7 None [{{'a': 1}}] {len(TEXT)}\n"  # fmt: skip
    shown = environment.execute_code("print(SHOW_VARS())")
    # As in rlms's local environment: functions are not among the variables, data is.
    assert {"shout", "twice", "increase", "Point"}.isdisjoint(shown.locals)
    assert {"KEY", "TEXT", "N", "FLAG", "ROWS"} <= shown.locals.keys()
    assert "twice" not in shown.stdout
    assert "'ROWS': 'list'" in shown.stdout


def test_functions_come_back_and_data_is_the_cells(repl: Callable[..., ContainerREPL]) -> None:
    environment = repl(custom_tools={"shout": shout, "twice": "lambda x: 2 * x", "N": 7})
    printed(environment, "shout = twice = None; N += 1; kept = []")
    printed(environment, "kept.append(twice)")
    assert printed(environment, "print(shout('a'), twice(2), N)") == "A 4 8\n"
    assert environment.execute_code("import os; os._exit(1)").lost == ()
    assert printed(environment, "print(shout('a'), kept[0] is twice, N)") == "A True 8\n"
    printed(environment, "twice = None")
    assert printed(environment, "print(twice(2))") == "4\n"


def test_code_of_a_tool_that_fails_is_an_error() -> None:
    with pytest.raises(SetupCodeError, match="The tool t failed") as caught:
        ContainerREPL(runtime=LocalRuntime(), custom_tools={"t": "t = 1\nt / 0"})
    assert "ZeroDivisionError" in caught.value.stderr


def test_the_configuration_is_read_once(
    repl: Callable[..., ContainerREPL], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.toml"
    path.write_text('max_output = 200\nsetup_code = "ready = len(context)"\n')
    monkeypatch.setenv("RLM_CONTAINERS_CONFIG", str(path))
    environment = repl(context_payload="text")
    assert environment.sandbox.options is environment.options
    assert environment.options.max_output == 200
    assert printed(environment, "print(ready)") == "4\n"


def test_results_have_what_rlms_reads(repl: Callable[..., ContainerREPL]) -> None:
    result = repl().execute_code("import sys\nx = 1\nprint('out')\nprint('err', file=sys.stderr)")
    assert (result.stdout, result.stderr, result.locals["x"]) == ("out\n", "err\n", "1")
    assert result.execution_time > 0


def test_setup_code_finds_tools_and_context(repl: Callable[..., ContainerREPL]) -> None:
    environment = repl(
        context_payload="text",
        custom_tools={"shout": shout, "N": 2},
        setup_code="ready = shout(context) * N",
    )
    assert printed(environment, "print(ready)") == "TEXTTEXT\n"
    with pytest.raises(SetupCodeError, match="The setup code failed") as caught:
        ContainerREPL(runtime=LocalRuntime(), context_payload="x", setup_code="context / 0")
    assert "TypeError" in caught.value.stderr
    assert '"<setup code>", line 1' in caught.value.stderr
