"""Python callables as language models."""

from __future__ import annotations

import asyncio
import functools
import threading
from pathlib import Path
from typing import Any

import pytest

import rlm_containers
from rlm_containers.lm import CallableBackend, LMCallable
from tests.unit.guests import run_python


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
    """A plain function that returns an awaitable."""

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
def test_any_callable_can_answer(function: LMCallable, answer: str) -> None:
    call = CallableBackend(function).query("x", "gpt")
    assert (call.prompt, call.response, call.error, call.model) == ("x", answer, None, "gpt")
    assert call.execution_time >= 0


def test_the_model_is_none_by_default() -> None:
    assert CallableBackend(WithModel().ask).query("x", None).response == "None: x"


def test_messages_arrive_unchanged() -> None:
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


def test_an_exception_is_an_error() -> None:
    def fail(prompt: str) -> str:
        raise LookupError(f"no {prompt}")

    async def fail_later(prompt: str) -> str:
        await asyncio.sleep(0)
        raise LookupError(f"no {prompt}")

    for function in (fail, fail_later):
        call = CallableBackend(function).query("x", None)
        assert (call.response, call.error) == ("", "LookupError: no x")


def test_a_callable_with_wrong_parameters_is_an_error() -> None:
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
    # As in a notebook: the main thread runs a loop, and the backend is called in another thread.
    async def main() -> str:
        backend = CallableBackend(coroutine)
        return (await asyncio.to_thread(backend.query, "x", None)).response

    assert asyncio.run(main()) == "awaited x"


@pytest.mark.parametrize("kind", ["sync", "async", "blocking"])
def test_an_answer_that_comes_too_late_is_an_error(kind: str) -> None:
    go_on = threading.Event()

    def ask(prompt: str) -> str:
        go_on.wait(30)
        return prompt

    async def ask_async(prompt: str) -> str:
        await asyncio.sleep(30)
        return prompt

    async def ask_blocking(prompt: str) -> str:
        return ask(prompt)

    function: LMCallable = {"sync": ask, "async": ask_async, "blocking": ask_blocking}[kind]
    call = CallableBackend(function, timeout=0.1).query("x", "gpt")
    assert call.error == "Request failed: lm did not answer in 0.1 s (lm_timeout)"
    assert (call.prompt, call.response, call.model) == ("x", "", "gpt")
    go_on.set()


def test_a_coroutine_that_is_late_is_cancelled() -> None:
    cancelled = threading.Event()

    async def ask(prompt: str) -> str:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return prompt

    assert CallableBackend(ask, timeout=0.1).query("x", None).error is not None
    assert cancelled.wait(30)


def test_a_late_batch_keeps_the_answers_that_came_in_time() -> None:
    go_on = threading.Event()
    asked: list[str] = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        if prompt != "quick":
            go_on.wait(30)
        return prompt.upper()

    # More prompts than are asked at once: the last ones are never asked.
    prompts = ["quick", *["slow"] * 20]
    calls = CallableBackend(ask, timeout=0.5).query_batch(prompts, None)
    late = "Request failed: lm did not answer in 0.5 s (lm_timeout)"
    assert [call.error for call in calls] == [None, *[late] * 20]
    assert calls[0].response == "QUICK"
    assert len(asked) < len(prompts)
    go_on.set()


def test_a_timeout_error_of_the_callable_is_passed_on() -> None:
    async def ask(prompt: str) -> str:
        raise TimeoutError("the service is slow")

    call = CallableBackend(ask, timeout=30).query("x", None)
    assert call.error == "TimeoutError: the service is slow"


def test_a_callable_that_hangs_gets_a_limited_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rlm_containers.lm.backends._MAX_THREADS", 3)
    go_on = threading.Event()
    asked: list[str] = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        go_on.wait(30)
        return prompt

    backend = CallableBackend(ask, timeout=0.1)
    errors = [backend.query("x", None).error or "" for _ in range(3)]
    assert all("lm did not answer in 0.1 s" in error for error in errors)
    with pytest.raises(ConnectionError, match="3 earlier calls of lm have not returned"):
        backend.query("x", None)
    assert len(asked) == 3
    go_on.set()
    answer: str | None = None
    while answer != "y":  # as soon as a thread is free
        try:
            answer = backend.query("y", None).response
        except ConnectionError:
            pass


def test_a_callable_that_hangs_does_not_keep_the_process_alive() -> None:
    program = (
        "import threading\n"
        "from rlm_containers.lm.backends import CallableBackend\n"
        "hang = threading.Event()\n"
        "backend = CallableBackend(lambda prompt: hang.wait(600), timeout=0.1)\n"
        "print(backend.query('x', None).error)"
    )
    done = run_python(program, path=[str(Path(rlm_containers.__file__).parent.parent)])
    assert (done.returncode, done.stderr) == (0, "")
    assert "lm did not answer" in done.stdout
