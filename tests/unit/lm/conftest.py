"""A proxy, and what answers its requests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from rlm_containers.lm import LMProxy


class Asked:
    """Answers requests when it is let, and records them."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.requests: list[object] = []
        self.arrived = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self, path: str, request: object) -> dict[str, Any]:
        self.paths.append(path)
        self.requests.append(request)
        answer = f"answer {len(self.requests)}"
        self.arrived.release()
        assert self.go_on.wait(30)
        return {"response": answer}


@pytest.fixture
def asked() -> Iterator[Asked]:
    asked = Asked()
    yield asked
    asked.go_on.set()


@pytest.fixture
def proxy(asked: Asked) -> Iterator[LMProxy]:
    proxy = LMProxy("127.0.0.1", asked)
    yield proxy
    asked.go_on.set()
    proxy.close()
