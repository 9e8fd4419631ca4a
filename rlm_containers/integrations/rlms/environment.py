"""The drop-in for rlms: ``RLM(environment="docker")`` runs in this project's containers.

Written against rlms 0.1.3.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import rlm.core.rlm
import rlm.environments
from rlm.core.lm_handler import LMHandler
from rlm.core.types import ModelUsageSummary, REPLResult, RLMChatCompletion, UsageSummary
from rlm.environments.base_env import NonIsolatedEnv, validate_custom_tools

from rlm_containers.interpreter import CellResult, LMCall
from rlm_containers.lm import note_handler
from rlm_containers.repl import ContainerREPL
from rlm_containers.sandbox import Sandbox


class ContainerEnvironment(ContainerREPL, NonIsolatedEnv):
    """:class:`ContainerREPL` as an environment of rlms, with results of rlms's types.

    Takes the arguments of ``ContainerREPL``. Satisfies rlms's ``SupportsPersistence`` and
    ``SupportsCustomTools``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # rlms's base class is not initialized: ContainerREPL keeps the same attributes.
        self.kwargs: dict[str, Any] = {}
        validate_custom_tools(kwargs.get("custom_tools"))
        ContainerREPL.__init__(self, *args, **kwargs)

    def execute_code(self, code: str) -> ContainerResult:  # type: ignore[override]
        """Run a cell and return its result as rlms's ``REPLResult``."""
        return ContainerResult(super().execute_code(code), self.sandbox)

    async def aexecute_code(self, code: str) -> ContainerResult:  # type: ignore[override]
        """Run a cell as :meth:`execute_code` does, without blocking the event loop."""
        return ContainerResult(await super().aexecute_code(code), self.sandbox)


class ContainerResult(REPLResult):
    """rlms's ``REPLResult``, with the figures that the cell made.

    Attributes:
        artifacts: the figures, see :class:`~rlm_containers.CellResult`.
        sandbox: has their files, see :meth:`~rlm_containers.Sandbox.get_file`.
    """

    def __init__(self, result: CellResult, sandbox: Sandbox) -> None:
        vars(self).update(vars(repl_result(result)))
        self.artifacts = result.artifacts
        self.sandbox = sandbox


def repl_result(result: CellResult) -> REPLResult:
    """Convert a cell's result to rlms's ``REPLResult``."""
    return REPLResult(
        stdout=result.stdout,
        stderr=result.stderr,
        locals=dict(result.locals),
        execution_time=result.execution_time,
        rlm_calls=[chat_completion(call) for call in result.lm_calls],
        final_answer=result.final_answer,
    )


def chat_completion(call: LMCall) -> RLMChatCompletion:
    """Convert a call to rlms's ``RLMChatCompletion``, which its logger and its usage take."""
    if isinstance(call.completion, RLMChatCompletion):
        return call.completion
    if isinstance(call.completion, dict):
        usage = call.completion.get("usage_summary") or {}
        return RLMChatCompletion.from_dict({**call.completion, "usage_summary": usage})
    model = call.model or "unknown"
    counted = ModelUsageSummary(total_calls=1, total_input_tokens=0, total_output_tokens=0)
    return RLMChatCompletion(
        root_model=model,
        prompt=call.prompt,  # type: ignore[arg-type]  # rlms passes lists as well
        response=call.response,
        usage_summary=UsageSummary(model_usage_summaries={model: counted}),
        execution_time=call.execution_time,
    )


def register() -> None:
    """Make rlms use :class:`ContainerEnvironment` for ``environment="docker"``.

    The children of recursive calls use it too. Calling it again changes nothing.
    """
    original: Callable[..., Any] = rlm.environments.get_environment
    if getattr(original, "replaced_by_rlm_containers", False):
        return

    def get_environment(environment: str, environment_kwargs: dict[str, Any]) -> Any:
        if environment == "docker":
            return ContainerEnvironment(**environment_kwargs)
        return original(environment, environment_kwargs)

    get_environment.replaced_by_rlm_containers = True  # type: ignore[attr-defined]
    # rlms has no registry. Its RLM class finds the function in its own module, which imported it.
    for module in (rlm.environments, rlm.core.rlm):
        vars(module)["get_environment"] = get_environment


def _note_handlers() -> None:
    """Note each LM Handler that starts from now on, so that it is called without its socket."""
    original = LMHandler.start

    @functools.wraps(original)
    def start(self: LMHandler) -> tuple[str, int]:
        address = original(self)
        note_handler(self, address)
        return address

    LMHandler.start = start  # type: ignore[method-assign]


_note_handlers()
