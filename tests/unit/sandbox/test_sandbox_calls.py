"""``llm_query()`` in a cell, answered by a callable of this process, over HTTP and the pipe."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from rlm_containers import Sandbox
from rlm_containers.lm import CallableBackend, LMBroker
from runtimes import HostRoute
from tests.unit.guests import LocalRuntime
from tests.unit.sessions import Boxes, run

MAX_FRAME = 64 * 1024 * 1024


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_whatever_the_callable_raises_the_cell_gets_an_answer(
    boxes: Boxes, route: str, error: type[BaseException]
) -> None:
    def fail(prompt: str) -> str:
        raise error("enough")

    box = boxes(lm=fail)
    assert run(box, "print(llm_query('x')[:7])").stdout == "Error: \n"
    assert run(box, "print(llm_query_batched(['x', 'y'])[1][:7])").stdout == "Error: \n"


@pytest.mark.parametrize("response", [None, 5, b"bytes", object()])
def test_whatever_a_subcall_returns_the_cell_gets_an_answer(
    boxes: Boxes, route: str, response: Any
) -> None:
    done = SimpleNamespace(response=response, root_model="m", execution_time=0.1)
    box = boxes(lm=LMBroker(None, lambda prompt, model: done))
    assert run(box, "print(type(rlm_query('x')).__name__)").stdout == "str\n"


def test_an_answer_that_is_too_large_is_an_error(boxes: Boxes) -> None:
    box = boxes(lm=lambda prompt: "x" * MAX_FRAME)
    assert box.lm_route == "pipe"
    assert run(box, "print(llm_query('x')[:7])").stdout == "Error: \n"


def test_where_the_proxy_cannot_be_reached_the_pipe_is_used_and_it_is_said(
    boxes: Boxes, local: LocalRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    local.route = HostRoute(bind="127.0.0.1", address=None)  # no such alias on this host
    with caplog.at_level(logging.WARNING, logger="rlm_containers"):
        box = boxes(lm=str.upper)
    assert box.lm_route == "pipe"
    assert "does not reach the proxy" in caplog.text
    assert run(box, "print(llm_query('x'))").stdout == "X\n"


def test_where_the_proxy_cannot_listen_the_pipe_is_used_and_it_is_said(
    boxes: Boxes, local: LocalRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    local.route = HostRoute(bind="192.0.2.1", address=None)
    with caplog.at_level(logging.WARNING, logger="rlm_containers"):
        box = boxes(lm=str.upper)
    assert box.lm_route == "pipe"
    assert "cannot listen on 192.0.2.1" in caplog.text


def test_the_caller_can_pass_a_broker(boxes: Boxes) -> None:
    broker = LMBroker(CallableBackend(str.upper))
    box: Sandbox = boxes(lm=broker)
    assert box.broker is broker
    assert run(box, "print(llm_query('x'))").stdout == "X\n"
    broker.backend = CallableBackend(str.title)  # as for the next completion
    assert run(box, "print(llm_query('xyz'))").stdout == "Xyz\n"
