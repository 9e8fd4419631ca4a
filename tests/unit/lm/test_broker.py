"""The broker: it answers whatever the guest sends."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from rlm_containers.interpreter import LMCall, Prompt
from rlm_containers.lm import CallableBackend, LMBroker


def call(prompt: Prompt, response: str, error: str | None = None) -> LMCall:
    return LMCall(prompt=prompt, response=response, model="m", execution_time=0.5, error=error)


class Shouter:
    """A backend that answers in capitals, and fails if the prompt says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[Prompt, str | None]] = []

    def query(self, prompt: Prompt, model: str | None) -> LMCall:
        self.asked.append((prompt, model))
        if prompt == "raise":
            raise LookupError("no such thing")
        if prompt == "fail":
            return call(prompt, "", "it failed")
        return call(prompt, str(prompt).upper())

    def query_batch(self, prompts: Sequence[Prompt], model: str | None) -> list[LMCall]:
        return [self.query(prompt, model) for prompt in prompts]


def completion(response: str) -> Any:
    """Return what a subcall does: an object with attributes of rlms's RLMChatCompletion."""
    return SimpleNamespace(response=response, root_model="child", execution_time=1.5)


@pytest.fixture
def backend() -> Shouter:
    return Shouter()


@pytest.fixture
def broker(backend: Shouter) -> LMBroker:
    return LMBroker(backend)


@pytest.mark.parametrize("path", ["/llm_query", "/rlm_query"])
def test_one_question(broker: LMBroker, backend: Shouter, path: str) -> None:
    assert broker.handle(path, {"prompt": "hello", "model": "gpt"}) == {"response": "HELLO"}
    assert backend.asked == [("hello", "gpt")]


@pytest.mark.parametrize("path", ["/llm_query_batched", "/rlm_query_batched"])
def test_many_questions_in_order(broker: LMBroker, backend: Shouter, path: str) -> None:
    answer = broker.handle(path, {"prompts": ["a", "b", "c"]})
    assert answer == {"responses": ["A", "B", "C"]}
    assert backend.asked == [("a", None), ("b", None), ("c", None)]


@pytest.mark.parametrize("prompt", ["", "x", {"role": "user"}, [{"role": "user", "content": "x"}]])
def test_a_prompt_is_text_or_messages(broker: LMBroker, backend: Shouter, prompt: Prompt) -> None:
    assert "response" in broker.handle("/llm_query", {"prompt": prompt})
    assert backend.asked == [(prompt, None)]


NO_NAMES: tuple[object, ...] = (1, [], {}, True)

MALFORMED: list[tuple[str, object]] = [
    *(
        (path, request)
        for path in ("/llm_query", "/rlm_query", "/llm_query_batched", "/rlm_query_batched")
        for request in (None, 1, "prompt", [], ["prompt"], True, 1.5, {}, {"model": "x"})
    ),
    *(("/llm_query", {"prompt": prompt}) for prompt in (None, 1, True, 1.5)),
    *(("/llm_query", {"prompt": "x", "model": value}) for value in NO_NAMES),
    *(("/llm_query_batched", {"prompts": prompts}) for prompts in (None, "ab", 5, {"a": 1})),
    *(("/rlm_query_batched", {"prompts": [prompt, "x"]}) for prompt in (None, 1, True)),
    ("/llm_query_batched", {"prompts": ["x"], "model": 5}),
    ("/llm_query_batched", {"prompt": "x"}),
    ("/llm_query", {"prompts": ["x"]}),
]


@pytest.mark.parametrize(("path", "request_"), MALFORMED)
def test_a_malformed_request_is_answered(
    broker: LMBroker, backend: Shouter, path: str, request_: object
) -> None:
    answer = broker.handle(path, request_)
    assert list(answer) == ["error"]
    assert answer["error"].startswith("bad request: ")
    assert backend.asked == []
    assert broker.take_calls() == ()


@pytest.mark.parametrize(
    "path", ["", "/", "llm_query", "/llm_query/", "/LLM_QUERY", "/llm_query?x=1", "/../etc/passwd"]
)
def test_unknown_paths_are_errors(broker: LMBroker, path: str) -> None:
    assert broker.handle(path, {"prompt": "x"}) == {"error": f"there is no {path!r}"}


def test_an_exception_of_the_backend_is_an_error(broker: LMBroker) -> None:
    answer = broker.handle("/llm_query", {"prompt": "raise"})
    assert answer == {"error": "LookupError: no such thing"}
    assert "error" in broker.handle("/llm_query_batched", {"prompts": ["a", "raise"]})


def test_one_failure_does_not_fail_the_batch(broker: LMBroker) -> None:
    answer = broker.handle("/llm_query_batched", {"prompts": ["a", "fail", "c"]})
    assert answer == {"responses": ["A", "Error: it failed", "C"]}


def test_answered_calls_are_recorded_once(broker: LMBroker) -> None:
    broker.handle("/llm_query", {"prompt": "one"})
    broker.handle("/llm_query", {"prompt": "fail"})
    broker.handle("/llm_query_batched", {"prompts": ["two", "fail", "three"]})
    assert [made.prompt for made in broker.take_calls()] == ["one", "two", "three"]
    assert broker.take_calls() == ()


def test_without_a_backend_the_error_says_so() -> None:
    broker = LMBroker(None)
    assert not broker.connected
    error = "no language model is connected to this sandbox"
    assert broker.handle("/llm_query", {"prompt": "x"}) == {"error": error}
    answer = broker.handle("/rlm_query_batched", {"prompts": ["x", "y"]})
    assert answer == {"responses": [f"Error: {error}"] * 2}
    assert broker.take_calls() == ()


def test_only_subcalls_go_to_the_subcall_function(backend: Shouter) -> None:
    seen: list[tuple[str, str | None]] = []

    def subcall(prompt: str, model: str | None) -> Any:
        seen.append((prompt, model))
        return completion(f"child of {prompt}")

    broker = LMBroker(backend, subcall)
    assert broker.connected
    answer = broker.handle("/rlm_query", {"prompt": "x", "model": "big"})
    assert answer == {"response": "child of x"}
    assert broker.handle("/llm_query", {"prompt": "y"}) == {"response": "Y"}
    assert seen == [("x", "big")]
    assert backend.asked == [("y", None)]
    child, plain = broker.take_calls()
    assert (child.model, child.execution_time, child.response) == ("child", 1.5, "child of x")
    assert child.completion.response == "child of x"
    assert plain.completion is None


def test_a_failed_subcall_is_an_error_string_and_not_recorded() -> None:
    def subcall(prompt: str, model: str | None) -> Any:
        if prompt == "bad":
            raise RuntimeError("out of budget")
        if prompt == "odd":
            return "not a completion"
        return completion(prompt)

    broker = LMBroker(None, subcall)
    answer = broker.handle("/rlm_query_batched", {"prompts": ["a", "bad", "odd", "b"]})
    first, bad, odd, last = answer["responses"]
    assert (first, last) == ("a", "b")
    assert bad == "Error: RLM query failed - out of budget"
    assert odd.startswith("Error: RLM query failed - ")
    assert [made.prompt for made in broker.take_calls()] == ["a", "b"]


@pytest.mark.parametrize("limit", [1, 3])
def test_the_number_of_concurrent_subcalls_is_limited(limit: int) -> None:
    lock = threading.Lock()
    running: list[str] = []
    most = 0
    full = threading.Barrier(limit)

    def subcall(prompt: str, model: str | None) -> Any:
        nonlocal most
        with lock:
            running.append(prompt)
            most = max(most, len(running))
        full.wait(30)  # passes only when `limit` of them run at once
        with lock:
            running.remove(prompt)
        return completion(prompt)

    broker = LMBroker(None, subcall, max_concurrent_subcalls=limit)
    prompts = [str(i) for i in range(4 * limit)]
    assert broker.handle("/rlm_query_batched", {"prompts": prompts}) == {"responses": prompts}
    assert most == limit
    assert [made.prompt for made in broker.take_calls()] == prompts


def test_answers_keep_the_order_of_the_prompts() -> None:
    last_done = threading.Event()

    def subcall(prompt: str, model: str | None) -> Any:
        if prompt == "last":
            last_done.set()
        else:
            assert last_done.wait(30)
        return completion(prompt)

    broker = LMBroker(None, subcall, max_concurrent_subcalls=2)
    answer = broker.handle("/rlm_query_batched", {"prompts": ["first", "last"]})
    assert answer == {"responses": ["first", "last"]}
    assert [made.prompt for made in broker.take_calls()] == ["first", "last"]


@pytest.mark.parametrize("response", [None, 5, b"bytes", object(), ["a"]])
def test_every_answer_is_json_of_the_documented_form(response: Any) -> None:
    # The guest would wait for ever for an answer that cannot be sent.
    broker = LMBroker(None, lambda prompt, model: completion(response))
    single = broker.handle("/rlm_query", {"prompt": "x"})
    assert json.loads(json.dumps(single)) == single
    assert isinstance(single.get("response", ""), str)
    batch = broker.handle("/rlm_query_batched", {"prompts": ["x"]})
    assert all(isinstance(text, str) for text in batch["responses"])
    json.dumps(batch)


def test_a_backend_that_loses_prompts_is_an_error() -> None:
    class Lossy(Shouter):
        def query_batch(self, prompts: Sequence[Prompt], model: str | None) -> list[LMCall]:
            return super().query_batch(prompts[1:], model)

    answer = LMBroker(Lossy()).handle("/llm_query_batched", {"prompts": ["a", "b"]})
    assert "error" in answer or len(answer["responses"]) == 2


def test_calls_from_many_threads_are_all_recorded(broker: LMBroker) -> None:
    def ask(worker: int) -> None:
        for i in range(50):
            broker.handle("/llm_query", {"prompt": f"{worker} {i}"})

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = broker.take_calls()
    assert len({str(one.prompt) for one in made}) == len(made) == 400


def test_the_calls_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlm_containers.lm.broker._KEPT", 10_000)
    monkeypatch.setattr("rlm_containers.lm.broker._KEPT_CALLS", 30)
    broker = LMBroker(CallableBackend(str))
    messages = [{"role": "user", "content": "y" * 2000}]
    for number in range(20):
        prompt = messages if number % 5 == 4 else f"{number}" + "x" * 2000
        answer = broker.handle("/llm_query", {"prompt": prompt})
        assert len(answer["response"]) > 2000  # the cell gets all of it
    calls = broker.take_calls()
    assert len(calls) == 20
    assert calls[0].prompt == "0" + "x" * 2000
    assert all(len(str(call.prompt)) <= 1000 for call in calls[4:])
    assert sum(len(str(call.prompt)) + len(call.response) for call in calls) < 50_000
    broker.handle("/llm_query", {"prompt": "z" * 2000})
    assert broker.take_calls()[0].prompt == "z" * 2000  # counted anew for the next cell
    broker.handle("/llm_query_batched", {"prompts": ["a"] * 50})
    assert len(broker.take_calls()) == 30
