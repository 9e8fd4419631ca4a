"""Records the turns of an RLM as parts of a Trajectory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from rlm.core.types import RLMIteration, UsageSummary
from rlm.logger import RLMLogger

from rlm_containers.errors import ContainersError
from rlm_containers.integrations.rlms.environment import ContainerResult
from rlm_containers.integrations.rlms.trajectory import (
    Figure,
    ModelUsage,
    Trajectory,
    TrajectoryCall,
    TrajectoryCell,
    Turn,
)
from runtimes.text import get_logger

logger = get_logger("rlm_containers")

#: The most bytes of a figure that is kept for the report.
_LARGEST_FIGURE = 10 * 1024**2


class Recorder(RLMLogger):
    """A logger of rlms that records the turns of the root model.

    Args:
        on_turn: called after each turn.

    Attributes:
        turns: the turns so far.
    """

    def __init__(self, on_turn: Callable[[Turn], None] | None) -> None:
        super().__init__()
        self.turns: list[Turn] = []
        self._on_turn = on_turn

    def log(self, iteration: RLMIteration) -> None:
        """Record one turn. rlms calls this."""
        super().log(iteration)
        figures = [_figures(block.result) for block in iteration.code_blocks]
        raw: dict[str, Any] = iteration.to_dict()  # type: ignore[no-untyped-call]
        turn = _turn(raw, figures)
        self.turns.append(turn)
        if self._on_turn is not None:
            self._on_turn(turn)


def _figures(result: object) -> tuple[Figure, ...]:
    """Fetch the pictures of a result now, while their files exist."""
    if not isinstance(result, ContainerResult):
        return ()
    found = []
    for artifact in result.artifacts:
        try:
            data = result.sandbox.get_file(artifact.path, max_size=_LARGEST_FIGURE)
        except ContainersError as error:
            logger.warning("%s is not in the report: %s", artifact.path, error)
            continue
        found.append(Figure(name=artifact.path, mime_type=artifact.mime_type, data=data))
    return tuple(found)


def _turn(raw: Mapping[str, Any], figures: list[tuple[Figure, ...]] | None = None) -> Turn:
    blocks = raw.get("code_blocks") or []
    return Turn(
        response=str(raw.get("response") or ""),
        seconds=float(raw.get("iteration_time") or 0.0),
        cells=tuple(
            _cell(block, figures[number] if figures else ()) for number, block in enumerate(blocks)
        ),
    )


def _cell(block: Mapping[str, Any], figures: tuple[Figure, ...]) -> TrajectoryCell:
    result = block.get("result") or {}
    return TrajectoryCell(
        code=str(block.get("code") or ""),
        stdout=str(result.get("stdout") or ""),
        stderr=str(result.get("stderr") or ""),
        seconds=float(result.get("execution_time") or 0.0),
        variables={str(name): str(form) for name, form in (result.get("locals") or {}).items()},
        calls=tuple(_call(call) for call in result.get("rlm_calls") or ()),
        figures=figures,
    )


def _call(raw: Mapping[str, Any]) -> TrajectoryCall:
    prompt, metadata = raw.get("prompt"), raw.get("metadata")
    model = str(raw.get("root_model") or "unknown")
    inner = None
    if isinstance(metadata, dict) and metadata.get("iterations"):
        inner = Trajectory(
            model=model,
            turns=tuple(_turn(iteration) for iteration in metadata["iterations"]),
            answer=str(raw.get("response") or ""),
            seconds=float(raw.get("execution_time") or 0.0),
        )
    return TrajectoryCall(
        model=model,
        prompt=prompt if isinstance(prompt, str) else json.dumps(prompt, indent=2),
        response=str(raw.get("response") or ""),
        seconds=float(raw.get("execution_time") or 0.0),
        trajectory=inner,
    )


def usage_of(summary: UsageSummary) -> tuple[ModelUsage, ...]:
    """Return what each model has used, as rlms counted it."""
    return tuple(
        ModelUsage(
            model=model,
            calls=used.total_calls,
            input_tokens=used.total_input_tokens,
            output_tokens=used.total_output_tokens,
            cost=used.total_cost,
        )
        for model, used in summary.model_usage_summaries.items()
    )
