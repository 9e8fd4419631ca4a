"""rlms's own LM Handler, over its socket and called directly. Needs no engine."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from rlm.clients.base_lm import BaseLM
from rlm.core.lm_handler import LMHandler
from rlm.core.types import RLMChatCompletion

from rlm_containers.integrations.rlms.environment import chat_completion
from rlm_containers.interpreter import LMCall
from rlm_containers.lm import CallableBackend, HandlerBackend, LMBroker
from tests.compat.scripted import EchoLM


def answer(prompt: str) -> str:
    if "fail" in prompt:
        raise RuntimeError("the model is down")
    return f"re: {prompt}"


#: ``LMHandler.start`` of rlms itself, which notes nothing.
by_socket = vars(LMHandler.start)["__wrapped__"]


@pytest.fixture(params=["socket", "direct"])
def handler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[LMHandler]:
    """A handler with a model for depth 0, one for depth 1, and one that is asked by name."""
    if request.param == "socket":
        monkeypatch.setattr(LMHandler, "start", by_socket)
    root = EchoLM(answer, model_name="root")
    other = EchoLM(lambda prompt: f"other: {prompt}", model_name="other")
    named = EchoLM(lambda prompt: f"named: {prompt}", model_name="named")
    with LMHandler(root, other_backend_client=other) as handler:
        handler.register_client("other", other)
        handler.register_client("named", named)
        yield handler


def backend(handler: LMHandler, depth: int = 0) -> HandlerBackend:
    return HandlerBackend(handler.address, depth=depth, timeout=30)


def test_one_question(handler: LMHandler) -> None:
    call = backend(handler).query("hello", None)
    assert (call.response, call.model, call.error) == ("re: hello", "root", None)
    assert call.execution_time >= 0


def test_the_handler_chooses_the_model_by_depth_and_name(handler: LMHandler) -> None:
    assert backend(handler, depth=1).query("x", None).response == "other: x"
    assert backend(handler, depth=2).query("x", None).response == "re: x"
    assert backend(handler, depth=1).query("x", "named").response == "named: x"
    # rlms ignores a name that it does not know.
    assert backend(handler, depth=1).query("x", "nobody").response == "other: x"


def test_messages_are_a_prompt_too(handler: LMHandler) -> None:
    messages = [{"role": "user", "content": "ü\ud800"}]
    call = backend(handler).query(messages, None)
    assert call.response == f"re: {messages}"
    assert call.prompt == messages


def test_a_batch_with_one_failure(handler: LMHandler) -> None:
    calls = backend(handler).query_batch(["a", "fail", "c"], None)
    assert [call.response for call in calls] == ["re: a", "", "re: c"]
    assert calls[1].error == "llm() call failed - the model is down"
    broker = LMBroker(backend(handler))
    response = broker.handle("/llm_query_batched", {"prompts": ["a", "fail"]})
    assert response == {"responses": ["re: a", "Error: llm() call failed - the model is down"]}


def test_a_model_that_fails(handler: LMHandler) -> None:
    assert backend(handler).query("fail", None).error == "the model is down"


def test_an_empty_prompt_is_refused_by_rlms(handler: LMHandler) -> None:
    assert "Missing 'prompt'" in (backend(handler).query("", None).error or "")


def test_a_handler_that_has_stopped(handler: LMHandler) -> None:
    server = handler._server
    address = handler.address
    handler.stop()
    assert server is not None
    server.server_close()  # rlms leaves it open, and a caller would wait for ever
    call = HandlerBackend(address, depth=0, timeout=30).query("x", None)
    assert (call.error or "").startswith("Request failed: ")


def test_a_handler_that_rlms_has_stopped_is_given_up_in_time(handler: LMHandler) -> None:
    server = handler._server
    address = handler.address
    handler.stop()  # its socket still listens, but nobody answers
    assert server is not None  # this reference keeps it from being closed
    call = HandlerBackend(address, depth=0, timeout=0.1).query("x", None)
    server.server_close()
    assert "did not answer in 0.1 s" in (call.error or "")


@contextlib.contextmanager
def started(client: BaseLM, *, directly: bool = True) -> Iterator[tuple[LMHandler, list[str]]]:
    """Start a handler, and list the connections to its socket."""
    handler = LMHandler(client)
    LMHandler.start(handler) if directly else by_socket(handler)
    assert handler._server is not None
    connections: list[str] = []

    def verify_request(request: object, address: object) -> bool:
        connections.append(str(address))
        return True

    handler._server.verify_request = verify_request  # type: ignore[assignment]
    try:
        yield handler, connections
    finally:
        server = handler._server
        handler.stop()
        server.server_close()


def test_a_handler_of_this_process_is_called_without_its_socket() -> None:
    with started(EchoLM(answer)) as (handler, connections):
        assert backend(handler).query("x", None).response == "re: x"
        assert [c.response for c in backend(handler).query_batch(["a", "b"], None)] == [
            "re: a",
            "re: b",
        ]
        assert connections == []
        assert handler.get_usage_summary().model_usage_summaries["echo"].total_calls == 3


def strange(prompt: str) -> Any:
    """Do what a model's client may do."""
    if prompt == "OSError":
        raise ConnectionResetError("the service hung up")
    if prompt == "SystemExit":
        raise SystemExit(3)
    if prompt == "KeyError":
        raise KeyError("choices")
    if prompt == "no JSON":
        return object()
    if prompt == "no text":
        return {"parts": ["a", 1]}
    if prompt == "nothing":
        return None
    if isinstance(prompt, list):
        prompt.append("changed by the client")
    return f"re: {prompt}"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    "prompt",
    [
        "plain",
        "ü\ud800\x00",
        "",
        "OSError",
        "SystemExit",
        "KeyError",
        "no JSON",
        "no text",
        "nothing",
        [{"role": "user", "content": "x"}],
        {},
    ],
    ids=repr,
)
def test_both_ways_have_the_same_answers_and_records(prompt: Any) -> None:
    seen = []
    for directly in (False, True):
        with started(EchoLM(strange), directly=directly) as (handler, connections):
            calls = [
                backend(handler).query(prompt, None),
                backend(handler).query(prompt, "a name that nobody knows"),
                *backend(handler).query_batch([prompt, "plain"], None),
            ]
            usage = handler.get_usage_summary().to_dict()
            port = f":{handler.port}"
            assert len(connections) == (0 if directly else 3)
        seen.append((usage, [timeless(call, port) for call in calls]))
    assert seen[0] == seen[1]


def timeless(call: LMCall, port: str) -> LMCall:
    """Return a call without what differs from one time to the next."""
    completion = call.completion
    if isinstance(completion, dict):
        completion = {**completion, "execution_time": None}
    error = call.error and call.error.replace(port, ":PORT")
    return replace(call, execution_time=0.0, error=error, completion=completion)


def test_a_model_that_hangs_is_given_up() -> None:
    go_on = threading.Event()

    def hang(prompt: str) -> str:
        go_on.wait(30)
        return prompt

    with started(EchoLM(hang)) as (handler, connections):
        asked = HandlerBackend(handler.address, depth=0, timeout=0.1)
        host, port = handler.address
        error = f"Request failed: the LM Handler at {host}:{port} did not answer in 0.1 s"
        assert asked.query("x", None).error == error
        assert [c.error for c in asked.query_batch(["x", "y"], None)] == [error, error]
        assert connections == []
        go_on.set()
        assert asked.query("x", None).response == "x"


def test_many_at_once_are_asked_directly() -> None:
    everyone = threading.Barrier(20)

    def together(prompt: str) -> str:
        everyone.wait(30)  # passes only when twenty are asked
        return f"re: {prompt}"

    with started(EchoLM(together)) as (handler, connections):
        asked = backend(handler)
        with ThreadPoolExecutor(20) as pool:
            calls = list(pool.map(lambda i: asked.query(f"p{i}", None), range(20)))
        assert connections == []
    assert [call.response for call in calls] == [f"re: p{i}" for i in range(20)]


def test_a_forked_child_asks_over_the_socket() -> None:
    # The child has a copy of the handler, whose counts nobody would see.
    with started(EchoLM(answer)) as (handler, connections):
        backend(handler).query("x", None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python 3.12 warns of threads
            child = os.fork()
        if child == 0:
            os._exit(backend(handler).query("y", None).response != "re: y")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(connections) == 1
        assert handler.get_usage_summary().model_usage_summaries["echo"].total_calls == 2


def test_a_call_becomes_a_completion_of_rlms(handler: LMHandler) -> None:
    call = backend(handler).query("hello", None)
    record = chat_completion(call)
    assert isinstance(record, RLMChatCompletion)
    assert record.to_dict() == call.completion
    usage = record.usage_summary.model_usage_summaries["root"]
    assert (usage.total_calls, usage.total_input_tokens) == (1, 1)


@pytest.mark.parametrize("model", [None, "gpt"])
def test_a_call_of_a_callable_becomes_a_completion_of_rlms(model: str | None) -> None:
    call = CallableBackend(str.upper).query("hello", model)
    record = chat_completion(call)
    assert (record.prompt, record.response, record.root_model) == (
        "hello",
        "HELLO",
        model or "unknown",
    )
    assert record.usage_summary.total_input_tokens == 0
    assert record.to_dict()["usage_summary"]["model_usage_summaries"]


@pytest.mark.parametrize(
    "completion",
    [
        {},
        {"response": "x"},
        {"response": "x", "usage_summary": {}},
        {"response": "x", "usage_summary": None},
        {"response": "x", "unknown": 5},
    ],
)
def test_a_completion_with_missing_fields(completion: dict[str, object]) -> None:
    call = LMCall(prompt="x", response="x", model=None, execution_time=0.0, completion=completion)
    record = chat_completion(call)
    assert isinstance(record, RLMChatCompletion)
    assert record.to_dict()["usage_summary"] == {"model_usage_summaries": {}}
