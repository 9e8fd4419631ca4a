"""The socket protocol with rlms's own LM Handler. Needs no engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
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


@pytest.fixture
def handler() -> Iterator[LMHandler]:
    """A handler with a model for depth 0, one for depth 1, and one that is asked by name."""
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
