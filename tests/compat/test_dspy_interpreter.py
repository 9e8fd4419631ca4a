"""``ContainerInterpreter`` without a module: dspy's ``CodeInterpreter`` protocol, point by point."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rlm_containers.container import close_pools, shared_pool
from rlm_containers.errors import OptionError
from tests.support import Engine, assert_gone, eventually, on_ci

if on_ci():
    import dspy  # on CI it must be installed
else:
    dspy = pytest.importorskip("dspy", reason="dspy is not installed: pip install 'dspy>=3.4,<3.5'")

import pydantic
from dspy.primitives.code_interpreter import CodeExecutionError, CodeInterpreterError, FinalOutput
from dspy.utils.callback import BaseCallback

from rlm_containers.integrations.dspy import ContainerInterpreter

Make = Callable[..., ContainerInterpreter]


@pytest.fixture
def make(engine: Engine) -> Iterator[Make]:
    """Make interpreters, and shut them down. Fails if anything is left of them."""
    made: list[ContainerInterpreter] = []

    def make(*args: Any, python: str = "3.11", **options: Any) -> ContainerInterpreter:
        options = {"image": engine.image(python), "runtime": engine.runtime, **options}
        interpreter = ContainerInterpreter(*args, **options)
        made.append(interpreter)
        return interpreter

    yield make
    for interpreter in made:
        interpreter.shutdown()
    assert_gone(engine, *(interpreter._sandbox.name for interpreter in made))


@pytest.fixture(scope="module")
def shared(engine: Engine) -> Iterator[ContainerInterpreter]:
    """An interpreter that many tests share."""
    with ContainerInterpreter(image=engine.image(), runtime=engine.runtime) as interpreter:
        yield interpreter


@pytest.fixture
def box(shared: ContainerInterpreter) -> Iterator[ContainerInterpreter]:
    """The shared interpreter, without tools and output fields of earlier tests."""
    yield shared
    shared.tools.clear()
    shared.output_fields = None


def fields(*names: str) -> list[dict[str, Any]]:
    return [{"name": name} for name in names]


# Results


def test_it_is_an_interpreter_and_a_factory_of_them(engine: Engine) -> None:
    interpreter = ContainerInterpreter()  # starts nothing
    assert isinstance(interpreter, dspy.CodeInterpreter)
    with dspy.context(interpreter_factory=ContainerInterpreter):
        assert dspy.resolve_interpreter_factory() is ContainerInterpreter
    make = ContainerInterpreter.factory(runtime=engine.runtime, image=engine.image())
    assert "container" in make.execution_instructions
    assert isinstance(make(), ContainerInterpreter)
    assert make() is not make()


def test_the_model_is_told_where_its_code_runs() -> None:
    with dspy.context(interpreter_factory=ContainerInterpreter.factory()):
        rlm = dspy.RLM("question -> answer")
    signature = rlm.generate_action.signature
    assert signature is not None
    assert ContainerInterpreter.execution_instructions in signature.instructions


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ("print(1)", "1\n"),
        ("print(1); print(2)", "1\n2\n"),
        ("1 + 1", 2),
        ("0", 0),
        ("'text'", "text"),
        ("[1, {'a': None}]", [1, {"a": None}]),
        ("(1, 2)", [1, 2]),
        ("{1}", "{1}"),
        ("object", "<class 'object'>"),
        ("b'x'", "b'x'"),
        ("print('printed')\n'value'", "value"),
        ("print('printed')\nNone", "printed\n"),
        ("x = 1", None),
        ("", None),
        ("# nothing", None),
        ("def f(): return 3\nf()", 3),
        ("import os; _ = os.system('echo from a shell')", "from a shell\n"),
        ("import sys; print('warned', file=sys.stderr)", "warned\n"),
        ("'\\ud800 \\0 🚀'", "\ud800 \0 🚀"),
        ("'x' * 5_000_000", "x" * 5_000_000),
        ("__name__", "__main__"),
    ],
)
def test_output(box: ContainerInterpreter, code: str, output: object) -> None:
    assert box.execute(code) == output


def test_state_persists(box: ContainerInterpreter) -> None:
    box.execute("import math\ncount = iter(range(9))\ndef area(r): return math.pi * r * r")
    assert box.execute("next(count)") == 0
    assert box("next(count)") == 1
    assert box.execute("round(area(1), 2)") == 3.14
    assert "count" in box.execute("sorted(globals())")


def test_the_wrapper_leaves_no_names(box: ContainerInterpreter) -> None:
    box.output_fields = fields("a")
    names = set(box.execute("sorted(globals())"))
    assert {name for name in names if not name.startswith("__")} <= {
        *("SUBMIT", "math", "count", "area", "os", "sys", "f", "x", "_")
    }
    assert "SUBMIT" not in dict(box._sandbox.execute("").locals)
    assert box._sandbox.unsaved == () or "SUBMIT" not in str(box._sandbox.unsaved)


def test_sources_of_functions_are_found(box: ContainerInterpreter) -> None:
    box.execute("def shown():\n    return 'here'")
    assert "return 'here'" in box.execute("import inspect\ninspect.getsource(shown)")


def test_interpreters_of_a_factory_take_containers_that_wait(engine: Engine) -> None:
    new = ContainerInterpreter.factory(image=engine.image(), runtime=engine.runtime, pool=1)
    try:
        with new() as first:
            assert first.execute("x = 1\nx") == 1
            pool = shared_pool(first._sandbox.options)
            assert eventually(lambda: pool.waiting == 1)
            (waiting,) = pool._waiting
        with new() as second:
            assert second._sandbox.name == waiting.name
            with pytest.raises(CodeExecutionError, match="NameError"):
                second.execute("x")
    finally:
        close_pools()


@pytest.mark.parametrize("python", ["3.9", "3.13"])
def test_other_pythons(make: Make, python: str) -> None:
    box = make({"add": lambda a, b: a + b}, fields("total"), python=python)
    assert box.execute("import sys; '%d.%d' % sys.version_info[:2]") == python
    with pytest.raises(CodeExecutionError, match="1 / 0"):
        box.execute("x = 1\n1 / 0")
    assert box.execute("SUBMIT(add(x, b=2))") == FinalOutput({"total": 3})


# Errors


def test_an_exception(box: ContainerInterpreter) -> None:
    with pytest.raises(CodeExecutionError) as caught:
        box.execute("print('first')\ndef f():\n    return {}['missing']\nf()")
    text = str(caught.value)
    assert text.startswith("Traceback (most recent call last):\n")
    assert "line 4, in <module>" in text
    assert "line 3, in f\n    return {}['missing']" in text
    assert "KeyError: 'missing'\nPrinted before that:\nfirst\n" in text
    assert text.count("File ") == 2  # the wrapper does not show
    assert box.execute("1") == 1


@pytest.mark.parametrize("code", ["x = = 1", "return 1", "'\0'", "def f(:", "'\ud800'", "await x"])
def test_code_that_is_not_python(box: ContainerInterpreter, code: str) -> None:
    with pytest.raises(SyntaxError):
        box.execute(f"print('not this')\n{code}")
    assert box.execute("1") == 1


def test_a_syntax_error_shows_where(box: ContainerInterpreter) -> None:
    with pytest.raises(SyntaxError) as caught:
        box.execute("x = 1\nx = = 2")
    assert "line 2" in str(caught.value)
    assert "x = = 2\n" in str(caught.value)
    with pytest.raises(CodeExecutionError, match="SyntaxError"):
        box.execute("compile('x = = 1', 'other', 'exec')")  # the cell itself is valid


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise BaseException('odd')", "odd"),
        ("def f(): f()\nf()", "RecursionError"),
        ("class C:\n    def __repr__(self): raise ValueError('shy')\nC()", "shy"),
    ],
)
def test_other_ways_to_fail(box: ContainerInterpreter, code: str, said: str) -> None:
    with pytest.raises(CodeExecutionError, match=said):
        box.execute(code)
    assert box.execute("1") == 1


def test_a_death_loses_nothing(make: Make) -> None:
    box = make({"double": lambda n: 2 * n})
    documents = ["text"] * 5000
    box.execute("x = 20", {"documents": documents})
    with pytest.raises(CodeExecutionError, match="SIGKILL"):
        box.execute("import os\nprint('about to')\nos.kill(os.getpid(), 9)")
    assert box.execute("[double(x), len(documents)]", {"documents": documents}) == [40, 5000]


def test_a_forked_child_reports_nothing(box: ContainerInterpreter) -> None:
    assert box.execute("import os\npid = os.fork()\n'parent' if pid else 'child'") == "parent"
    assert box.execute("1") == 1


def test_a_container_that_is_gone(make: Make, engine: Engine) -> None:
    box = make()
    box.execute("x = 1")
    engine.run("rm", "--force", box._sandbox.name)
    with pytest.raises(CodeInterpreterError) as caught:
        box.execute("x")
    assert not isinstance(caught.value, CodeExecutionError)
    with pytest.raises(CodeInterpreterError, match="shut down"):
        box.execute("x")


def test_a_start_that_fails(engine: Engine) -> None:
    box = ContainerInterpreter(
        image="localhost/rlm-containers/there-is-none", runtime=engine.runtime, start_timeout=20
    )
    with pytest.raises(CodeInterpreterError, match="there-is-none"):
        box.start()
    with pytest.raises(CodeInterpreterError, match="shut down"):
        box.start()
    assert_gone(engine, box._sandbox.name)


def test_setup_code_that_fails(make: Make) -> None:
    with pytest.raises(CodeInterpreterError, match="ZeroDivisionError"):
        make(setup_code="1 / 0").execute("1")
    assert make(setup_code="import json as j").execute("j.dumps(1)") == "1"


def test_wrong_arguments() -> None:
    with pytest.raises(OptionError, match="runtime"):
        ContainerInterpreter(runtim="docker")  # type: ignore[call-arg]
    with pytest.raises(OptionError, match="runtime"):
        ContainerInterpreter.factory(runtim="docker")
    for name in ("SUBMIT", "class", "a b", "__builtins__", ""):
        with pytest.raises(OptionError, match="the name of a tool"):
            ContainerInterpreter({name: print})
        with pytest.raises(OptionError):
            ContainerInterpreter(output_fields=fields("a b"))


# Variables


class Point(pydantic.BaseModel):
    x: int
    when: datetime.date


@dataclasses.dataclass
class Pair:
    first: int
    second: set[str]


@pytest.mark.parametrize(
    ("value", "there"),
    [
        (None, None),
        (True, True),
        (7, 7),
        (-1.5, -1.5),
        (10**40, 10**40),
        ("grüße 世界 🚀 \ud800 \0 '\" \\", "grüße 世界 🚀 \ud800 \0 '\" \\"),
        ((1, (2,)), [1, [2]]),
        ({"b"}, ["b"]),
        ({1: "one", None: 2}, {"1": "one", "None": 2}),
        (Point(x=1, when=datetime.date(2024, 2, 29)), {"x": 1, "when": "2024-02-29"}),
        ([Pair(1, {"a"})], [{"first": 1, "second": ["a"]}]),
        ("x" * 3_000_000, "x" * 3_000_000),
        (["ü" * 10] * 100_000, ["ü" * 10] * 100_000),
        ({"k" * 5000: [1]}, {"k" * 5000: [1]}),
    ],
)
def test_variables(box: ContainerInterpreter, value: object, there: object) -> None:
    assert box.execute("value", {"value": value}) == there
    assert box.execute("value") == there  # it is kept


def test_infinite_numbers(box: ContainerInterpreter) -> None:
    numbers = [float("inf"), float("-inf"), float("nan")]
    assert box.execute("[str(n) for n in numbers]", {"numbers": numbers}) == ["inf", "-inf", "nan"]


@pytest.mark.parametrize("size", [1, 5000])  # sent with the cell, and loaded from a file
@pytest.mark.parametrize(
    "code", ["value.append(0)", "value[0] = 0", "value = 3", "del value", "value[0] = object()"]
)
def test_a_variable_that_is_passed_again(box: ContainerInterpreter, size: int, code: str) -> None:
    value = [1] * size
    box.execute("untouched = list(value)", {"value": value})
    box.execute(code, {"value": value})
    assert box.execute("value == untouched", {"value": value}) is True
    value[-1] = 2  # changed on the host
    assert box.execute("value[-1]", {"value": value}) == 2
    box.execute("value[-1] = 3")  # changed in the container
    assert box.execute("value[-1]", {"value": value}) == 2


def test_large_variables_are_sent_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    box = make()
    box.start()
    loaded: list[str] = []
    load = box._sandbox.load

    def counted(name: str, value: Any, **options: Any) -> None:
        loaded.append(name)
        load(name, value, **options)

    monkeypatch.setattr(box._sandbox, "load", counted)
    variables = {"text": "t" * 1_000_000, "rows": [{"n": n} for n in range(50_000)], "small": [1]}
    for n in range(3):
        assert box.execute(f"{n} + len(text) + len(rows)", dict(variables)) == n + 1_050_000
    assert sorted(loaded) == ["rows", "text"]
    box.execute("text = text[:3]\nrows[0]['n'] = 'changed'", variables)
    assert box.execute("[len(text), rows[0]['n']]", variables) == [1_000_000, 0]
    assert sorted(loaded) == ["rows", "rows", "text", "text"]
    with pytest.raises(CodeExecutionError):
        box.execute("text = ''\n1 / 0", variables)
    assert box.execute("len(text)", variables) == 1_000_000


@pytest.mark.parametrize(
    "variables",
    [
        {"class": 1},
        {"a b": 1},
        {"SUBMIT": 1},
        {"search": 1},
        {"x": object()},
        {"x": [lambda: 0]},
        {"x": b"\xff"},
    ],
)
def test_variables_that_cannot_be_sent(
    box: ContainerInterpreter, variables: dict[str, Any]
) -> None:
    box.tools["search"] = print
    with pytest.raises(CodeInterpreterError) as caught:
        box.execute("1", variables)
    assert not isinstance(caught.value, CodeExecutionError)
    assert box.execute("1") == 1


# SUBMIT


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ("SUBMIT('a', 2)", {"answer": "a", "score": 2}),
        ("SUBMIT(score=2, answer='a')", {"answer": "a", "score": 2}),
        ("SUBMIT('a', score=2)", {"answer": "a", "score": 2}),
        (
            "print('x')\nSUBMIT(None, (1, {2}))\nprint('not reached')",
            {"answer": None, "score": [1, [2]]},
        ),
        (
            "def f():\n    try: SUBMIT([], 1)\n    except Exception: pass\nf()",
            {"answer": [], "score": 1},
        ),
        ("try: SUBMIT('a', 1)\nfinally: x = 'cleaned up'", {"answer": "a", "score": 1}),
        ("SUBMIT('x' * 2_000_000, 1)", {"answer": "x" * 2_000_000, "score": 1}),
    ],
)
def test_submit(box: ContainerInterpreter, code: str, output: object) -> None:
    box.output_fields = fields("answer", "score")
    assert box.execute(code) == FinalOutput(output)


def test_submit_without_fields(box: ContainerInterpreter) -> None:
    assert box.execute("SUBMIT(3)") == FinalOutput({"output": 3})
    assert box.execute("SUBMIT({'answer': 3})") == FinalOutput({"output": {"answer": 3}})
    assert box.execute("SUBMIT(output=3)") == FinalOutput({"output": 3})


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("SUBMIT('a')", r"SUBMIT\(answer, score\): missing a required argument: 'score'"),
        ("SUBMIT(1, 2, 3)", "too many positional arguments"),
        ("SUBMIT(answer=1, scores=2)", "missing a required argument: 'score'"),
        ("SUBMIT(1, object())", "object is not JSON serializable"),
        ("SUBMIT({(1, 2): 3}, 1)", "keys must be str"),
    ],
)
def test_submit_that_does_not_fit(box: ContainerInterpreter, code: str, said: str) -> None:
    box.output_fields = fields("answer", "score")
    with pytest.raises(CodeExecutionError, match=f"TypeError: .*{said}"):
        box.execute(code)
    assert box.execute("SUBMIT(1, 2)") == FinalOutput({"answer": 1, "score": 2})


def test_arrays_are_submitted_as_lists(box: ContainerInterpreter) -> None:
    code = "class Array:\n    def tolist(self): return [1, 2]\nSUBMIT(Array())"
    assert box.execute(code) == FinalOutput({"output": [1, 2]})


def test_submit_cannot_be_replaced(box: ContainerInterpreter) -> None:
    box.execute("SUBMIT = None")
    assert box.execute("SUBMIT(1)") == FinalOutput({"output": 1})
    box.execute("def finish(): SUBMIT(2)")
    assert box.execute("finish()") == FinalOutput({"output": 2})


def test_a_result_that_is_too_large(box: ContainerInterpreter) -> None:
    for code in ("'x' * 70_000_000", "SUBMIT('x' * 70_000_000)"):
        with pytest.raises(CodeExecutionError, match="cannot be sent"):
            box.execute(code)
    assert box.execute("1") == 1


def test_a_result_that_is_too_large_beside_large_variables(box: ContainerInterpreter) -> None:
    # The cell also changes the variable, to a value that cannot be sent.
    code = "text.append({1, 2})\nSUBMIT('x' * 70_000_000)"
    variables = {"text": ["t" * 5_000_000]}
    with pytest.raises(CodeExecutionError, match="The final cannot be sent"):
        box.execute(code, variables)
    assert box.execute("len(text)", variables) == 1  # it was sent again


# Tools


def test_tools(box: ContainerInterpreter) -> None:
    box.tools.update(
        join=lambda *parts, sep="-": sep.join(parts),
        repeat=lambda text, times=2: text * times,
        nothing=lambda: None,
        point=lambda: Point(x=1, when=datetime.date(2024, 2, 29)),
    )
    assert box.execute("join('a', 'b', sep='+')") == "a+b"
    assert box.execute("[repeat('a'), repeat('a', 3), repeat(times=1, text='b')]") == [
        "aa",
        "aaa",
        "b",
    ]
    assert box.execute("nothing() is None") is True
    assert box.execute("point()") == {"x": 1, "when": "2024-02-29"}
    assert box.execute("len(repeat('x' * 1_000_000, 3))") == 3_000_000


def test_tools_can_be_exchanged(box: ContainerInterpreter) -> None:
    box.tools["one"] = lambda: 1
    assert box.execute("one()") == 1
    box.tools["one"] = lambda: 2
    box.tools["llm_query"] = lambda prompt: prompt.upper()
    assert box.execute("[one(), llm_query('hi')]") == [2, "HI"]
    box.execute("one = None")
    assert box.execute("one()") == 2
    del box.tools["one"]
    with pytest.raises(CodeExecutionError, match="NameError"):
        box.execute("one()")


def test_tools_that_fail(box: ContainerInterpreter) -> None:
    class OddError(Exception):
        pass

    def fail(kind: str) -> object:
        if kind == "result":
            return object()
        raise {"value": ValueError("wrong"), "odd": OddError("strange")}[kind]

    box.tools["fail"] = fail
    assert box.execute("try: fail('value')\nexcept ValueError as e: x = str(e)\nx") == "wrong"
    assert "strange" in box.execute("try: fail('odd')\nexcept RuntimeError as e: x = str(e)\nx")
    with pytest.raises(CodeExecutionError, match="The result of fail cannot be expressed as JSON"):
        box.execute("fail('result')")
    with pytest.raises(CodeExecutionError, match="TypeError: .*'knd'"):
        box.execute("fail(knd='x')")
    with pytest.raises(CodeExecutionError, match="TypeError"):
        box.execute("fail(object())")
    assert box.execute("1") == 1


def test_async_tools(box: ContainerInterpreter) -> None:
    async def fetch(n: int) -> int:
        await asyncio.sleep(0.01)
        return n

    box.tools["fetch"] = fetch
    assert box.execute("fetch(4)") == 4

    async def inside_of_a_loop() -> object:
        return box.execute("fetch(5)")

    assert asyncio.run(inside_of_a_loop()) == 5


def test_tools_of_dspy(box: ContainerInterpreter) -> None:
    def add(a: int, b: int = 1) -> int:
        """Add."""
        return a + b

    box.tools["add"] = dspy.Tool(add)
    assert box.execute("[add(1), add(1, 2), add(a=3)]") == [2, 3, 4]


def test_tools_see_the_settings_of_the_caller(box: ContainerInterpreter) -> None:
    box.tools["setting"] = lambda: dspy.settings.get("max_errors")
    with dspy.context(max_errors=123):
        assert box.execute("setting()") == 123
    with dspy.context(max_errors=456):
        assert box.execute("setting()") == 456


def test_tools_called_by_many_threads(box: ContainerInterpreter) -> None:
    meeting = threading.Barrier(4, timeout=20)

    def meet(n: int) -> int:
        meeting.wait()
        return n

    box.tools["meet"] = meet
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(4) as pool: met = list(pool.map(meet, range(4)))\n"
        "met"
    )
    assert box.execute(code) == [0, 1, 2, 3]


def test_cancellation_reaches_the_caller(box: ContainerInterpreter) -> None:
    def cancel() -> None:
        raise asyncio.CancelledError

    box.tools["cancel"] = cancel
    with pytest.raises(asyncio.CancelledError):
        box.execute("cancel()")
    assert box.execute("1") == 1


def test_one_cell_at_a_time(box: ContainerInterpreter) -> None:
    box.tools["again"] = lambda: box.execute("1")
    with pytest.raises(CodeExecutionError, match="executing another cell"):
        box.execute("again()")


def test_an_interpreter_in_a_tool(make: Make) -> None:
    outer, inner = make(), make()
    outer.tools["inner"] = inner.execute
    assert outer.execute("inner('6 * 7')") == 42


def test_callbacks(make: Make) -> None:
    seen: list[tuple[str, object]] = []

    class Watch(BaseCallback):
        def on_interpreter_startup_start(self, call_id: str, instance: Any, inputs: Any) -> None:
            seen.append(("start", inputs))

        def on_interpreter_execute_end(
            self, call_id: str, outputs: Any, exception: Any = None
        ) -> None:
            seen.append(("executed", outputs))

        def on_interpreter_tool_call_start(self, call_id: str, instance: Any, inputs: Any) -> None:
            seen.append(("tool", inputs["tool_name"]))

        def on_interpreter_shutdown_start(self, call_id: str, instance: Any, inputs: Any) -> None:
            seen.append(("shutdown", inputs))

    box = make({"one": lambda: 1}, callbacks=[Watch()])
    box.execute("one() + 1")
    box.shutdown()
    assert seen == [("start", {}), ("tool", "one"), ("executed", 2), ("shutdown", {})]


# Start and end


def test_start_and_shutdown(make: Make, engine: Engine) -> None:
    box = make()
    assert not engine.containers(box._sandbox.name)
    box.start()
    box.start()
    assert len(engine.containers(box._sandbox.name)) == 1
    box.execute("x = 1")
    box.shutdown()
    box.shutdown()
    assert_gone(engine, box._sandbox.name)
    for use in (box.start, lambda: box.execute("x")):
        with pytest.raises(CodeInterpreterError, match="shut down"):
            use()


def test_shutdown_without_a_start(make: Make) -> None:
    make().shutdown()


def test_shutdown_ends_a_cell_that_runs(make: Make) -> None:
    box = make({"begun": (begun := threading.Event()).set})
    outcome: list[BaseException] = []

    def run() -> None:
        try:
            box.execute("begun()\nwhile True: pass")
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(20)
    box.shutdown()
    thread.join(20)
    assert not thread.is_alive()
    assert eventually(lambda: outcome)
    assert isinstance(outcome[0], CodeInterpreterError)
