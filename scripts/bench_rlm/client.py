"""A language model that answers at once, so that only the way to it is measured."""

from __future__ import annotations

from typing import Any

from rlm.clients.base_lm import BaseLM
from rlm.core.types import ModelUsageSummary, UsageSummary

__all__ = ["InstantClient"]


class InstantClient(BaseLM):
    """A client of rlms's that answers ``ping`` with ``re: ping``."""

    def __init__(self) -> None:
        super().__init__(model_name="instant")

    def completion(self, prompt: str | dict[str, Any]) -> str:
        """The answer."""
        return f"re: {prompt}"

    async def acompletion(self, prompt: str | dict[str, Any]) -> str:
        """The answer."""
        return self.completion(prompt)

    def get_last_usage(self) -> ModelUsageSummary:
        """Nothing was used."""
        return ModelUsageSummary(total_calls=1, total_input_tokens=0, total_output_tokens=0)

    def get_usage_summary(self) -> UsageSummary:
        """Nothing was used."""
        return UsageSummary(model_usage_summaries={self.model_name: self.get_last_usage()})
