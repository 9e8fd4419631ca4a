"""Scripted models as clients of rlms."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from rlm.clients.base_lm import BaseLM
from rlm.core.types import ModelUsageSummary, UsageSummary

Prompt = str | dict[str, Any] | list[dict[str, Any]]


def repl(code: str) -> str:
    """Return a model's message with one cell."""
    return f"```repl\n{code}\n```"


class _CountingLM(BaseLM):
    """Counts its calls, because rlms asks for its usage."""

    def __init__(self, model_name: str) -> None:
        super().__init__(model_name=model_name)
        self.prompts: list[Prompt] = []
        self._lock = threading.Lock()

    def _answer(self, prompt: Prompt) -> str:
        raise NotImplementedError

    def completion(self, prompt: Prompt) -> str:
        with self._lock:
            self.prompts.append(prompt)
        return self._answer(prompt)

    async def acompletion(self, prompt: Prompt) -> str:
        return self.completion(prompt)

    def get_usage_summary(self) -> UsageSummary:
        return UsageSummary(model_usage_summaries={self.model_name: self.get_last_usage()})

    def get_last_usage(self) -> ModelUsageSummary:
        calls = len(self.prompts)
        return ModelUsageSummary(
            total_calls=calls, total_input_tokens=calls, total_output_tokens=calls
        )


class ScriptedLM(_CountingLM):
    """Answers with the lines of its script, one after the other."""

    def __init__(self, *script: str, model_name: str = "scripted") -> None:
        super().__init__(model_name)
        self._script = list(script)

    def _answer(self, prompt: Prompt) -> str:
        with self._lock:
            return self._script.pop(0)


class EchoLM(_CountingLM):
    """Answers every prompt by a function."""

    def __init__(self, function: Callable[[str], str], model_name: str = "echo") -> None:
        super().__init__(model_name)
        self._function = function

    def _answer(self, prompt: Prompt) -> str:
        return self._function(str(prompt))
