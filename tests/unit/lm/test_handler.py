"""Asking an LM Handler over its socket: a good one, and many that misbehave."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

import pytest

from rlm_containers.lm import HandlerBackend, LMBroker
from tests.unit.handlers import ScriptedHandler, completion, frame, read_request


def well_behaved(connection: socket.socket) -> None:
    """Answer as rlms's LMRequestHandler does."""
    request = read_request(connection)
    if "prompts" in request:
        done = [completion(prompt, f"re: {prompt}") for prompt in request["prompts"]]
        connection.sendall(
            frame({"chat_completions": done, "chat_completion": None, "error": None})
        )
    else:
        one = completion(request["prompt"], f"re: {request['prompt']}")
        connection.sendall(frame({"chat_completion": one, "chat_completions": None, "error": None}))


def saying(raw: bytes) -> Callable[[socket.socket], None]:
    """Return a behaviour: read a request, send ``raw``, and hang up."""

    def behave(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(raw)

    return behave


def backend(handler: ScriptedHandler, timeout: float = 30.0) -> HandlerBackend:
    return HandlerBackend(handler.address, depth=2, timeout=timeout)


def test_one_question_and_its_record() -> None:
    with ScriptedHandler(well_behaved) as handler:
        call = backend(handler).query("hello", None)
    assert (call.prompt, call.response, call.error) == ("hello", "re: hello", None)
    assert (call.model, call.execution_time) == ("handler-model", 0.25)
    assert call.completion == completion("hello", "re: hello")


def test_a_batch_is_one_request_and_keeps_its_order() -> None:
    prompts = [f"prompt {i}" for i in range(50)]
    with ScriptedHandler(well_behaved) as handler:
        calls = backend(handler).query_batch(prompts, None)
        assert handler.connections == 1
    assert [call.prompt for call in calls] == prompts
    assert [call.response for call in calls] == [f"re: {prompt}" for prompt in prompts]


def test_an_empty_batch_asks_nobody() -> None:
    with ScriptedHandler(well_behaved) as handler:
        assert backend(handler).query_batch([], None) == []
        assert handler.connections == 0


def test_the_request_is_what_rlms_expects() -> None:
    seen: list[Any] = []

    def record(connection: socket.socket) -> None:
        seen.append(read_request(connection))
        connection.sendall(frame({"error": "noted"}))

    with ScriptedHandler(record) as handler:
        backend(handler).query("x", None)
        backend(handler).query([{"role": "user", "content": "ü\ud800"}], "gpt")
        backend(handler).query_batch(["a", "b"], None)
    assert seen == [
        {"prompt": "x", "depth": 2},
        {"prompt": [{"role": "user", "content": "ü\ud800"}], "model": "gpt", "depth": 2},
        {"prompts": ["a", "b"], "depth": 2},
    ]


def test_an_answer_may_come_byte_by_byte() -> None:
    def drip(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw = frame({"chat_completion": completion(read_request(connection)["prompt"], "ö" * 20)})
        for i in range(len(raw)):
            connection.sendall(raw[i : i + 1])

    with ScriptedHandler(drip) as handler:
        assert backend(handler).query("x", None).response == "ö" * 20


def test_a_long_question_and_a_long_answer() -> None:
    with ScriptedHandler(well_behaved) as handler:
        assert backend(handler).query("x" * 5_000_000, None).response == "re: " + "x" * 5_000_000


def test_the_handlers_own_error_is_passed_on() -> None:
    raw = frame({"error": "rate limit", "chat_completion": None, "chat_completions": None})
    with ScriptedHandler(saying(raw)) as handler:
        assert backend(handler).query("x", None).error == "rate limit"
        calls = backend(handler).query_batch(["x", "y"], None)
    assert [(call.prompt, call.error) for call in calls] == [
        ("x", "rate limit"),
        ("y", "rate limit"),
    ]


WHOLE = frame({"chat_completion": completion("x", "yes")})
BROKEN = {
    "says nothing": b"",
    "half a length": WHOLE[:2],
    "only a length": WHOLE[:4],
    "all but one byte": WHOLE[:-1],
    "no JSON": struct.pack(">I", 5) + b"hello",
    "no UTF-8": struct.pack(">I", 4) + b"\xff\xfe\xfd\xfc",
    "an empty answer": struct.pack(">I", 0),
    "speaks HTTP": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "a list": frame([1, 2]),
    "a string": frame("yes"),
    "null": frame(None),
    "an empty object": frame({}),
    "a completion that is none": frame({"chat_completion": "yes", "chat_completions": "yes"}),
    "completions that are none": frame({"chat_completions": ["a", "b"]}),
    "a strange time": frame(
        {
            "chat_completion": completion("x", "yes", execution_time="soon"),
            "chat_completions": [completion("x", "yes", execution_time="later")] * 2,
        }
    ),
    "nested without end": struct.pack(">I", 200_000) + b"[" * 200_000,
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_answer_is_an_error_for_every_prompt(what: str) -> None:
    with ScriptedHandler(saying(BROKEN[what])) as handler:
        broker = LMBroker(backend(handler))
        single = broker.handle("/llm_query", {"prompt": "x"})
        batch = broker.handle("/llm_query_batched", {"prompts": ["x", "y"]})
    assert list(single) == ["error"]
    assert single["error"]
    errors = [f"Error: {batch['error']}"] if "error" in batch else batch["responses"]
    assert all(error.startswith("Error: ") and len(error) < 300 for error in errors)
    assert broker.take_calls() == ()


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_wrong_number_of_answers_is_an_error_for_every_prompt(count: int) -> None:
    raw = frame({"chat_completions": [completion("x", "yes")] * count})
    with ScriptedHandler(saying(raw)) as handler:
        calls = backend(handler).query_batch(["x", "y"], None)
    assert [call.response for call in calls] == ["", ""]
    assert {call.error for call in calls} == {f"{count} completions were returned for 2 prompts"}


def test_errors_name_the_handler() -> None:
    with ScriptedHandler(saying(b"")) as handler:
        error = backend(handler).query("x", None).error
        host, port = handler.address
    assert error is not None
    assert f"{host}:{port}" in error
    assert "hung up" in error


def test_a_handler_that_hangs_up_at_once() -> None:
    with ScriptedHandler(lambda connection: None) as handler:
        assert (backend(handler).query("x" * 1_000_000, None).error or "").startswith(
            "Request failed: "
        )


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    call = HandlerBackend(address, depth=1, timeout=30).query("x", None)
    assert (call.error or "").startswith("Request failed: the LM Handler at 127.0.0.1:")


def test_a_handler_that_never_answers_is_given_up() -> None:
    done = threading.Event()

    def silent(connection: socket.socket) -> None:
        read_request(connection)
        done.wait(30)

    with ScriptedHandler(silent) as handler:
        single = backend(handler, timeout=0.05).query("x", None)
        batch = backend(handler, timeout=0.05).query_batch(["x", "y"], None)
        done.set()
    assert "did not answer in 0.05 s" in (single.error or "")
    assert [call.error for call in batch] == [single.error] * 2


def test_a_handler_that_drips_its_answer_is_given_up() -> None:
    done = threading.Event()

    def drip(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(struct.pack(">I", 1_000_000))
        while not done.wait(0.02):  # each byte comes in time, but never the last
            try:
                connection.sendall(b" ")
            except OSError:
                return

    with ScriptedHandler(drip) as handler:
        call = backend(handler, timeout=0.2).query("x", None)
        done.set()
    assert "did not answer in 0.2 s" in (call.error or "")


def test_many_at_once_each_get_their_own_answer() -> None:
    everyone = threading.Barrier(20)

    def together(connection: socket.socket) -> None:
        prompt = read_request(connection)["prompt"]
        everyone.wait(30)  # passes only when twenty requests are open
        connection.sendall(frame({"chat_completion": completion(prompt, f"re: {prompt}")}))

    answers: dict[str, str] = {}
    with ScriptedHandler(together) as handler:
        asked = backend(handler)

        def ask(prompt: str) -> None:
            answers[prompt] = asked.query(prompt, None).response

        threads = [threading.Thread(target=ask, args=(f"p{i}",)) for i in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == {f"p{i}": f"re: p{i}" for i in range(20)}
