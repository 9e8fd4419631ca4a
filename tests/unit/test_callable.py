"""Any Python callable as the language model."""

from __future__ import annotations

import asyncio
import functools
import threading
from typing import Any

import pytest

from rlm_containers.lm.handler import CallableBackend, LMCallable


class WithCall:
    def __call__(self, prompt: str) -> str:
        return f"called {prompt}"


class WithModel:
    def ask(self, prompt: str, *, model: str | None = None) -> str:
        return f"{model}: {prompt}"


async def coroutine(prompt: str) -> str:
    await asyncio.sleep(0)
    return f"awaited {prompt}"


async def coroutine_with_model(prompt: str, model: str | None) -> str:
    return f"{model} awaited {prompt}"


def future(prompt: str) -> Any:
    """Not a coroutine function, but returns something to await."""

    class Later:
        def __await__(self) -> Any:
            yield from asyncio.sleep(0).__await__()
            return f"later {prompt}"

    return Later()


def anything(*args: Any, **kwargs: Any) -> str:
    return f"{args} {kwargs}"


def with_default(prompt: str, temperature: float = 0.5) -> str:
    return f"{prompt} at {temperature}"


@pytest.mark.parametrize(
    ("function", "answer"),
    [
        (str.upper, "X"),
        (str, "x"),
        (lambda prompt: prompt * 2, "xx"),
        (WithCall(), "called x"),
        (WithModel().ask, "gpt: x"),
        (functools.partial(with_default, temperature=1.0), "x at 1.0"),
        (with_default, "x at 0.5"),
        (coroutine, "awaited x"),
        (coroutine_with_model, "gpt awaited x"),
        (functools.partial(coroutine_with_model, model="fixed"), "gpt awaited x"),
        (future, "later x"),
        (anything, "('x',) {'model': 'gpt'}"),
    ],
)
def test_what_can_be_called_can_be_asked(function: LMCallable, answer: str) -> None:
    call = CallableBackend(function).query("x", "gpt")
    assert (call.prompt, call.response, call.error, call.model) == ("x", answer, None, "gpt")
    assert call.execution_time >= 0


def test_without_a_model_none_is_passed() -> None:
    assert CallableBackend(WithModel().ask).query("x", None).response == "None: x"


def test_a_prompt_of_messages_comes_as_it_is() -> None:
    messages = [{"role": "user", "content": "hello"}]
    seen: list[Any] = []

    def remember(prompt: Any) -> str:
        seen.append(prompt)
        return "ok"

    assert CallableBackend(remember).query(messages, None).error is None
    assert seen == [messages]


@pytest.mark.parametrize("value", [None, 5, b"bytes", ["a"], {"response": "x"}])
def test_an_answer_that_is_no_string_is_an_error(value: Any) -> None:
    call = CallableBackend(lambda prompt: value).query("x", None)
    assert call.error == f"TypeError: lm returned {type(value).__name__}, not str"
    assert call.response == ""


def test_what_it_raises_is_an_error() -> None:
    def fail(prompt: str) -> str:
        raise LookupError(f"no {prompt}")

    async def fail_later(prompt: str) -> str:
        await asyncio.sleep(0)
        raise LookupError(f"no {prompt}")

    for function in (fail, fail_later):
        call = CallableBackend(function).query("x", None)
        assert (call.response, call.error) == ("", "LookupError: no x")


def test_a_callable_with_other_parameters_is_an_error_and_no_crash() -> None:
    call = CallableBackend(lambda: "x").query("x", None)
    assert call.error is not None
    assert call.error.startswith("TypeError: ")


def test_a_batch_keeps_its_order_and_its_failures() -> None:
    def pick(prompt: str) -> str:
        if prompt == "b":
            raise ValueError("not b")
        return prompt.upper()

    calls = CallableBackend(pick).query_batch(["a", "b", "c"], None)
    assert [(call.response, call.error) for call in calls] == [
        ("A", None),
        ("", "ValueError: not b"),
        ("C", None),
    ]
    assert CallableBackend(pick).query_batch([], None) == []


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_prompts_of_a_batch_are_asked_together(kind: str) -> None:
    everyone = threading.Barrier(8)

    def ask(prompt: str) -> str:
        everyone.wait(30)  # passes only when eight are asked at once
        return prompt

    async def ask_async(prompt: str) -> str:
        return ask(prompt)

    prompts = [str(i) for i in range(8)]
    calls = CallableBackend(ask if kind == "sync" else ask_async).query_batch(prompts, None)
    assert [call.response for call in calls] == prompts


def test_an_async_callable_works_below_a_running_loop() -> None:
    # A notebook has a loop in its main thread; the backend is called in others.
    async def main() -> str:
        backend = CallableBackend(coroutine)
        return (await asyncio.to_thread(backend.query, "x", None)).response

    assert asyncio.run(main()) == "awaited x"
