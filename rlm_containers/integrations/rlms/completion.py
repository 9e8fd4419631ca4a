"""Asks an RLM of rlms one question, with any of its backends, and records what it does.

Keys come from environment variables only: any local user can read a process's arguments, and a file
may be committed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, get_args
from urllib.parse import urlsplit, urlunsplit

from rlm import RLM
from rlm.core.types import ClientBackend, RLMChatCompletion
from rlm.utils.exceptions import CancellationError

from rlm_containers.errors import CompletionError, ContainersError, OptionError
from rlm_containers.integrations.rlms.environment import register
from rlm_containers.integrations.rlms.recorder import Recorder, usage_of
from rlm_containers.integrations.rlms.trajectory import Trajectory, Turn
from rlm_containers.options import SandboxOptions, configured_options
from rlm_containers.sandbox import Context

#: The backends of rlms.
BACKENDS: tuple[str, ...] = get_args(ClientBackend)

_KEYS = {
    "anthropic": "ANTHROPIC_API_KEY",
    "azure_openai": "AZURE_OPENAI_API_KEY",
    "gemini": "GEMINI_API_KEY",
    "openai": "OPENAI_API_KEY",
    "openrouter": "OPENROUTER_API_KEY",
    "portkey": "PORTKEY_API_KEY",
    "vercel": "AI_GATEWAY_API_KEY",
    "vllm": "VLLM_API_KEY",
}

# The key that vLLM's documentation gives clients of a server that asks for none.
_NO_KEY = "EMPTY"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A language model, and where it is served.

    Attributes:
        name: the model's name at its backend.
        backend: one of rlms's backends, such as ``"openai"``.
        base_url: the address of another server with the backend's protocol.
    """

    name: str
    backend: str = "openai"
    base_url: str | None = None

    @property
    def key_variable(self) -> str:
        """The environment variable that holds the key."""
        return _KEYS.get(self.backend, f"{self.backend.upper()}_API_KEY")

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of rlms's client.

        Raises:
            OptionError: there is no such backend, or its key or address is missing.
        """
        if self.backend not in BACKENDS:
            raise OptionError(
                f"There is no backend {self.backend!r}.",
                remedy=f"There are: {', '.join(BACKENDS)}.",
            )
        key = os.environ.get(self.key_variable)
        if key is None and self.base_url is None:
            raise OptionError(
                f"The backend {self.backend} needs a key, and {self.key_variable} is not set.",
                remedy=f"Set {self.key_variable} in the environment, or name a server that needs "
                "none with --base-url.",
            )
        if self.backend == "vllm" and self.base_url is None:
            raise OptionError(
                "The backend vllm needs the address of its server.",
                remedy="For instance --base-url http://localhost:8000/v1.",
            )
        arguments: dict[str, Any] = {"model_name": self.name, "api_key": key or _NO_KEY}
        if self.base_url is not None:
            where = "azure_endpoint" if self.backend == "azure_openai" else "base_url"
            arguments[where] = self.base_url
        return arguments

    def describe(self) -> str:
        """Return the backend and its server, for people. No password is in it."""
        if self.base_url is None:
            return self.backend
        parts = urlsplit(self.base_url)
        address = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))
        return f"{self.backend} at {address}"


class Completion:
    """Asks an RLM one question. Its cells run in a container.

    Args:
        question: the question.
        context: the text or data to look into; without it, the question is the context.
        model: the root model.
        sub_model: answers ``llm_query()`` in cells; the root model by default.
        options: options of the sandbox.
        on_turn: called after each turn.
        limits: further arguments of ``rlm.RLM``: ``max_iterations``, ``max_timeout`` (seconds),
            ``max_budget`` (US dollars), ``max_tokens``, ``max_errors``, ``max_depth``.

    Raises:
        OptionError: a backend or its key is missing.
    """

    def __init__(
        self,
        question: str,
        context: Context | None = None,
        *,
        model: Model,
        sub_model: Model | None = None,
        options: Mapping[str, Any] | None = None,
        on_turn: Callable[[Turn], None] | None = None,
        **limits: Any,
    ) -> None:
        register()
        self._context = context
        self._model = model
        self._sub_model = sub_model
        self._recorder = Recorder(on_turn)
        self._start: float | None = None
        self._trajectory = Trajectory(
            model=model.name,
            turns=(),
            question=question,
            context=_describe_context(context),
            backend=model.describe(),
            environment=_describe_environment(configured_options(options or {}), sub_model),
        )
        others: dict[str, Any] = {}
        if sub_model is not None:
            others["other_backends"] = [sub_model.backend]
            others["other_backend_kwargs"] = [sub_model.arguments()]
        self._rlm = RLM(
            backend_kwargs=model.arguments(),
            backend=model.backend,  # type: ignore[arg-type]  # checked by arguments()
            environment="docker",
            environment_kwargs=dict(options or {}),
            logger=self._recorder,
            **others,
            **limits,
        )

    @property
    def trajectory(self) -> Trajectory:
        """What the RLM has done so far."""
        took = self._trajectory.seconds
        if not took and self._start is not None:
            took = time.perf_counter() - self._start
        return replace(self._trajectory, turns=tuple(self._recorder.turns), seconds=took)

    def run(self) -> Trajectory:
        """Ask, and wait for the answer.

        Returns:
            The trajectory, with its ``answer``.

        Raises:
            CompletionError: the model failed, or a limit was reached.
            ContainersError: the sandbox could not start, or was lost.
            KeyboardInterrupt: the user pressed Ctrl-C.
        """
        self._start = time.perf_counter()
        self._trajectory = replace(self._trajectory, started=datetime.now(UTC))
        try:
            done = self._complete()
        except (CancellationError, KeyboardInterrupt):
            self._end(error="It was interrupted.")
            raise KeyboardInterrupt from None
        except ContainersError as error:
            self._end(error=error.what)
            raise
        except Exception as error:
            why = _without_keys(f"{type(error).__name__}: {error}", self._model, self._sub_model)
            self._end(error=why)
            partial = getattr(error, "partial_answer", None)
            raise CompletionError(
                f"There is no answer. {why}",
                partial_answer=partial if isinstance(partial, str) else None,
            ) from None
        finally:
            self._rlm.close()
        self._end(answer=done.response, usage=usage_of(done.usage_summary))
        return self.trajectory

    def _complete(self) -> RLMChatCompletion:
        if self._context is None:
            return self._rlm.completion(self._trajectory.question)
        # rlms passes lists as well.
        context: Any = self._context
        return self._rlm.completion(context, root_prompt=self._trajectory.question)

    def _end(self, **outcome: Any) -> None:
        assert self._start is not None
        took = time.perf_counter() - self._start
        self._trajectory = replace(self._trajectory, seconds=took, **outcome)


def _describe_context(context: Context | None) -> tuple[tuple[str, int], ...]:
    if context is None:
        return ()
    if isinstance(context, str):
        return (("context", len(context)),)
    named = context.items() if isinstance(context, dict) else enumerate(context)
    return tuple(
        (str(name), len(value) if isinstance(value, str) else len(json.dumps(value)))
        for name, value in named
    )


def _describe_environment(
    options: SandboxOptions, sub_model: Model | None
) -> tuple[tuple[str, str], ...]:
    shown = {"image": options.image}
    if options.packages:
        shown["packages"] = ", ".join(options.packages)
    if options.runtime:
        shown["engine"] = str(options.runtime)
    if sub_model is not None:
        shown["sub-model"] = f"{sub_model.name} ({sub_model.describe()})"
    return tuple(shown.items())


def _without_keys(text: str, *models: Model | None) -> str:
    """Remove keys from an error: a server may quote a key that it refuses."""
    for model in models:
        key = os.environ.get(model.key_variable) if model else None
        if key:
            text = text.replace(key, "…")
    return text
