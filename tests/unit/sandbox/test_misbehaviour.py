"""Functions and values of the user that misbehave on the host: the cell gets an answer at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rlm_containers import Sandbox
from rlm_containers.container.bundle import Bundle
from tests.unit.guests import LocalRuntime
from tests.unit.sessions import run


class Mute(Exception):
    """Raises whatever is asked of it."""

    def __str__(self) -> str:
        raise SystemExit("no text")

    __repr__ = __str__

    @property
    def args(self) -> Any:  # type: ignore[override]
        raise KeyboardInterrupt


class Odd(str):
    """A string whose own methods raise."""

    def __len__(self) -> int:
        raise RuntimeError("no length")

    __str__ = __repr__ = __hash__ = __iter__ = __len__  # type: ignore[assignment]


class Trap(dict[str, Any]):
    """A mapping that cannot be looked through."""

    def items(self) -> Any:
        raise GeneratorExit


def raising(error: BaseException) -> Callable[..., Any]:
    def function(*_: object) -> Any:
        raise error

    return function


def raising_later(error: BaseException) -> Callable[..., Any]:
    async def function(*_: object) -> Any:
        raise error

    return function


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "mute": raising(Mute()),
    "mute_later": raising_later(Mute()),
    "leave": raising(SystemExit(1)),
    "leave_later": raising_later(SystemExit(1)),
    "interrupt": raising(KeyboardInterrupt()),
    "interrupt_later": raising_later(KeyboardInterrupt()),
    "end": raising(GeneratorExit()),
    "odd": lambda *_: Odd("odd"),
    "trap": lambda *_: Trap(a=1),
    "endless": lambda *_: iter(int, 1),
}


@pytest.fixture(scope="module")
def misbehaving(made_bundle: Bundle) -> Iterator[Sandbox]:
    def lm(prompt: str) -> Any:
        return FUNCTIONS[prompt](prompt)

    with Sandbox(runtime=LocalRuntime(), lm=lm, lm_timeout=600, tools=FUNCTIONS) as box:
        yield box


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_model_that_misbehaves(misbehaving: Sandbox, name: str) -> None:
    answer = run(misbehaving, f"print(llm_query({name!r}))").stdout
    assert answer == "odd\n" if name == "odd" else answer.startswith("Error: ")
    assert run(misbehaving, f"print(len(llm_query_batched([{name!r}] * 3)))").stdout == "3\n"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_tool_that_misbehaves(misbehaving: Sandbox, name: str) -> None:
    code = f"try: print({name}())\nexcept BaseException as error: print('raised')"
    assert run(misbehaving, code).stdout == ("odd\n" if name == "odd" else "raised\n")
    assert run(misbehaving, "print(1)").stdout == "1\n"


@pytest.mark.parametrize("error", [Mute(), SystemExit(1), GeneratorExit()])
def test_a_callback_that_raises(misbehaving: Sandbox, error: BaseException) -> None:
    with pytest.raises(type(error)):
        misbehaving.execute("print(1); import time; time.sleep(600)", on_output=raising(error))
    assert run(misbehaving, "print(2)").stdout == "2\n"


def test_values_that_misbehave(misbehaving: Sandbox) -> None:
    misbehaving.load("odd_value", Odd("odd"))
    assert run(misbehaving, "print(odd_value)").stdout == "odd\n"
