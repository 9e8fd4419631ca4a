"""Recursive language models of rlms whose cells run in containers.

Nothing outside this package imports rlms.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlm_containers.integrations.rlms.completion import Completion, Model
    from rlm_containers.integrations.rlms.environment import (
        ContainerEnvironment,
        ContainerResult,
        register,
    )
    from rlm_containers.integrations.rlms.page import render_report, write_report
    from rlm_containers.integrations.rlms.trajectory import (
        Figure,
        ModelUsage,
        Trajectory,
        TrajectoryCall,
        TrajectoryCell,
        Turn,
    )

__all__ = [
    "Completion",
    "ContainerEnvironment",
    "ContainerResult",
    "Figure",
    "Model",
    "ModelUsage",
    "Trajectory",
    "TrajectoryCall",
    "TrajectoryCell",
    "Turn",
    "register",
    "render_report",
    "write_report",
]

#: Maps each name to its module, which is imported with the first use. All others are of trajectory.
_MODULES = {
    "Completion": "completion",
    "ContainerEnvironment": "environment",
    "ContainerResult": "environment",
    "Model": "completion",
    "register": "environment",
    "render_report": "page",
    "write_report": "page",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _MODULES.get(name, "trajectory")
    return getattr(import_module(f"{__name__}.{module}"), name)
