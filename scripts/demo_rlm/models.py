"""Which model plays which part: one behind an API key both, or a script and an embedded one."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import rlm.clients  # noqa: F401  (it reads a .env file, if there is one, into the environment)

from demo_rlm import embedded

SCRIPTED = "scripted"


@dataclass(frozen=True)
class Part:
    """A backend as RLM names it, what it is constructed with, and how the demo speaks of it."""

    backend: str
    kwargs: dict[str, Any] = field(repr=False)  # it may hold a key
    words: str = ""


@dataclass(frozen=True)
class Cast:
    """The root model writes the cells; the sub-model answers what the cells ask."""

    root: Part
    sub: Part

    @property
    def scripted(self) -> bool:
        return self.root.backend == SCRIPTED


# The variable that holds the key, RLM's name of the backend, the model unless RLM_DEMO_MODEL says.
_KEYS = (
    ("OPENAI_API_KEY", "openai", "gpt-5-mini"),
    ("ANTHROPIC_API_KEY", "anthropic", "claude-sonnet-4-5"),
    ("GEMINI_API_KEY", "gemini", "gemini-2.5-flash"),
    ("OPENROUTER_API_KEY", "openrouter", "openai/gpt-5-mini"),
    ("AI_GATEWAY_API_KEY", "vercel", "openai/gpt-5-mini"),
    ("PORTKEY_API_KEY", "portkey", "@openai/gpt-5-mini"),
    ("AZURE_OPENAI_API_KEY", "azure_openai", "gpt-5-mini"),
)
KEY_NAMES = tuple(name for name, _, _ in _KEYS)


def from_key() -> Cast | None:
    """The model behind the first API key that the environment holds."""
    for variable, backend, default in _KEYS:
        if key := os.environ.get(variable):
            model = os.environ.get("RLM_DEMO_MODEL") or default
            part = Part(
                backend,
                {"model_name": model, "api_key": key},
                f"{model} ({backend}, with the key in {variable})",
            )
            return Cast(part, part)
    return None


def redacted(words: str) -> str:
    """The same words without any API key: a provider's error message may quote it."""
    for name in KEY_NAMES:
        if key := os.environ.get(name):
            words = words.replace(key, f"<{name}>")
    return words


def embedded_cast(model: embedded.EmbeddedModel) -> Cast:
    """The script for the cells, the embedded model for the sub-calls."""
    sub = {
        "model_name": embedded.NAME,
        "base_url": model.base_url,
        "api_key": model.api_key,
        "max_retries": 0,
        # One sentence is asked for: the most likely one, and nothing after its line.
        "sampling_args": {"temperature": 0.0, "max_tokens": 48, "stop": ["\n"]},
    }
    return Cast(
        Part(SCRIPTED, {}, "a script, no model: it reads each output and writes the next cell"),
        Part(
            "openai",
            sub,
            f"{embedded.NAME}, a real but very small model ({model.megabytes} MB), on this "
            "machine's CPU",
        ),
    )
